// A table whose columns sort it.

import { h } from "./dom.js";

/**
 * columns: {id, name, title, value(row): what it sorts by, cell(row): what it shows, default the value, isText, className}; sort: "id" or
 * "-id", largest first; onSort(sort): a heading was pressed; attributes(row): of its <tr>; most: rows that are listed.
 */
export function sortedTable({ label, columns, rows, sort, onSort, attributes = () => ({}), most = Infinity, testid = null }) {
  const listed = sorted(rows, columns, sort).slice(0, most);
  const cell = (column, row, first) =>
    h(first ? "th" : "td", { class: classOf(column), scope: first ? "row" : null }, (column.cell ?? column.value)(row));
  return h(
    "table",
    { class: "sorted", "aria-label": label, "data-testid": testid },
    h("thead", {}, h("tr", {}, columns.map((column) => heading(column, sort, onSort)))),
    h(
      "tbody",
      {},
      listed.map((row) => h("tr", attributes(row), columns.map((column, number) => cell(column, row, number === 0)))),
    ),
  );
}

/** Rows in an order: numbers by size, words as people sort them, what is missing last in both directions. */
export function sorted(rows, columns, sort) {
  const down = sort.startsWith("-");
  const column = columns.find(({ id }) => id === sort.replace(/^-/, ""));
  if (!column) return rows;
  const isMissing = (value) => value === null || value === undefined || value === "" || Number.isNaN(value);
  const compared = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return rows
    .map((row) => ({ row, value: column.value(row) }))
    .sort((one, other) => {
      const [a, b] = [isMissing(one.value), isMissing(other.value)];
      if (a || b) return a - b;
      return down ? compared(other.value, one.value) : compared(one.value, other.value);
    })
    .map(({ row }) => row);
}

const classOf = ({ className, isText }) => [className, isText ? "text" : null].filter(Boolean).join(" ") || null;

function heading(column, sort, onSort) {
  const { id, name, title, isText = false } = column;
  const by = sort.replace(/^-/, "") === id;
  const down = by && sort.startsWith("-");
  const next = by ? (down ? id : `-${id}`) : isText ? id : `-${id}`;
  const order = by ? (down ? "descending" : "ascending") : null;
  return h(
    "th",
    { scope: "col", class: classOf(column), title, "aria-sort": order },
    h("button", { class: "heading", "data-testid": `sort-${id}`, on: { click: () => onSort(next) } }, name, by ? (down ? " \u2193" : " \u2191") : ""),
  );
}
