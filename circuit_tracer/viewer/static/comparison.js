// From a comparison (many/comparison/schema.py) to three graphs over the same nodes: A, B, and what changed from one to the other.

import { influence } from "./graph_math.js";
import { GraphProblem, readGraph } from "./read_graph.js";

const FULL = 0.4; // a share of this much has the full colour
const TYPES = {
  feature: "cross layer transcoder",
  error: "mlp reconstruction error",
  token: "embedding",
  target: "logit",
};
const SIDES = ["a", "b"];
const NAMED = 5; // nodes of each graph that are named unasked
const NO_TOKEN = "\u2013"; // of a column that a prompt does not have

/**
 * {record, mass, sides: {a, b, difference}} of a parsed comparison. mass: the sum of all |changes|. A side is {graph, look} for a `LinkGraph`: the graphs have the same nodes under the same numbers,
 * of which `look.present` are their own. Of the difference, a link's weight is what changed of it, and its share is that over the
 * mean input of its target. Throws GraphProblem.
 */
export function readComparison(record) {
  const problems = problemsOf(record);
  if (problems.length) throw new GraphProblem(problems);
  const ranks = influenceSoFar(record.nodes);
  const rows = record.nodes.map((node, number) => row(node, ranks[number]));
  const target = record.target_node;
  const mass = record.shares.reduce((sum, share) => sum + share.mass, 0);
  const found = { record, mass, sides: {} };
  const outlines = record.nodes.map(({ within }) => (within === "both" ? "" : `only-${within}`));
  for (const name of SIDES) {
    const has = ({ within }) => within === "both" || within === name;
    const own = rows.map((each, number) => {
      const node = record.nodes[number];
      const weight = node.kind === "target" ? (number === target ? record[name].probability : null) : undefined;
      return { ...each, token_prob: weight };
    });
    const links = record.links.map((link) => [link, link[name]]);
    const graph = graphOf(record, own, links, (column) => column[`token_${name}`], record[name].prompt);
    const flows = influence(graph).links; // towards the target, which alone has a probability
    graph.influence = { nodes: Float64Array.from(record.nodes, (node) => node[`influence_${name}`] ?? 0), links: flows };
    const present = Uint8Array.from(record.nodes, has);
    const look = { label: `Graph ${name.toUpperCase()}`, present, outlines, named: NAMED };
    found.sides[name] = { graph, look };
  }
  const bothTokens = ({ token_a: a, token_b: b }) => (a === null || b === null || a === b ? (a ?? b) : `${a.trim()} / ${b.trim()}`);
  const inputs = new Float64Array(rows.length);
  for (const link of record.links) inputs[link.target] += (Math.abs(link.a) + Math.abs(link.b)) / 2;
  const means = rows.map((each, number) => ({ ...each, input_mass: inputs[number] }));
  const graph = graphOf(record, means, record.links.map((link) => [link, link.b - link.a]), bothTokens, "what changed");
  found.sides.difference = { graph, look: { label: "What changed from A to B", outlines } };
  measure(found, "difference");
  return found;
}

/** Colour and size the nodes of the difference by their "difference" (their link to the target) or by what is "carried". */
export function measure({ record, sides }, name) {
  const { graph, look } = sides.difference;
  const isTarget = (node, number) => node.kind === "target" || number === record.target_node;
  const parts = Float64Array.from(record.nodes, (node, number) => (isTarget(node, number) ? 0 : (node[name] ?? 0)));
  const strongest = parts.reduce((most, part) => Math.max(most, Math.abs(part)), 0) || 1;
  look.shades = parts.map((part) => (part ? (part / strongest) * FULL : NaN));
  if (record.difference) look.shades[record.target_node] = Math.sign(record.difference) * FULL;
  graph.influence = { nodes: parts.map(Math.abs), links: flowChanges(graph, sides) };
}

function problemsOf(record) {
  const lists = ["columns", "shares", "nodes", "links"].filter((name) => !Array.isArray(record?.[name]));
  if (lists.length) return lists.map((name) => `this is no comparison: ${name} is missing or no list`);
  if (record.version !== 1) return [`this page shows comparisons of version 1, and this one is of ${record.version}`];
  const lost = record.nodes.filter(({ column }) => !record.columns[column]);
  if (!record.nodes[record.target_node]) return ["the comparison does not say which node it is of (target_node)"];
  if (lost.length) return [`node ${lost[0].id} stands in column ${lost[0].column}; there are ${record.columns.length}`];
  return [];
}

/** A node as `readGraph` reads them; influence: how much the more important ones carry together. */
function row({ id, kind, layer, column, feature, label }, rank) {
  return {
    node_id: id,
    feature_type: TYPES[kind],
    layer: kind === "token" ? "E" : String(layer),
    ctx_idx: column,
    feature,
    clerp: label ?? "",
    influence: kind === "target" ? null : rank,
  };
}

/** By node, the share of all influence, in both graphs, that it and the more important ones have. */
function influenceSoFar(nodes) {
  const own = nodes.map(({ influence_a: a, influence_b: b }) => (a ?? 0) + (b ?? 0));
  const total = own.reduce((sum, each) => sum + each, 0) || 1;
  const ranks = new Float64Array(nodes.length);
  let sum = 0;
  for (const number of [...own.keys()].sort((one, other) => own[other] - own[one])) {
    sum += own[number];
    ranks[number] = Math.min(1, sum / total);
  }
  return ranks;
}

function graphOf(record, rows, weighted, tokenOf, prompt) {
  const links = weighted
    .filter(([, weight]) => weight !== 0)
    .map(([{ source, target }, weight]) => ({ source: rows[source].node_id, target: rows[target].node_id, weight }));
  const tokens = record.columns.map((column) => tokenOf(column) ?? (record.positions === "pooled" ? "all tokens" : NO_TOKEN));
  const graph = readGraph({ metadata: { prompt, prompt_tokens: tokens }, nodes: rows, links });
  // Outputs stand in one order in all graphs.
  for (const node of graph.nodes) if (node.kind === "target") node.likeliest = node.index === record.target_node ? 1 : 0;
  return graph;
}

/** By link of the difference, by how much more or less influence flows through it. */
function flowChanges({ links, nodes }, sides) {
  const flows = new Map();
  for (const name of SIDES) {
    const { graph } = sides[name];
    graph.influence.links.forEach((flow, number) => {
      const key = graph.links.source[number] * nodes.length + graph.links.target[number];
      flows.set(key, (flows.get(key) ?? 0) + (name === "a" ? -flow : flow));
    });
  }
  return Float64Array.from({ length: links.count }, (_, number) =>
    Math.abs(flows.get(links.source[number] * nodes.length + links.target[number]) ?? 0),
  );
}
