// The links among boxes as SVG: arrows that end at their targets, and percents where nothing covers them.

import { boxFont, textWidth } from "./box_text.js";
import { percent, svg } from "./dom.js";
import { shareWidth } from "./palette.js";

const WIDEST = 8;
const QUIET = 0.1; // opacity of a link that does not stand out
const LEAST = 0.3; // of the weakest that does
const BOWS = [0, 0.62, -0.62, 1.15, -1.15]; // ways around boxes, in widths of a box
const MARGIN = 4; // between a way around and the end of the picture
const NOTABLE = 0.05; // of the strongest: weaker links may run behind boxes
const SMALLEST_PERCENT = 0.01; // written without being pointed at
const PORTS = 0.7; // the part of a box's edge that links end on
const LABEL = { size: 10, height: 13 };
const STEPS = [0.84, 0.76, 0.68, 0.9, 0.6, 0.52, 0.44, 0.36, 0.28, 0.2, 0.12]; // where on a link its percent may stand, best first

/**
 * Elements for links {from, to, share} between boxes at `places` (middles) of a size; numbers: whether with percents; stands: of a
 * link, whether it stands out beside the rest, or null, with which all do. A percent stands near the link's target and covers neither a box nor another; where there
 * is no such place it is left out, of the weakest links first.
 */
export function drawWires({ boxes, places, links, look, width }, palette, numbers, stands = null) {
  const strongest = links.reduce((most, { share }) => Math.max(most, Math.abs(share)), 0) || 1;
  const areas = places.map(([x, y]) => around(x, y, look.width / 2, look.height / 2));
  const wires = routed(links, places, areas, { look, width, strongest });
  const shown = stands ? wires.filter(stands) : wires;
  const opacity = (wire) =>
    shown.includes(wire) ? LEAST + (1 - LEAST) * Math.min(1, 1.6 * Math.sqrt(wire.strength)) : QUIET;
  const written = stands ? shown : shown.filter(({ share }) => Math.abs(share) >= SMALLEST_PERCENT);
  return [
    ...wires.flatMap((wire) => arrow(wire, boxes, palette, opacity(wire))),
    ...(numbers ? percents(written, areas, palette) : []),
  ];
}

const around = (x, y, halfWidth, halfHeight) => [x - halfWidth, y - halfHeight, x + halfWidth, y + halfHeight];
const overlap = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];

/** Links with their curve, their width, and their strength beside the strongest. */
function routed(links, places, areas, { look, width: whole, strongest }) {
  const port = ports(links, places, look.width);
  return links.map((link, at) => {
    const strength = Math.abs(link.share) / strongest;
    const width = shareWidth(link.share, WIDEST);
    const head = 5 + 1.3 * width;
    const [x1, y1] = [port.out[at], places[link.from][1] - look.height / 2];
    const [x2, y2] = [port.into[at], places[link.to][1] + look.height / 2];
    const others = areas.filter((_, box) => box !== link.from && box !== link.to);
    const hidden = (way) => STEPS.filter((step) => others.some((area) => inside(pointOn(way, step), area))).length;
    const curve = (bow) => wayBetween([x1, y1], [x2, y2 + head], bow * look.width, whole);
    let best = { way: curve(0), hidden: strength < NOTABLE ? 0 : hidden(curve(0)) };
    for (const bow of best.hidden ? BOWS : []) {
      const way = curve(bow);
      const now = hidden(way);
      if (now < best.hidden) best = { way, hidden: now };
    }
    return { ...link, strength, width, head, tip: [x2, y2], way: best.way };
  });
}

/** A curve that leaves and arrives upright, as cubic pieces of four points; aside: pixels to the side that its middle keeps. */
function wayBetween([x1, y1], [x2, y2], aside, whole) {
  const bend = Math.max(20, (y1 - y2) / 2);
  if (!aside)
    return [
      [
        [x1, y1],
        [x1, y1 - bend],
        [x2, y2 + bend],
        [x2, y2],
      ],
    ];
  const [x, y] = [Math.max(MARGIN, Math.min(whole - MARGIN, (x1 + x2) / 2 + aside)), (y1 + y2) / 2];
  const half = bend / 2;
  return [
    [
      [x1, y1],
      [x1, y1 - half],
      [x, y + half],
      [x, y],
    ],
    [
      [x, y],
      [x, y - half],
      [x2, y2 + half],
      [x2, y2],
    ],
  ];
}

const inside = ([x, y], area) => x > area[0] && x < area[2] && y > area[1] && y < area[3];

/** Where links leave and enter the edges of their boxes: side by side, in the order of their other ends. */
function ports(links, places, width) {
  const spread = (own, other) => {
    const at = new Array(links.length);
    for (const box of new Set(links.map((link) => link[own]))) {
      const mine = [...links.keys()].filter((link) => links[link][own] === box);
      mine.sort((a, b) => places[links[a][other]][0] - places[links[b][other]][0]);
      const step = Math.min(14, (PORTS * width) / mine.length);
      mine.forEach((link, place) => (at[link] = places[box][0] + (place - (mine.length - 1) / 2) * step));
    }
    return at;
  };
  return { out: spread("from", "to"), into: spread("to", "from") };
}

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

/** The point at a part of a way, 0 to 1. */
function pointOn(way, part) {
  const piece = Math.min(way.length - 1, Math.floor(part * way.length));
  const [a, b, c, d] = way[piece];
  const t = part * way.length - piece;
  const at = (axis) =>
    (1 - t) ** 3 * a[axis] + 3 * (1 - t) ** 2 * t * b[axis] + 3 * (1 - t) * t ** 2 * c[axis] + t ** 3 * d[axis];
  return [at(0), at(1)];
}
