// What a head does in general, of the table that `circuit-tracer heads` makes.

import { h, number, percent } from "./dom.js";

const SHARES = ["induction", "previous_token", "duplicate_token", "self"];

/** The row of a head in a table as `HeadTable.to_dict` has it, or null. */
export function headRow(table, { layer, head }) {
  return table?.heads?.find((row) => row.layer === layer && row.head === head) ?? null;
}

/** Its scores by name, each explained where the pointer rests. */
export function headFacts(table, look) {
  const row = headRow(table, look);
  if (!row) return null;
  const known = Object.entries(table.scores).filter(([name]) => Number.isFinite(row[name]));
  return h(
    "dl",
    { class: "head-facts", "data-testid": "head-facts" },
    known.map(([name, what]) =>
      h(
        "div",
        { title: what },
        h("dt", {}, name.replaceAll("_", " ")),
        h("dd", {}, SHARES.includes(name) ? percent(row[name]) : number(row[name])),
      ),
    ),
  );
}

/** The heads of the highest scores of a kind: [{layer, head, score}]. */
export function highest(table, score, count) {
  const rows = (table?.heads ?? []).filter((row) => Number.isFinite(row[score]));
  return rows
    .sort((a, b) => b[score] - a[score])
    .slice(0, count)
    .map(({ layer, head, [score]: value }) => ({ layer, head, score: value }));
}
