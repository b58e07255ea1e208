// Two graphs and what changed from one to the other, in one layout, beside the account of the change.

import { panel as account } from "./account_panel.js";
import { Actions } from "./actions.js";
import { Areas } from "./areas.js";
import { measure, readComparison } from "./comparison.js";
import { button } from "./controls.js";
import { h, number, percent, replace, visibleToken } from "./dom.js";
import { download, graphPicture, svgText } from "./exports.js";
import { glyph, graphBar, legendOf, panel as graphPanel, zoomButtons } from "./graph_panel.js";
import { promptText, spokenName } from "./labels.js";
import { LinkGraph } from "./link_graph.js";
import { listen } from "./link_graph_input.js";
import { initialState, Store } from "./store.js";
import { themeButton } from "./theme.js";

const AREAS = [
  { id: "difference", title: "What changed", short: "Change" },
  { id: "account", title: "Account of the change", short: "Account" },
  { id: "left", title: "Graph A", short: "A" },
  { id: "right", title: "Graph B", short: "B" },
];
const PANELS = [graphOf("difference", "difference"), account, graphOf("a", "left"), graphOf("b", "right")];

const MEASURES = [
  ["difference", "link to the output"],
  ["carried", "all paths to it"],
];
const FIELDS = { ...graphPanel.fields, measure: { initial: () => "difference" } };

/** Show a parsed comparison in `root`; returns {record, graph, store, actions, view, views, areas}: graph and view of the change. */
export function showComparison(root, comparison) {
  const found = readComparison(comparison);
  const { graph } = found.sides.difference;
  const store = new Store({ ...initialState(graph, FIELDS), labels: tokenLabels(comparison) }, FIELDS);
  const actions = new NodeActions(graph, store);
  const page = { ...found, graph, store, actions, views: {} };
  const spoken = h("div", { class: "spoken", role: "status", "aria-live": "polite", "data-testid": "spoken" });
  for (const [name, side] of Object.entries(found.sides)) {
    Object.assign(side.look, { linkHint: null, facts: (node) => facts(page, node) });
    page.views[name] = new LinkGraph(side.graph, store, side.look);
    listen(page.views[name], actions, (node) => replace(spoken, spokenName(side.graph, store.state, node)));
  }
  page.view = page.views.difference;
  store.subscribe((state, changed) => {
    if (changed.has("zoom")) for (const view of Object.values(page.views)) view.follow();
    if (changed.has("measure")) {
      measure(found, state.measure);
      page.view.resize();
    }
  });
  page.areas = new Areas(PANELS, page, AREAS);
  page.areas.element.classList.add("comparison");
  const keys =
    "Arrow keys move from node to node, Enter selects, I and O follow the strongest input and output, Escape unselects.";
  const help = h("p", { id: "graph-help", hidden: true }, keys);
  replace(root, header(page), page.areas.element, page.areas.narrow.element, spoken, help);
  document.addEventListener("keydown", (event) => onKey(page, event));
  return page;
}

/** Tokens by their own texts: a column may have those of both prompts, or, pooled, of all places. */
function tokenLabels({ nodes }) {
  const tokens = nodes.filter(({ kind, label }) => kind === "token" && label);
  return Object.fromEntries(tokens.map(({ id, label }) => [id, `\u201c${visibleToken(label)}\u201d`]));
}

/** What one can do with nodes here; links have no panel. */
class NodeActions extends Actions {
  chooseEdge() {}
}

function header(page) {
  const name = (side) => h("span", { class: "compared", title: sideName(page.record, side) }, sideTitle(page.record, side));
  page.search = h("input", {
    type: "search",
    placeholder: "Search labels and tokens  ( / )",
    "aria-label": "Search labels and tokens",
    "data-testid": "search",
    on: { input: (event) => page.store.set({ query: event.target.value }) },
  });
  const picture = () => download("change.svg", svgText(graphPicture(page.view)), "image/svg+xml");
  return h(
    "header",
    {},
    h("h1", { class: "names" }, name("a"), name("b")),
    h("div", { class: "search-box" }, page.search),
    h(
      "div",
      { class: "tools", role: "toolbar", "aria-label": "Page" },
      button("SVG", "Save the picture of the change", picture, "save-svg"),
      themeButton(() => Object.values(page.views).forEach((view) => view.recolour())),
    ),
  );
}

