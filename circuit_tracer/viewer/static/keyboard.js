// Keys that work everywhere on the page, and the list of all keys.

import { h } from "./dom.js";
import { enlargePanel } from "./panels.js";
import { saveOnServer } from "./server_tools.js";

const KEYS = [
  ["Tab", "next panel or control"],
  ["Arrows", "in the graph: next node in the row, next row; Shift: move the picture"],
  ["Enter", "select the node with the ring"],
  ["I, O", "in the graph: go to the strongest input, output"],
  ["P", "pin or unpin"],
  ["G", "hold, choose nodes, release: group them; or press, choose, press again"],
  ["F2, U, Delete", "on a box: rename, ungroup, unpin; arrows move it"],
  ["L", "edit the label"],
  ["/", "search"],
  ["[ ]", "show fewer, more nodes"],
  ["{ }", "show more, fewer links"],
  ["E", "hide or show errors"],
  ["+ \u2212 0", "zoom in, out, whole graph"],
  ["1 2 3 4", "go to graph, subgraph, lists, feature"],
  ["F", "enlarge the panel that has the focus, or back"],
  ["Shift", "hold: the feature pane stays while the mouse moves"],
  ["Ctrl", "hold while pointing: all fields of the file; with a click: pin"],
  ["Ctrl Z, Ctrl Shift Z", "undo, redo"],
  ["Ctrl S", "save on the server, where the page comes from one"],
  ["Esc", "leave what was begun, then unselect"],
  ["?", "this list"],
];

/** Listen for the page's keys. page: {graph, store, actions, view, server, focusPanel, search}. */
export function listenToKeys(page) {
  document.addEventListener("keydown", (event) => onDown(page, event));
  document.addEventListener("keyup", (event) => onUp(page, event));
  window.addEventListener("blur", () => page.store.set({ frozen: false }));
}

const typing = (event) =>
  document.querySelector("dialog[open]") !== null ||
  event.target.closest?.("input:not([type=checkbox]):not([type=range]), select, textarea") !== null;

function onDown(page, event) {
  const { store, view } = page;
  if (event.key === "Shift") store.set({ frozen: true });
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !typing(event)) {
    if (event.shiftKey) store.redo();
    else store.undo();
    event.preventDefault();
    return;
  }
  if ((event.ctrlKey || event.metaKey) && event.key === "s" && page.server) {
    saveOnServer(page);
    event.preventDefault();
    return;
  }
  if (typing(event) || event.ctrlKey || event.metaKey || event.altKey) return;
  const act = {
    g: () => event.repeat || startGroup(page),
    "/": () => page.search.focus(),
    "?": () => helpDialog(),
    f: () => enlargePanel(document.activeElement),
    l: () => document.querySelector(".label-input")?.focus(),
    p: () => store.state.clicked && page.actions.togglePin(store.state.clicked),
    e: () => store.set({ hideErrors: !store.state.hideErrors }),
    "[": () => store.set({ pruning: stepped(store.state.pruning, -0.05) }),
    "]": () => store.set({ pruning: Math.min(page.graph.threshold, stepped(store.state.pruning, 0.05)) }),
    "{": () => store.set({ edgeMin: stepped(Math.cbrt(store.state.edgeMin), -0.05) ** 3 }),
    "}": () => store.set({ edgeMin: stepped(Math.cbrt(store.state.edgeMin), 0.05) ** 3 }),
    "+": () => view.zoom(1.4),
    "=": () => view.zoom(1.4),
    "-": () => view.zoom(1 / 1.4),
    0: () => view.fit(),
    Escape: () => escape(page),
  }[event.key];
  if (/^[1-4]$/.test(event.key)) page.focusPanel(Number(event.key) - 1);
  else if (act) act();
  else return;
  event.preventDefault();
}

const stepped = (value, step) => Math.max(0, Math.min(1, Math.round((value + step) * 100) / 100));

function startGroup({ store, actions }) {
  if (store.state.collecting) actions.finishCollecting();
  else actions.startCollecting();
}

/** Letting go of G ends the choice, unless nothing was chosen yet: then it goes on until G is pressed again. */
function onUp({ store, actions }, event) {
  if (event.key === "Shift") store.set({ frozen: false });
  if (event.key === "g" && !typing(event) && store.state.collecting?.length) actions.finishCollecting();
}

function escape({ store }) {
  if (store.state.collecting) store.set({ collecting: null });
  else if (store.state.query) store.set({ query: "" });
  else store.set({ clicked: null, focused: null, hovered: null, path: null });
}

/** Show the list of keys. */
export function helpDialog() {
  if (document.querySelector("dialog.help")) return;
  const dialog = h("dialog", { class: "help", "aria-labelledby": "help-title", "data-testid": "help" });
  dialog.append(
    h(
      "div",
      { class: "dialog-head" },
      h("h2", { id: "help-title" }, "Keys and gestures"),
      h("button", { class: "small", on: { click: () => dialog.close() } }, "Close"),
    ),
    h(
      "dl",
      { class: "keys" },
      KEYS.flatMap(([key, what]) => [h("dt", {}, key), h("dd", {}, what)]),
    ),
    h(
      "p",
      { class: "quiet" },
      "Squares are tokens and outputs, circles features, diamonds errors. Links are green when they raise their target, purple when they lower it; width and colour show the share of the target\u2019s input.",
    ),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
