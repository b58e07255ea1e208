// Light or dark: as the system has it, or as one chose, which this browser remembers where it may.

import { button } from "./controls.js";

const KEPT = "circuit-tracer-theme";
const THEMES = {
  auto: { name: "as the system", glyph: "\u25d0" },
  light: { name: "light", glyph: "\u25cb" },
  dark: { name: "dark", glyph: "\u25cf" },
};

/** Take up the theme that was chosen before; call it before anything is drawn. */
export function restoreTheme() {
  try {
    const kept = localStorage.getItem(KEPT);
    if (Object.hasOwn(THEMES, kept ?? "")) document.documentElement.dataset.theme = kept;
  } catch {
    // A frame in a notebook has no storage.
  }
}

/** A button that goes through the themes in turn. */
export function themeButton(onChange) {
  const order = Object.keys(THEMES);
  const element = button("", "", () => choose(order[(order.indexOf(current()) + 1) % order.length]), "theme");
  const describe = () => {
    const { name, glyph } = THEMES[current()];
    element.textContent = glyph;
    element.title = `Theme: ${name}`;
    element.setAttribute("aria-label", `Theme: ${name}`);
  };
  function choose(theme) {
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem(KEPT, theme);
    } catch {
      // It lasts as long as the page.
    }
    describe();
    onChange();
  }
  describe();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", onChange);
  return element;
}

const current = () => document.documentElement.dataset.theme ?? "auto";
