// Scores of attention explained: of the server's answer, or of the file's nodes that carry `qk_tracing_results`.

const TARGET = /^L(\d+)H(\d+) .*@(\d+) -> .*@(\d+)(?: rather than (?:(the rest)|.*@(\d+)))?$/s;

/**
 * {layer, head, query, key, versus, score, pattern, querySide, keySide, pairs, rest, residual} of the server's answer: the sides
 * [{name, weight}] by node id, pairs [{query, key, weight}], rest [{name, weight}] of what no node carries.
 */
export function readScore(answer) {
  return { ...answer };
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
  const list = (rows) =>
    (Array.isArray(rows) ? rows : [])
      .filter((row) => Array.isArray(row) && typeof row[0] === "string" && Number.isFinite(row[1]))
      .map(([name, weight]) => ({ name, weight }));
  const pairs = (Array.isArray(results.pair_wise_contributors) ? results.pair_wise_contributors : [])
    .filter((row) => Array.isArray(row) && typeof row[0] === "string" && typeof row[1] === "string" && Number.isFinite(row[2]))
    .map(([query, key, weight]) => ({ query, key, weight }));
  return {
    ...where,
    score: null,
    pattern: null,
    querySide: list(results.top_q_marginal_contributors),
    keySide: list(results.top_k_marginal_contributors),
    pairs,
    rest: [],
    residual: null,
  };
}
