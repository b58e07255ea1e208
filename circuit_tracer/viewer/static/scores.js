// Scores of attention explained: of the server's answer, of the file's `attention_scores`, or of the file's targets that carry
// `qk_tracing_results` alone.
//
// One is {layer, head, query, key, versus, score, pattern, querySide, keySide, pairs, residual}. The sides are {top: [{name,
// weight}], parts}: the strongest by node id, and what features, errors, tokens and biases add up to, by kind; pairs [{query, key,
// weight}]. Where only results are known, score, pattern, parts and residual are null.

const TARGET = /^L(\d+)H(\d+) .*@(\d+) -> .*@(\d+)(?: rather than (?:(the rest)|.*@(\d+)))?$/s;

/** Of plain values as `AttentionScore.to_dict` has them; null for anything else. */
export function readScore(given) {
  const { layer, head, query, key, versus, score, pattern, query_side: one, key_side: other } = Object(given);
  const places = [layer, head, query, key, ...(versus === null || versus === "rest" ? [] : [versus])];
  if (!places.every((each) => Number.isInteger(each) && each >= 0) || !Number.isFinite(score)) return null;
  if (!Array.isArray(pattern) || !pattern.every(Number.isFinite)) return null;
  const [querySide, keySide] = [readSide(one), readSide(other)];
  const residual = Number.isFinite(given.residual) ? given.residual : null;
  return {
    layer,
    head,
    query,
    key,
    versus,
    score,
    pattern,
    querySide,
    keySide,
    pairs: readPairs(given.pairs),
    residual,
  };
}

function readSide(given) {
  const { top, parts } = Object(given);
  const known = Object.entries(Object(parts)).filter(([, amount]) => Number.isFinite(amount));
  return { top: readList(top), parts: Object.fromEntries(known) };
}

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

/** All scores that a file explains. */
export function scoresOfFile({ document, nodes }) {
  const kept = (Array.isArray(document.attention_scores) ? document.attention_scores : [])
    .map(readScore)
    .filter(Boolean);
  const others = nodes.map(resultsOf).filter((found) => found && !kept.some((score) => isOf(score, found)));
  return [...kept, ...others];
}

function resultsOf(node) {
  const { qk_tracing_results: results } = node.raw;
  const look = lookOf(node);
  if (!look || typeof results !== "object" || results === null) return null;
  return {
    ...look,
    score: null,
    pattern: null,
    querySide: { top: readList(results.top_q_marginal_contributors), parts: {} },
    keySide: { top: readList(results.top_k_marginal_contributors), parts: {} },
    pairs: readPairs(results.pair_wise_contributors),
    residual: null,
  };
}

/** The score of a look as the file has it, or null; a look that says less fits the first. */
export function scoreInFile(graph, look) {
  return scoresOfFile(graph).find((score) => isOf(score, look)) ?? null;
}

function isOf(score, look) {
  if (score.layer !== look.layer || score.head !== look.head) return false;
  const says = ["query", "key"].every((name) => look[name] === null || look[name] === score[name]);
  return says && (look.key === null || look.versus === score.versus);
}
