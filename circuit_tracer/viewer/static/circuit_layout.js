// Where the boxes of a circuit stand: inputs below, outputs above, tokens from left to right, as large as a panel allows,
// and never smaller than can be read: what has no room then is scrolled to.

/** Looks of a box, the fullest first: its size, room around it, letters and lines of its name, and whether its place is written. */
export const LOOKS = [
  { name: "full", width: 152, height: 58, gap: 16, rise: 36, font: 12, lines: 2, caption: true },
  { name: "compact", width: 124, height: 38, gap: 12, rise: 28, font: 11, lines: 2, caption: false },
  { name: "small", width: 96, height: 32, gap: 9, rise: 18, font: 10, lines: 2, caption: false },
  { name: "line", width: 88, height: 18, gap: 6, rise: 14, font: 10, lines: 1, caption: false },
];
const MARGIN = 14;
const NOTABLE = 0.02; // a link of less does not keep its ends on different lines
const WORTH = 1.15; // so much larger letters are worth a plainer look
export const LEGIBLE = 10; // pixels of letters
const SEEN = 4; // how much more it is worth to see all than to have few lines
const LEAST_WORTH = 0.6; // of letters where lines had to be dealt out to many

/**
 * The middle of each box, and what holds them all: {places: [[x, y]], width, height, look, scale}.
 *
 * links: as `boxLinks` makes them. positions: places chosen by hand, in thousandths, by key. scale: of the whole, at most 1, at which it
 * fits into a panel of width x height pixels; or larger, where letters would be smaller than `least` pixels. Boxes come in an order in which each stands after those that feed it, lower layers first, and
 * are cut into lines; of all lengths of a line, and looks of a box, those are taken whose letters become the largest. In every pair of boxes
 * the one whose tokens come first is not to the right of the other.
 */
export function placeBoxes(boxes, links, positions, width, height, least = LEGIBLE) {
  const facts = boxes.map(({ nodes }) => ({
    stage: stageOf(nodes),
    layer: mean(nodes, "layer"),
    position: mean(nodes, "position"),
  }));
  const runs = cutIntoRuns(facts, links);
  let best = null;
  for (const look of LOOKS) {
    for (const most of lengths(runs)) {
      const lines = runs.flatMap((run) => dealt(run, most));
      for (const columns of [true, false]) {
        const found = { look, lines, columns, ...measured(facts, lines, look, columns) };
        found.scale = Math.min(1, Math.max(least / look.font, Math.min(width / found.width, height / found.height)));
        const seen = Math.min(1, width / found.width / found.scale) * Math.min(1, height / found.height / found.scale);
        found.worth = seen ** SEEN * legibility(look.font * found.scale) * Math.max(LEAST_WORTH, runs.length / lines.length);
        const plainer = best && (best.look !== look || (best.columns && !columns));
        if (!best || found.worth > (plainer ? WORTH : 1) * best.worth + 1e-9) best = found;
      }
    }
  }
  return spreadOut(boxes, best, positions, width, height);
}

/** Lengths of lines to try, from that of the longest run down to one. */
function lengths(runs) {
  const found = [Math.max(...runs.map((run) => run.length))];
  while (found.at(-1) > 1) found.push(Math.min(found.at(-1) - 1, Math.floor(0.9 * found.at(-1))));
  return found;
}

/** What letters of so many pixels are worth: the more the better, above all while they are hard to read. */
const legibility = (letters) => (letters < LEGIBLE ? letters ** 2 / LEGIBLE : LEGIBLE + 0.7 * (letters - LEGIBLE));

/** Tokens and outputs keep lines of their own, below and above all others. */
function stageOf(nodes) {
  if (nodes.every(({ kind }) => kind === "token")) return 0;
  return nodes.every(({ kind }) => kind === "target") ? 2 : 1;
}

const mean = (nodes, field) => nodes.reduce((sum, node) => sum + node[field], 0) / nodes.length;

