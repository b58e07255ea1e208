// Names on the link graph: rows at the left, tokens below, outputs above their row, and nodes that matter beside their glyphs.

import { layerName, nodeLabel, outputText, tokenName } from "./labels.js";
import { slope } from "./layout.js";
import { fit, nodeRadius } from "./scene.js";

const MOST_NAMES = 60;
const ROOM = 22; // letters of a node's name
const LETTER = 6.3;
const NAME = { size: 11, weight: 500 };

/** Names of rows at the left and of tokens below, which stay in the panel wherever one pans. */
export function drawGutters(pen, view) {
  const { graph, layout, palette, camera, width, height } = view;
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
  drawTokens(pen, view);
}

function drawTokens(pen, { graph, layout, palette, camera, width, height }) {
  const { spacing, longest, room } = layout.names.tokens;
  const angle = slope(spacing * camera.zoom, longest);
  const size = angle ? Math.max(8, Math.min(12, spacing * camera.zoom)) : 12;
  const top = height - layout.margin.bottom + 17;
  layout.columns.forEach((column, position) => {
    const middle = (column.left + column.width / 2) * camera.zoom + camera.x;
    if (middle < layout.margin.left - 10 || middle > width + 20) return;
    // The first names lean beyond the left border unless they are cut.
    const text = fit(tokenName(graph, position), angle ? Math.min(room, (middle - 4) / (0.55 * size * Math.cos(angle))) : Infinity);
    const look = { color: palette.ink, size, weight: 500 };
    if (angle) pen.text(middle, top - 8, text, { ...look, align: "right", angle: -angle });
    else {
      pen.text(middle, top, text, { ...look, align: "center" });
      pen.text(middle, top + 16, String(position), { color: palette.muted, size: 10, align: "center" });
    }
  });
}

/**
 * Names of outputs, then of the clicked node, pinned ones and the most influential, each where there is room beside it. Returns what
 * it wrote: [{id, text, corners}].
 */
export function drawNames(pen, view) {
  const outputs = drawOutputs(pen, view);
  const { graph, state, layout, palette, camera, width, height } = view;
  const taken = outputs.flatMap(({ boxes }) => boxes);
  const written = outputs.map(({ id, text, corners }) => ({ id, text, corners }));
  for (const node of namedNodes(view)) {
    const { x, y } = onScreen(view, node);
    if (x < layout.margin.left - 6 || x > width || y < 0 || y > height - layout.margin.bottom + 4) continue;
    const group = state.groups.find((each) => each.members.includes(node.id));
    const text = fit(group?.name ?? nodeLabel(graph, state, node), ROOM);
    const half = ([...text].length * LETTER) / 2 + 3;
    const away = nodeRadius(layout, camera.zoom, node.index) + 9;
    const box = freePlace(x, y, half, away, taken, view);
    if (box === null) continue;
    taken.push(box);
    const [middle, level] = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2];
    if (Math.abs(level - y) > 2 * away)
      pen.lines([x, y, middle, level + (level < y ? 6 : -6)], { color: palette.muted, width: 0.8, alpha: 0.8 });
    pen.text(middle, level, text, { ...NAME, color: palette.ink, align: "center", halo: palette.panel });
    written.push({ id: node.id, text, corners: [box.slice(0, 2), box.slice(2)] });
  }
  return written;
}

const onScreen = ({ layout, camera }, { index }) => ({
  x: layout.x[index] * camera.zoom + camera.x,
  y: layout.y[index] * camera.zoom + camera.y,
});

/** The clicked node and pinned ones, and while nothing is selected those with the most influence. */
function namedNodes({ graph, look, state, shown, layout }) {
  const known = (ids) => ids.map((id) => graph.byId.get(id)).filter((node) => node && shown[node.index]);
  const chosen = known([state.clicked, ...state.pinned]).filter(({ kind }) => kind !== "token" && kind !== "target");
  const others = state.clicked === null && state.path === null ? layout.influential.slice(0, look.named) : [];
  return [...new Set([...chosen.slice(0, MOST_NAMES), ...others])];
}

/** The first place around a node, going outwards, where a name covers no other; null if there is none. */
function freePlace(x, y, half, away, taken, { layout, width, height }) {
  const [left, right] = [layout.margin.left - 4 + half, width - half - 2];
  const [top, bottom] = [8, height - layout.margin.bottom - 4];
  for (const ring of [1, 1.8, 2.6, 3.5, 4.5, 6, 7.5, 9, 11]) {
    for (const [dx, dy] of [[0, -1], [0, 1], [1, 0], [-1, 0], [0.7, -0.8], [-0.7, -0.8], [0.7, 0.8], [-0.7, 0.8]]) {
      const middle = Math.max(left, Math.min(right, x + dx * (half + away * ring)));
      const level = Math.max(top, Math.min(bottom, y + dy * away * ring));
      const box = [middle - half, level - 7, middle + half, level + 7];
      if (!taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3]))
        return box;
    }
  }
  return null;
}

/** Every output's name with its probability, sloping into the panel where they would touch: [{id, text, corners, boxes}], boxes cover it. */
function drawOutputs(pen, view) {
  const { graph, shown, layout, palette, camera } = view;
  const outputs = graph.nodes.filter((node) => node.kind === "target" && shown[node.index]);
  const { spacing, longest, room } = layout.names.outputs;
  const angle = slope(spacing * camera.zoom, longest);
  const isRight = outputs.reduce((sum, { index }) => sum + layout.x[index], 0) > (outputs.length * layout.width) / 2;
  const [cos, sin] = [Math.cos(angle) * (isRight ? -1 : 1), Math.sin(angle)];
  // One beyond the borders has no name, lest all of them stand at the border.
  const beside = (node) => onScreen(view, node).x < layout.margin.left - 6 || onScreen(view, node).x > layout.width;
  return outputs.filter((node) => !beside(node)).map((node) => {
    const { x, y } = onScreen(view, node);
    const text = fit(outputText(node), angle ? room : longest);
    const length = [...text].length * LETTER;
    // Where one looks closer the names come down with the border.
    const level = Math.max(sin * length + 8, y - nodeRadius(layout, camera.zoom, node.index) - (angle ? 4 : 9));
    const start = angle ? x : Math.max(length / 2 + layout.margin.left, Math.min(layout.width - length / 2 - 2, x));
    const align = angle ? (isRight ? "right" : "left") : "center";
    const look = { ...NAME, color: palette.ink, halo: palette.panel, align, angle: isRight ? angle : -angle };
    if (y > 0) pen.text(start, level, text, look);
    const along = (part) => (angle ? [start + cos * part, level - sin * part] : [start + part - length / 2, level]);
    const boxes = [];
    for (let part = 0; part < length; part += 12) boxes.push(around(along(part), 8));
    return { id: node.id, text, corners: [along(0), along(length)], boxes };
  });
}

const around = ([x, y], size) => [x - size, y - size, x + size, y + size];
