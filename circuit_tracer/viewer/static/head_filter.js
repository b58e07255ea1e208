// Showing the links through one head alone: a field and a choice of ends in the bar of the graph.

import { h } from "./dom.js";
import { headName, namedHeads, typedLook } from "./heads.js";

const ENDS = [
  ["", "first or last"],
  ["first", "first"],
  ["last", "last"],
];

/** The field of the state: "L5H3", "L5H3 first" or "L5H3 last"; null for all links. */
export const throughHead = {
  initial: () => null,
  address: "throughHead",
  read: (text, initial) => (/^L\d{1,4}H\d{1,4}( first| last)?$/.test(text ?? "") ? text : initial),
};

/** The control, for graphs that say which heads their links run through; else null. */
export function headFilter({ graph, store }) {
  if (!graph.links.heads) return null;
  const names = namedHeads(graph).map(({ layer, head }) => headName(layer, head));
  const input = h("input", {
    type: "search",
    size: 7,
    placeholder: "by head",
    list: "head-names",
    "aria-label": "Show links through this head alone",
    "data-testid": "head-filter",
    on: { change: () => apply() },
  });
  const end = h(
    "select",
    { "aria-label": "Which end of the link", "data-testid": "head-filter-end", on: { change: () => apply() } },
    ENDS.map(([value, text]) => h("option", { value }, text)),
  );
  const apply = () => {
    const look = typedLook(input.value);
    const known = look !== null && names.includes(headName(look.layer, look.head));
    input.setCustomValidity(
      known || !input.value.trim() ? "" : "No link of this graph names that head among its strongest.",
    );
    if (!input.reportValidity()) return;
    store.set({ throughHead: known ? [headName(look.layer, look.head), end.value].filter(Boolean).join(" ") : null });
  };
  const show = ({ throughHead: filter }) => {
    const [name = "", which = ""] = (filter ?? "").split(" ");
    input.value = name;
    end.value = which;
    end.hidden = filter === null;
    element.classList.toggle("active", filter !== null);
  };
  const element = h(
    "span",
    { class: "head-filter", title: "Links that have the head among their strongest first or last ones" },
    input,
    end,
    h(
      "datalist",
      { id: "head-names" },
      names.map((name) => h("option", { value: name })),
    ),
  );
  store.subscribe((state, changed) => changed.has("throughHead") && show(state));
  show(store.state);
  return element;
}
