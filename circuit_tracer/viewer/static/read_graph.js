// From a graph JSON of any viewer and age to columns: nodes, links by target and by source, shares of input.

import { readHeads } from "./heads.js";
import { addShares } from "./shares.js";

/** Why a document cannot be shown: one sentence a problem. */
export class GraphProblem extends Error {
  constructor(problems) {
    super(problems.join("; "));
    this.problems = problems;
  }
}

const KINDS = {
  "cross layer transcoder": "feature",
  "unexplored node": "feature",
  lorsa: "attention feature",
  "mlp reconstruction error": "error",
  "lorsa error": "attention error",
  embedding: "token",
  logit: "target",
  bias: "bias",
};

/**
 * The graph of a parsed document.
 *
 * nodes: {index, id, kind, layer, position, feature, featureKey, label, influence, activation, probability,
 * density, part, raw}; part: number of the dictionary that a feature is of (`dictionariesOf`); density is the share of tokens that a feature is active on, where the page was made with it, else null;
 * layer is -1 for tokens and the top row for targets. links: columns source, target (node indices), weight, share;
 * share: see shares.js; heads: what `readHeads` makes of each, or null
 * where no link says any. inStart/inLinks and outStart/outLinks
 * list link numbers by node. otherNames: labels of nodes that are named and not there, by id. repairs: sentences about what was mended. Throws GraphProblem.
 */
export function readGraph(document) {
  const problems = shapeProblems(document);
  if (problems.length) throw new GraphProblem(problems);
  const repairs = [];
  const metadata = document.metadata;
  const tokens = metadata.prompt_tokens;
  const { nodes, byId, renamed } = readNodes(document.nodes, tokens, metadata, repairs);
  const links = readLinks(document.links, byId, renamed, repairs);
  const graph = { metadata, tokens, nodes, byId, links, repairs, document };
  graph.topLayer = setTargetLayer(nodes);
  index(graph);
  graph.otherNames = namesOf(document.qk_only_nodes);
  graph.saved = savedView(document.qParams ?? {}, renamed, repairs);
  graph.maxInfluence = nodes.reduce((most, node) => Math.max(most, node.influence ?? 0), 0);
  graph.threshold = Number.isFinite(metadata.node_threshold) ? metadata.node_threshold : 1;
  return graph;
}

/** The dictionaries whose features a graph has, {name, ofAttention}; empty if there is but one. */
export function dictionariesOf({ dictionaries }) {
  if (!Array.isArray(dictionaries)) return [];
  return dictionaries.map((part) => ({ name: String(part?.name), ofAttention: part?.place === "attention" }));
}

function shapeProblems(document) {
  if (typeof document !== "object" || document === null || Array.isArray(document)) {
    return ["the file holds no object; a graph is an object with metadata, qParams, nodes and links"];
  }
  const problems = [];
  const metadata = document.metadata;
  if (typeof metadata !== "object" || metadata === null) problems.push("metadata is missing");
  else if (!Array.isArray(metadata.prompt_tokens) || !metadata.prompt_tokens.every((t) => typeof t === "string")) {
    problems.push("metadata.prompt_tokens must be a list of strings, one a position");
  }
  for (const name of ["nodes", "links"])
    if (!Array.isArray(document[name])) problems.push(`${name} is missing or no list`);
  if (Array.isArray(document.nodes) && document.nodes.length === 0) problems.push("the graph has no nodes");
  return problems;
}

