// Influence and scores of a graph in the page: the same definitions as in the package, over the links of the file.
//
// M = |weight| / sum of |inputs| by target; influence I = sum over k >= 1 of w M^k with w the targets' probabilities.
// replacement = I(tokens) / (I(tokens) + I(errors)); completeness = mean of 1 - M(errors), weighted by I + w.

import { inputsOf, isError, outputsOf } from "./read_graph.js";

/** Node indices such that every link leads from a later entry to an earlier one; null if there is a cycle. */
export function fromTargetsDown(graph) {
  if (graph.order !== undefined) return graph.order;
  const waiting = Int32Array.from({ length: graph.nodes.length }, (_, node) => outputsOf(graph, node).length);
  const order = [];
  for (let node = 0; node < waiting.length; node += 1) if (waiting[node] === 0) order.push(node);
  for (let next = 0; next < order.length; next += 1) {
    for (const link of inputsOf(graph, order[next])) {
      const source = graph.links.source[link];
      waiting[source] -= 1;
      if (waiting[source] === 0) order.push(source);
    }
  }
  graph.order = order.length === graph.nodes.length ? order : null;
  return graph.order;
}

/**
 * Scores of the graph when features outside `kept` (a set of node indices, or null for all) become part of the error
 * of their layer and position, their links added to its links. {replacement, completeness}, NaN if nothing flows; null if the links go in a circle.
 */
export function scores(graph, kept = null) {
  const order = fromTargetsDown(graph);
  if (order === null) return null;
  const { source, weight } = graph.links;
  const { nodes } = graph;
  const counts = (node) => nodes[node].kind === "token" || nodes[node].kind === "target" || isError(nodes[node]);
  const folded = nodes.map((_, node) => kept !== null && !counts(node) && !kept.has(node));
  const influence = new Float64Array(nodes.length);
  let fromErrors = 0;
  let fromTokens = 0;
  let explained = 0;
  let total = 0;
  for (const node of order) {
    const own = nodes[node].kind === "target" ? Math.abs(nodes[node].probability ?? 0) : 0;
    const flow = influence[node] + own;
    if (folded[node] || isError(nodes[node])) continue;
    if (nodes[node].kind === "token") fromTokens += influence[node];
    const errors = new Map();
    let mass = 0;
    for (const link of inputsOf(graph, node)) {
      const from = nodes[source[link]];
      if (isError(from) || folded[from.index]) {
        const place = `${from.kind === "attention error"} ${from.layer} ${from.position}`;
        errors.set(place, (errors.get(place) ?? 0) + weight[link]);
      } else mass += Math.abs(weight[link]);
    }
    const errorMass = [...errors.values()].reduce((sum, value) => sum + Math.abs(value), 0);
    mass = mass + errorMass || 1;
    for (const link of inputsOf(graph, node)) {
      const from = source[link];
      if (!isError(nodes[from]) && !folded[from]) influence[from] += (flow * Math.abs(weight[link])) / mass;
    }
    fromErrors += (flow * errorMass) / mass;
    explained += flow * (1 - errorMass / mass);
    total += flow;
  }
  // Errors have no input of their own, and count as explained.
  return {
    replacement: fromTokens / (fromTokens + fromErrors),
    completeness: (explained + fromErrors) / (total + fromErrors),
  };
}

/**
 * {nodes, links}: influence of each node on the targets, and what of it flows through each link, over the file's links with their
 * shares (shares.js). Where nothing flows (links in a circle, a part of a graph without targets) links have their |shares|.
 */
export function influence(graph) {
  if (graph.influence !== undefined) return graph.influence;
  const { source, share, count } = graph.links;
  const nodes = new Float64Array(graph.nodes.length);
  const links = new Float64Array(count);
  for (const node of fromTargetsDown(graph) ?? []) {
    const { kind, probability } = graph.nodes[node];
    const flow = nodes[node] + (kind === "target" ? Math.abs(probability ?? 0) : 0);
    for (const link of inputsOf(graph, node)) {
      links[link] = flow * Math.abs(share[link]);
      nodes[source[link]] += links[link];
    }
  }
  const flows = links.some((value) => value > 0);
  graph.influence = { nodes, links: flows ? links : Float64Array.from(share, Math.abs) };
  return graph.influence;
}
