// The way of each link among boxes: out of the top of its source, into the bottom of its target, around what stands between.

import { shareWidth } from "./palette.js";

const WIDEST = 8;
const BOWS = [0, 0.62, -0.62, 1.15, -1.15]; // ways around boxes, in widths of a box
const MARGIN = 4; // between a way around and the end of the picture
const NOTABLE = 0.05; // of the strongest: weaker links may run behind boxes
const PORTS = 0.7; // the part of a box's edge that links end on
const SEEN = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]; // where on a way it is asked whether a box covers it

/** [left, top, right, bottom] around a middle. */
export const around = (x, y, halfWidth, halfHeight) => [x - halfWidth, y - halfHeight, x + halfWidth, y + halfHeight];

/** Those of boxes. */
export const boxAreas = ({ places, look }) => places.map(([x, y]) => around(x, y, look.width / 2, look.height / 2));

/** Links with their way, their width, and their strength beside the strongest; content: {places, links, look, width} of boxes. */
export function routeWires({ places, links, look, width: whole }) {
  const strongest = links.reduce((most, { share }) => Math.max(most, Math.abs(share)), 0) || 1;
  const areas = boxAreas({ places, look });
  const port = ports(links, places, look.width);
  return links.map((link, at) => {
    const strength = Math.abs(link.share) / strongest;
    const width = shareWidth(link.share, WIDEST);
    const head = 5 + 1.3 * width;
    const [x1, y1] = [port.out[at], places[link.from][1] - look.height / 2];
    const [x2, y2] = [port.into[at], places[link.to][1] + look.height / 2];
    const others = areas.filter((_, box) => box !== link.from && box !== link.to);
    const curve = (bow) => wayBetween([x1, y1], [x2, y2 + head], bow * look.width, whole);
    let best = { way: curve(0), covered: 0 };
    if (strength >= NOTABLE) best.covered = covered(best.way, others);
    for (const bow of best.covered ? BOWS : []) {
      const way = curve(bow);
      const now = covered(way, others);
      if (now < best.covered) best = { way, covered: now };
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

/** At how many of its places one of the areas covers a way. */
function covered(way, areas) {
  const inside = ([x, y]) => areas.some((area) => x > area[0] && x < area[2] && y > area[1] && y < area[3]);
  return SEEN.filter((part) => inside(pointOn(way, part))).length;
}

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

/** The point at a part of a way, 0 to 1. */
export function pointOn(way, part) {
  const piece = Math.min(way.length - 1, Math.floor(part * way.length));
  const [a, b, c, d] = way[piece];
  const t = part * way.length - piece;
  const at = (axis) =>
    (1 - t) ** 3 * a[axis] + 3 * (1 - t) ** 2 * t * b[axis] + 3 * (1 - t) * t ** 2 * c[axis] + t ** 3 * d[axis];
  return [at(0), at(1)];
}
