// Names in panels that can be followed: nodes, heads, tokens.

import { h } from "./dom.js";
import { headName, lookText } from "./heads.js";
import { layerName, nodeLabel, placeName, tokenText } from "./labels.js";
import { errorName } from "./read_graph.js";

/** A node's name, which selects it; a node that this file does not hold is plain text. */
export function nodeName({ graph, store, actions }, id) {
  const node = graph.byId.get(id);
  if (!node) return h("span", { class: "quiet", title: `${id}, no node of this file` }, nodePlace(graph, id).name);
  return h(
    "button",
    {
      class: "name",
      "data-id": id,
      title: placeName(graph, node),
      on: {
        click: () => actions.select(id),
        pointerenter: () => actions.hover(id),
        pointerleave: () => actions.hover(null),
        focus: () => actions.hover(id),
      },
    },
    nodeLabel(graph, store.state, node),
  );
}

const BIASES = {
  own: "biases of its projection",
  position: "position embeddings",
  decoder: "decoder biases",
  left_out: "outputs of left-out tokens",
  attention: "attention biases below",
};

/**
 * {name, layer, position} as far as an id tells: of a node of the graph, of another one by its {layer}_{feature}_{position} or
 * E_{token}_{position}, or of constants by {layer}_bias_{kind}_{position}; "" for what is not known.
 */
export function nodePlace(graph, id) {
  const node = graph.byId.get(id);
  const [, row, kind, at] = /^(\d+|E)_(-?\d+|bias_\w+)_(\d+)$/.exec(id) ?? [];
  const label = graph.otherNames.get(id);
  if (!node && row === undefined) return { name: label ?? id, layer: "", position: "" };
  if (!node && kind.startsWith("bias_")) return { name: BIASES[kind.slice(5)] ?? label ?? id, layer: "", position: "" };
  const [layer, position] = node ? [node.layer, node.position] : [row === "E" ? -1 : Number(row), Number(at)];
  const token = tokenText(graph, position);
  const other = row === "E" ? `\u201c${token}\u201d` : kind === "-1" ? errorName(graph) : `feature ${kind}`;
  return {
    name: node ? node.label : (label ?? other),
    layer: layerName(graph, layer),
    position: layer === -1 ? "" : token,
  };
}

/** A head, which opens its panel; where: {query, key, versus} to open it at. */
export function headChip({ actions }, { layer, head }, where = {}) {
  const name = headName(layer, head);
  return h(
    "button",
    {
      class: "chip head",
      "data-head": name,
      title: `Why ${name} looks where it looks`,
      on: { click: () => actions.chooseHead(lookText({ layer, head, ...where })) },
    },
    name,
  );
}

/** A token as it stands in the prompt, with its position. */
export function tokenChip(graph, position) {
  const text = tokenText(graph, position).trim() || "\u2423";
  return h("span", { class: "chip token-chip", title: `token ${position}` }, text);
}
