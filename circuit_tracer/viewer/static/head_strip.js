// A head's row of attention over the tokens: a token each, the darker the more the head looks there.

import { h, percent } from "./dom.js";
import { tokenText } from "./labels.js";

/**
 * Buttons for the keys that a query sees, and the query's own place. pattern: attention by key, or null where it is not known;
 * marked: {query, key, versus}; choose(key).
 */
export function headStrip(graph, pattern, { query, key, versus }, choose) {
  const keys = Array.from({ length: query + 1 }, (_, at) => at);
  const strongest = Math.max(0, ...(pattern ?? []));
  return h(
    "div",
    {
      class: "strip",
      role: "group",
      "aria-label": "Keys, by how much the head looks at them",
      "data-testid": "head-strip",
    },
    keys.map((at) => {
      const share = pattern?.[at] ?? null;
      const text = tokenText(graph, at).trim() || "\u2423";
      const words = [
        `token ${at}`,
        share === null ? null : `${percent(share)} of its attention`,
        at === query ? "the query" : null,
      ];
      return h(
        "button",
        {
          class: ["cell", at === query ? "query" : "", at === versus ? "versus" : ""].filter(Boolean).join(" "),
          style: { "--strength": share === null || !strongest ? 0 : Math.sqrt(share / strongest).toFixed(3) },
          "aria-pressed": String(at === key),
          "aria-label": `${text}, ${words.filter(Boolean).join(", ")}`,
          title: words.filter(Boolean).join(", "),
          "data-key": at,
          on: { click: () => choose(at) },
        },
        text,
      );
    }),
  );
}
