// About this graph: where it comes from, how much it explains, and whether its file is sound.

import { h, number, percent } from "./dom.js";
import { fromTargetsDown, scores } from "./graph_math.js";

/** A dialog with scores, settings and findings; made anew whenever it is opened. */
export function reportDialog(graph, state) {
  const dialog = h("dialog", { class: "report", "aria-labelledby": "report-title", "data-testid": "report" });
  const close = h("button", { class: "small", on: { click: () => dialog.close() } }, "Close");
  dialog.append(
    h("div", { class: "dialog-head" }, h("h2", { id: "report-title" }, "About this graph"), close),
    h(
      "div",
      { class: "report-body" },
      scoreTable(graph, state),
      soundness(graph),
      faithfulness(graph.metadata.validation),
      facts("Counts", counts(graph)),
      ...settings(graph.metadata).filter(Boolean),
    ),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

function scoreTable(graph, state) {
  const { metadata } = graph;
  const pinned = new Set(state.pinned.map((id) => graph.byId.get(id).index));
  const rows = [
    ["whole graph, as traced", { replacement: metadata.replacement_score, completeness: metadata.completeness_score }],
    [metadata.part ? "this part of the file" : "this file", scores(graph)],
  ];
  if (pinned.size) rows.push([`pinned nodes only (${pinned.size})`, scores(graph, pinned)]);
  const cell = (value) => h("td", {}, typeof value === "number" ? number(value) : "n/a");
  return h(
    "section",
    {},
    h("h3", {}, "Scores"),
    h(
      "table",
      { "data-testid": "scores" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ["", "replacement", "completeness"].map((name) => h("th", { scope: "col" }, name)),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map(([name, value]) =>
          h("tr", {}, h("th", { scope: "row" }, name), cell(value?.replacement), cell(value?.completeness)),
        ),
      ),
    ),
    h(
      "p",
      { class: "quiet" },
      "replacement: share of the influence that ends in tokens and not in errors. completeness: share of input that is no error. Features that are not pinned count as errors of their place.",
    ),
  );
}

/** How far the trace came, in words, if it was interrupted; else null. */
export function interruption(graph) {
  const found = graph.metadata.interrupted;
  return typeof found === "string" && found ? found : null;
}

/** Sentences about everything that is or was wrong with the file; one that all is well otherwise. */
function soundness(graph) {
  const findings = graph.repairs.slice();
  if (interruption(graph)) findings.unshift(`the trace was interrupted: ${interruption(graph)} have their edges`);
  if (Array.isArray(graph.metadata.warnings))
    findings.push(...graph.metadata.warnings.filter((each) => typeof each === "string"));
  if (fromTargetsDown(graph) === null) findings.push("the links go in a circle; scores and paths cannot be computed");
  const lonely = graph.nodes.filter(
    (node) => node.kind === "target" && graph.inStart[node.index] === graph.inStart[node.index + 1],
  );
  if (lonely.length)
    findings.push(`${lonely.length} outputs have no input in this file; lower thresholds keep more links`);
  const residual = graph.metadata.sum_rule_residual;
  const worst =
    typeof residual === "number"
      ? `worst residual of the sum rule over the whole graph ${number(residual)} (relative)`
      : "the file does not say how well the sum rule holds";
  const rows = graph.nodes.filter((node) => typeof node.raw.sum_rule?.residual === "number");
  rows.sort((a, b) => b.raw.sum_rule.residual - a.raw.sum_rule.residual);
  return h(
    "section",
    { "data-testid": "validation" },
    h("h3", {}, "Soundness"),
    h(
      "ul",
      {},
      h("li", {}, worst),
      rows.length ? h("li", {}, `worst node shown: ${rows[0].id}, ${number(rows[0].raw.sum_rule.residual)}`) : null,
      findings.length
        ? findings.map((finding) => h("li", { class: "finding" }, finding))
        : h("li", {}, "the file is well formed; nothing had to be mended"),
    ),
  );
}

/** What interventions said of the graph, if it was validated: words first, then numbers. */
function faithfulness(validation) {
  if (typeof validation !== "object" || validation === null) return null;
  const sentences = (value) => (Array.isArray(value) ? value.filter((each) => typeof each === "string") : []);
  const verdict = sentences(validation.verdict);
  const distrust = sentences(validation.distrust);
  if (!verdict.length && !distrust.length) return null;
  const numbers = Object.entries(validation.numbers ?? {}).filter(([, each]) => typeof each === "number");
  return h(
    "section",
    { "data-testid": "faithfulness" },
    h("h3", {}, "Tested by intervention"),
    h(
      "ul",
      {},
      verdict.map((each) => h("li", {}, each)),
      distrust.length
        ? distrust.map((each) => h("li", { class: "finding" }, each))
        : h("li", {}, "nothing was found that speaks against it"),
    ),
    h(
      "dl",
      { class: "facts" },
      numbers.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, number(value))]),
    ),
  );
}

function counts(graph) {
  const kinds = new Map();
  for (const node of graph.nodes) kinds.set(node.kind, (kinds.get(node.kind) ?? 0) + 1);
  const names = { target: "outputs", bias: "biases", unknown: "nodes of unknown kind" };
  return [
    ["tokens in the prompt", graph.tokens.length],
    ...[...kinds].map(([kind, count]) => [`${names[kind] ?? `${kind}s`}`, count]),
    ["links", graph.links.count],
  ];
}

function settings(metadata) {
  const flat = (value) =>
    Object.entries(typeof value === "object" && value !== null ? value : {}).filter(
      ([, each]) => typeof each !== "object",
    );
  const made = metadata.info?.create_time_ms;
  const source = [
    ["slug", metadata.slug],
    ["transcoders", metadata.scan],
    ...flat(metadata.info?.generator).map(([name, value]) => [`generator ${name}`, value]),
    ...(Number.isFinite(made) ? [["made", new Date(made).toISOString().replace("T", " ").slice(0, 16) + " UTC"]] : []),
  ];
  return [
    facts("Prompt", [["text", metadata.prompt]]),
    facts("Source", source),
    facts("Tracing", flat(metadata.generation_settings)),
    facts("Pruning", flat(metadata.pruning_settings)),
  ];
}

function facts(title, pairs) {
  if (!pairs.length) return null;
  const text = (value) =>
    typeof value === "number" && !Number.isInteger(value)
      ? value <= 1 && value >= 0
        ? percent(value)
        : number(value)
      : String(value ?? "n/a");
  return h(
    "section",
    {},
    h("h3", {}, title),
    h(
      "dl",
      { class: "facts" },
      pairs.flatMap(([name, value]) => [h("dt", {}, String(name).replaceAll("_", " ")), h("dd", {}, text(value))]),
    ),
  );
}
