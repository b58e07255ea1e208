// What the link graph shows, as strokes for a pen. A generator: it pauses often, so that a large graph never blocks.

import { nodeChange } from "./effect.js";
import { influence } from "./graph_math.js";
import { shareWidth } from "./palette.js";
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
const MOST_INK = 120; // links' darkness, added up
const A_DOT = 2; // pixels: a smaller glyph has no outline
/** More links than this would only blacken the picture; the strongest are drawn. */
export const MOST_FAINT = 8000;
export const MOST_CURVED = 4000;
const FULL_SHARE = 0.4; // a share of this much has the full colour

const SIZES = 12; // glyphs of so many sizes are told apart

/** Pixels from the middle of a usual glyph to its edge at a zoom. */
export function glyphRadius({ radius }, zoom) {
  return Math.max(radius, Math.min(7, radius * zoom ** 0.7));
}

/** Of one node. */
export function nodeRadius(layout, zoom, node) {
  return glyphRadius(layout, zoom) * (Math.ceil(layout.size[node] * SIZES) / SIZES);
}

/** Bands, links and nodes; view: {graph, state, shown, links, layout, palette, camera, extent}. Yields between pieces. */
export function* drawScene(pen, view) {
  drawBands(pen, view);
  drawAbsent(pen, view);
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

/** Where nodes stand that only another graph of the page has. */
function drawAbsent(pen, { graph, placed, shown, layout, palette, camera }) {
  const places = graph.nodes
    .filter(({ index }) => placed[index] && !shown[index])
    .flatMap(({ index }) => [layout.x[index] * camera.zoom + camera.x, layout.y[index] * camera.zoom + camera.y]);
  if (places.length) pen.glyphs("circle", places, glyphRadius(layout, camera.zoom) * 0.6, { stroke: palette.muted, width: 0.6, alpha: 0.45 });
}

/** The links behind those that stand out, of many those with the most influence; none behind what is selected. */
export function faintLinks({ state, links }) {
  if (!state.allEdges || state.clicked !== null || state.path !== null) return [];
  return links.length > MOST_FAINT ? links.slice(links.length - MOST_FAINT) : links;
}

/** Width and darkness by the influence that flows through a link, beside the strongest that is shown. */
function* drawFaintLinks(pen, view) {
  const { graph, state, palette } = view;
  const drawn = faintLinks(view);
  if (!drawn.length) return;
  const dimmed = state.pinned.length > 1 ? 0.3 : 1;
  const flow = influence(graph).links;
  const strongest = flow[drawn.at(-1)] || 1;
  const strength = (link) => Math.sqrt(flow[link] / strongest);
  const least = Math.max(0.01, Math.min(0.3, 60 / drawn.length));
  const fading = steepness(drawn.map(strength));
  yield* drawLinks(pen, view, drawn, 16, strength, (level) => ({
    color: palette.muted,
    width: shareWidth(level ** 2, 3.2),
    alpha: dimmed * (least + (0.85 - least) * level ** fading),
  }));
}

/** The power of strengths (0 to 1) that leaves as much ink as the picture bears: many links of like strength make a cloud. */
function steepness(strengths) {
  const powers = [1.5, 2, 3, 4, 6, 8];
  return powers.find((power) => strengths.reduce((sum, each) => sum + each ** power, 0) < MOST_INK) ?? 10;
}

/** The links of what is selected, beside the strongest of them; without a selection, those among pinned nodes. */
function* drawStrongLinks(pen, view) {
  const { share } = view.graph.links;
  const drawn = strongLinks(view);
  if (!drawn.length) return;
  const strongest = Math.abs(share[drawn.at(-1)]) || 1;
  const strength = (link) => Math.sign(share[link]) * Math.sqrt(Math.abs(share[link]) / strongest);
  const least = Math.max(0.03, Math.min(0.4, 30 / drawn.length));
  const fading = steepness(drawn.map((link) => Math.abs(strength(link))));
  yield* drawLinks(pen, view, drawn, 14, strength, (level) => ({
    color: view.palette.share(Math.sign(level) * level ** 2 * FULL_SHARE),
    width: shareWidth(level ** 2, 4.5),
    alpha: least + (0.95 - least) * Math.abs(level) ** fading,
  }));
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

/** Links in bundles of like strength (-1 to 1, in so many levels), weakest first; style(strength) is a bundle's look. */
function* drawLinks(pen, { graph, layout, camera, extent }, links, levels, strengthOf, styleOf) {
  const { source, target } = graph.links;
  const { x, y } = layout;
  const { zoom } = camera;
  const curved = links.length <= MOST_CURVED;
  let points = [];
  let level = null;
  let style = null;
  for (const link of links) {
    const strength = Math.round(strengthOf(link) * levels);
    if (style === null || strength !== level || points.length >= 4 * A_PIECE) {
      if (points.length) {
        pen.lines(points, style);
        yield;
      }
      points = [];
      level = strength;
      style = { ...styleOf(strength / levels), curved };
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
  const { graph, look, state, shown, palette, layout, camera, extent } = view;
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
    if (x < extent.left - 12 || x > extent.right + 12 || y < extent.top - 12 || y > extent.bottom + 12) continue;
    const marks = {
      isSelecting: chosen !== null,
      isClicked: clicked.has(node),
      isPinned: pinned.has(node.id),
      isFiltered: (found && !found.has(node.index)) || (view.touched && !view.touched.has(node.index)),
      crowded: layout.radius < 3,
      outline: palette[look.outlines?.[node.index]],
    };
    // After an intervention colours say what changed; shares come back when that is cleared.
    const change = nodeChange(state, node.id);
    const own = chosen || !look.shades || Number.isNaN(look.shades[node.index]) ? undefined : look.shades[node.index];
    const shade = state.effect ? (change === null ? undefined : change * FULL_SHARE) : (shares?.get(node.index) ?? own);
    const radius = nodeRadius(layout, camera.zoom, node.index);
    const style = nodeStyle(node, palette, shade, { ...marks, isDot: radius < A_DOT });
    const key = `${SHAPES[node.kind]}|${radius}|${style.fill}|${style.stroke}|${style.width}|${style.alpha}`;
    if (!bundles.has(key)) bundles.set(key, { shape: SHAPES[node.kind], radius, style, places: [] });
    bundles.get(key).places.push(x, y);
  }
  // Of a rank the small ones come last, so that none is covered.
  const ordered = [...bundles.values()].sort((a, b) => a.style.rank - b.style.rank || b.radius - a.radius);
  for (const { shape, radius, style, places } of ordered) {
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

function nodeStyle(node, palette, share, { isSelecting, isClicked, isPinned, isFiltered, crowded, isDot, outline }) {
  const faded = isFiltered || (isSelecting && share === undefined && !isClicked && !isPinned);
  const step = share === undefined ? 0 : (Math.sign(share) * Math.round(Math.sqrt(Math.abs(share)) * 24) ** 2) / 576;
  let fill = isError(node) ? null : palette.node;
  if (node.kind === "target" || node.kind === "token") fill = palette.target;
  else if (node.kind === "attention feature") fill = palette.attention;
  else if (node.part) fill = palette.second;
  else if (isDot && fill) fill = palette.muted;
  if (share !== undefined && !isClicked) fill = palette.share(step);
  if (isClicked) fill = palette.accent;
  const strong = isPinned || isClicked;
  return {
    fill,
    stroke: strong ? palette.accent : outline ? outline : isError(node) ? palette.muted : isDot && fill !== palette.target ? null : palette.ink,
    width: strong ? 2.4 : outline ? (crowded ? 1.2 : 2) : crowded ? 0.6 : 0.9,
    alpha: faded ? 0.25 : 1,
    rank: (strong ? 4 : 0) + (faded ? 0 : 2) + (share !== undefined ? 1 : 0),
  };
}

/** As many characters as there is room for. */
export function fit(text, room) {
  const letters = [...text];
  return letters.length <= room ? text : `${letters.slice(0, Math.max(1, Math.floor(room) - 1)).join("")}\u2026`;
}

/** Rings, routes and the chosen link above the scene. */
export function drawOverlay(pen, { graph, state, placed, shown, layout, palette, camera, pointed }) {
  const at = (index) => [layout.x[index] * camera.zoom + camera.x, layout.y[index] * camera.zoom + camera.y];
  if (state.path) {
    const points = state.path.slice(1).flatMap((node, step) => [...at(state.path[step]), ...at(node)]);
    pen.lines(points, { color: palette.accent, width: 3.5, alpha: 0.85, curved: true });
    for (const node of state.path) pen.glyphs("circle", at(node), nodeRadius(layout, camera.zoom, node) + 3, { stroke: palette.accent, width: 2 });
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
    if (node && placed[node.index]) pen.glyphs("circle", at(node.index), nodeRadius(layout, camera.zoom, node.index) + 4, style);
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
  ring(state.focused, { stroke: palette.panel, width: 6 });
  ring(state.focused, { stroke: palette.accent, width: 3 });
  ring(state.hovered, { stroke: palette.hover, width: 1.8, dash: [3, 2] });
}
