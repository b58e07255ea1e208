// What the bars are made of, and the bar of the whole page.

import { h } from "./dom.js";
import { copyLink, documentText, download, graphPicture, pngBlob, svgText } from "./exports.js";
import { reportDialog } from "./report.js";
import { pruneDialog, saveOnServer, traceAnother } from "./server_tools.js";

/** Undo, files, report, theme and help. */
export function pageBar(page) {
  const { graph, store } = page;
  const undo = button("\u21b6", "Undo", () => store.undo(), "undo");
  const redo = button("\u21b7", "Redo", () => store.redo(), "redo");
  const update = () => {
    undo.disabled = !store.canUndo;
    redo.disabled = !store.canRedo;
  };
  store.subscribe(update);
  update();
  const report = button(
    "About",
    "Scores, settings and soundness of this graph",
    () => reportDialog(graph, store.state),
    "report-button",
  );
  return [...serverTools(page), undo, redo, report, saveMenu(page)];
}

/** What a server adds: another trace, and pruning anew. */
function serverTools(page) {
  const { server } = page;
  return [
    server?.session.model ? button("Trace", "Trace a prompt", () => traceAnother(page), "trace") : null,
    server?.canPrune
      ? button("Prune", "Prune the whole graph at other thresholds", () => pruneDialog(page), "prune")
      : null,
  ];
}

function saveMenu({ graph, store, view, subgraph, server }) {
  const name = String(graph.metadata.slug ?? "graph").replace(/[^\w.-]+/g, "_");
  const items = [
    ["Copy a link to this view", "copy-link", copyLink],
    ...(server ? [["On the server", "save-server", () => saveOnServer({ graph, store, server })]] : []),
    ["Graph as SVG", "save-svg", () => download(`${name}.svg`, svgText(graphPicture(view)), "image/svg+xml")],
    ["Graph as PNG", "save-png", async () => download(`${name}.png`, await pngBlob(graphPicture(view)), "image/png")],
    [
      "Subgraph as SVG",
      "save-subgraph-svg",
      () => download(`${name}-subgraph.svg`, svgText(subgraph.picture()), "image/svg+xml"),
    ],
    [
      "Subgraph as PNG",
      "save-subgraph-png",
      async () => download(`${name}-subgraph.png`, await pngBlob(subgraph.picture()), "image/png"),
    ],
    [
      "JSON with labels and view",
      "save-json",
      () => download(`${name}.json`, documentText(graph, store.state), "application/json"),
    ],
  ];
  const menu = h("details", { class: "menu" }, h("summary", { class: "button", "data-testid": "save-menu" }, "Save"));
  menu.append(
    h(
      "div",
      { class: "menu-items" },
      items.map(([text, id, act]) =>
        h(
          "button",
          {
            "data-testid": id,
            on: {
              click: () => {
                menu.open = false;
                act();
              },
            },
          },
          text,
        ),
      ),
    ),
  );
  document.addEventListener("pointerdown", (event) => {
    if (!menu.contains(event.target)) menu.open = false;
  });
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    menu.open = false;
    menu.querySelector("summary").focus();
    event.stopPropagation();
  });
  return menu;
}

/** A small button; `label` is what it is called. */
export function button(text, label, click, id = null) {
  return h("button", { class: "small", title: label, "aria-label": label, "data-testid": id, on: { click } }, text);
}

/** A slider whose both ends can be reached, whatever they are: a step would leave out ends that are no multiple of it. */
export function slider(name, id, { value, max }, change, words) {
  const input = h("input", {
    type: "range",
    min: 0,
    max,
    step: "any",
    value,
    "data-testid": id,
    on: { input: () => change(Number(input.value) >= max ? max : Math.round(Number(input.value) * 100) / 100) },
  });
  const text = h("output", {}, words(value));
  const label = h("label", { class: "slider" }, h("span", {}, name), input, text);
  label.show = (now) => {
    if (Math.abs(Number(input.value) - now) > 0.005) input.value = now;
    text.textContent = words(now);
    input.setAttribute("aria-valuetext", words(now));
  };
  label.show(value);
  return label;
}

/** A checkbox with its name. */
export function toggle(name, id, on, change) {
  const input = h("input", {
    type: "checkbox",
    checked: on,
    "data-testid": id,
    on: { change: () => change(input.checked) },
  });
  return h("label", { class: "toggle" }, input, name);
}
