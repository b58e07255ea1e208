// Files to take away: pictures as SVG and PNG, and the graph with what was chosen in it.

import { svg } from "./dom.js";
import { drawGutters, drawNames } from "./graph_names.js";
import { SvgPen } from "./pens.js";
import { drawOverlay, drawScene } from "./scene.js";
import { toast } from "./toast.js";
import { fileView } from "./url_state.js";

const ADDRESS_LAG = 200; // milliseconds after a change until the address has it

/** The link graph as it is seen, as an SVG element. */
export function graphPicture(view) {
  const { width, height } = view;
  const root = svg("svg", { xmlns: "http://www.w3.org/2000/svg", width, height, viewBox: `0 0 ${width} ${height}` });
  const title = svg("title", {}, `Attribution graph of: ${view.graph.metadata.prompt ?? ""}`);
  const pen = new SvgPen(root);
  root.append(title);
  const scene = view.view();
  pen.rectangle(0, 0, width, height, scene.palette.panel);
  for (const step of drawScene(pen, scene)) void step;
  drawOverlay(pen, { ...scene, state: { ...scene.state, hovered: null, focused: null } });
  drawNames(pen, scene);
  drawGutters(pen, scene);
  return root;
}

/** The text of an SVG file. */
export function svgText(element) {
  return `<?xml version="1.0" encoding="UTF-8"?>\n${printable(new XMLSerializer().serializeToString(element))}\n`;
}

/** Without what XML forbids, wherever it stands: control characters and halves of surrogate pairs. */
const printable = (text) => text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff\ud800-\udfff]/gu, "\ufffd");

/** The same picture as PNG, at twice its size. */
export async function pngBlob(element) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svgText(element))}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = 2 * element.width.baseVal.value;
  canvas.height = 2 * element.height.baseVal.value;
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** The graph's document with the labels and the view of this page in it, as text. */
export function documentText(graph, state) {
  const { clerps, ...view } = fileView(graph, state);
  const label = (row, node) =>
    node && state.labels[node.featureKey] ? { ...row, clerp: state.labels[node.featureKey] } : row;
  const nodes = graph.document.nodes.map((row) => label(row, graph.byId.get(row.node_id)));
  return JSON.stringify({ ...graph.document, qParams: { ...graph.document.qParams, ...view, clerps }, nodes });
}

/** Put the address into the clipboard, which holds pins, groups, labels and the selection. */
export async function copyLink() {
  const file = location.protocol === "file:";
  try {
    await new Promise((resolve) => setTimeout(resolve, ADDRESS_LAG));
    await navigator.clipboard.writeText(location.href);
    toast(file ? "Link copied; it opens where this file is." : "Link copied.");
  } catch {
    // a frame in a notebook has no address, and a page from another machine by plain http no clipboard
    toast(location.protocol === "about:" ? "This page has no address." : `Copy this: ${location.href}`, true);
  }
}

/** Hand a file to the user. */
export function download(name, content, type) {
  const address = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
