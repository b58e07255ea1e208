// What the link graph shows, as strokes for a pen. A generator: it pauses often, so that a large graph never blocks.

import { nodeChange } from "./effect.js";
import { shareWidth } from "./palette.js";
import { layerName, nodeLabel, targetText, tokenText } from "./labels.js";
import { inputsOf, isError } from "./read_graph.js";
import { linkOf, selectedLinks, selectedNodes, selection } from "./selection.js";
import { linkFilter } from "./visible.js";

const SHAPES = {
  feature: "circle",
  "attention feature": "triangle",
  error: "diamond",
  "attention error": "diamond",
  token: "square",
  target: "square",
  bias: "triangle",
  unknown: "triangle",
};
const A_PIECE = 1500;
/** More links than this would only blacken the picture; the strongest are drawn. */
export const MOST_FAINT = 8000;
export const MOST_CURVED = 4000;
const MOST_NAMES = 60;
const FULL_SHARE = 0.4; // a share of this much has the full colour

/** Pixels from the middle of a glyph to its edge at a zoom. */
export function glyphRadius(zoom, count) {
  const base = count > 3000 ? 2.6 : count > 600 ? 3.6 : 5;
  return base * Math.min(2, Math.sqrt(Math.max(1, zoom)));
}

/** Bands, links and nodes; view: {graph, state, shown, links, layout, palette, camera, extent}. Yields between pieces. */
export function* drawScene(pen, view) {
  drawBands(pen, view);
  yield* drawFaintLinks(pen, view);
  yield* drawStrongLinks(pen, view);
  yield* drawNodes(pen, view);
}

function drawBands(pen, { layout, palette, camera, extent }) {
  layout.columns.forEach((column, position) => {
    if (position % 2 === 0) return;
    const left = column.left * camera.zoom + camera.x;
    pen.rectangle(left, extent.top, column.width * camera.zoom, extent.bottom - extent.top, palette.band);
  });
  const rules = layout.rows
    .map((row) => row.y * camera.zoom + camera.y)
    .flatMap((y) => [extent.left, y, extent.right, y]);
  pen.lines(rules, { color: palette.rule, width: 1 });
}

/** The links behind those that stand out: of many the strongest. */
export function faintLinks({ state, links }) {
  if (!state.allEdges) return [];
  return links.length > MOST_FAINT ? links.slice(links.length - MOST_FAINT) : links;
}

function* drawFaintLinks(pen, view) {
  const { state, palette } = view;
  const drawn = faintLinks(view);
  if (!drawn.length) return;
  const quiet = state.clicked !== null || state.pinned.length > 1 || state.path !== null;
  const usual = Math.max(0.07, Math.min(0.4, 6 / Math.sqrt(drawn.length + 1)));
  const alpha = quiet ? Math.max(0.05, usual * 0.4) : usual;
  yield* drawLinks(pen, view, drawn, { color: () => palette.muted, alpha, widest: 2.4, levels: 4 });
}

/** The links of what is selected; without a selection, those among pinned nodes. */
function* drawStrongLinks(pen, view) {
  yield* drawLinks(pen, view, strongLinks(view), { color: view.palette.share, alpha: 0.9, widest: 4.5, levels: 14 });
}

/** Link numbers that stand out. */
export function strongLinks({ graph, state, shown }) {
  const { source, target, share } = graph.links;
  const filter = linkFilter(graph, state);
  const passes = (link) => shown[source[link]] && shown[target[link]] && filter(link);
  const chosen = selectedNodes(graph, state);
  let links = [];
  if (chosen.length) {
    if (state.linkType !== "output") links.push(...selectedLinks(graph, chosen, true));
    if (state.linkType !== "input") links.push(...selectedLinks(graph, chosen, false));
  } else {
    const pinned = new Set(state.pinned.map((id) => graph.byId.get(id)?.index));
    for (const node of pinned) {
      if (node !== undefined) links.push(...inputsOf(graph, node).filter((link) => pinned.has(source[link])));
    }
  }
  links = links.filter(passes);
  return links.sort((a, b) => Math.abs(share[a]) - Math.abs(share[b]));
}

