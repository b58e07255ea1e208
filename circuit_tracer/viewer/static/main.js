// The start: find a graph, show it, or say why not.

import { h, replace } from "./dom.js";
import { featureSource } from "./feature_source.js";
import { embedded, fromFile, fromServer, listGraphs } from "./load.js";
import { withDifference } from "./logit_difference.js";
import { showGraph } from "./page.js";
import { GraphProblem, readGraph } from "./read_graph.js";
import { addressParams } from "./url_state.js";

const root = document.getElementById("app");

/** What the page was made with: {graphs, graph, features} addresses, all of them optional. */
function configuration() {
  const defaults = { graphs: "data/graph-metadata.json", graph: "graph_data/{slug}.json", features: "features" };
  return { ...defaults, ...embedded("viewer-config") };
}

async function start() {
  const inline = embedded("graph-data");
  if (inline !== null) return show(inline, featureSource(embedded("feature-data"), null));
  if (location.protocol === "file:" || location.protocol === "about:") return welcome();
  const config = configuration();
  const graphs = await listGraphs(config.graphs);
  const slug = addressParams().get("slug") ?? graphs[0]?.slug;
  if (!slug) return welcome();
  const chosen = await fromServer(config.graph.replace("{slug}", encodeURIComponent(slug)));
  return show(chosen, featureSource(null, config.features), graphs.length > 1 ? chooser(graphs, slug) : null);
}

function show(found, source, chooserElement = null) {
  const difference = addressParams().get("logitDiff");
  const graph = difference ? withDifference(found, difference) : readGraph(found);
  document.title = `${graph.metadata.prompt ?? graph.metadata.slug ?? "graph"} \u2013 attribution graph`;
  window.viewer = showGraph(root, graph, source, chooserElement);
}

/** A menu of the graphs beside the page. */
function chooser(graphs, slug) {
  const go = (event) => location.assign(`${location.pathname}?slug=${encodeURIComponent(event.target.value)}`);
  const name = (entry) => `${entry.title_prefix ? `${entry.title_prefix} ` : ""}${entry.prompt ?? entry.slug}`;
  const options = graphs.map((entry) => h("option", { value: entry.slug, selected: entry.slug === slug }, name(entry)));
  return h(
    "h1",
    {},
    h("select", { class: "chooser", "aria-label": "Graph", "data-testid": "chooser", on: { change: go } }, options),
  );
}

/** A page without a graph: open a file. */
function welcome() {
  replace(
    root,
    h(
      "div",
      { class: "notice" },
      h("h1", {}, "Attribution graph"),
      h("p", {}, "Open a graph: a JSON file, plain or gzipped."),
      picker(),
    ),
  );
}

/** Why there is nothing to see, and what to do. */
function fail(error) {
  const problems = error instanceof GraphProblem ? error.problems : [`the viewer itself failed: ${error.message}`];
  const list = problems.map((problem) => h("li", {}, problem));
  const next = "Export the graph again, or open another file.";
  replace(
    root,
    h(
      "div",
      { class: "notice", role: "alert", "data-testid": "problem" },
      h("h1", {}, "This graph cannot be shown"),
      h("ul", {}, list),
      h("p", {}, next),
      picker(),
    ),
  );
}

function picker() {
  const open = async (file) => {
    try {
      show(await fromFile(file), featureSource(null, null));
    } catch (error) {
      fail(error);
    }
  };
  const input = h("input", {
    type: "file",
    accept: ".json,.gz,application/json",
    "aria-label": "Graph file",
    "data-testid": "open-file",
    on: { change: () => input.files.length && open(input.files[0]) },
  });
  return input;
}

start().catch(fail);
