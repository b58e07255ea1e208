// The pinned subgraph: boxes of one node or one group, and the links among them.
//
// The link S -> T of boxes is the sum of the weights from members of S to members of T over the sum of T's |inputs|
// that come from outside of T; so a group's inner links do not count.

import { percent } from "./dom.js";
import { boxChange } from "./effect.js";
import { inputsOf } from "./read_graph.js";
import { nodeLabel, placeName, tokenText } from "./labels.js";
import { outsideMass } from "./shares.js";

/** Boxes {key, name, nodes, group}; a box's key, by which its place is kept, is its node ids joined. */
export function makeBoxes(graph, state) {
  const grouped = new Set(state.groups.flatMap((group) => group.members));
  const known = (ids) => ids.map((id) => graph.byId.get(id)).filter(Boolean);
  const groups = state.groups.map((group) => {
    const nodes = known(group.members);
    return { name: group.name || (nodes.length ? nodeLabel(graph, state, nodes[0]) : ""), nodes, group };
  });
  const singles = known(state.pinned.filter((id) => !grouped.has(id))).map((node) => ({
    name: nodeLabel(graph, state, node),
    nodes: [node],
    group: null,
  }));
  return [...groups, ...singles]
    .filter((box) => box.nodes.length)
    .map((box) => ({
      ...box,
      key: box.nodes
        .map((node) => node.id)
        .sort()
        .join("-"),
    }))
    .sort((a, b) => (a.key < b.key ? -1 : 1));
}

/** Links between boxes: {from, to, share}, strongest last. */
export function boxLinks(graph, boxes) {
  const boxOf = new Map(boxes.flatMap((box, place) => box.nodes.map((node) => [node.index, place])));
  const links = [];
  boxes.forEach((box, to) => {
    const outside = outsideMass(graph, box.nodes);
    const sums = new Map();
    for (const node of box.nodes) {
      for (const link of inputsOf(graph, node.index)) {
        const from = boxOf.get(graph.links.source[link]);
        if (from === to) continue;
        if (from !== undefined) sums.set(from, (sums.get(from) ?? 0) + graph.links.weight[link]);
      }
    }
    for (const [from, sum] of sums) links.push({ from, to, share: sum / (outside || 1) });
  });
  return links.sort((a, b) => Math.abs(a.share) - Math.abs(b.share));
}

/** The second thing that a box says: where its nodes are, and how an intervention changed them. */
export function boxCaption(graph, state, { nodes, group }) {
  const change = boxChange(state, nodes);
  const positions = new Set(nodes.map((node) => node.position));
  const token = positions.size === 1 ? ` \u00b7 ${tokenText(graph, nodes[0].position)}` : "";
  const place = group && nodes.length > 1 ? `${nodes.length} nodes${token}` : placeName(graph, nodes[0]);
  return change === null ? place : `${place} \u00b7 ${percent(change, true)}`;
}

/** The state with the groups and pins that are offered in place of its groups; itself while none are. */
export function previewed(state) {
  if (state.offer === null) return state;
  const { groups, pinned } = state.offer;
  const members = groups.flatMap((group) => group.members);
  return { ...state, groups, pinned: [...new Set([...state.pinned, ...pinned, ...members])] };
}
