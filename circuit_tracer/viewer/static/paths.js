// The strongest routes between two nodes: exact, by a best-first search with the best continuation as its guide.

import { fromTargetsDown } from "./graph_math.js";
import { inputsOf } from "./read_graph.js";

/**
 * The k paths from any of the sources to the target (node indices) with the largest product of |shares|, strongest first.
 * A path: {nodes from source to target, weight}; weight is the product of signed shares. [] if there is none.
 */
export function strongestPaths(graph, sources, target, k = 5) {
  const order = fromTargetsDown(graph);
  const ends = new Set(sources);
  if (order === null || ends.has(target)) return [];
  const best = bestContinuation(graph, order, ends);
  const { share } = graph.links;
  const found = [];
  const heap = best[target] > -Infinity ? [{ key: best[target], nodes: [target], log: 0, sign: 1 }] : [];
  while (heap.length && found.length < k) {
    const entry = pop(heap);
    const node = entry.nodes.at(-1);
    if (ends.has(node)) {
      found.push({ nodes: entry.nodes.slice().reverse(), weight: entry.sign * Math.exp(entry.log) });
      continue;
    }
    for (const link of inputsOf(graph, node)) {
      const from = graph.links.source[link];
      const log = entry.log + Math.log(Math.abs(share[link]));
      const key = log + best[from];
      if (key > -Infinity)
        push(heap, { key, nodes: [...entry.nodes, from], log, sign: share[link] < 0 ? -entry.sign : entry.sign });
    }
  }
  return found;
}

/** Log of the largest product of shares on a path down to an end, by node. */
function bestContinuation(graph, order, ends) {
  const best = new Float64Array(graph.nodes.length).fill(-Infinity);
  for (const end of ends) best[end] = 0;
  for (let place = order.length - 1; place >= 0; place -= 1) {
    const node = order[place];
    if (ends.has(node)) continue;
    for (const link of inputsOf(graph, node)) {
      const value = Math.log(Math.abs(graph.links.share[link])) + best[graph.links.source[link]];
      if (value > best[node]) best[node] = value;
    }
  }
  return best;
}

function push(heap, entry) {
  let place = heap.push(entry) - 1;
  while (place > 0) {
    const parent = (place - 1) >> 1;
    if (heap[parent].key >= heap[place].key) break;
    [heap[parent], heap[place]] = [heap[place], heap[parent]];
    place = parent;
  }
}

function pop(heap) {
  const top = heap[0];
  const last = heap.pop();
  if (heap.length) {
    heap[0] = last;
    let place = 0;
    for (;;) {
      let child = 2 * place + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && heap[child + 1].key > heap[child].key) child += 1;
      if (heap[place].key >= heap[child].key) break;
      [heap[place], heap[child]] = [heap[child], heap[place]];
      place = child;
    }
  }
  return top;
}
