// Names on the link graph: rows at the left, tokens below, outputs above their row, and nodes that matter beside their glyphs.

import { influence } from "./graph_math.js";
import { layerName, nodeLabel, outputText, tokenName } from "./labels.js";
import { slope } from "./layout.js";
import { isError } from "./read_graph.js";
import { fit, nodeRadius } from "./scene.js";

const MOST_NAMES = 60;
const MOST_INFLUENTIAL = 10;
const ROOM = 22; // letters of a node's name
const LETTER = 6.3;

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
    const text = fit(tokenName(graph, position), angle ? room : Infinity);
    const look = { color: palette.ink, size, weight: 500 };
    if (angle) pen.text(middle, top - 8, text, { ...look, align: "right", angle: -angle });
    else {
      pen.text(middle, top, text, { ...look, align: "center" });
      pen.text(middle, top + 16, String(position), { color: palette.muted, size: 10, align: "center" });
    }
  });
}

/** Names of outputs, then of the clicked node, pinned ones and the most influential, each where there is room beside it. */
export function drawNames(pen, view) {
  const taken = drawOutputs(pen, view);
  const { graph, state, layout, palette, camera, width, height } = view;
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
    pen.text((box[0] + box[2]) / 2, box[1] + 7, text, {
      color: palette.ink,
      size: 11,
      align: "center",
      weight: 500,
      halo: palette.panel,
    });
  }
}

const onScreen = ({ layout, camera }, { index }) => ({
  x: layout.x[index] * camera.zoom + camera.x,
  y: layout.y[index] * camera.zoom + camera.y,
});

function namedNodes({ graph, state, shown }) {
  const own = influence(graph).nodes;
  const pinned = new Set(state.pinned);
  const isNamed = (node) => node.id === state.clicked || pinned.has(node.id);
  const plain = (node) => node.kind === "token" || node.kind === "target";
  const candidates = graph.nodes.filter((node) => shown[node.index] && !plain(node));
  const byInfluence = (a, b) => own[b.index] - own[a.index];
  const chosen = candidates.filter(isNamed).sort((a, b) => (a.id === state.clicked ? -1 : b.id === state.clicked ? 1 : byInfluence(a, b)));
  // What is selected is not to be looked for among names of others.
  if (state.clicked !== null || state.path !== null) return chosen.slice(0, MOST_NAMES);
  const others = candidates.filter((node) => !isNamed(node) && !isError(node) && own[node.index] > 0);
  return [...chosen.slice(0, MOST_NAMES), ...others.sort(byInfluence).slice(0, MOST_INFLUENTIAL)];
}

/** The first place around a node, going outwards, where a name covers no other; null if there is none. */
function freePlace(x, y, half, away, taken, { layout, width, height }) {
  const [left, right] = [layout.margin.left - 4 + half, width - half - 2];
  const [top, bottom] = [8, height - layout.margin.bottom - 4];
  for (const ring of [1, 1.8, 2.6, 3.4]) {
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

/** Every output's name with its probability, sloping where they would touch; returns the boxes around them. */
function drawOutputs(pen, view) {
  const { graph, shown, layout, palette, camera, width } = view;
  const outputs = graph.nodes.filter((node) => node.kind === "target" && shown[node.index]);
  const { spacing, longest, room } = layout.names.outputs;
  const angle = slope(spacing * camera.zoom, longest);
  const isRight = outputs.reduce((sum, { index }) => sum + layout.x[index], 0) > (outputs.length * layout.width) / 2;
  const look = { color: palette.ink, size: 11, weight: 500, halo: palette.panel };
  const taken = [];
  for (const node of outputs) {
    const { x, y } = onScreen(view, node);
    const text = fit(outputText(node), angle ? room : longest);
    const level = y - nodeRadius(layout, camera.zoom, node.index) - (angle ? 4 : 9);
    const length = [...text].length * LETTER;
    if (angle) {
      // They lean into the panel.
      pen.text(x, level, text, { ...look, align: isRight ? "right" : "left", angle: isRight ? angle : -angle });
      for (let part = 0; part < length; part += 12) {
        const [dx, dy] = [Math.cos(angle) * part * (isRight ? -1 : 1), Math.sin(angle) * part];
        taken.push([x + dx - 8, level - dy - 8, x + dx + 8, level - dy + 8]);
      }
    } else {
      const middle = Math.max(length / 2 + layout.margin.left, Math.min(width - length / 2 - 2, x));
      pen.text(middle, level, text, { ...look, align: "center" });
      taken.push([middle - length / 2, level - 7, middle + length / 2, level + 7]);
    }
  }
  return taken;
}
