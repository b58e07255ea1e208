// The pinned subgraph with its tools.

import { enlargeButton } from "./areas.js";
import { button, toggle } from "./controls.js";
import { h } from "./dom.js";

export const panel = {
  id: "circuit",
  title: "Circuit",
  area: "subgraph",
  fields: { edgeNumbers: { initial: () => false, address: "percent", read: (text) => text === "true" } },
  mount(root, page) {
    root.classList.add("barred");
    root.append(
      h("div", { class: "bar" }, h("h2", {}, "Circuit"), subgraphBar(page), enlargeButton()),
      page.subgraph.element,
    );
    return { focus: () => (root.querySelector(".box") ?? root.parentElement).focus() };
  },
};

/** Tools. */
function subgraphBar({ store, actions, subgraph }) {
  const group = h("button", {
    class: "small",
    "data-testid": "group",
    on: { click: () => (store.state.collecting ? actions.finishCollecting() : actions.startCollecting()) },
  });
  const numbers = toggle("Percent", "edge-numbers", store.state.edgeNumbers, (on) => store.set({ edgeNumbers: on }));
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
  const hint = h("span", { class: "quiet", role: "status" });
  const update = () => {
    const { collecting, pinned } = store.state;
    group.textContent = collecting ? (collecting.length > 1 ? `Group these ${collecting.length}` : "Cancel") : "Group";
    group.setAttribute("aria-pressed", String(collecting !== null));
    hint.textContent = collecting ? "Choose the nodes of the group" : `${pinned.length} pinned`;
    clear.disabled = group.disabled = pinned.length === 0 && !collecting;
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
  return [hint, h("span", { class: "spacer" }), numbers, group, tidy, clear, zoom];
}
