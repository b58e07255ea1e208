// Where nodes stand: tokens across, layers up. Both directions are divided among the columns and rows by what stands in them, so
// that everything is in the panel.

import { influence } from "./graph_math.js";
import { outputText, tokenName } from "./labels.js";
import { isError, isOfAttention } from "./read_graph.js";

const SIDE = { left: 46, right: 14 };
const LEAST_WIDTH = 12; // of a column, where there is room for it
const STEP = { across: 15, up: 13 }; // nodes of a cell stand no further apart
const GLYPH = { least: 1.3, most: 5, plain: 3 };
const LINE = 13; // between two names beside each other
const LETTER = 6.3;
const NAMED = 10; // features that are named unasked

/**
 * Places at zoom 1 for a panel of width x height CSS pixels: {x, y, size, influential, columns, rows, names, radius, margin, width, height}.
 *
 * columns: {left, width} by position; rows: {y, height} by layer + 1. Outputs have their row to themselves and stand as far apart as
 * their names need. size: by node, the radius of its glyph over `radius`, the usual one: its area grows with influence. influential:
 * the features with the most of it. names: {outputs, tokens}, each
 * {spacing, longest, room}: pixels between neighbours, letters of the longest name, and letters that there is room for.
 */
export function layOut(graph, shown, width, height) {
  const cells = fillCells(graph, shown);
  const inner = width - SIDE.left - SIDE.right;
  const columns = columnWidths(graph, cells, inner);
  const outputs = graph.nodes.filter((node) => node.kind === "target" && shown[node.index]);
  const names = { outputs: outputNames(outputs, inner, height), tokens: tokenNames(graph, columns, height) };
  const margin = { ...SIDE, top: names.outputs.height, bottom: names.tokens.height };
  const { rows, halves } = rowHeights(graph, cells, margin, height);
  const x = new Float32Array(graph.nodes.length);
  const y = new Float32Array(graph.nodes.length);
  const steps = [];
  for (const [key, members] of cells) {
    if (members[0].kind === "target") continue;
    const column = columns[key % graph.tokens.length];
    const step = placeCell(members, column, halves.get(Math.floor(key / graph.tokens.length)), x, y);
    steps.push(...members.map(() => step));
  }
  placeOutputs(outputs, columns, rows[graph.topLayer + 1], names.outputs.spacing, width, x, y);
  const usual = steps.sort((a, b) => a - b)[Math.floor(steps.length / 10)] ?? STEP.up;
  const radius = Math.max(GLYPH.least, Math.min(GLYPH.most, 0.46 * usual));
  const influential = mostInfluential(graph, shown);
  const size = sizes(graph, influential, radius);
  return { x, y, size, influential, columns, rows, names, radius, margin, width, height };
}

/** Slope of names, in radians, so that neighbours `spacing` apart do not touch: 0 where they fit beside each other. */
export function slope(spacing, letters, line = LINE) {
  return spacing >= letters * LETTER + 6 ? 0 : Math.asin(Math.min(1, line / spacing));
}

/** The half of a row in which a node stands: attention is below the MLP of its layer. */
const halfOf = (node) => 2 * (node.layer + 1) + (isOfAttention(node) ? 0 : 1);

/** Nodes by cell, of a half row and a token, the most important first; targets by probability. */
function fillCells(graph, shown) {
  const cells = new Map();
  for (const node of graph.nodes) {
    if (!shown[node.index]) continue;
    const key = halfOf(node) * graph.tokens.length + node.position;
    if (!cells.has(key)) cells.set(key, []);
    cells.get(key).push(node);
  }
  const rank = (node) => (node.kind === "target" ? -likelihood(node) : (node.influence ?? 2));
  for (const members of cells.values()) members.sort((a, b) => rank(a) - rank(b));
  return cells;
}

/** By column or row, the most nodes in any of its cells. */
function fullest(cells, count, place) {
  const most = new Array(count).fill(1);
  for (const [key, members] of cells) {
    if (members[0].kind !== "target") most[place(key)] = Math.max(most[place(key)], members.length);
  }
  return most;
}

function columnWidths(graph, cells, inner) {
  const n_tokens = graph.tokens.length;
  const wanted = fullest(cells, n_tokens, (key) => key % n_tokens).map((most) => 0.6 + Math.sqrt(most));
  const least = Math.min(LEAST_WIDTH, inner / n_tokens);
  const left = { at: SIDE.left };
  return divided(wanted, inner, least).map((width) => {
    left.at += width;
    return { left: left.at - width, width };
  });
}

/** rows: by layer + 1; halves: of them by `halfOf`, those of attention where it has nodes. y is the middle. */
function rowHeights(graph, cells, margin, height) {
  const n_rows = graph.topLayer + 2;
  const n_tokens = graph.tokens.length;
  const most = fullest(cells, 2 * n_rows, (key) => Math.floor(key / n_tokens));
  const attention = new Set([...cells.keys()].map((key) => Math.floor(key / n_tokens)).filter((half) => half % 2 === 0));
  const there = most.map((_, half) => half).filter((half) => half % 2 === 1 || attention.has(half));
  const wanted = there.map((half) => 0.7 + Math.sqrt(most[half]));
  const inner = height - margin.top - margin.bottom;
  const rows = Array.from({ length: n_rows }, () => ({ y: 0, height: 0 }));
  const halves = new Map();
  let bottom = height - margin.bottom;
  divided(wanted, inner, (0.3 * inner) / there.length).forEach((room, at) => {
    bottom -= room;
    halves.set(there[at], { y: bottom + room / 2, height: room });
    const row = rows[there[at] >> 1];
    row.height += room;
    row.y = bottom + row.height / 2;
  });
  return { rows, halves };
}

