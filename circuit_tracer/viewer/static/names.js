// Names in panels that can be followed: nodes, heads, tokens.

import { h } from "./dom.js";
import { headName, lookText } from "./heads.js";
import { layerName, nodeLabel, placeName, tokenText } from "./labels.js";

/** A node's name, which selects it; a node that this file does not hold is plain text. */
export function nodeName({ graph, store, actions }, id) {
  const node = graph.byId.get(id);
  if (!node) return h("span", { class: "quiet", title: `${id}, no node of this file` }, otherName(graph, id));
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

/** What can be told of a node from its id alone, or of constants, {layer}_bias_{kind}_{position}. */
export function otherName(graph, id) {
  const kind = /^\d+_bias_(\w+)_\d+$/.exec(id)?.[1];
  if (kind) return BIASES[kind] ?? id;
  const [, layer, feature, position] = /^(\d+)_(-?\d+)_(\d+)$/.exec(id) ?? [];
  if (layer === undefined) return id;
  const place = `${layerName(graph, Number(layer))} \u00b7 ${tokenText(graph, Number(position))}`;
  return `${feature === "-1" ? "error" : `feature ${feature}`} (${place})`;
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
