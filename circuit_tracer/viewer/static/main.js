// The start: find a graph, show it, or say why not.

import { showComparison } from "./comparison_page.js";
import { h, replace } from "./dom.js";
import { addDensities, featureSource } from "./feature_source.js";
import { embedded, fromFile, fromServer, listGraphs, unpacked } from "./load.js";
import { withDifference } from "./logit_difference.js";
import { showGraph } from "./page.js";
import { GraphProblem, readGraph } from "./read_graph.js";
import { rowName } from "./rows_panel.js";
import { RUN_FIELDS, showRun } from "./run_page.js";
import { ServerClient, ServerProblem } from "./server.js";
import { restoreTheme } from "./theme.js";
import { toast } from "./toast.js";
import { traceForm } from "./trace_dialog.js";
import { addressParams, showInAddress } from "./url_state.js";

const root = document.getElementById("app");

/** What the page was made with: {graphs, graph, features} addresses and a server's token, all of them optional. */
function configuration() {
  const defaults = { graphs: "data/graph-metadata.json", graph: "graph_data/{slug}.json", features: "features" };
  return { ...defaults, ...embedded("viewer-config") };
}

async function start() {
  restoreTheme();
  const compared = embedded("comparison-data");
  if (compared !== null) return compare(compared);
  const run = embedded("run-data");
  if (run !== null) return runOf(run, (id) => unpacked(run.graphs[id]));
  const inline = embedded("graph-data");
  if (inline !== null) {
    const details = embedded("feature-data");
    return show(inline, featureSource(details, null), null, null, details);
  }
  if (location.protocol === "file:" || location.protocol === "about:") return welcome();
  const config = configuration();
  const client = config.token ? new ServerClient(config.token) : null;
  const asked = comparisonAsked();
  if (client && asked) return compare(await client.compare(asked));
  if (config.run) return servedRun(config);
  const session = client ? await client.session() : null;
  const { graphs, warning } = await listGraphs(config.graphs);
  if (warning) toast(warning, true);
  const slug = addressParams().get("slug") ?? graphs[0]?.slug;
  if (!slug) return welcome(session?.model ? { client, session } : null);
  const around = client && addressParams().get("around");
  const address = config.graph.replace("{slug}", encodeURIComponent(slug));
  const chosen = await fromServer(around ? `${address}?around=${encodeURIComponent(around)}` : address);
  const canPrune = graphs.some((entry) => entry.slug === slug && entry.can_prune === true);
  const server = client ? { client, session, slug, canPrune } : null;
  const menu = graphs.length > 1 ? chooser(graphs, slug) : null;
  return show(chosen, featureSource(null, config.features), menu, server);
}

/** The two graphs that the address asks to compare, or null. */
function comparisonAsked() {
  const params = addressParams();
  const [a, b] = [params.get("a"), params.get("b")];
  return a && b ? { a, b, target: params.get("target"), positions: params.get("positions") ?? "same" } : null;
}

/** Show a comparison of two graphs. */
function compare(record) {
  document.title = `${record.target} \u2013 comparison`;
  window.viewer = showComparison(root, record);
}

/** A run with its rows, or the graph of one of them if the address names it; load(id): the graph's document. */
async function runOf(run, load, source = featureSource(null, null)) {
  const params = addressParams();
  const row = params.get("row");
  document.title = `${run.name} \u2013 run`;
  window.addEventListener("popstate", () => location.reload());
  if (row === null) {
    const openable = (id) => (run.graphs === null ? run.rows.some((each) => each.id === id && each.status === "done") : Object.hasOwn(run.graphs, id));
    window.viewer = showRun(root, run, { openable, open: goTo, compare: run.graphs === null ? goCompare : null }, params);
    return;
  }
  show(await load(row), source, backToRun(run, row));
}

async function servedRun(config) {
  const run = await fromServer(config.run);
  const load = (id) => fromServer(`${config.run}/graphs/${encodeURIComponent(id)}`);
  return runOf(run, load, featureSource(null, config.features));
}

/** Compare the graphs of two rows; only a server can. */
const goCompare = (a, b) => location.assign(`?${new URLSearchParams({ a, b })}`);

/** Show the graph of a row, or the list of rows as it was: a step of history. */
function goTo(row) {
  const kept = [...addressParams()].filter(([name]) => RUN_FIELDS.includes(name));
  const params = new URLSearchParams(row === null ? kept : [...kept, ["row", row]]);
  history.pushState(null, "", location.href);
  showInAddress(params);
  location.reload();
}

/** The way back from the graph of a row. */
function backToRun(run, id) {
  const row = run.rows.find((each) => each.id === id) ?? { id };
  const back = h("button", { class: "small", "data-testid": "back", on: { click: () => goTo(null) } }, `\u2190 ${run.name}`);
  return h("h1", {}, back, ` ${rowName(row)}`);
}

/** details: what the page holds of features by their paired number, or null. reloads: whether a reload shows it again. */
function show(found, source, chooserElement = null, server = null, details = null, reloads = true) {
  const difference = addressParams().get("logitDiff");
  const graph = difference ? withDifference(found, difference) : readGraph(found);
  addDensities(graph, details);
  graph.reloads = reloads && location.protocol !== "about:";
  document.title = `${graph.metadata.prompt ?? graph.metadata.slug ?? "graph"} \u2013 attribution graph`;
  window.viewer = showGraph(root, graph, source, chooserElement, server);
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

/** A page without a graph: open a file, or trace a prompt if the server can. */
function welcome(server = null) {
  replace(
    root,
    h(
      "div",
      { class: "notice" },
      h("h1", {}, server ? "Trace a prompt" : "Attribution graph"),
      server ? traceForm(server).element : null,
      h(
        "p",
        {},
        server ? "Or open a graph: a JSON file, plain or gzipped." : "Open a graph: a JSON file, plain or gzipped.",
      ),
      picker(),
    ),
  );
}

/** Why there is nothing to see, and what to do. */
function fail(error) {
  const problems =
    error instanceof GraphProblem
      ? error.problems
      : error instanceof ServerProblem
        ? [error.message]
        : [`the viewer itself failed: ${error.message}`];
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
      show(await fromFile(file), featureSource(null, null), null, null, null, false);
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
