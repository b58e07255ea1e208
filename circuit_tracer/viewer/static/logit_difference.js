// ?logitDiff=A__vs__B: one more output, the difference of two, with the differences of their links.
//
// Numbers of the first output are not those of the difference. Its input is what its links here add up to: of a part of a
// large graph, that part's.

import { h } from "./dom.js";
import { outputName, targetText } from "./labels.js";
import { GraphProblem, readGraph } from "./read_graph.js";
import { addressParams, showInAddress, writeState } from "./url_state.js";

const OF_ONE = ["token_prob", "sum_rule", "input_mass", "influence", "activation", "weight"];

/** The graph of a document with such an output; names are tokens or node ids. Throws GraphProblem for unknown ones. */
export function withDifference(document, names) {
  const graph = readGraph(document);
  const [first, second] = names.split("__vs__").map((name) => findTarget(graph, name));
  const id = `difference_${first.id}_${second.id}`;
  const text = `${targetText(first)} \u2212 ${targetText(second)}`;
  const node = { ...first.raw, node_id: id, jsNodeId: id, token: text, clerp: text, is_target_logit: false };
  for (const name of OF_ONE) delete node[name];
  const weights = new Map();
  for (const link of document.links) {
    const sign = Number(link.target === first.id) - Number(link.target === second.id);
    if (sign) weights.set(link.source, (weights.get(link.source) ?? 0) + sign * link.weight);
  }
  const links = [...weights].map(([source, weight]) => ({ source, target: id, weight }));
  const whole = readGraph({ ...document, nodes: [...document.nodes, node], links: [...document.links, ...links] });
  // What is saved is the file as it was.
  return Object.assign(whole, { document, difference: id });
}

function findTarget(graph, name) {
  const targets = graph.nodes.filter((node) => node.kind === "target");
  const found = targets.find((node) => node.id === name || targetText(node) === (name ?? "").trim());
  if (found) return found;
  const known = targets.map(targetText).slice(0, 10).join(", ");
  throw new GraphProblem([`logitDiff asks for an output \u201c${name ?? ""}\u201d; the graph has ${known}`]);
}

/** Two outputs to choose, whose difference becomes one more; null where there are not two, or nothing could load again. */
export function differenceForm(graph, store) {
  const targets = graph.nodes.filter((node) => node.kind === "target" && node.id !== graph.difference);
  if (targets.length < 2 || !graph.reloads) return null;
  targets.sort((a, b) => (b.probability ?? 0) - (a.probability ?? 0));
  const choice = (name, at) =>
    h(
      "select",
      { "aria-label": name, "data-testid": `difference-${at}` },
      targets.map((node, index) => h("option", { value: node.id, selected: index === at }, outputName(node))),
    );
  const [first, second] = [choice("Output", 0), choice("Less this output", 1)];
  const load = (names, clicked) => {
    const params = writeState(graph, store, addressParams());
    if (names) params.set("logitDiff", names);
    else params.delete("logitDiff");
    params.set("clickedId", clicked);
    showInAddress(params);
    location.reload();
  };
  const go = (event) => {
    event.preventDefault();
    if (first.value !== second.value)
      load(`${first.value}__vs__${second.value}`, `difference_${first.value}_${second.value}`);
  };
  const without = { type: "button", class: "small", "data-testid": "difference-end" };
  const end = graph.difference
    ? h("button", { ...without, on: { click: () => load(null, first.value) } }, "Without it")
    : null;
  return h(
    "form",
    { class: "difference", title: "One more output, with the difference of their links", on: { submit: go } },
    first,
    "\u2212",
    second,
    h("button", { type: "submit", class: "small", "data-testid": "difference-go" }, "Show the difference"),
    end,
  );
}
