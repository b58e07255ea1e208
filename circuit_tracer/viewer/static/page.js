// One graph on the page: its parts put together.

import { Actions } from "./actions.js";
import { Areas, isNarrow } from "./areas.js";
import { button, pageBar } from "./controls.js";
import { h, replace } from "./dom.js";
import { Explainer } from "./explain.js";
import { helpDialog, listenToKeys } from "./keyboard.js";
import { spokenName } from "./labels.js";
import { LinkGraph } from "./link_graph.js";
import { listen } from "./link_graph_input.js";
import { PANELS } from "./panels.js";
import { interruption } from "./report.js";
import { Store } from "./store.js";
import { Subgraph } from "./subgraph.js";
import { themeButton } from "./theme.js";
import { addressed, addressParams, readState, showInAddress, writeState } from "./url_state.js";

/**
 * Show a graph in `root`; source: from `featureSource`; server: {client, session, slug, canPrune}, or null without one.
 * Returns {graph, store, actions, view, subgraph, server, explain, source, panels, areas}.
 */
export function showGraph(root, graph, source, chooser = null, server = null) {
  const params = addressParams();
  const fields = Object.assign({}, ...PANELS.map((panel) => panel.fields));
  const store = new Store(readState(graph, fields, params), fields);
  const actions = new Actions(graph, store);
  const view = new LinkGraph(graph, store);
  const subgraph = new Subgraph(graph, store, actions);
  const explain = new Explainer(server);
  const page = { graph, store, actions, view, subgraph, server, explain, source, open: (id) => page.areas.open(id) };
  const spoken = h("div", { class: "spoken", role: "status", "aria-live": "polite", "data-testid": "spoken" });
  const announce = (node) => replace(spoken, spokenName(graph, store.state, node));
  listen(view, actions, announce);

  page.panels = PANELS.filter((panel) => panel.available?.(page) ?? true);
  page.areas = new Areas(page.panels, page);
  page.search = searchBox(page);
  followSelection(page);
  followChoices(page);
  const tools = [
    ...pageBar(page),
    themeButton(() => {
      view.recolour();
      subgraph.draw();
    }),
    button("?", "Keys and gestures", () => helpDialog(page), "help-button"),
  ];
  const header = h(
    "header",
    {},
    chooser ?? h("h1", {}, promptLine(graph)),
    h("div", { class: "search-box" }, page.search),
    h("div", { class: "tools", role: "toolbar", "aria-label": "Page" }, tools),
  );
  const help = h(
    "p",
    { id: "graph-help", hidden: true },
    "Arrow keys move from node to node, Enter selects, P pins, I and O follow the strongest input and output, question mark lists all keys.",
  );
  replace(root, header, page.areas.element, page.areas.narrow.element, spoken, help);
  listenToKeys(page);
  keepAddress(page, params);
  openOn(page);
  if (isNarrow() && store.state.clicked) page.areas.narrow.show(0);
  return page;
}

/** Begin with the panels that have something to tell: the last of them is the one that a narrow screen shows. */
function openOn({ areas, panels, ...page }) {
  for (const { id } of panels.filter(({ first }) => first?.(page)).reverse()) {
    areas.open(id);
    areas.favour(id);
  }
}

/** The prompt with its last, predicted step: tokens as they are, special ones quiet. */
function promptLine(graph) {
  const text = graph.tokens
    .map((token) => (/^<.*>$/.test(token) ? "" : token))
    .join(graph.tokens.some((token) => /^\s/.test(token)) ? "" : " ")
    .trim();
  return h(
    "span",
    { class: "prompt", title: graph.metadata.prompt ?? text },
    interruption(graph) ? h("span", { class: "finding" }, "interrupted: ") : null,
    text || String(graph.metadata.slug ?? "graph"),
  );
}

/** Words to look for; what is found is listed under Nodes. */
function searchBox({ store, areas }) {
  const search = h("input", {
    type: "search",
    placeholder: "Search labels and tokens  ( / )",
    "aria-label": "Search labels and tokens",
    "data-testid": "search",
  });
  search.addEventListener("input", () => {
    store.set({ query: search.value });
    areas.open("nodes");
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      store.set({ query: "" });
      search.blur();
    } else if (event.key === "Enter" || event.key === "ArrowDown") areas.root("nodes").querySelector(".row")?.focus();
  });
  store.subscribe((state, changed) => {
    if (changed.has("query") && search.value !== state.query) search.value = state.query;
  });
  return search;
}

/** A newly selected node is shown under Connections, unless one searches, or a tab is open that stays. */
function followSelection({ store, areas }) {
  store.subscribe((state, changed) => {
    if (!changed.has("clicked") || state.clicked === null || state.query) return;
    const { panel, root } = areas.shown("lists");
    const inside = root.contains(document.activeElement);
    if (panel.stays === true || (panel.stays === "inside" && inside)) return;
    const leaving = panel.id !== "connections" && inside;
    areas.select("connections");
    if (leaving) areas.root("connections").querySelector("button")?.focus({ preventScroll: true });
  });
}

/** A panel that shows what a field holds comes to the front when that changes. */
function followChoices({ store, areas, panels }) {
  const showing = panels.filter(({ shows }) => shows);
  for (const { id, shows } of showing) if (store.state[shows] !== null) areas.select(id);
  store.subscribe((state, changed) => {
    for (const { id, shows } of showing) if (changed.has(shows) && state[shows] !== null) areas.open(id);
  });
}

/** Write the view into the address, a moment after it changed. */
function keepAddress({ graph, store }, params) {
  const added = addressed(store.fields).map(([name]) => name);
  const named = ["clicked", "pinned", "groups", "labels", "positions", ...added];
  let timer = null;
  store.subscribe((_, changed) => {
    if (!named.some((name) => changed.has(name))) return;
    clearTimeout(timer);
    timer = setTimeout(() => showInAddress(writeState(graph, store, params)), 150);
  });
}