function readNodes(rows, tokens, metadata, repairs) {
  const nodes = [];
  const byId = new Map();
  const problems = [];
  const counts = new Map();
  const renamed = new Map();
  const parts = dictionariesOf(metadata).map(({ name }) => name);
  let unknownInfluence = 0;
  for (const row of rows) counts.set(row?.node_id, (counts.get(row?.node_id) ?? 0) + 1);
  for (const [number, row] of rows.entries()) {
    const kind = KINDS[row?.feature_type] ?? "unknown";
    const layer = kind === "token" ? -1 : Number(row?.layer);
    const position = Number(row?.ctx_idx);
    if (typeof row?.node_id !== "string") problems.push(`node ${number} has no node_id`);
    else if (!Number.isInteger(position) || position < 0 || position >= tokens.length) {
      problems.push(`node ${row.node_id} has ctx_idx ${row.ctx_idx}; the prompt has ${tokens.length} tokens`);
    } else if (!Number.isInteger(layer) || layer < -1 || layer > 100000) {
      problems.push(`node ${row.node_id} has layer ${row.layer}; expected E or a number`);
    } else {
      const id = currentId(row.node_id, kind, layer, position, counts, renamed, repairs);
      if (byId.has(id)) {
        repairs.push(`node ${id} occurred twice; the first one was kept`);
        continue;
      }
      const node = describe(row, id, nodes.length, kind, layer, position, metadata.schema_version === 1, parts);
      if (node.influence === null && (kind === "feature" || kind === "error")) unknownInfluence += 1;
      byId.set(id, node);
      nodes.push(node);
    }
    if (problems.length > 5) break;
  }
  if (problems.length) throw new GraphProblem(problems);
  if (unknownInfluence)
    repairs.push(`${unknownInfluence} nodes have no influence; the pruning slider always shows them`);
  if (renamed.size) repairs.push(`${renamed.size} error nodes had ids of the old form 0_layer_position`);
  return { nodes, byId, renamed };
}

function currentId(name, kind, layer, position, counts, renamed, repairs) {
  if (kind !== "error" || name !== `0_${layer}_${position}`) return name;
  const id = `${layer}_-1_${position}`;
  if (counts.get(name) === 1) renamed.set(name, id);
  else repairs.push(`${name} named both a feature and the error node ${id}; its links went to the feature`);
  return id;
}

function describe(row, id, index, kind, layer, position, paired, parts) {
  const finite = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
  const isFeature = kind === "feature" || kind === "attention feature";
  const feature = isFeature && Number.isSafeInteger(row.feature) ? featureIndex(row.feature, layer, paired) : null;
  return {
    index,
    id,
    kind,
    layer,
    position,
    feature,
    featureKey: feature === null ? id : `${kind === "feature" ? "" : "a"}${layer}_${feature}`,
    label: typeof row.clerp === "string" ? row.clerp : "",
    influence: finite(row.influence),
    activation: finite(row.activation),
    probability: kind === "target" ? targetProbability(row) : null,
    density: null,
    part: Math.max(0, parts.indexOf(row.dictionary)),
    raw: row,
  };
}

/** (layer, index) are paired into one number by schema 1; a number that does not pair to this layer is an index. */
function featureIndex(value, layer, paired) {
  if (!paired) return value;
  let diagonal = Math.floor((Math.sqrt(8 * value + 1) - 1) / 2);
  while (((diagonal + 1) * (diagonal + 2)) / 2 <= value) diagonal += 1;
  while ((diagonal * (diagonal + 1)) / 2 > value) diagonal -= 1;
  const second = value - (diagonal * (diagonal + 1)) / 2;
  return diagonal - second === layer ? second : value;
}

function targetProbability(row) {
  if (typeof row.token_prob === "number" && Number.isFinite(row.token_prob)) return row.token_prob;
  const written = /\(p=([\d.e-]+)\)/.exec(String(row.clerp ?? ""));
  return written ? Number(written[1]) : null;
}

function readLinks(rows, byId, renamed, repairs) {
  const source = new Int32Array(rows.length);
  const target = new Int32Array(rows.length);
  const weight = new Float64Array(rows.length);
  const heads = [];
  let count = 0;
  let dangling = 0;
  let broken = 0;
  const find = (name) => byId.get(renamed.size ? (renamed.get(name) ?? name) : name);
  for (const row of rows) {
    const from = find(row?.source);
    const to = find(row?.target);
    if (!from || !to) dangling += 1;
    else if (!Number.isFinite(row.weight) || from === to) broken += 1;
    else {
      source[count] = from.index;
      target[count] = to.index;
      weight[count] = row.weight;
      heads.push(readHeads(row.heads));
      count += 1;
    }
  }
  if (dangling) repairs.push(`${dangling} links led to or from nodes that are not in the file and were dropped`);
  if (broken) repairs.push(`${broken} links had no finite weight or led from a node to itself and were dropped`);
  return {
    source: source.subarray(0, count),
    target: target.subarray(0, count),
    weight: weight.subarray(0, count),
    heads: heads.some(Boolean) ? heads : null,
    count,
  };
}

