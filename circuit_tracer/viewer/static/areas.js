// The page's areas: beside each other with movable borders, or one at a time on a narrow screen. Each shows its panels, one
// alone or several under tabs.

import { h } from "./dom.js";

const NARROW = "(max-width: 760px)";

/** id: what a panel names to be shown there. title: what the area is called aloud. short: its name on a narrow screen. */
export const AREAS = [
  { id: "graph", title: "Link graph", short: "Graph" },
  { id: "subgraph", title: "Pinned subgraph", short: "Circuit" },
  { id: "lists", title: "Lists", short: "Links" },
  { id: "feature", title: "Feature", short: "Feature" },
];

/** Mounted panels and what can be done with them as a whole. */
export class Areas {
  /** panels: of the table in panels.js, those that this page has. context: what each is mounted with. areas: those of the page. */
  constructor(panels, context, areas = AREAS) {
    const lost = panels.filter((panel) => !areas.some(({ id }) => id === panel.area));
    if (lost.length) throw new Error(`the page has no area ${lost[0].area}, where the panel ${lost[0].id} is to stand`);
    const mounted = panels.map((panel) => mount(panel, context));
    this.areas = areas.map((area) => new Area(area, mounted.filter(({ panel }) => panel.area === area.id)));
    this.element = h(
      "main",
      {},
      this.areas.map(({ element }) => element),
    );
    addBorders(this.element);
    this.narrow = narrowBar(this.areas);
  }

  /** The element that a panel fills. */
  root(id) {
    return this._of(id).member(id).root;
  }

  /** {panel, root} that an area shows. */
  shown(areaId) {
    return this.areas.find(({ id }) => id === areaId).shown;
  }

  /** Show a panel in its area. */
  select(id) {
    this._of(id).select(id);
  }

  /** The same, and on a narrow screen show the area. */
  open(id) {
    this.narrow.show(this.areas.indexOf(this._of(id)));
    this.select(id);
  }

  /** Put the area of a panel, if it is that of the circuit, into the upper, larger row, and the graph below. */
  favour(id) {
    if (this._of(id).id === "subgraph") this.element.classList.add("circuit-first");
  }

  /** Go to an area by its number. */
  focus(number) {
    this.narrow.show(number);
    this.areas[number].focus();
  }

  _of(id) {
    return this.areas.find((area) => area.member(id));
  }
}

/** One area: its only panel, or tabs over several. */
class Area {
  constructor({ id, title, short }, members) {
    Object.assign(this, { id, short: members[0]?.panel.short ?? short, members, shown: members[0] });
    this.tabs = members.length > 1 ? makeTabs(title, members, (number) => (this.shown = members[number])) : null;
    this.element = h(
      "section",
      { class: `panel ${id}-panel`, "aria-label": title, tabindex: -1 },
      this.tabs?.element,
      members.map(({ root }) => root),
    );
  }

  member(id) {
    return this.members.find(({ panel }) => panel.id === id);
  }

  select(id) {
    this.tabs?.select(this.members.indexOf(this.member(id)));
  }

  focus() {
    const tab = this.element.querySelector("[role=tab][aria-selected=true]");
    if (tab) tab.focus();
    else if (this.shown.view?.focus) this.shown.view.focus();
    else this.element.focus();
  }
}

/** {panel, root, view}: a panel in an element of its own, drawn now and again when a field changes that it looks at. */
function mount(panel, context) {
  const root = h("div", { class: `pane ${panel.id}-pane`, "data-testid": panel.id });
  const view = panel.mount(root, context) ?? {};
  const update = (state, changed) => view.update?.(state, changed);
  context.store.subscribe((state, changed) => {
    if (panel.on?.some((name) => changed.has(name))) update(state, changed);
  });
  update(context.store.state, new Set(panel.on));
  return { panel, root, view };
}

/** Borders between panels that mouse and arrow keys move. */
function addBorders(main) {
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

/** Tabs over mounted panels: {element, select(number)}. */
function makeTabs(label, members, onSelect) {
  const buttons = members.map(({ panel: { id, title }, root }, number) => {
    root.id = `panel-${id}`;
    const tab = h(
      "button",
      {
        role: "tab",
        id: `tab-${id}`,
        "aria-controls": root.id,
        "data-testid": `tab-${id}`,
        on: { click: () => select(number) },
      },
      title,
    );
    root.setAttribute("role", "tabpanel");
    root.setAttribute("aria-labelledby", tab.id);
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
      members[at].root.hidden = at !== number;
    });
    onSelect(number);
  }
  select(0);
  return { element, select };
}

/** On a narrow screen a bar at the bottom chooses the one area that is shown. */
function narrowBar(areas) {
  const buttons = areas.map(({ short }, number) =>
    h(
      "button",
      { "data-testid": `narrow-${number}`, "aria-pressed": "false", on: { click: () => show(number) } },
      short,
    ),
  );
  function show(number) {
    areas.forEach(({ element }, at) => {
      element.classList.toggle("current", at === number);
      buttons[at].setAttribute("aria-pressed", String(at === number));
    });
  }
  show(0);
  return { element: h("nav", { class: "narrow-bar", "aria-label": "Panels" }, buttons), show };
}

/** Let the area around an element fill the page, or all areas come back. */
export function enlargeArea(element) {
  const panel = element?.closest(".panel");
  const was = document.querySelector(".panel.large");
  was?.classList.remove("large");
  if (panel && panel !== was) panel.classList.add("large");
}

/** A button for the bar of a panel that does so. */
export function enlargeButton() {
  const title = "Enlarge this panel, or back (F)";
  const attributes = { class: "small", title, "aria-label": title, "data-testid": "enlarge" };
  return h("button", { ...attributes, on: { click: (event) => enlargeArea(event.target) } }, "\u2922");
}

export const isNarrow = () => matchMedia(NARROW).matches;
