// How a run was made.

import { h, replace } from "./dom.js";

export const panel = {
  id: "about",
  title: "About",
  area: "lists",
  mount(root, { run }) {
    const parts = { Tracing: run.settings, "Model and dictionary": run.fingerprints, "What they have in common": run.families?.settings };
    replace(root, Object.entries(parts).map(([title, values]) => facts(title, values)));
  },
};

function facts(title, values) {
  const pairs = flat(values ?? {});
  if (!pairs.length) return null;
  return h(
    "section",
    {},
    h("h3", {}, title),
    h("dl", { class: "facts" }, pairs.flatMap(([name, value]) => [h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, String(value))])),
  );
}

/** [name, value] of nested values; lists in a line. */
function flat(values, before = "") {
  return Object.entries(values).flatMap(([name, value]) => {
    if (value === null || value === undefined) return [];
    if (typeof value === "object" && !Array.isArray(value)) return flat(value, `${before}${name} `);
    return [[`${before}${name}`, Array.isArray(value) ? value.join(", ") : value]];
  });
}
