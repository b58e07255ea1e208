// Signed amounts as bars that grow from a common zero, green above it and purple below.

import { h } from "./dom.js";

/** A list of bars: rows of {name (an element or text), value, text, title}; label: what the list is called aloud. */
export function signedBars(label, rows, attributes = {}) {
  const low = Math.min(0, ...rows.map(({ value }) => value));
  const span = Math.max(0, ...rows.map(({ value }) => value)) - low || 1;
  const place = (value) => `${((100 * value) / span).toFixed(1)}%`;
  return h(
    "ul",
    { class: "bars", "aria-label": label, ...attributes },
    rows.map(({ name, value, text, title }) =>
      h(
        "li",
        { title },
        h("span", { class: "bar-name" }, name),
        h(
          "span",
          { class: "track", "aria-hidden": "true" },
          h("span", { class: "zero", style: { left: place(-low) } }),
          h("span", {
            class: `amount ${value < 0 ? "negative" : "positive"}`,
            style: { left: place(Math.min(0, value) - low), width: place(Math.abs(value)) },
          }),
        ),
        h("span", { class: "value" }, text),
      ),
    ),
  );
}