/** Targets stand one row above everything else, whatever the file says; returns that row. */
function setTargetLayer(nodes) {
  let top = 0;
  let given = 0;
  for (const node of nodes) {
    if (node.kind === "target") given = Math.max(given, node.layer);
    else top = Math.max(top, node.layer + 1);
  }
  const row = Math.max(top, given - 1);
  for (const node of nodes) if (node.kind === "target") node.layer = row;
  return row;
}

function index(graph) {
  const { source, target, count } = graph.links;
  const size = graph.nodes.length;
  [graph.inStart, graph.inLinks] = listByNode(target, count, size);
  [graph.outStart, graph.outLinks] = listByNode(source, count, size);
  addShares(graph);
}

function listByNode(ends, count, size) {
  const start = new Int32Array(size + 1);
  for (let link = 0; link < count; link += 1) start[ends[link] + 1] += 1;
  for (let node = 0; node < size; node += 1) start[node + 1] += start[node];
  const next = start.slice();
  const list = new Int32Array(count);
  for (let link = 0; link < count; link += 1) list[next[ends[link]]++] = link;
  return [start, list];
}

/** Labels, by id, of nodes that the file names and does not hold: contributors to scores of attention that were pruned. */
function namesOf(nodes) {
  const labels = Object.entries(Object(nodes)).map(([id, node]) => [id, Object(node).clerp]);
  return new Map(labels.filter(([, label]) => typeof label === "string" && label));
}

/** The saved view with plain types, from what viewers write: lists, comma-joined or JSON strings, nulls. */
function savedView(params, renamed, repairs) {
  const ids = (value) =>
    (Array.isArray(value) ? value : typeof value === "string" ? value.split(",") : [])
      .filter((name) => typeof name === "string" && name)
      .map((name) => renamed.get(name) ?? name);
  let groups = params.supernodes ?? [];
  if (typeof groups === "string") {
    try {
      groups = groups ? JSON.parse(groups) : [];
    } catch {
      groups = [];
      repairs.push("the saved supernodes were no JSON and were left out");
    }
  }
  groups = (Array.isArray(groups) ? groups : []).filter((group) => Array.isArray(group) && group.length > 1);
  return {
    pinned: ids(params.pinnedIds),
    groups: groups.map(([name, ...members]) => ({ name: String(name), members: ids(members) })),
    clicked: typeof params.clickedId === "string" ? params.clickedId : "",
    positions: typeof params.sg_pos === "string" ? params.sg_pos : "",
    linkType: typeof params.linkType === "string" ? params.linkType : "",
    labels: Array.isArray(params.clerps) ? params.clerps : [],
  };
}

/** Whether a node stands for what the dictionary missed. */
export function isError(node) {
  return node.kind === "error" || node.kind === "attention error";
}

/** Whether a node is a feature that can be set on the prompt: of MLPs, or of attention where the graph says which it is there. */
export function isEditable(node) {
  const known = node.kind === "feature" || (node.kind === "attention feature" && node.raw.dictionary_index !== undefined);
  return known && node.feature !== null;
}

/** Whether a node stands for a part of what attention gives. */
export function isOfAttention(node) {
  return node.kind === "attention feature" || node.kind === "attention error";
}

/** What such a node is called: where neurons are nodes, it holds the other neurons of its place. */
export function errorName({ metadata }) {
  return typeof metadata.left_over === "string" && metadata.left_over ? metadata.left_over : "error";
}

/** What a feature is called: a neuron, where the rest are other neurons. */
export function featureNoun(graph) {
  return errorName(graph) === "other neurons" ? "neuron" : "feature";
}

/** What they are called together. */
export function errorsName(graph) {
  const name = errorName(graph);
  return name === "error" ? "errors" : name;
}

/** The same as a title. */
export function errorsTitle(graph) {
  const name = errorsName(graph);
  return name[0].toUpperCase() + name.slice(1);
}

/** Link numbers that end at a node. */
export function inputsOf(graph, node) {
  return graph.inLinks.subarray(graph.inStart[node], graph.inStart[node + 1]);
}

/** Link numbers that start at a node. */
export function outputsOf(graph, node) {
  return graph.outLinks.subarray(graph.outStart[node], graph.outStart[node + 1]);
}