/** The panel of one of the graphs; that of the difference has the filters of all. */
function graphOf(side, area) {
  return {
    id: side,
    title: side,
    area,
    mount(root, page) {
      const view = page.views[side];
      const isDifference = side === "difference";
      root.classList.add("barred");
      root.append(
        h("div", { class: "bar" }, isDifference ? [graphBar(page, false), measureMenu(page)] : sideTitle(page.record, side)),
        h("div", { class: "stack" }, view.element),
      );
      if (isDifference) root.append(h("div", { class: "foot" }, zoomButtons(view), view.sign, legend()));
      return { focus: () => view.element.focus() };
    },
  };
}

/** A side in words: its prompt, and its model and intervention where these differ. */
function sideName({ a, b, same }, side) {
  const { prompt, model, edits } = side === "a" ? a : b;
  const more = [...(same.includes("model") ? [] : [model]), ...edits];
  return `${promptText(prompt)}${more.length ? ` \u00b7 ${more.join(", ")}` : ""}`;
}

const sideTitle = (record, side) => [
  h("span", { class: `mark only-${side}` }, side.toUpperCase()),
  h("span", { class: "title" }, sideName(record, side)),
];

/** By what nodes of the change are coloured and sized. */
function measureMenu({ store, record }) {
  if (!record.nodes.some(({ carried }) => carried !== null)) return null;
  const options = MEASURES.map(([value, name]) => h("option", { value, selected: value === store.state.measure }, name));
  const choose = (event) => store.set({ measure: event.target.value });
  return h("select", { "aria-label": "Change of the output by", "data-testid": "measure", on: { change: choose } }, options);
}

/** What a node is in both graphs, for its tooltip. */
function facts({ record, mass }, { index }) {
  const { kind, within, activation_a: a, activation_b: b, difference, carried } = record.nodes[index];
  const facts = [["in", within === "both" ? "both graphs" : `${within.toUpperCase()} only`]];
  if (kind === "feature") facts.push(["activation", `${number(a ?? 0)} \u2192 ${number(b ?? 0)}`]);
  if (difference) facts.push(["changes the output by", `${number(difference)} (${percent(mass ? Math.abs(difference) / mass : 0)} of all)`]);
  if (carried !== null) facts.push(["along all paths", number(carried)]);
  return facts;
}

function legend() {
  const items = [
    [glyph("circle", { r: 5, class: "up" }), "raises the output"],
    [glyph("circle", { r: 5, class: "down" }), "lowers it"],
    [glyph("circle", { r: 5, class: "feature only-a" }), "in A only"],
    [glyph("circle", { r: 5, class: "feature only-b" }), "in B only"],
    [glyph("path", { d: "M0-4L4 0L0 4L-4 0Z", class: "error" }), "error"],
    [[glyph("circle", { r: 2, class: "feature" }), glyph("circle", { r: 6, class: "feature" })], "part of the change"],
  ];
  const title =
    "The larger a glyph, the larger the node\u2019s part in the change of the output; grey nodes have no link to it. The darker a grey link, the more the influence that flows through it changed.";
  return legendOf(items, title);
}

function onKey(page, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest?.("input:not([type=checkbox]):not([type=range]), select") !== null;
  const acts = Object.assign({}, ...graphPanel.keys.map(({ act }) => act), {
    "/": () => page.search.focus(),
    Escape: () => page.store.set({ clicked: null, focused: null, hovered: null }),
  });
  if (typing && event.key === "Escape") page.search.blur();
  if (typing || !Object.hasOwn(acts, event.key)) return;
  acts[event.key](page);
  event.preventDefault();
}
