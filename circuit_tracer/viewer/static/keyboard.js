// Keys that work everywhere on the page, and the list of all keys.

import { AREAS, enlargeArea } from "./areas.js";
import { h } from "./dom.js";
import { saveOnServer } from "./server_tools.js";

const numbers = AREAS.map((_, at) => String(at + 1));
const BEFORE = [
  ["Tab", "next panel or control"],
  ["Arrows", "in the graph: next node in the row, next row; Shift: move the picture"],
  ["Enter", "select the node with the ring"],
  ["I, O", "in the graph: go to the strongest input, output"],
  ["H", "in the graph: the heads of the link between the selected node and the one with the ring"],
  ["P", "pin or unpin"],
  ["G", "hold, choose nodes, release: group them; or press, choose, press again"],
  ["F2, U, Delete", "on a box: rename, ungroup, unpin; arrows move it"],
  ["L", "edit the label"],
  ["/", "search"],
];
const AFTER = [
  [numbers.join(" "), `go to ${AREAS.map(({ id }) => id).join(", ")}`],
  ["F", "enlarge the panel that has the focus, or back"],
  ["Shift", "hold: the feature pane stays while the mouse moves"],
  ["Ctrl", "hold while pointing: all fields of the file; with a click: pin"],
  ["Ctrl Z, Ctrl Shift Z", "undo, redo"],
  ["Ctrl S", "save on the server, where the page comes from one"],
  ["Esc", "leave what was begun, then unselect"],
  ["?", "this list"],
];

/** Listen for the page's keys and those of its panels. page: {store, actions, server, search, panels, areas}. */
export function listenToKeys(page) {
  const acts = pageKeys(page);
  for (const { id, keys = [] } of page.panels) {
    for (const [key, act] of keys.flatMap((each) => Object.entries(each.act))) {
      if (key in acts) throw new Error(`the key ${key} of the panel ${id} has another use`);
      acts[key] = () => act(page);
    }
  }
  document.addEventListener("keydown", (event) => onDown(page, acts, event));
  document.addEventListener("keyup", (event) => onUp(page, event));
  window.addEventListener("blur", () => page.store.set({ frozen: false }));
}

const typing = (event) =>
  document.querySelector("dialog[open]") !== null ||
  event.target.closest?.("input:not([type=checkbox]):not([type=range]), select, textarea") !== null;

function pageKeys(page) {
  const { store, actions } = page;
  return {
    g: (event) => event.repeat || startGroup(page),
    "/": () => page.search.focus(),
    "?": () => helpDialog(page),
    f: () => enlargeArea(document.activeElement),
    l: () => document.querySelector(".label-input")?.focus(),
    p: () => store.state.clicked && actions.togglePin(store.state.clicked),
    Escape: () => escape(page),
    ...Object.fromEntries(numbers.map((key, at) => [key, () => page.areas.focus(at)])),
  };
}

function onDown(page, acts, event) {
  const { store } = page;
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
  const act = Object.hasOwn(acts, event.key) ? acts[event.key] : null;
  if (!act) return;
  act(event);
  event.preventDefault();
}

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
  else if (store.state.offer) store.set({ offer: null });
  else if (store.state.query) store.set({ query: "" });
  else store.set({ clicked: null, focused: null, hovered: null, path: null, edge: null });
}

/** Show the list of keys, with those of the panels. */
export function helpDialog({ panels }) {
  const added = panels.flatMap(({ keys = [] }) => keys.map((each) => [each.keys, each.does]));
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
      [...BEFORE, ...added, ...AFTER].flatMap(([key, what]) => [h("dt", {}, key), h("dd", {}, what)]),
    ),
    h(
      "p",
      { class: "quiet" },
      "Squares are tokens and outputs, circles features, triangles those of attention, hollow diamonds errors; the larger, the more influence on the outputs. Grey links are the darker the more influence flows through them. Those of what is selected are green when they raise their target, purple when they lower it; width and colour show the share of the target\u2019s input, beside the strongest.",
    ),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
