// Attention heads: their names, and what a file or the server says of those that a link runs through.
//
// A head is written L5H3; L5H3:8:5 is its look from query 8 at key 5, and L5H3:8:5:1 or L5H3:8:5:rest the same rather than at
// key 1, or at all others. Addresses and targets write it so too.

const LOOK = /^L(\d{1,4})H(\d{1,4})(?::(\d{1,7})(?::(\d{1,7})(?::(rest|\d{1,7}))?)?)?$/;

export const headName = (layer, head) => `L${layer}H${head}`;

/** {layer, head, query, key, versus} of such a text, null for each that it leaves out; null for any other text. */
export function parseLook(text) {
  const found = LOOK.exec(text ?? "");
  if (!found) return null;
  const [layer, head, query, key] = found.slice(1, 5).map((digits) => (digits === undefined ? null : Number(digits)));
  const versus = found[5] === undefined ? null : found[5] === "rest" ? "rest" : Number(found[5]);
  return { layer, head, query, key, versus };
}

/** The same of what people type, in letters of either case. */
export const typedLook = (text) => parseLook(text.trim().replace(/^l(\d+)h/i, "L$1H"));

/** The text of a look. */
export function lookText({ layer, head, query = null, key = null, versus = null }) {
  const parts = [headName(layer, head), query, query === null ? null : key, key === null ? null : versus];
  return parts.filter((part) => part !== null).join(":");
}

/**
 * What a file says of a link's heads: {direct, hops, first, last}, the lists [{layer, head, weight}] strongest first; null for
 * what cannot be used.
 */
export function readHeads(given) {
  if (typeof given !== "object" || given === null || !Number.isFinite(given.direct)) return null;
  const [first, last] = [readList(given.first), readList(given.last)];
  if (!first || !last) return null;
  return { direct: given.direct, hops: Number.isFinite(given.hops) ? given.hops : null, first, last };
}

function readList(rows) {
  if (!Array.isArray(rows)) return null;
  const usable = (row) => Array.isArray(row) && isCount(row[0]) && isCount(row[1]) && Number.isFinite(row[2]);
  if (!rows.every(usable)) return null;
  return rows.map(([layer, head, weight]) => ({ layer, head, weight }));
}

const isCount = (value) => Number.isInteger(value) && value >= 0;

/** The same of the server's answer, with what a file has not: {..., through, byHops, paths, rest, residual}. */
export function explainedHeads({ direct, mean_hops: hops, first, last, through, hops: byHops, paths, rest, residual }) {
  return {
    direct,
    hops,
    first: readList(first),
    last: readList(last),
    through: readList(through),
    byHops,
    paths: paths.map(({ heads, positions, weight }) => ({
      heads: heads.map(([layer, head]) => ({ layer, head })),
      positions,
      weight,
    })),
    rest,
    residual,
  };
}

/** What of a link's weight the listed heads and the direct part leave: exact, since both lists are additive over all heads. */
export function leftOver(weight, { direct }, listed) {
  const left = listed.reduce((sum, each) => sum - each.weight, weight - direct);
  return Math.abs(left) > 1e-6 * Math.max(Math.abs(weight), Math.abs(direct)) ? left : 0;
}

/** [{layer, head, links, first, last}]: the heads that a graph's links name, those of most links first. */
export function namedHeads(graph) {
  const found = new Map();
  for (const heads of graph.links.heads ?? []) {
    for (const end of heads ? ["first", "last"] : []) {
      for (const { layer, head } of heads[end]) {
        const name = headName(layer, head);
        if (!found.has(name)) found.set(name, { layer, head, first: 0, last: 0 });
        found.get(name)[end] += 1;
      }
    }
  }
  return [...found.values()].sort(
    (a, b) => b.first + b.last - a.first - a.last || a.layer - b.layer || a.head - b.head,
  );
}

/** Links that have a head among their listed first or last ones. filter: "L5H3", "L5H3 first", "L5H3 last"; null for none. */
export function linksThrough(graph, filter) {
  const [name, end] = filter.split(" ");
  const look = parseLook(name);
  if (!look || !graph.links.heads) return null;
  const ends = end ? [end] : ["first", "last"];
  const runs = (heads) =>
    ends.some((each) => heads[each].some(({ layer, head }) => layer === look.layer && head === look.head));
  return Uint8Array.from(graph.links.heads, (heads) => (heads && runs(heads) ? 1 : 0));
}
