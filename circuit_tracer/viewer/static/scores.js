// Scores of attention explained: of the server's answer, or of the file's nodes that carry `qk_tracing_results`.

const TARGET = /^L(\d+)H(\d+) .*@(\d+) -> .*@(\d+)(?: rather than (?:(the rest)|.*@(\d+)))?$/s;

/**
 * {layer, head, query, key, versus, score, pattern, querySide, keySide, pairs, residual} of the server's answer. The sides are
 * {top: [{name, weight}], parts}: the strongest by node id, and what features, errors, tokens and biases add up to, by kind; pairs
 * [{query, key, weight}]. Of a file without them score, pattern, parts and residual are null.
 */
export function readScore({ query_side: querySide, key_side: keySide, pairs, ...given }) {
  return { ...given, querySide: readSide(querySide), keySide: readSide(keySide), pairs: readPairs(pairs) };
}

const readSide = ({ top, parts }) => ({ top: readList(top), parts });

const isAmount = ([name, weight]) => typeof name === "string" && Number.isFinite(weight);
const rowsOf = (value) => (Array.isArray(value) ? value.filter(Array.isArray) : []);

function readList(rows) {
  return rowsOf(rows)
    .filter(isAmount)
    .map(([name, weight]) => ({ name, weight }));
}

function readPairs(rows) {
  return rowsOf(rows)
    .filter(([query, ...key]) => typeof query === "string" && isAmount(key))
    .map(([query, key, weight]) => ({ query, key, weight }));
}

/** What a target of kind attention looks at, by its label; null for other nodes. */
export function lookOf(node) {
  if (node.raw.target_kind !== "attention") return null;
  const found = TARGET.exec(String(node.raw.token ?? ""));
  if (!found) return null;
  const [layer, head, query, key] = found.slice(1, 5).map(Number);
  return { layer, head, query, key, versus: found[5] ? "rest" : found[6] === undefined ? null : Number(found[6]) };
}

/** The looks that a file's nodes explain: [{layer, head, query, key, versus, node}]. */
export function scoresOfFile(graph) {
  return graph.nodes
    .filter((node) => typeof node.raw.qk_tracing_results === "object" && node.raw.qk_tracing_results !== null)
    .map((node) => ({ ...lookOf(node), node }))
    .filter(({ layer }) => layer !== undefined);
}

/** The score of a look as the file has it, as `readScore` makes it, or null; a look that says less fits the first. */
export function scoreInFile(graph, look) {
  const same = (name, kept) => look[name] === null || look[name] === kept[name];
  const found = scoresOfFile(graph).find(
    (kept) => kept.layer === look.layer && kept.head === look.head && ["query", "key", "versus"].every((name) => same(name, kept)),
  );
  if (!found) return null;
  const { node, ...where } = found;
  const results = node.raw.qk_tracing_results;
  return {
    ...where,
    score: null,
    pattern: null,
    querySide: { top: readList(results.top_q_marginal_contributors), parts: null },
    keySide: { top: readList(results.top_k_marginal_contributors), parts: null },
    pairs: readPairs(results.pair_wise_contributors),
    residual: null,
  };
}
