// Families of prompts, whose graphs use the same features: how large, who stands in their middle, what they use.

import { h, number, percent, redraw } from "./dom.js";
import { rowName } from "./rows_panel.js";

const FEATURES_SHOWN = 8;

export const panel = {
  id: "families",
  title: "Families",
  area: "lists",
  on: ["family"],
  available: ({ run }) => run.families !== null,
  mount: (root, page) => ({ update: () => redraw(root, listed(page)) }),
};

function listed(page) {
  const { families } = page.run.families;
  const words =
    families.length === 1
      ? "The graphs of this run fall into no groups: all are one family."
      : "Prompts whose graphs use the same features to the same degree (weighted Jaccard of influence), each family with the graph nearest to all others of it.";
  return [h("p", { class: "quiet" }, words), families.map((family) => card(page, family))];
}

function card({ store, byId, openable, open }, { family, size, medoid, silhouette, labels, features }) {
  const chosen = store.state.family === String(family);
  const text = rowName(byId.get(medoid) ?? { id: medoid });
  const filter = () => store.set({ family: chosen ? "" : String(family) });
  return h(
    "section",
    { class: `family${chosen ? " chosen" : ""}`, "data-family": family },
    h(
      "div",
      { class: "list-head" },
      h("h3", {}, `Family ${family}`, h("span", { class: "count" }, ` ${size} ${size === 1 ? "prompt" : "prompts"}`)),
      silhouette === null ? null : h("span", { class: "quiet", title: "mean silhouette, \u22121 to 1: how far apart from other families" }, `silhouette ${number(silhouette)}`),
      h("button", { class: "small", "aria-pressed": String(chosen), "data-testid": `family-${family}`, on: { click: filter } }, chosen ? "Show all" : "Show these"),
    ),
    h(
      "p",
      {},
      h("span", { class: "quiet" }, "in the middle: "),
      openable(medoid) ? h("button", { class: "name", "data-testid": `medoid-${family}`, on: { click: () => open(medoid) } }, text) : text,
    ),
    Object.keys(labels).length
      ? h("div", { class: "chips" }, Object.entries(labels).map(([label, count]) => h("span", { class: "chip" }, `${label} ${count}`)))
      : null,
    h("ul", { class: "family-features" }, features.slice(0, FEATURES_SHOWN).map(used)),
  );
}

/** A feature with the share of the family's graphs that have it, beside that of all others. */
function used({ item, name, frequency, elsewhere, influence }) {
  const title = `${item}: mean influence ${percent(influence)}`;
  return h(
    "li",
    { title },
    h("span", { class: "bar-name" }, name || item),
    h("span", { class: "value" }, percent(frequency)),
    elsewhere === null ? null : h("span", { class: "quiet" }, `elsewhere ${percent(elsewhere)}`),
  );
}
