// What a trace explains: chips of what was chosen, a field for more, and the model's own likeliest outputs to choose from.
//
// Text is taken as it is typed: " France" is one token, "France" another.

import { h, percent, replace, spacedText } from "./dom.js";

const HELP =
  "Tokens as they stand in the text, feature:LAYER:POSITION:INDEX, or attn:L5H3:QUERY:KEY, with :rest or :OTHER for rather " +
  "than all others or another key";

/**
 * {element, chosen, suggest}. first: a target to begin with, or "". chosen(): targets as the server reads them, with what
 * stands in the field. suggest(outputs): [{id, text, probability}] of the prompt as it is now.
 */
export function targetPicker(first = "") {
  const picked = new Map(); // what the server reads -> what people read
  const row = h("div", { class: "token-row", "data-testid": "targets-chosen", "aria-live": "polite" });
  const offered = h("div", { class: "token-row", "data-testid": "targets-offered" });
  const input = h("input", {
    id: "trace-targets",
    "data-testid": "trace-targets",
    type: "text",
    placeholder: "a token, with its space; or attn:L5H3:8:5",
    title: HELP,
  });
  let outputs = [];

  const draw = () => {
    const chips = [...picked].map(([target, text]) =>
      h(
        "button",
        {
          type: "button",
          class: "chip picked",
          "data-id": target,
          "aria-label": `Do not explain ${text}`,
          on: { click: () => toggle(target) },
        },
        spacedText(text),
        " \u00d7",
      ),
    );
    replace(row, chips.length ? chips : h("span", { class: "quiet" }, "the likeliest outputs"));
    replace(
      offered,
      outputs.map(({ id, text, probability }) =>
        h(
          "button",
          {
            type: "button",
            class: "chip",
            "aria-pressed": String(picked.has(`id:${id}`)),
            title: `id ${id}`,
            on: { click: () => toggle(`id:${id}`, text) },
          },
          spacedText(text),
          h("span", { class: "quiet" }, ` ${percent(probability)}`),
        ),
      ),
    );
  };
  const toggle = (target, text = target) => {
    if (!picked.delete(target)) picked.set(target, text);
    draw();
  };
  const take = () => {
    if (input.value !== "" && !picked.has(input.value)) toggle(input.value);
    input.value = "";
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && input.value !== "") {
      event.preventDefault(); // a second Enter traces
      take();
    } else if (event.key === "Backspace" && input.value === "" && picked.size) toggle([...picked.keys()].at(-1));
  });
  if (first) picked.set(first, first);
  draw();
  const element = h(
    "fieldset",
    { class: "targets-picked" },
    h("legend", {}, "Explain"),
    row,
    offered,
    h("label", { class: "field", for: "trace-targets" }, h("span", {}, "Something else"), input),
  );
  const chosen = () => [...new Set([...picked.keys(), input.value])].filter((target) => target !== "");
  const suggest = (found) => {
    outputs = found;
    draw();
  };
  return { element, chosen, suggest };
}