/** Links in bundles of like strength, weakest first. */
function* drawLinks(pen, { graph, layout, camera, extent }, links, { color, alpha, widest, levels }) {
  const { source, target, share } = graph.links;
  const { x, y } = layout;
  const { zoom } = camera;
  const curved = links.length <= MOST_CURVED;
  let points = [];
  let level = null;
  let style = null;
  for (const link of links) {
    const strength = Math.round(Math.sqrt(Math.min(1, Math.abs(share[link]))) * levels) * (share[link] < 0 ? -1 : 1);
    if (style === null || strength !== level || points.length >= 4 * A_PIECE) {
      if (points.length) {
        pen.lines(points, style);
        yield;
      }
      points = [];
      level = strength;
      const shown = Math.sign(strength || 1) * (Math.abs(strength) / levels) ** 2;
      style = { color: color(shown), width: shareWidth(shown, widest), alpha, curved };
    }
    const [a, b] = [source[link], target[link]];
    const [x1, y1, x2, y2] = [
      x[a] * zoom + camera.x,
      y[a] * zoom + camera.y,
      x[b] * zoom + camera.x,
      y[b] * zoom + camera.y,
    ];
    const outside =
      Math.max(x1, x2) < extent.left ||
      Math.min(x1, x2) > extent.right ||
      Math.max(y1, y2) < extent.top ||
      Math.min(y1, y2) > extent.bottom;
    if (!outside) points.push(x1, y1, x2, y2);
  }
  if (points.length) pen.lines(points, style);
}

function* drawNodes(pen, view) {
  const { graph, state, shown, palette, layout, camera, extent } = view;
  const radius = glyphRadius(camera.zoom, view.count);
  const chosen = selection(graph, state);
  const shares = chosen && neighbourShares(chosen, state);
  const clicked = new Set(chosen?.nodes);
  const pinned = new Set(state.pinned);
  const found = view.found ? new Set(view.found.map((node) => node.index)) : null;
  const bundles = new Map();
  for (const node of graph.nodes) {
    if (!shown[node.index]) continue;
    const x = layout.x[node.index] * camera.zoom + camera.x;
    const y = layout.y[node.index] * camera.zoom + camera.y;
    if (x < extent.left - 9 || x > extent.right + 9 || y < extent.top - 9 || y > extent.bottom + 9) continue;
    const marks = {
      isSelecting: chosen !== null,
      isClicked: clicked.has(node),
      isPinned: pinned.has(node.id),
      isFiltered: (found && !found.has(node.index)) || (view.touched && !view.touched.has(node.index)),
      crowded: view.count > 3000,
    };
    // After an intervention colours say what changed; shares come back when that is cleared.
    const change = nodeChange(state, node.id);
    const shade = state.effect ? (change === null ? undefined : change * FULL_SHARE) : shares?.get(node.index);
    const style = nodeStyle(node, palette, shade, marks);
    const key = `${SHAPES[node.kind]}|${style.fill}|${style.stroke}|${style.width}|${style.alpha}`;
    if (!bundles.has(key)) bundles.set(key, { shape: SHAPES[node.kind], style, places: [] });
    bundles.get(key).places.push(x, y);
  }
  const ordered = [...bundles.values()].sort((a, b) => a.style.rank - b.style.rank);
  for (const { shape, style, places } of ordered) {
    for (let at = 0; at < places.length; at += 2 * A_PIECE) {
      pen.glyphs(shape, places.slice(at, at + 2 * A_PIECE), radius, style);
      yield;
    }
  }
}

/** Share of the selection in each neighbour's input, or of each neighbour in the selection's. */
function neighbourShares(chosen, state) {
  const shares = new Map();
  if (state.linkType !== "output") for (const [node, { share }] of chosen.inputs) shares.set(node, share);
  if (state.linkType !== "input") for (const [node, { share }] of chosen.outputs) shares.set(node, share);
  return shares;
}

function nodeStyle(node, palette, share, { isSelecting, isClicked, isPinned, isFiltered, crowded }) {
  const faded = isFiltered || (isSelecting && share === undefined && !isClicked && !isPinned);
  const step = share === undefined ? 0 : (Math.sign(share) * Math.round(Math.sqrt(Math.abs(share)) * 24) ** 2) / 576;
  let fill = isError(node) ? palette.panel : palette.node;
  if (node.kind === "target" || node.kind === "token") fill = palette.target;
  if (share !== undefined && !isClicked) fill = palette.share(step);
  if (isClicked) fill = palette.accent;
  const strong = isPinned || isClicked;
  return {
    fill,
    stroke: strong ? palette.accent : palette.ink,
    width: strong ? 2.4 : crowded ? 0.5 : 0.9,
    alpha: faded ? 0.25 : 1,
    rank: (strong ? 4 : 0) + (faded ? 0 : 2) + (share !== undefined ? 1 : 0),
  };
}

