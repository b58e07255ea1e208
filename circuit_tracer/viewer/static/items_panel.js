// What the graphs of a run have in common: features by frequency and influence, and those that tell labels apart.

import { h, number, percent, redraw } from "./dom.js";
import { sortedTable } from "./sorted_table.js";

export const panel = {
  id: "features",
  title: "Features",
  area: "lists",
  available: ({ run }) => run.features !== null,
  mount: (root, page) => new Items(root, page.run),
};

class Items {
  constructor(element, run) {
    Object.assign(this, { element, run, sorts: { features: "-influence", labels: "" } });
    this._draw();
  }

  _draw() {
    const { features, labels } = this.run;
    redraw(
      this.element,
      this._table("features", `What the graphs have in common (${features.length} features with most influence)`, FEATURES, features),
      labels?.length ? this._table("labels", "What tells labels apart (smallest q first)", LABELS, labels) : null,
    );
  }

  _table(name, title, columns, rows) {
    const onSort = (sort) => {
      this.sorts[name] = sort;
      this._draw();
    };
    const table = sortedTable({ label: title, columns, rows, sort: this.sorts[name], onSort, testid: `${name}-table` });
    return h("section", {}, h("h3", {}, title), table);
  }
}

const interval = (row, name, words) => `${words(row[`${name}_low`])} to ${words(row[`${name}_high`])}`;
const FEATURES = [
  { id: "name", name: "Feature", isText: true, value: (row) => row.name || row.item, cell: named },
  {
    id: "frequency",
    name: "In",
    title: "share of the graphs that have it; the 95 % interval on pointing",
    value: (row) => row.frequency,
    cell: (row) => h("span", { title: interval(row, "frequency", percent) }, percent(row.frequency)),
  },
  {
    id: "influence",
    name: "Influence",
    title: "mean share of the influence on the outputs that runs through it",
    value: (row) => row.influence,
    cell: (row) => h("span", { title: interval(row, "influence", percent) }, percent(row.influence)),
  },
];
const LABELS = [
  { id: "name", name: "Feature or link", isText: true, value: (row) => row.name || row.item, cell: named },
  { id: "label", name: "Label", isText: true, value: (row) => row.label },
  {
    id: "auc",
    name: "AUC",
    title: "how well its signed attribution tells the label from the others; 0.5 is chance",
    value: (row) => row.auc,
    cell: (row) => h("span", { title: interval(row, "auc", number) }, number(row.auc)),
  },
  { id: "q", name: "q", title: "Mann\u2013Whitney, after Benjamini and Hochberg", value: (row) => row.q, cell: (row) => number(row.q) },
];

function named({ name, item }) {
  return name ? [name, h("span", { class: "quiet" }, item)] : item;
}
