// A run over many prompts: its rows, what they have in common, and the way to each graph.

import { Areas } from "./areas.js";
import { h, replace } from "./dom.js";
import { addressed, showInAddress } from "./url_state.js";
import { panel as families } from "./families_panel.js";
import { panel as items } from "./items_panel.js";
import { panel as about } from "./run_about_panel.js";
import { panel as rows } from "./rows_panel.js";
import { Store } from "./store.js";
import { themeButton } from "./theme.js";

const AREAS = [
  { id: "rows", title: "Prompts", short: "Prompts" },
  { id: "lists", title: "What they have in common", short: "In common" },
];
const PANELS = [rows, families, items, about];
const FIELDS = Object.fromEntries(
  [["query", "q", ""], ["sort", "sort", ""], ["status", "status", ""], ["label", "label", ""], ["family", "family", ""]].map(
    ([name, address, start]) => [name, { address, initial: () => start }],
  ),
);
/** What the address keeps of the list of rows. */
export const RUN_FIELDS = Object.values(FIELDS).map(({ address }) => address);

/**
 * Show a parsed run (viewer/run.py) in `root`. openable(id): whether a row's graph is at hand; open(id): show it; compare(id, id): show
 * what two differ in, null where that is not known. params: of the address, which keeps filters and order. Returns {run, store, areas}.
 */
export function showRun(root, run, { openable, open, compare }, params) {
  const state = Object.fromEntries(Object.entries(FIELDS).map(([name, { address }]) => [name, params.get(address) ?? ""]));
  const store = new Store({ ...state, compared: [] }, FIELDS);
  const byId = new Map(run.rows.map((row) => [row.id, row]));
  const page = { run, store, byId, openable, open, compare };
  const panels = PANELS.filter((panel) => panel.available?.(page) ?? true);
  page.areas = new Areas(panels, page, AREAS);
  page.areas.element.classList.add("run");
  const search = h("input", {
    type: "search",
    value: state.query,
    placeholder: "Search prompts  ( / )",
    "aria-label": "Search prompts",
    "data-testid": "search",
    on: { input: () => store.set({ query: search.value }) },
  });
  const failed = run.rows.filter(({ status }) => status === "failed").length;
  const done = run.rows.filter(({ status }) => status === "done").length;
  const count = `${done} of ${run.rows.length} prompts traced${failed ? `, ${failed} failed` : ""}`;
  replace(
    root,
    h(
      "header",
      {},
      h("h1", {}, run.name, h("span", { class: "quiet" }, ` ${count}`)),
      h("div", { class: "search-box" }, search),
      h("div", { class: "tools" }, themeButton(() => {})),
    ),
    page.areas.element,
    page.areas.narrow.element,
  );
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.closest?.("input, select")) return;
    search.focus();
    event.preventDefault();
  });
  keepAddress(store, params);
  return page;
}

function keepAddress(store, params) {
  store.subscribe((state) => {
    for (const [name, { address }] of addressed(FIELDS)) {
      if (state[name]) params.set(address, state[name]);
      else params.delete(address);
    }
    showInAddress(params);
  });
}
