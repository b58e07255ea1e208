// The words for a node: its own label as edited here, else the file's, else what it is.

import { probability, spacedText, visibleToken } from "./dom.js";
import { errorName } from "./read_graph.js";

/** The text of the token at a position. */
export function tokenText(graph, position) {
  return visibleToken(graph.tokens[position] ?? "");
}

/** A prompt without the special tokens that it begins with. */
export const promptText = (prompt) => prompt.replace(/^(\s*<[^<>\s]*>)+/, "").trim();

/** The predicted token of a target, from its own field or from between the first two quotes of its label. */
export function targetText(node) {
  return visibleToken(tokenOf(node) ?? node.label);
}

const tokenOf = ({ raw, label }) => (typeof raw.token === "string" ? raw.token : /"([^"]*)"/.exec(label)?.[1]);

/** An output's name, its spaces visible. */
export function outputName(node) {
  const token = tokenOf(node);
  return token === undefined || !isToken(node) ? targetText(node) : spacedText(token);
}

/** The same with its probability. */
export function outputText(node) {
  const name = outputName(node);
  return node.probability === null || !isToken(node) ? name : `${name} ${probability(node.probability)}`;
}

/** A token as a name below its column. */
export function tokenName(graph, position) {
  return [...tokenText(graph, position)].slice(0, 24).join("") || "\u2423";
}

/** Whether a target is a token that the model may say, and no direction, feature or look of a head. */
export const isToken = ({ raw }) => (raw.target_kind ?? "logit") === "logit";

/** The short name of a node. */
export function nodeLabel(graph, state, node) {
  const edited = state.labels[node.featureKey];
  if (edited) return edited;
  switch (node.kind) {
    case "token":
      return `\u201c${tokenText(graph, node.position)}\u201d`;
    case "target":
      return isToken(node) ? `output \u201c${targetText(node)}\u201d` : targetText(node);
    case "error":
      return errorName(graph);
    case "attention error":
      return "attention error";
    default:
      return node.label || featureName(node);
  }
}

/** A feature by its number, in its own dictionary where there are several. */
function featureName({ id, feature, part, raw }) {
  if (feature === null) return id;
  return part ? `${raw.dictionary} ${raw.dictionary_index}` : `feature ${feature}`;
}

/** The page of a feature on neuronpedia.org, where the graph says that its dictionary is a source set there; else null. */
export function neuronpediaPage({ metadata }, node) {
  const set = metadata.feature_details?.neuronpedia_source_set ?? metadata.info?.neuronpedia_source_set;
  const plain = (name) => typeof name === "string" && /^[\w.-]+$/.test(name);
  if (node.kind !== "feature" || node.feature === null || !plain(set) || !plain(metadata.scan)) return null;
  return `https://www.neuronpedia.org/${metadata.scan}/${node.layer}-${set}/${node.feature}`;
}

/** Where a node is: its row. */
export function layerName(graph, layer) {
  if (layer === -1) return "Tok";
  return layer === graph.topLayer ? "Out" : `L${layer}`;
}

/** Where a node is: row and token. */
export function placeName(graph, node) {
  const token = tokenText(graph, node.position);
  if (node.kind === "token") return `token ${node.position}`;
  if (node.kind === "target") return `${isToken(node) ? "after" : "at"} ${token}`;
  return `${layerName(graph, node.layer)} \u00b7 ${token}`;
}

/** One sentence for people who hear the page. */
export function spokenName(graph, state, node) {
  const output = `output, probability ${(node.probability ?? 0).toFixed(3)}`;
  const kind = node.kind === "target" ? (isToken(node) ? output : "target") : node.kind;
  const place = node.kind === "token" ? "" : `, layer ${node.layer}, at token ${tokenText(graph, node.position)}`;
  const inputs = graph.inStart[node.index + 1] - graph.inStart[node.index];
  const outputs = graph.outStart[node.index + 1] - graph.outStart[node.index];
  const pinned = state.pinned.includes(node.id) ? ", pinned" : "";
  return `${nodeLabel(graph, state, node)}, ${kind}${place}, ${inputs} inputs, ${outputs} outputs${pinned}`;
}
