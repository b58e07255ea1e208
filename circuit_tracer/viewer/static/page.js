// One graph on the page: its parts put together.

import { Actions } from "./actions.js";
import { Connections } from "./connections.js";
import { button, graphBar, pageBar, subgraphBar, themeButton, zoomButtons } from "./controls.js";
import { h, replace } from "./dom.js";
import { FeaturePane } from "./feature_pane.js";
import { FindPanel } from "./find_panel.js";
import { helpDialog, listenToKeys } from "./keyboard.js";
import { spokenName } from "./labels.js";
import { LinkGraph } from "./link_graph.js";
import { listen } from "./link_graph_input.js";
import { addBorders, enlargePanel, isNarrow, makeTabs, narrowBar } from "./panels.js";
import { PathsPanel } from "./paths_panel.js";
import { Store } from "./store.js";
import { Subgraph } from "./subgraph.js";
import { TestPanel } from "./test_panel.js";
import { addressParams, readState, showInAddress, writeState } from "./url_state.js";

/**
 * Show a graph in `root`; source: from `featureSource`; server: {client, session, slug, canPrune}, or null without one.
 * Returns {graph, store, actions, view, subgraph, server}.
 */
export function showGraph(root, graph, source, chooser = null, server = null) {
  const params = addressParams();
  const store = new Store(readState(graph, params));
  const actions = new Actions(graph, store);
  const view = new LinkGraph(graph, store);
  const subgraph = new Subgraph(graph, store, actions);
  const page = { graph, store, actions, view, subgraph, server };
  const spoken = h("div", { class: "spoken", role: "status", "aria-live": "polite", "data-testid": "spoken" });
  const announce = (node) => replace(spoken, spokenName(graph, store.state, node));
  listen(view, actions, announce);

  const panels = buildPanels(page, source);
  page.search = panels.search;
  const main = h("main", {}, panels.graph, panels.subgraph, panels.lists, panels.feature);
  const narrow = narrowBar(main, [
    ["Graph", panels.graph],
    ["Circuit", panels.subgraph],
    ["Links", panels.lists],
    ["Feature", panels.feature],
  ]);
  panels.search.addEventListener("input", () => narrow.show(2));
  page.focusPanel = (number) => {
    narrow.show(number);
    [
      view.element,
      panels.subgraph.querySelector(".box") ?? panels.subgraph,
      panels.lists.querySelector("[role=tab][aria-selected=true]"),
      panels.feature,
    ][number].focus();
  };
  addBorders(main);
  const tools = [
    ...pageBar(page),
    themeButton(() => {
      view.recolour();
      subgraph.draw();
    }),
    button("?", "Keys and gestures", helpDialog, "help-button"),
  ];
  const header = h(
    "header",
    {},
    chooser ?? h("h1", {}, promptLine(graph)),
    h("div", { class: "search-box" }, panels.search),
    h("div", { class: "tools", role: "toolbar", "aria-label": "Page" }, tools),
  );
  const help = h(
    "p",
    { id: "graph-help", hidden: true },
    "Arrow keys move from node to node, Enter selects, P pins, I and O follow the strongest input and output, question mark lists all keys.",
  );
  replace(root, header, main, narrow.element, spoken, help);
  listenToKeys(page);
  keepAddress(page, params);
  if (isNarrow() && store.state.clicked) narrow.show(0);
  return page;
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
    text || String(graph.metadata.slug ?? "graph"),
  );
}

function buildPanels(page, source) {
  const { graph, store, actions, view, subgraph } = page;
  const connections = new Connections(graph, store, actions, view);
  const find = new FindPanel(graph, store, actions, view);
  const paths = new PathsPanel(graph, store, actions);
  const feature = new FeaturePane(graph, store, actions, source);
  const test = page.server?.session.model ? new TestPanel(graph, store, page.server) : null;
  const tabs = makeTabs("Lists", [
    ["Connections", connections.element, "connections"],
    ["Nodes", find.element, "nodes"],
    ["Paths", paths.element, "paths"],
    ...(test ? [["Test", test.element, "test"]] : []),
  ]);
  const search = h("input", {
    type: "search",
    placeholder: "Search labels and tokens  ( / )",
    "aria-label": "Search labels and tokens",
    "data-testid": "search",
  });
  search.addEventListener("input", () => {
    store.set({ query: search.value });
    tabs.select(1);
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      store.set({ query: "" });
      search.blur();
    } else if (event.key === "Enter" || event.key === "ArrowDown") find.element.querySelector(".row")?.focus();
  });
  store.subscribe((state, changed) => {
    if (changed.has("query") && search.value !== state.query) search.value = state.query;
    const testing = test !== null && !test.element.hidden;
    if (!changed.has("clicked") || state.clicked === null || state.query || testing) return;
    const leaving = [find, paths].some((each) => each.element.contains(document.activeElement));
    tabs.select(0);
    if (leaving) connections.element.querySelector("button")?.focus({ preventScroll: true });
  });
  const enlarge = () =>
    button("\u2922", "Enlarge this panel, or back (F)", (event) => enlargePanel(event.target), "enlarge");
  const panel = (name, label, ...children) =>
    h("section", { class: `panel ${name}`, "aria-label": label, tabindex: -1 }, ...children);
  return {
    search,
    graph: panel(
      "graph-panel",
      "Link graph",
      h("div", { class: "bar" }, graphBar(page), enlarge()),
      h("div", { class: "stack" }, view.element, zoomButtons(view)),
    ),
    subgraph: panel(
      "subgraph-panel",
      "Pinned subgraph",
      h("div", { class: "bar" }, h("h2", {}, "Circuit"), subgraphBar(page), enlarge()),
      subgraph.element,
    ),
    lists: panel("lists-panel", "Lists", tabs.element, connections.element, find.element, paths.element, test?.element),
    feature: panel("feature-panel", "Feature", feature.element),
  };
}

/** Write the view into the address, a moment after it changed. */
function keepAddress({ graph, store }, params) {
  const filters = ["pruning", "edgeMin", "density", "hideErrors", "linkType"];
  const named = ["clicked", "pinned", "groups", "labels", "positions", ...filters];
  let timer = null;
  store.subscribe((_, changed) => {
    if (!named.some((name) => changed.has(name))) return;
    clearTimeout(timer);
    timer = setTimeout(() => showInAddress(writeState(graph, store.state, params)), 150);
  });
}
