// What is selected: a node, or a supernode, whose members' links add up.

import { nodeLabel, placeName } from "./labels.js";
import { inputsOf, isError, outputsOf } from "./read_graph.js";
import { outsideMass } from "./shares.js";

const ROUNDING = 1e-5; // files round sums of inputs

/** What `clicked` holds for a supernode. */
export const groupId = (group) => `supernode:${group.members.join("-")}`;

/** What `edge` holds for a link, by its number. */
export function edgeId({ links: { source, target }, nodes }, link) {
  return `${nodes[source[link]].id}>${nodes[target[link]].id}`;
}

/** The number of the link that `edge` names, or null. */
export function linkOf(graph, edge) {
  const [from, to] = (edge ?? "").split(">").map((id) => graph.byId.get(id));
  const found =
    from && to ? inputsOf(graph, to.index).find((link) => graph.links.source[link] === from.index) : undefined;
  return found ?? null;
}

/** The selected nodes; [] for none. */
export function selectedNodes(graph, state) {
  if (state.clicked === null) return [];
  const ids = state.groups.find((group) => groupId(group) === state.clicked)?.members ?? [state.clicked];
  return ids.map((id) => graph.byId.get(id)).filter(Boolean);
}

/** Link numbers into (`inputs`) or out of the selected nodes, without those among them. */
export function selectedLinks(graph, nodes, inputs) {
  const inside = new Set(nodes.map((node) => node.index));
  const ends = inputs ? graph.links.source : graph.links.target;
  return nodes
    .flatMap((node) => [...(inputs ? inputsOf : outputsOf)(graph, node.index)])
    .filter((link) => !inside.has(ends[link]));
}

/**
 * The selection with its neighbours, or null: {nodes, name, place, mass, kinds, inputs, outputs}.
 *
 * inputs, outputs: Map from a neighbour's index to {weight, share, links}, the last being link numbers. The share of an input is of `mass`, the sum of
 * |inputs| from outside; that of an output is of the neighbour's own input. kinds: shares of mass that come from
 * features, tokens and errors, and of what has no link here (`cut`).
 */
export function selection(graph, state) {
  const nodes = selectedNodes(graph, state);
  if (!nodes.length) return null;
  const { source, target, weight } = graph.links;
  const links = { inputs: selectedLinks(graph, nodes, true), outputs: selectedLinks(graph, nodes, false) };
  const mass = outsideMass(graph, nodes);
  const group = state.groups.find((each) => groupId(each) === state.clicked);
  return {
    nodes,
    name: group ? group.name : nodeLabel(graph, state, nodes[0]),
    place: group ? `supernode of ${nodes.length} nodes` : placeName(graph, nodes[0]),
    mass,
    kinds: kindShares(graph, nodes, links.inputs, mass),
    inputs: addedUp(links.inputs, source, weight, () => mass),
    outputs: addedUp(links.outputs, target, weight, (node) => graph.mass[node]),
  };
}

function kindShares(graph, nodes, links, mass) {
  const cut = nodes.reduce((sum, { index }) => sum + graph.unseen[index], 0) / (mass || 1);
  const shares = { feature: 0, token: 0, error: 0, cut: cut < ROUNDING ? 0 : cut };
  for (const link of links) {
    const from = graph.nodes[graph.links.source[link]];
    const kind = isError(from) ? "error" : from.kind === "token" ? "token" : "feature";
    shares[kind] += Math.abs(graph.links.weight[link]) / mass;
  }
  return shares;
}

function addedUp(links, ends, weight, massOf) {
  const found = new Map();
  for (const link of links) {
    if (!found.has(ends[link])) found.set(ends[link], []);
    found.get(ends[link]).push(link);
  }
  return new Map(
    [...found].map(([node, own]) => {
      const sum = own.reduce((total, link) => total + weight[link], 0);
      return [node, { weight: sum, share: sum / (massOf(node) || 1), links: own }];
    }),
  );
}
