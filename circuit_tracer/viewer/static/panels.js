// The page's four panels: beside each other with movable borders, or one at a time on a narrow screen.

import { h } from "./dom.js";

const NARROW = "(max-width: 760px)";

/** Borders between panels that mouse and arrow keys move. */
export function addBorders(main) {
  for (const [name, axis, label] of [
    ["--right-width", "x", "Width of the right column"],
    ["--lower-height", "y", "Height of the lower panels"],
  ]) {
    const border = h("div", {
      class: `border ${axis}`,
      role: "separator",
      tabindex: 0,
      "aria-label": label,
      "aria-orientation": axis === "x" ? "vertical" : "horizontal",
      "aria-valuemin": 15,
      "aria-valuemax": 75,
      "aria-valuenow": axis === "x" ? 28 : 40,
    });
    const set = (share) => {
      const clamped = Math.max(15, Math.min(75, share));
      main.style.setProperty(name, `${clamped}%`);
      border.setAttribute("aria-valuenow", String(Math.round(clamped)));
    };
    border.addEventListener("pointerdown", (event) => {
      if (event.button === 0) border.setPointerCapture(event.pointerId);
    });
    border.addEventListener("pointermove", (event) => {
      if (!border.hasPointerCapture(event.pointerId)) return;
      const box = main.getBoundingClientRect();
      set(
        axis === "x"
          ? (100 * (box.right - event.clientX)) / box.width
          : (100 * (box.bottom - event.clientY)) / box.height,
      );
    });
    border.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: 2, ArrowUp: 2, ArrowRight: -2, ArrowDown: -2 }[event.key];
      if (!step) return;
      set(Number(border.getAttribute("aria-valuenow")) + step);
      event.preventDefault();
      event.stopPropagation();
    });
    main.append(border);
  }
}

/**
 * Tabs over panels: {element, select(number)}. tabs: [label, panel element, test id]. `host` holds the panels.
 */
export function makeTabs(label, tabs, onSelect = () => {}) {
  const buttons = tabs.map(([text, panel, id], number) => {
    panel.id ||= `panel-${id}`;
    const tab = h(
      "button",
      {
        role: "tab",
        id: `tab-${id}`,
        "aria-controls": panel.id,
        "data-testid": `tab-${id}`,
        on: { click: () => select(number) },
      },
      text,
    );
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-labelledby", tab.id);
    return tab;
  });
  const element = h("div", { class: "tabs", role: "tablist", "aria-label": label }, buttons);
  element.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const next = (buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length;
    select(next);
    buttons[next].focus();
    event.stopPropagation();
  });
  function select(number) {
    buttons.forEach((tab, at) => {
      tab.setAttribute("aria-selected", String(at === number));
      tab.tabIndex = at === number ? 0 : -1;
      tabs[at][1].hidden = at !== number;
    });
    onSelect(number);
  }
  select(0);
  return { element, select };
}

/** On a narrow screen a bar at the bottom chooses the one panel that is shown. */
export function narrowBar(main, panels) {
  const buttons = panels.map(([text, panel], number) =>
    h(
      "button",
      { "data-testid": `narrow-${number}`, "aria-pressed": "false", on: { click: () => show(number) } },
      text,
    ),
  );
  function show(number) {
    panels.forEach(([, panel], at) => {
      panel.classList.toggle("current", at === number);
      buttons[at].setAttribute("aria-pressed", String(at === number));
    });
  }
  show(0);
  return { element: h("nav", { class: "narrow-bar", "aria-label": "Panels" }, buttons), show };
}

/** Let the panel around an element fill the page, or all panels come back. */
export function enlargePanel(element) {
  const panel = element?.closest(".panel");
  const was = document.querySelector(".panel.large");
  was?.classList.remove("large");
  if (panel && panel !== was) panel.classList.add("large");
}

export const isNarrow = () => matchMedia(NARROW).matches;