/** A length in parts like `wanted`, none below `least`. */
function divided(wanted, length, least) {
  const total = wanted.reduce((sum, each) => sum + each, 0);
  const rest = Math.max(0, length - least * wanted.length);
  return wanted.map((each) => least + (rest * each) / total);
}

/** Nodes of a cell in lines that fill it evenly; returns how far apart they stand. */
function placeCell(members, column, row, x, y) {
  const [width, height] = [column.width * 0.9, row.height * 0.84];
  const count = members.length;
  const wanted = Math.sqrt((count * width) / height);
  const fits = Math.floor(width / STEP.up); // nodes side by side without being crowded
  const across = Math.max(1, Math.min(count, Math.max(Math.round(wanted), fits)));
  const lines = Math.ceil(count / across);
  const [dx, dy] = [Math.min(STEP.across, width / across), Math.min(STEP.up, height / lines)];
  members.forEach((node, place) => {
    const line = Math.floor(place / across);
    const inLine = line === lines - 1 ? count - line * across : across;
    x[node.index] = column.left + column.width / 2 + ((place % across) - (inLine - 1) / 2) * dx;
    y[node.index] = row.y + (line - (lines - 1) / 2) * dy;
  });
  return Math.min(across > 1 ? dx : column.width, lines > 1 ? dy : row.height);
}

/** Outputs in their row, by probability around the middle of their token's column, pushed apart and into the panel. */
function placeOutputs(outputs, columns, row, spacing, width, x, y) {
  const ordered = outputs.slice().sort((a, b) => a.position - b.position || likelihood(b) - likelihood(a));
  const counts = new Map();
  for (const { position } of ordered) counts.set(position, (counts.get(position) ?? 0) + 1);
  const seen = new Map();
  const places = ordered.map(({ position }) => {
    const rank = seen.get(position) ?? 0;
    seen.set(position, rank + 1);
    const { left, width: room } = columns[position];
    return left + room / 2 + (rank - (counts.get(position) - 1) / 2) * spacing;
  });
  const [low, high] = [SIDE.left + 6, width - SIDE.right - 6];
  for (let at = 1; at < places.length; at += 1) places[at] = Math.max(places[at], places[at - 1] + spacing);
  const over = Math.max(0, (places.at(-1) ?? 0) - high);
  for (let at = places.length - 1, limit = high; over && at >= 0; at -= 1, limit -= spacing)
    places[at] = Math.min(places[at], limit);
  for (let at = 0, limit = low; at < places.length; at += 1, limit += spacing) places[at] = Math.max(places[at], limit);
  ordered.forEach((node, at) => {
    x[node.index] = places[at];
    y[node.index] = row.y;
  });
}

function outputNames(outputs, inner, height) {
  const longest = Math.max(1, ...outputs.map((node) => [...outputText(node)].length));
  const count = Math.max(1, outputs.length);
  const spacing = Math.min(longest * LETTER + 10, Math.max(0.3 * inner, Math.min(0.9 * inner, count * 16)) / count);
  return margined({ spacing, longest }, height * 0.3, 26);
}

function tokenNames(graph, columns, height) {
  const longest = Math.max(1, ...graph.tokens.map((_, at) => [...tokenName(graph, at)].length));
  const middle = ({ left, width }) => left + width / 2;
  const gaps = columns.slice(1).map((column, at) => middle(column) - middle(columns[at]));
  return margined({ spacing: Math.min(columns[0].width, ...gaps), longest }, height * 0.22, 46);
}

/** How high names are at their slope, up to a limit; they are cut to the room there is. */
function margined({ spacing, longest }, limit, level) {
  const angle = slope(spacing, longest);
  if (angle === 0) return { spacing, longest, room: longest, height: level };
  const room = Math.min(longest, Math.max(4, (limit - 20) / (LETTER * Math.sin(angle))));
  return { spacing, longest, room, height: Math.max(level, room * LETTER * Math.sin(angle) + 20) };
}

/** Of an output; `likeliest` where several graphs share its place. */
const likelihood = ({ likeliest, probability }) => likeliest ?? probability ?? 0;

const isPlain = (node) => node.kind === "token" || node.kind === "target";

/** The shown features with the most influence, in that order. */
function mostInfluential(graph, shown) {
  const own = influence(graph).nodes;
  return graph.nodes
    .filter((node) => shown[node.index] && !isPlain(node) && !isError(node) && own[node.index] > 0)
    .sort((a, b) => own[b.index] - own[a.index])
    .slice(0, NAMED);
}

/** Radius of each node's glyph over the usual one, its area by influence; errors are smaller, tokens and outputs all alike. */
function sizes(graph, [first], radius) {
  const own = influence(graph).nodes;
  const most = first ? own[first.index] : 1;
  return Float32Array.from(graph.nodes, (node) => {
    if (isPlain(node)) return Math.max(1, GLYPH.plain / radius);
    const share = Math.sqrt(Math.min(1, own[node.index] / most));
    return isError(node) ? 0.6 + 0.35 * share : 0.7 + share;
  });
}
