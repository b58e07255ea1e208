// What an intervention did to nodes: activations of features, probabilities of outputs, before and after.

import { number, percent } from "./dom.js";

const NOTHING = 0.005; // a smaller change is as good as none

/** (after - before) over the larger of both, -1 to 1; null for a node that did not change, as far as is known. */
export function nodeChange(state, id) {
  const pair = state.effect?.nodes[id];
  if (!pair) return null;
  const [before, after] = pair;
  const given = state.effect.given[id] ?? after;
  return relative(before, given);
}

/** The same for the nodes of a box, added up. */
export function boxChange(state, nodes) {
  let [before, after] = [0, 0];
  for (const node of nodes) {
    const pair = state.effect?.nodes[node.id];
    if (!pair) continue;
    before += pair[0];
    after += state.effect.given[node.id] ?? pair[1];
  }
  return relative(before, after);
}

/** "0.4 -> 0.1" of a node, or null. */
export function effectWords(state, id) {
  const pair = state.effect?.nodes[id];
  if (!pair) return null;
  const given = state.effect.given[id];
  return `${number(pair[0])} \u2192 ${given === undefined ? number(pair[1]) : `${number(given)} (set)`}`;
}

function relative(before, after) {
  const size = Math.max(Math.abs(before), Math.abs(after));
  const change = size > 0 ? (after - before) / size : 0;
  return Math.abs(change) < NOTHING ? null : change;
}

/** A change in a word: how much of it is left or added. */
export function changeWords(before, after) {
  const size = Math.max(Math.abs(before), Math.abs(after));
  return size > 0 ? percent((after - before) / size, true) : "0%";
}
