// Which nodes and links pass the filters.

import { influence } from "./graph_math.js";
import { linksThrough } from "./heads.js";
import { nodeLabel, tokenText } from "./labels.js";
import { isError } from "./read_graph.js";
import { selectedNodes } from "./selection.js";

/** Uint8Array by node: 1 if shown. Tokens, targets, pinned and clicked nodes always are. */
export function visibleNodes(graph, state) {
  const always = new Set([...state.pinned, ...selectedNodes(graph, state).map((node) => node.id)]);
  const shown = new Uint8Array(graph.nodes.length);
  for (const node of graph.nodes) {
    const important = state.pruning >= graph.threshold || node.influence === null || node.influence <= state.pruning;
    const sparse = node.density === null || node.density <= state.density;
    const passes =
      node.kind === "token" || node.kind === "target" || (important && sparse && !(state.hideErrors && isError(node)));
    shown[node.index] = passes || always.has(node.id) ? 1 : 0;
  }
  return shown;
}

/** Whether a link passes the filters, by its number: its |share of input| reaches the threshold, and a head that is asked for is one of its. */
export function linkFilter(graph, state) {
  const { share } = graph.links;
  const through = state.throughHead ? linksThrough(graph, state.throughHead) : null;
  return (link) => Math.abs(share[link]) >= state.edgeMin && (through === null || through[link] === 1);
}

/** Link numbers among shown nodes that pass the filters, those through which most influence flows last. */
export function visibleLinks(graph, state, shown) {
  const { source, target, count } = graph.links;
  const flow = influence(graph).links;
  const passes = linkFilter(graph, state);
  const links = [];
  for (let link = 0; link < count; link += 1) {
    if (shown[source[link]] && shown[target[link]] && passes(link)) links.push(link);
  }
  return links.sort((a, b) => flow[a] - flow[b]);
}

/** Nodes whose label, token or name contains all words of a query; null for an empty query. */
export function matching(graph, state) {
  const words = state.query.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return null;
  return graph.nodes.filter((node) => {
    const text = `${nodeLabel(graph, state, node)} ${tokenText(graph, node.position)} ${node.id}`.toLocaleLowerCase();
    return words.every((word) => text.includes(word));
  });
}