/** Numbers of boxes such that each comes after those that feed it, as far as they are in no circle; lower layers first. */
function feedingOrder(facts, sources) {
  const order = [];
  const left = new Set(facts.keys());
  const waits = (box) => sources[box].some((from) => left.has(from) && facts[from].stage <= facts[box].stage);
  const before = (a, b) => facts[a].stage - facts[b].stage || facts[a].layer - facts[b].layer || a - b;
  while (left.size) {
    const ready = [...left].filter((box) => !waits(box));
    const next = (ready.length ? ready : [...left]).reduce((a, b) => (before(b, a) < 0 ? b : a));
    order.push(next);
    left.delete(next);
  }
  return order;
}

/** Boxes by line, from the bottom, each from left to right; none is fed by one of its line, and stages share no line. */
function cutIntoRuns(facts, links) {
  const from = (some) => facts.map((_, box) => some.filter((link) => link.to === box).map((link) => link.from));
  const notable = from(links.filter(({ share }) => Math.abs(share) >= NOTABLE));
  const runs = [];
  for (const box of feedingOrder(facts, from(links))) {
    const run = runs.at(-1);
    const fits = run && facts[run[0]].stage === facts[box].stage && !notable[box].some((each) => run.includes(each));
    if (fits) run.push(box);
    else runs.push([box]);
  }
  return runs.map((run) => run.sort((a, b) => facts[a].position - facts[b].position || a - b));
}

/** A run that is longer than `most` as several lines, neighbours on different ones. */
function dealt(run, most) {
  const count = Math.ceil(run.length / most);
  return Array.from({ length: count }, (_, line) => run.filter((_, at) => at % count === line));
}

/**
 * {left, width, height}: the least room of lines of boxes; left: of each box, from the margin. columns: whether the boxes of each token
 * have a column of their own, or stand as far to the left as those of earlier tokens let them.
 */
function measured(facts, lines, look, columns) {
  const left = new Array(facts.length).fill(0);
  let reached = 0;
  const ends = lines.map(() => 0);
  const step = look.width + look.gap;
  for (const cells of byTokens(facts, lines)) {
    const start = columns ? Math.max(...ends) : reached;
    const most = Math.max(...cells.map((cell) => cell.length));
    cells.forEach((cell, line) => {
      const first = columns ? start + ((most - cell.length) / 2) * step : Math.max(start, ends[line]);
      cell.forEach((box, at) => (left[box] = first + at * step));
      if (cell.length) reached = Math.max(reached, left[cell.at(-1)]);
      if (cell.length) ends[line] = first + cell.length * step;
    });
  }
  const width = Math.max(...ends) - look.gap + 2 * MARGIN;
  const height = lines.length * (look.height + look.rise) - look.rise + 2 * MARGIN;
  return { left, width, height };
}

/** For each place among the tokens, from the left, the boxes there by line. */
function byTokens(facts, lines) {
  const cells = new Map();
  lines.forEach((line, at) => {
    for (const box of line) {
      const here = facts[box].position;
      if (!cells.has(here))
        cells.set(
          here,
          lines.map(() => []),
        );
      cells.get(here)[at].push(box);
    }
  });
  return [...cells.keys()].sort((a, b) => a - b).map((here) => cells.get(here));
}

/** The same drawn apart so that it fills the panel, with boxes put elsewhere by hand. */
function spreadOut(boxes, { look, lines, left, width, height, scale }, positions, panelWidth, panelHeight) {
  const whole = { width: Math.max(width, panelWidth / scale), height: Math.max(height, panelHeight / scale) };
  const needed = width - 2 * MARGIN - look.width;
  const room = whole.width - 2 * MARGIN - look.width;
  const stretch = needed > 0 ? Math.min(room / needed, 2.2) : 1;
  const start = MARGIN + (room - needed * stretch) / 2 + look.width / 2;
  const rise =
    lines.length > 1 ? Math.min((whole.height - 2 * MARGIN - look.height) / (lines.length - 1), 5 * look.height) : 0;
  const base = whole.height / 2 + (rise * (lines.length - 1)) / 2;
  const places = new Array(boxes.length);
  lines.forEach((line, at) => {
    for (const box of line) places[box] = [start + left[box] * stretch, base - at * rise];
  });
  boxes.forEach(({ key }, at) => {
    const chosen = positions[key];
    if (chosen) places[at] = [(chosen[0] * whole.width) / 1000, (chosen[1] * whole.height) / 1000];
  });
  return { places, ...whole, look, scale };
}
