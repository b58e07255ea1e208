// The links among boxes as SVG: arrows that end at their targets, and percents where nothing covers them.

import { boxFont, textWidth } from "./box_text.js";
import { percent, svg } from "./dom.js";
import { around, boxAreas, pointOn } from "./routes.js";

const QUIET = 0.1; // opacity of a link that does not stand out
const LEAST = 0.3; // of the weakest that does
const SMALLEST_PERCENT = 0.01; // written without being pointed at
const LABEL = { size: 10, height: 13 };
const STEPS = [0.84, 0.76, 0.68, 0.9, 0.6, 0.52, 0.44, 0.36, 0.28, 0.2, 0.12]; // where a percent may stand, best first

/**
 * Elements for the links of boxes as `routeWires` makes them; numbers: whether with percents; stands: of a link, whether it stands out
 * beside the rest, or null, with which all do. A percent stands near the link's target and covers neither a box nor another; where there is
 * no such place it is left out, of the weakest links first.
 */
export function drawWires(content, palette, numbers, stands = null) {
  const { boxes, wires } = content;
  const shown = new Set(stands ? wires.filter(stands) : wires);
  const opacity = (wire) =>
    shown.has(wire) ? LEAST + (1 - LEAST) * Math.min(1, 1.6 * Math.sqrt(wire.strength)) : QUIET;
  const written = [...shown].filter(({ share }) => stands || Math.abs(share) >= SMALLEST_PERCENT);
  return [
    ...wires.flatMap((wire) => arrow(wire, boxes, palette, opacity(wire))),
    ...(numbers ? percents(written, boxAreas(content), palette) : []),
  ];
}

const overlap = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];

function arrow({ way, tip, head, width, share, from, to }, boxes, palette, opacity) {
  const written = (point) => point.map((value) => value.toFixed(1)).join(" ");
  const pieces = way.map(([, ...rest]) => `C${rest.map(written).join(" ")}`);
  const half = 2.5 + width / 2;
  const [x, y] = tip;
  const look = { opacity: opacity.toFixed(2) };
  const colour = palette.share(share);
  return [
    svg("path", {
      ...look,
      d: `M${written(way[0][0])}${pieces.join("")}`,
      fill: "none",
      stroke: colour,
      "stroke-width": width.toFixed(1),
      "data-from": boxes[from].key,
      "data-to": boxes[to].key,
      "data-share": share.toFixed(4),
    }),
    svg("polygon", { ...look, points: `${x},${y} ${x - half},${y + head} ${x + half},${y + head}`, fill: colour }),
  ];
}

function percents(wires, areas, palette) {
  const taken = areas.slice();
  const found = [];
  const halo = { "paint-order": "stroke", stroke: palette.panel, "stroke-width": 3, "stroke-linejoin": "round" };
  for (const wire of wires.slice().sort((a, b) => Math.abs(b.share) - Math.abs(a.share))) {
    const text = percent(wire.share, true);
    const half = textWidth(text, LABEL.size) / 2 + 2;
    const free = STEPS.map((step) => pointOn(wire.way, step))
      .map(([x, y]) => ({ x, y, area: around(x, y, half, LABEL.height / 2) }))
      .find(({ area }) => !taken.some((other) => overlap(area, other)));
    if (!free) continue;
    taken.push(free.area);
    const place = { x: free.x.toFixed(1), y: (free.y + 3.5).toFixed(1), "text-anchor": "middle" };
    found.push(
      svg("text", { ...boxFont(LABEL.size, 400), ...halo, ...place, fill: palette.ink, class: "wire-percent" }, text),
    );
  }
  return found;
}
