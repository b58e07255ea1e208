// The pinned subgraph with its tools.

import { enlargeButton } from "./areas.js";
import { button, toggle } from "./controls.js";
import { h, replace } from "./dom.js";
import { groupMaker } from "./group_maker.js";

export const panel = {
  id: "circuit",
  title: "Circuit",
  area: "subgraph",
  fields: { edgeNumbers: { initial: () => true, address: "percent", read: (text) => text !== "false" } },
  first: ({ store }) => store.state.groups.length > 0,
  mount(root, page) {
    root.classList.add("barred");
    const bar = h("div", { class: "bar" });
    replace(bar, h("h2", {}, "Circuit"), subgraphBar(page), enlargeButton());
    root.append(bar, page.subgraph.element);
    return { focus: () => (root.querySelector(".box") ?? root.parentElement).focus() };
  },
};

/** Tools. */
function subgraphBar(page) {
  const { store, actions, subgraph } = page;
  const group = h("button", {
    class: "small",
    title: "Choose nodes and make them one group (G)",
    "data-testid": "group",
    on: { click: () => (store.state.collecting ? actions.finishCollecting() : actions.startCollecting()) },
  });
  const numbers = toggle("Percent", "edge-numbers", store.state.edgeNumbers, (on) => store.set({ edgeNumbers: on }));
  numbers.title = "Of what a box receives, the share that a link brings; green raises it, purple lowers it";
  const clear = h(
    "button",
    { class: "small", "data-testid": "unpin-all", on: { click: () => actions.unpinAll() } },
    "Clear",
  );
  const tidy = h(
    "button",
    { class: "small", title: "Forget the places chosen by hand", on: { click: () => store.set({ positions: {} }) } },
    "Tidy",
  );
  const hint = h("span", { class: "quiet", role: "status", "data-testid": "circuit-hint" });
  const maker = groupMaker(page);
  const update = () => {
    const { collecting, pinned, groups, offer } = store.state;
    group.textContent = collecting ? (collecting.length > 1 ? `Group these ${collecting.length}` : "Cancel") : "Group";
    group.setAttribute("aria-pressed", String(collecting !== null));
    const named = groups.length ? ` in ${groups.length} group${groups.length > 1 ? "s" : ""}` : "";
    hint.textContent = collecting ? "Choose the nodes of the group" : `${pinned.length} pinned${named}`;
    clear.disabled = group.disabled = pinned.length === 0 && !collecting;
    numbers.querySelector("input").checked = store.state.edgeNumbers;
    for (const element of [hint, group, tidy, clear]) element.hidden = offer !== null;
  };
  store.subscribe(update);
  update();
  const zoom = h(
    "span",
    { class: "buttons" },
    button("\u2212", "Zoom the subgraph out", () => subgraph.zoom(1 / 1.25)),
    button("Fit", "Show the whole subgraph", () => subgraph.zoom(null)),
    button("+", "Zoom the subgraph in", () => subgraph.zoom(1.25)),
  );
  return [hint, subgraph.sign, h("span", { class: "spacer" }), numbers, maker, group, tidy, clear, zoom];
}
