// The link graph with its filters.

import { enlargeButton } from "./areas.js";
import { button, slider, toggle } from "./controls.js";
import { h, percent, replace, svg } from "./dom.js";
import { headFilter, throughHead } from "./head_filter.js";
import { dictionariesOf, errorName, errorsTitle, featureNoun } from "./read_graph.js";
import { MOST_FAINT } from "./scene.js";
import { partNote } from "./server_tools.js";

const LINK_TYPES = ["both", "either", "input", "output"];

const share = (text, initial) => {
  const value = text === null ? NaN : Number(text);
  return value >= 0 && value <= 1 ? value : initial;
};
const linkType = (text, initial) => (LINK_TYPES.includes(text) ? text : initial);
const isYes = (text, _, params) => ["true", "1"].includes(text ?? params.get("claudeMode"));

export const panel = {
  id: "graph",
  title: "Graph",
  area: "graph",
  fields: {
    pruning: { initial: (graph) => graph.threshold, address: "pruningThreshold", read: share },
    edgeMin: { initial: () => 0, address: "edgeThreshold", read: share },
    density: { initial: () => 1, address: "densityThreshold", read: share },
    hideErrors: { initial: () => false, address: "hideErrors", read: isYes },
    linkType: { initial: (graph) => linkType(graph.saved.linkType, "both"), address: "linkType", read: linkType },
    allEdges: { initial: () => true, address: "faintLinks", read: (text) => text !== "false" },
    zoom: { initial: () => null, address: "zoom" },
    throughHead,
  },
  keys: [
    {
      keys: "[ ]",
      does: "show fewer, more nodes",
      act: {
        "[": ({ store }) => store.set({ pruning: stepped(store.state.pruning, -0.05) }),
        "]": ({ store, graph }) => store.set({ pruning: Math.min(graph.threshold, stepped(store.state.pruning, 0.05)) }),
      },
    },
    {
      keys: "{ }",
      does: "show more, fewer links",
      act: {
        "{": ({ store }) => store.set({ edgeMin: stepped(Math.cbrt(store.state.edgeMin), -0.05) ** 3 }),
        "}": ({ store }) => store.set({ edgeMin: stepped(Math.cbrt(store.state.edgeMin), 0.05) ** 3 }),
      },
    },
    {
      keys: "E",
      does: "hide or show errors",
      act: { e: ({ store }) => store.set({ hideErrors: !store.state.hideErrors }) },
    },
    {
      keys: "+ \u2212 0",
      does: "zoom in, out, whole graph",
      act: {
        "+": ({ view }) => view.zoom(1.4),
        "=": ({ view }) => view.zoom(1.4),
        "-": ({ view }) => view.zoom(1 / 1.4),
        0: ({ view }) => view.fit(),
      },
    },
  ],
  mount(root, page) {
    root.classList.add("barred");
    root.append(
      h("div", { class: "bar" }, graphBar(page), enlargeButton()),
      h("div", { class: "stack" }, page.view.element),
      h("div", { class: "foot" }, zoomButtons(page.view), page.view.sign, legend(page.graph), h("span", { class: "spacer" }), counts(page)),
    );
    return { focus: () => page.view.element.focus() };
  },
};

const stepped = (value, step) => Math.max(0, Math.min(1, Math.round((value + step) * 100) / 100));

/** Filters; directed: with a choice of the links of the selected node. */
export function graphBar({ graph, store }, directed = true) {
  const pruning = slider(
    "Nodes",
    "pruning",
    { value: store.state.pruning, max: graph.threshold },
    (value) => store.set({ pruning: value }),
    (value) => `${percent(value)} of influence`,
  );
  const edges = slider(
    "Links",
    "edge-threshold",
    { value: fromShare(store.state.edgeMin), max: 1 },
    (value) => store.set({ edgeMin: toShare(value) }),
    (value) => (value ? `from ${percent(toShare(value))}` : "all"),
  );
  const known = graph.nodes.some((node) => node.density !== null);
  const density = slider(
    "Density",
    "density",
    { value: fromDensity(store.state.density), max: 1 },
    (value) => store.set({ density: toDensity(value) }),
    (value) => (value < 1 ? `to ${percent(toDensity(value))}` : "all"),
  );
  density.title = "Hide features that are active on a larger share of tokens";
  const errors = toggle(errorsTitle(graph), "show-errors", !store.state.hideErrors, (on) => store.set({ hideErrors: !on }));
  const faint = toggle("Faint links", "all-edges", store.state.allEdges, (on) => store.set({ allEdges: on }));
  const type = h(
    "select",
    {
      "data-testid": "link-type",
      "aria-label": "Links of the selected node",
      on: { change: (event) => store.set({ linkType: event.target.value }) },
    },
    [
      ["both", "in + out"],
      ["input", "inputs"],
      ["output", "outputs"],
    ].map(([value, text]) => h("option", { value, selected: value === store.state.linkType }, text)),
  );
  const update = () => {
    pruning.show(store.state.pruning);
    edges.show(fromShare(store.state.edgeMin));
    density.show(fromDensity(store.state.density));
    errors.querySelector("input").checked = !store.state.hideErrors;
    type.value = store.state.linkType === "either" ? "both" : store.state.linkType;
  };
  store.subscribe(update);
  update();
  return [
    pruning,
    edges,
    known ? density : null,
    errors,
    faint,
    directed ? type : null,
    headFilter({ graph, store }),
    h("span", { class: "spacer" }),
    partNote({ graph, store }),
  ];
}

