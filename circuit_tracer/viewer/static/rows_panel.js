// The rows of a run: filtered, in any order, each a way to its graph.

import { h, number, percent, redraw, spacedText } from "./dom.js";
import { promptText } from "./labels.js";
import { sorted, sortedTable } from "./sorted_table.js";

const A_PAGE = 300;
const MOST_EXTRA = 6; // columns of the prompts file

export const panel = {
  id: "rows",
  title: "Prompts",
  area: "rows",
  on: ["query", "sort", "status", "label", "family", "compared"],
  mount: (root, page) => new Rows(root, page),
};

class Rows {
  constructor(element, page) {
    Object.assign(this, { page, most: A_PAGE });
    this.columns = columnsOf(page);
    this.bar = h("div", { class: "bar" });
    this.list = h("div", { class: "scrolled" });
    element.classList.add("barred");
    element.append(this.bar, this.list);
  }

  update(state, changed) {
    const { run, store } = this.page;
    if (changed.size) this.most = A_PAGE;
    const rows = run.rows.filter((row) => passes(row, state));
    const menus = ["status", "label", "family"].map((name) => menu(run.rows, store, name));
    const count = rows.length === run.rows.length ? `${rows.length} prompts` : `${rows.length} of ${run.rows.length} prompts`;
    redraw(this.bar, menus, compareButton(this.page), h("span", { class: "quiet counts", role: "status", "data-testid": "counts" }, count));
    const table = sortedTable({
      label: "Prompts of the run",
      columns: this.columns,
      rows,
      sort: state.sort,
      onSort: (sort) => store.set({ sort }),
      attributes: ({ id, status }) => ({ "data-row": id, class: status }),
      most: this.most,
      testid: "rows-table",
    });
    const more = () => {
      this.most += A_PAGE;
      this.update(state, new Set());
    };
    const button = h("button", { class: "small", on: { click: more } }, `Show ${Math.min(A_PAGE, rows.length - this.most)} more`);
    redraw(this.list, table, rows.length > this.most ? button : null);
  }
}

/** Whether a row has all words and what the menus ask for. */
function passes(row, state) {
  if (["status", "label", "family"].some((name) => state[name] && String(row[name] ?? "none") !== state[name])) return false;
  const words = state.query.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  const values = [row.id, row.prompt, row.label, row.top_token, row.error, ...(row.targets ?? []), ...Object.values(row.extra)];
  const text = values.filter((value) => value !== null && value !== undefined).join(" ").toLocaleLowerCase();
  return words.every((word) => text.includes(word));
}

/** A menu of the values of a column with how many rows have each; null where all have the same. */
function menu(rows, store, name) {
  const counts = new Map();
  for (const row of rows) {
    const value = String(row[name] ?? "none");
    counts.set(value, (counts.get(value) ?? 0) + 1);
  }
  if (counts.size < 2) return null;
  const values = sorted([...counts.keys()], [{ id: "value", value: (value) => value }], "value");
  const option = (value, text) => h("option", { value, selected: value === store.state[name] }, text);
  return h(
    "select",
    { "aria-label": name, "data-testid": `filter-${name}`, on: { change: (event) => store.set({ [name]: event.target.value }) } },
    option("", `${name}: all`),
    values.map((value) => option(value, `${name} ${value} (${counts.get(value)})`)),
  );
}

/** Compares the two rows that are marked. */
function compareButton({ store, compare }) {
  if (!compare) return null;
  const { compared } = store.state;
  const title = "Mark two prompts to see what changes from the first to the second";
  const click = () => compare(...compared);
  const words = compared.length === 2 ? `Compare ${compared.join(" with ")}` : "Compare two";
  return h("button", { class: "small", title, disabled: compared.length !== 2, "data-testid": "compare", on: { click } }, words);
}

function columnsOf({ run, store, openable, open, compare }) {
  const has = ({ id }) => run.rows.some((row) => row[id] !== null && row[id] !== undefined);
  const shown = (value, words) => (value === null || value === undefined ? "" : typeof value === "number" ? words(value) : String(value));
  const column = (id, name, title, words = number) => {
    return { id, name, title, className: "wide", value: (row) => row[id], cell: (row) => shown(row[id], words) };
  };
  const mark = (id, on) => {
    const others = store.state.compared.filter((each) => each !== id);
    store.set({ compared: on ? [...others, id].slice(-2) : others });
  };
  const marking = ({ id }) =>
    compare && openable(id)
      ? h("input", {
          type: "checkbox",
          "aria-label": `Compare ${id}`,
          "data-testid": `mark-${id}`,
          checked: store.state.compared.includes(id),
          on: { change: (event) => mark(id, event.target.checked) },
        })
      : null;
  const prompt = { id: "prompt", name: "Prompt", isText: true, value: rowName, cell: (row) => [marking(row), promptCell(row, openable, open)] };
  const says = {
    id: "top_probability",
    name: "Says",
    title: "the likeliest token, with its probability",
    value: (row) => row.top_probability,
    cell: (row) => (typeof row.top_token === "string" ? `${spacedText(row.top_token)} ${percent(row.top_probability)}` : ""),
  };
  const names = [...new Set(run.rows.flatMap(({ extra }) => Object.keys(extra)))].slice(0, MOST_EXTRA);
  return [
    prompt,
    { ...column("label", "Label", "of the prompts file"), isText: true },
    says,
    column("entropy", "Entropy", "of the prediction, in nats"),
    column("replacement", "Replacement", "share of the influence that ends in tokens and not in errors", percent),
    column("completeness", "Completeness", "share of input that is no error", percent),
    column("residual", "Residual", "worst relative residual of the sum rule"),
    column("n_features", "Features", "with a row in the graph"),
    column("seconds", "Seconds", "that the trace took"),
    column("family", "Family", "of prompts that use the same features"),
    ...names.map((name) => ({
      id: `extra:${name}`,
      name,
      isText: true,
      className: "wide",
      value: ({ extra }) => extra[name],
      cell: ({ extra }) => shown(extra[name], String),
    })),
  ].filter((each) => each === prompt || each === says || each.id.startsWith("extra:") || has(each));
}

/** What a row is called: its prompt, else its id. */
export const rowName = ({ prompt, id }) => promptText(prompt ?? "") || id;

function promptCell(row, openable, open) {
  const text = rowName(row);
  const link = h("button", { class: "name", "data-id": row.id, title: `Open the graph of ${row.id}`, on: { click: () => open(row.id) } }, text);
  const plain = h("span", { title: row.status === "done" ? "its graph is not in this page" : null }, text);
  return [
    openable(row.id) ? link : plain,
    text === row.id ? null : h("span", { class: "quiet" }, row.id),
    row.status === "failed" ? h("div", { class: "finding" }, `${row.error_type}: ${row.error}`) : null,
    row.warnings?.length ? h("span", { class: "finding", title: row.warnings.join("\n") }, row.warnings.length === 1 ? " 1 warning" : ` ${row.warnings.length} warnings`) : null,
    row.status === "waiting" ? h("span", { class: "quiet" }, "not traced yet") : null,
  ];
}
