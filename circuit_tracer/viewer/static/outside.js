// The sign that something of a panel lies outside of it.

import { h } from "./dom.js";

const ARROWS = { left: "\u2190", right: "\u2192", above: "\u2191", below: "\u2193" };

/** A button to show all of it, hidden while nothing is outside. */
export function outsideSign(title, testId, showAll) {
  return h("button", { class: "outside small", hidden: true, title, "data-testid": testId, on: { click: showAll } });
}

/** Say how many things are outside, and on which sides. */
export function tellOutside(sign, count, sides) {
  sign.hidden = count === 0;
  if (!count) return;
  const arrows = Object.keys(ARROWS).filter((side) => sides.has(side)).map((side) => ARROWS[side]);
  sign.textContent = `${arrows.join("")} ${count.toLocaleString("en")} outside`;
}
