// Colours, read from the style sheet so that light and dark pages and pictures agree.

const NAMES = [
  "paper",
  "panel",
  "ink",
  "muted",
  "rule",
  "band",
  "accent",
  "hover",
  "positive",
  "negative",
  "node",
  "target",
  "second",
  "attention",
  "only-a",
  "only-b",
];
const FULL = 0.4;

/** The page's colours: {ink, muted, ..., share(value)}. */
export function readPalette(element = document.documentElement) {
  const style = getComputedStyle(element);
  const palette = Object.fromEntries(NAMES.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  const ends = { positive: parse(palette.positive), negative: parse(palette.negative), zero: parse(palette.node) };
  // Shares saturate at 40 %; a gap at zero keeps the weakest link apart from the background.
  palette.share = (value) => {
    const strength = 0.22 + 0.78 * Math.sqrt(Math.min(1, Math.abs(value) / FULL));
    const end = value < 0 ? ends.negative : ends.positive;
    return `rgb(${end.map((part, channel) => Math.round(ends.zero[channel] + (part - ends.zero[channel]) * strength)).join(",")})`;
  };
  return palette;
}

/** Width of a link in pixels: the root of its share, 0.5 to `most`. */
export function shareWidth(share, most = 3.4) {
  return Math.max(0.5, Math.sqrt(Math.min(1, Math.abs(share))) * most);
}

function parse(colour) {
  const digits = /^#([0-9a-f]{6})$/i.exec(colour)?.[1] ?? "888888";
  return [0, 2, 4].map((start) => parseInt(digits.slice(start, start + 2), 16));
}