/** How much of the graph passes the filters. */
function counts({ graph, store, view }) {
  const shown = h("span", { class: "quiet counts", role: "status", "data-testid": "counts" });
  const update = () => {
    const [all, links] = [graph.nodes.length, view.links.length];
    replace(
      shown,
      `${view.count === all ? "" : `${whole(view.count)} of `}${whole(all)} nodes \u00b7 ${whole(links)} links`,
    );
    shown.title = links > MOST_FAINT ? `the ${whole(MOST_FAINT)} links with the most influence are drawn` : "";
  };
  store.subscribe(update);
  update();
  return shown;
}

const whole = (value) => value.toLocaleString("en");

/** Buttons below the link graph. */
export function zoomButtons(view) {
  const [out, fit, into] = [() => view.zoom(1 / 1.4), () => view.fit(), () => view.zoom(1.4)];
  return h(
    "span",
    { class: "buttons" },
    button("\u2212", "Zoom out", out),
    button("Fit", "Show the whole graph", fit, "fit"),
    button("+", "Zoom in", into),
  );
}

// Most shares are small, so the slider runs over their cube root.
const toShare = (value) => value ** 3;
const fromShare = (share) => Math.cbrt(share);

// Densities differ by powers of ten, of which the slider has four.
const toDensity = (value) => Number((10 ** (4 * (value - 1))).toPrecision(3));
const fromDensity = (density) => Math.max(0, 1 + Math.log10(density) / 4);

/** A glyph of the legend: one SVG element. */
export function glyph(tag, attributes) {
  const box = { width: 14, height: 14, viewBox: "-7 -7 14 14", class: "glyph", "aria-hidden": "true" };
  return svg("svg", box, svg(tag, attributes));
}

/** What glyphs mean. */
function legend(graph) {
  const items = [
    ...featureGlyphs(graph),
    [glyph("path", { d: "M0-4L4 0L0 4L-4 0Z", class: "error" }), errorName(graph)],
    [glyph("rect", { x: -4, y: -4, width: 8, height: 8, class: "plain" }), "token, output"],
    [[glyph("circle", { r: 2, class: "feature" }), glyph("circle", { r: 6, class: "feature" })], "influence"],
    [glyph("path", { d: "M-7 0H7", class: "link" }), "raises"],
    [glyph("path", { d: "M-7 0H7", class: "link negative" }), "lowers"],
  ];
  const title =
    "The larger a glyph and the darker a grey link, the more influence on the outputs goes through it. Links of what is selected are coloured, their width the share of the target\u2019s input.";
  return legendOf(items, title);
}

/** One for each dictionary whose features the graph has. */
function featureGlyphs(graph) {
  const { metadata, nodes } = graph;
  const parts = dictionariesOf(metadata);
  const mlps = parts.filter(({ ofAttention }) => !ofAttention);
  const circle = ({ name }, number) => [glyph("circle", { r: 4, class: number ? "second" : "feature" }), name];
  const items = mlps.length > 1 ? mlps.map(circle) : [circle({ name: featureNoun(graph) }, 0)];
  const attention = parts.find(({ ofAttention }) => ofAttention);
  if (!attention && !nodes.some((node) => node.kind === "attention feature")) return items;
  const triangle = glyph("path", { d: "M0-4.5L4.5 4L-4.5 4Z", class: "attention" });
  return [...items, [triangle, attention?.name ?? "attention feature"]];
}

/** items: [glyph or glyphs, what it means]. */
export function legendOf(items, title) {
  return h(
    "span",
    { class: "legend", title, "data-testid": "legend" },
    items.map(([glyphs, name]) => h("span", {}, glyphs, name)),
  );
}
