// What a score of attention is made of: contributors on the query's side and on the key's side, and pairs of both.

import { h } from "./dom.js";
import { nodeName, nodePlace } from "./names.js";
import { shareWidth } from "./palette.js";

const MOST_ROWS = 40;
const PLURALS = { feature: "features", error: "errors", token: "tokens", bias: "biases" };

/** Both sides and the pairs. score: as `readScore` makes it. */
export function scoreLists(page, score) {
  return [
    h(
      "div",
      { class: "lists" },
      side(page, "Query side", "what the query\u2019s token holds", "score-query", score.querySide),
      side(page, "Key side", "what the key\u2019s token holds", "score-key", score.keySide),
    ),
    pairs(page, score.pairs),
  ];
}

function side(page, title, words, id, { top: rows, parts }) {
  const amounts = Object.entries(parts).filter(([, amount]) => amount !== 0);
  return section(
    title,
    words,
    id,
    amounts.length
      ? amounts.map(([kind, amount]) => `${PLURALS[kind] ?? kind} ${twoDecimals(amount)}`).join(" \u00b7 ")
      : null,
    rows.length,
    rows.map(({ name, weight }) => row(nodePlace(page.graph, name), nodeName(page, name), weight, most(rows))),
  );
}

function pairs(page, rows) {
  const arrow = h("span", { class: "quiet", "aria-hidden": "true" }, " \u2192 ");
  return section(
    "Top pairs",
    "key \u2192 query",
    "score-pairs",
    null,
    rows.length,
    rows.map(({ query, key, weight }) =>
      row(null, [...placed(page, key), arrow.cloneNode(true), ...placed(page, query)], weight, most(rows)),
    ),
  );
}

function section(title, words, id, sums, count, elements) {
  return h(
    "section",
    { "data-testid": id },
    h("h3", {}, title, h("span", { class: "quiet" }, words)),
    sums ? h("p", { class: "quiet" }, sums) : null,
    count ? h("ul", { class: "rows" }, elements.slice(0, MOST_ROWS)) : h("p", { class: "quiet" }, "none listed"),
    count > MOST_ROWS ? h("p", { class: "quiet" }, `and ${count - MOST_ROWS} weaker ones`) : null,
  );
}

const most = (rows) => Math.max(1e-30, ...rows.map(({ weight }) => Math.abs(weight)));

function row(place, names, weight, largest) {
  return h(
    "li",
    { class: place ? "score-row" : "score-row pair" },
    place ? h("span", { class: "where" }, place.layer) : null,
    h("span", { class: "what" }, names),
    place ? h("span", { class: "token" }, place.position) : null,
    h("span", { class: "value" }, twoDecimals(weight)),
    h("span", {
      class: `share ${weight < 0 ? "negative" : "positive"}`,
      style: { width: `${shareWidth((weight / largest) ** 2, 100).toFixed(1)}%` },
    }),
  );
}

/** A name with its layer and token. */
function placed(page, name) {
  const { layer, position } = nodePlace(page.graph, name);
  const words = [layer, position].filter(Boolean).join(" \u00b7 ");
  return [nodeName(page, name), words ? h("span", { class: "where" }, ` ${words}`) : null];
}

/** A score as people compare them. */
export function twoDecimals(value) {
  const text = Math.abs(value).toFixed(2);
  return value < 0 && text !== "0.00" ? `\u2212${text}` : text;
}
