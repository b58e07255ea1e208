// The pinned subgraph: boxes of one node or one group, the links among them, and where they stand.
//
// The link S -> T of boxes is the sum of the weights from members of S to members of T over the sum of T's |inputs|
// that come from outside of T; so a group's inner links do not count.

import { inputsOf } from "./read_graph.js";
import { nodeLabel } from "./labels.js";
import { outsideMass } from "./shares.js";

/** Boxes {key, name, nodes, group}; a box's key, by which its place is kept, is its node ids joined. */
export function makeBoxes(graph, state) {
  const grouped = new Set(state.groups.flatMap((group) => group.members));
  const known = (ids) => ids.map((id) => graph.byId.get(id)).filter(Boolean);
  const groups = state.groups.map((group) => ({ name: group.name, nodes: known(group.members), group }));
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
    for (const [from, sum] of sums) links.push({ from, to, share: sum / outside });
  });
  return links.sort((a, b) => Math.abs(a.share) - Math.abs(b.share));
}

/**
 * Middle of each box in pixels: rows by layer, tokens from left to right, no two boxes on top of each other; places
 * chosen by hand (thousandths of the panel) are kept. Returns {places: [[x, y]], width, height} that hold them all.
 */
export function placeBoxes(boxes, positions, width, height, box = { width: 148, height: 52 }) {
  const mean = (nodes, field) => nodes.reduce((sum, node) => sum + node[field], 0) / nodes.length;
  const levels = boxes.map((each) => Math.max(...each.nodes.map((node) => node.layer)));
  const rows = [...new Set(levels)].sort((a, b) => b - a).map((level) => boxes.filter((_, at) => levels[at] === level));
  const widest = Math.max(1, ...rows.map((row) => row.length));
  const whole = {
    width: Math.max(width, widest * (box.width + 16) + 16),
    height: Math.max(height, rows.length * (box.height + 16) + 10),
  };
  const positionsOf = boxes.flatMap((each) => each.nodes.map((node) => node.position));
  const [first, last] = [Math.min(...positionsOf), Math.max(...positionsOf)];
  const places = new Map();
  rows.forEach((row, number) => {
    const y = ((number + 0.5) / rows.length) * whole.height;
    const ordered = row.slice().sort((a, b) => mean(a.nodes, "position") - mean(b.nodes, "position"));
    const inner = whole.width - box.width - 16;
    const wanted = ordered.map(
      (each) => box.width / 2 + 8 + ((mean(each.nodes, "position") - first) / Math.max(1, last - first)) * inner,
    );
    spread(wanted, box.width + 16, box.width / 2 + 8, whole.width - box.width / 2 - 8);
    ordered.forEach((each, place) =>
      places.set(each.key, [last === first ? (whole.width * (place + 0.5)) / ordered.length : wanted[place], y]),
    );
  });
  const chosen = (each) =>
    positions[each.key] && [
      (positions[each.key][0] * whole.width) / 1000,
      (positions[each.key][1] * whole.height) / 1000,
    ];
  return { places: boxes.map((each) => chosen(each) ?? places.get(each.key)), ...whole };
}

/** Push sorted places apart to at least `gap`, within bounds. */
function spread(places, gap, low, high) {
  for (let at = 1; at < places.length; at += 1) places[at] = Math.max(places[at], places[at - 1] + gap);
  if (places.length) places[places.length - 1] = Math.min(places.at(-1), high);
  for (let at = places.length - 2; at >= 0; at -= 1) places[at] = Math.min(places[at], places[at + 1] - gap);
  if (places.length) places[0] = Math.max(places[0], low);
}
