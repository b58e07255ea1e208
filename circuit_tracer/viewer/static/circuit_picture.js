// The circuit as an SVG picture that looks as the page does.

import { BOX_PADDING, boxFont, memberDots, textLines } from "./box_text.js";
import { boxCaption } from "./boxes.js";
import { isError } from "./read_graph.js";
import { svg } from "./dom.js";
import { drawWires } from "./wires.js";

const FOOT = 26; // pixels for the words below
const WORDS = "Percent: share of what a box receives. Green raises it, purple lowers it.";

/** An SVG element; content: {boxes, links, places, width, height, look} of the panel, or null for an empty one. */
export function circuitPicture(graph, state, content, palette) {
  const { width, height } = content ?? { width: 300, height: 100 };
  const size = { width: Math.ceil(width), height: Math.ceil(height) + FOOT };
  const root = svg("svg", {
    xmlns: "http://www.w3.org/2000/svg",
    ...size,
    viewBox: `0 0 ${size.width} ${size.height}`,
  });
  root.append(
    svg("title", {}, `Circuit of: ${graph.metadata.prompt ?? ""}`),
    svg("rect", { ...size, fill: palette.panel }),
  );
  if (!content) return root;
  root.append(...drawWires(content, palette, state.edgeNumbers));
  content.boxes.forEach((box, at) =>
    root.append(...drawBox(graph, state, box, content.places[at], content.look, palette)),
  );
  const foot = { x: 12, y: size.height - 9, fill: palette.muted };
  if (state.edgeNumbers) root.append(svg("text", { ...boxFont(11, 400), ...foot }, WORDS));
  return root;
}

function drawBox(graph, state, box, [x, y], look, palette) {
  const lines = textLines(box.name, look.width - BOX_PADDING, look.font, 600, look.lines);
  const step = 1.2 * look.font;
  const text = (words, line, style) => svg("text", { ...style, x, y: line.toFixed(1), "text-anchor": "middle" }, words);
  const rows = lines.length * step + (look.caption ? 16 : 0);
  const top = y - rows / 2;
  const ends = box.nodes[0].kind === "token" || box.nodes[0].kind === "target";
  const caption = textLines(boxCaption(graph, state, box), look.width - BOX_PADDING, 11, 400, 1);
  return [
    svg("rect", {
      x: x - look.width / 2,
      y: y - look.height / 2,
      width: look.width,
      height: look.height,
      rx: 8,
      fill: ends ? palette.target : palette.paper,
      stroke: box.nodes.length > 1 ? palette.accent : palette.muted,
      "stroke-width": box.nodes.length > 1 ? 2 : 1,
      "stroke-dasharray": isError(box.nodes[0]) ? "4 3" : null,
    }),
    ...lines.map((line, at) => text(line, top + (at + 0.8) * step, { ...boxFont(look.font, 600), fill: palette.ink })),
    ...(look.caption
      ? [text(caption[0], top + rows - 4, { ...boxFont(11, 400), fill: ends ? palette.ink : palette.muted })]
      : []),
    ...(box.nodes.length > 1 ? drawMembers(box.nodes, [x, y + look.height / 2], look, palette) : []),
  ];
}

function drawMembers(nodes, [x, y], look, palette) {
  const { dots, more } = memberDots(nodes, look);
  const first = x - (dots.length + (more ? 1 : 0) - 1) * 7;
  const dot = { cy: y, r: 4.75, fill: palette.panel, stroke: palette.accent, "stroke-width": 1.5 };
  const left = first + dots.length * 14 - 5;
  return [
    ...dots.map((_, at) => svg("circle", { ...dot, cx: first + at * 14 })),
    ...(more ? [svg("text", { ...boxFont(10, 400), x: left, y: y + 3.5, fill: palette.accent }, `+${more}`)] : []),
  ];
}
