// A short message at the lower edge, read aloud, that goes away by itself.

import { h } from "./dom.js";

const SECONDS = 5;

/** Show a text; a problem stays until it is clicked away. */
export function toast(text, isProblem = false) {
  document.querySelector(".toast")?.remove();
  const close = () => element.remove();
  const element = h(
    "div",
    { class: isProblem ? "toast problem" : "toast", role: isProblem ? "alert" : "status", "data-testid": "toast" },
    h("span", {}, text),
    h("button", { class: "small", "aria-label": "Close this message", on: { click: close } }, "\u00d7"),
  );
  document.body.append(element);
  if (!isProblem) setTimeout(close, SECONDS * 1000);
}