/** Names of rows at the left and of tokens below, which stay in the panel wherever one pans. */
export function drawGutters(pen, { graph, layout, palette, camera, width, height }) {
  const { margin } = layout;
  pen.rectangle(0, 0, margin.left - 6, height, palette.panel);
  pen.rectangle(0, height - margin.bottom + 4, width, margin.bottom - 4, palette.panel);
  const named = [];
  const last = layout.rows.length - 1;
  // Outputs and tokens are named first, then layers where there is room.
  for (const row of [last, 0, ...layout.rows.keys()]) {
    const y = layout.rows[row].y * camera.zoom + camera.y;
    if (y < 8 || y > height - margin.bottom + 2 || named.some((other) => Math.abs(other - y) < 13)) continue;
    pen.text(margin.left - 12, y, layerName(graph, row - 1), { color: palette.muted, size: 11, align: "right" });
    named.push(y);
  }
  layout.columns.forEach((column, position) => {
    const middle = (column.left + column.width / 2) * camera.zoom + camera.x;
    const room = column.width * camera.zoom - 6;
    if (middle < margin.left - 10 || middle > width + 20) return;
    const text = fit(tokenText(graph, position), room / 6.6);
    pen.text(middle, height - margin.bottom + 17, text, { color: palette.ink, size: 12, align: "center", weight: 500 });
    if (room > 12)
      pen.text(middle, height - margin.bottom + 33, String(position), {
        color: palette.muted,
        size: 10,
        align: "center",
      });
  });
}

/** Names above outputs, pinned nodes and the clicked one, the most important first, where there is room. */
export function drawNames(pen, { graph, state, shown, layout, palette, camera, count, width }) {
  const radius = glyphRadius(camera.zoom, count);
  const named = graph.nodes.filter(
    (node) =>
      shown[node.index] &&
      (node.kind === "target" ||
        node.id === state.clicked ||
        (node.kind !== "token" && state.pinned.includes(node.id))),
  );
  const rank = (node) =>
    node.id === state.clicked ? -2 : node.kind === "target" ? -(node.probability ?? 0) : (node.influence ?? 1);
  const taken = [];
  for (const node of named.sort((a, b) => rank(a) - rank(b)).slice(0, MOST_NAMES)) {
    const x = layout.x[node.index] * camera.zoom + camera.x;
    const y = layout.y[node.index] * camera.zoom + camera.y - radius - 9;
    const group = state.groups.find((each) => each.members.includes(node.id));
    const name = node.kind === "target" ? targetText(node) : (group?.name ?? nodeLabel(graph, state, node));
    const text = fit(name, 22);
    const half = [...text].length * 3.2 + 3;
    const middle = Math.max(half + 40, Math.min(width - half - 2, x));
    const box = [middle - half, y - 7, middle + half, y + 7];
    if (taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3]))
      continue;
    taken.push(box);
    pen.text(middle, y, text, { color: palette.ink, size: 11, align: "center", weight: 500, halo: palette.panel });
  }
}

/** As many characters as there is room for. */
export function fit(text, room) {
  const letters = [...text];
  return letters.length <= room ? text : `${letters.slice(0, Math.max(1, Math.floor(room) - 1)).join("")}\u2026`;
}

/** Rings, routes and the chosen link above the scene. */
export function drawOverlay(pen, { graph, state, shown, layout, palette, camera, count, pointed }) {
  const radius = glyphRadius(camera.zoom, count);
  const at = (index) => [layout.x[index] * camera.zoom + camera.x, layout.y[index] * camera.zoom + camera.y];
  if (state.path) {
    const points = state.path.slice(1).flatMap((node, step) => [...at(state.path[step]), ...at(node)]);
    pen.lines(points, { color: palette.accent, width: 3.5, alpha: 0.85, curved: true });
    for (const node of state.path) pen.glyphs("circle", at(node), radius + 3, { stroke: palette.accent, width: 2 });
  }
  const mark = (link, style) => {
    const [from, to] = [graph.links.source[link], graph.links.target[link]];
    if (shown[from] && shown[to]) pen.lines([...at(from), ...at(to)], { curved: true, ...style });
  };
  if (pointed !== null) mark(pointed, { color: palette.hover, width: 2.5, alpha: 0.8 });
  const chosen = linkOf(graph, state.edge);
  if (chosen !== null) mark(chosen, { color: palette.accent, width: 3.5, alpha: 0.85 });
  const ring = (id, style) => {
    const node = id === null ? undefined : graph.byId.get(id);
    if (node && shown[node.index]) pen.glyphs("circle", at(node.index), radius + 4, style);
  };
  for (const id of state.lit ?? []) ring(id, { stroke: palette.accent, width: 3 });
  for (const id of state.collecting ?? []) ring(id, { stroke: palette.accent, width: 2, dash: [2, 2] });
  const hovered = state.hovered === null ? undefined : graph.byId.get(state.hovered);
  if (hovered?.feature !== null && hovered?.feature !== undefined) {
    for (const node of graph.nodes) {
      if (node.featureKey === hovered.featureKey && node !== hovered)
        ring(node.id, { stroke: palette.hover, width: 1, alpha: 0.7 });
    }
  }
  ring(state.focused, { stroke: palette.ink, width: 2 });
  ring(state.hovered, { stroke: palette.hover, width: 1.8, dash: [3, 2] });
}
