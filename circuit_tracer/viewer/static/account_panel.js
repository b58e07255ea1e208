// The account of a change: what each node added to it, what of it is not accounted for, and whether one may conclude from it.

import { signedBars } from "./bars.js";
import { h, number, percent, redraw, replace } from "./dom.js";
import { nodeLabel, placeName } from "./labels.js";
import { sortedTable } from "./sorted_table.js";
import { matching } from "./visible.js";

const MOST_ROWS = 200;
const SHARES = { feature: "features", error: "errors", token: "tokens", bias: "biases", unselected: "unselected" };
const SIMILARITIES = { weighted_jaccard: "weighted Jaccard", cosine: "cosine", rank_biased_overlap: "rank-biased overlap" };

export const panel = {
  id: "account",
  title: "Account",
  area: "account",
  on: ["query", "hideErrors", "clicked", "hovered"],
  mount: (root, page) => new Account(root, page),
};

class Account {
  constructor(element, page) {
    Object.assign(this, { page, sort: "-size" });
    this.rows = page.record.nodes.filter(({ kind, difference, carried }) => kind !== "target" && (difference || carried));
    this.table = h("div", { class: "account-rows", on: { pointerleave: () => page.actions.hover(null) } });
    replace(element, summary(page), this.table);
  }

  update(state, changed) {
    if (["query", "hideErrors", "clicked"].some((name) => changed.has(name))) this._draw(state);
    for (const row of this.table.querySelectorAll("tr[data-row]"))
      row.classList.toggle("pointed", row.dataset.row === state.hovered);
  }

  _draw(state) {
    const { graph, record, actions } = this.page;
    const found = matching(graph, state);
    const kept = found && new Set(found.map(({ id }) => id));
    const rows = this.rows.filter(({ id, kind }) => (!kept || kept.has(id)) && !(state.hideErrors && kind === "error"));
    const table = sortedTable({
      label: "What each node added to the change",
      columns: columnsOf(this.page),
      rows,
      sort: this.sort,
      onSort: (sort) => {
        this.sort = sort;
        this._draw(this.page.store.state);
      },
      attributes: ({ id }) => ({
        "data-row": id,
        class: id === state.clicked ? "clicked" : null,
        on: { pointerenter: () => actions.hover(id) },
      }),
      most: MOST_ROWS,
      testid: "account-table",
    });
    const { count, difference } = record.rest;
    redraw(
      this.table,
      table,
      rows.length > MOST_ROWS ? h("p", { class: "quiet" }, `the first ${MOST_ROWS} of ${rows.length} nodes; search to see others`) : null,
      count ? h("p", { class: "quiet", "data-testid": "rest" }, `${count} further nodes, not shown: ${number(difference)}`) : null,
    );
  }
}

function columnsOf({ graph, store, record, mass, actions }) {
  const digits = aligned(record.nodes.flatMap(({ edge_a: a, edge_b: b }) => [a, b]));
  const shown = (value) => (value === null || value === undefined ? "\u2013" : digits(value));
  const column = (id, name, title, field = id) => {
    return { id, name, title, className: "wide", value: (row) => row[field], cell: (row) => shown(row[field]) };
  };
  const label = ({ id }) => nodeLabel(graph, store.state, graph.byId.get(id));
  return [
    { id: "node", name: "Node", isText: true, value: label, cell: (row) => nameCell(row, label(row), graph, actions) },
    column("a", "A", "its link to the output in A; 0 where there is none", "edge_a"),
    column("b", "B", "its link to the output in B; 0 where there is none", "edge_b"),
    {
      id: "size",
      name: "Change",
      title: "B less A; the bar is its share of the sum of all |changes|",
      value: ({ difference }) => Math.abs(difference),
      cell: ({ difference }) => changeCell(difference, mass, digits),
    },
    column("activation", "active", "what of the change is one of the node\u2019s activation"),
    column("weight", "weight", "what of it is one of the weight onto the output"),
    column("carried", "all paths", "what the change of its activation gives the output along all paths"),
  ];
}

/** Writes numbers with as many decimals as give the largest of them three digits, so that they can be compared down a column. */
function aligned(values) {
  const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const decimals = 2 - Math.floor(Math.log10(largest));
  if (!(decimals >= 0 && decimals <= 6)) return number;
  return (value) => `${value < 0 ? "\u2212" : ""}${Math.abs(value).toFixed(decimals)}`;
}

/** Text with a mark before what only one of the graphs has. */
function nameCell({ id, within }, label, graph, actions) {
  const title = `in ${within.toUpperCase()} only`;
  const mark = within === "both" ? null : h("span", { class: `mark only-${within}`, title }, within.toUpperCase());
  return [
    h("button", { class: "name", "data-id": id, on: { click: () => actions.click(id), focus: () => actions.hover(id) } }, mark, label),
    h("span", { class: "quiet" }, placeName(graph, graph.byId.get(id))),
  ];
}

function changeCell(difference, mass, digits) {
  const share = mass ? Math.abs(difference) / mass : 0;
  const width = `${Math.min(100, 100 * share).toFixed(1)}%`;
  return h(
    "span",
    { class: "change", title: `${number(difference)}, ${percent(share)} of the sum of all |changes|` },
    `${difference > 0 ? "+" : ""}${digits(difference)}`,
    h("span", { class: `meter${difference < 0 ? " negative" : ""}`, style: { width } }),
  );
}

/** The change and its account in few lines, what speaks against concluding from it, and sums by kind of node. */
function summary({ record, mass }) {
  const { a, b, difference, accounted, gap, conclusive, verdict, shares, similarity } = record;
  const fact = (name, value, title) => h("div", { title }, h("dt", {}, name), h("dd", {}, value));
  return h(
    "section",
    { class: "account-summary" },
    h("h3", {}, `Change of \u201c${record.target}\u201d`),
    h(
      "p",
      { class: "headline", "data-testid": "change" },
      `${number(a.value)} \u2192 ${number(b.value)}, `,
      h("strong", {}, `${difference > 0 ? "+" : ""}${number(difference)}`),
    ),
    h(
      "div",
      { class: conclusive ? "verdict" : "verdict warning", role: conclusive ? null : "alert", "data-testid": "verdict" },
      verdict.map((sentence) => h("p", {}, sentence)),
    ),
    h(
      "dl",
      { class: "head-facts", "data-testid": "accounted" },
      fact("accounted for", number(accounted), "sum over nodes, biases and what is not shown, of B less A; absent nodes count as zero"),
      fact("residual", number(gap), "what the sum leaves of the change"),
      fact("errors and unselected", percent(record.unexplained), "share of the sum of all |changes| that nothing explains"),
      Object.entries(similarity.features ?? {}).map(([name, value]) =>
        fact(SIMILARITIES[name] ?? name, number(value), "how alike the influences of features are, 0 to 1"),
      ),
    ),
    signedBars(
      "Change by kind",
      shares.map((share) => ({
        name: SHARES[share.kind] ?? share.kind,
        value: share.difference,
        text: number(share.difference),
        title: shareTitle(share, mass),
      })),
      { "data-testid": "shares" },
    ),
  );
}

function shareTitle({ kind, count, mass, activation, weight, appeared, disappeared }, all) {
  const split =
    kind === "feature"
      ? `: activation ${number(activation)}, weight ${number(weight)}, appeared ${number(appeared)}, disappeared ${number(disappeared)}`
      : "";
  return `${count} of them, ${percent(all ? mass / all : 0)} of the sum of all |changes|${split}`;
}
