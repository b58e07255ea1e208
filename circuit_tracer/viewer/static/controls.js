// The bars above the panels: filters of the link graph, tools of the subgraph, and what concerns the whole page.

import { h, percent, replace } from "./dom.js";
import { documentText, download, graphPicture, pngBlob, svgText } from "./exports.js";
import { reportDialog } from "./report.js";
import { MOST_FAINT } from "./scene.js";
import { partNote, pruneDialog, saveOnServer, traceAnother } from "./server_tools.js";

/** Filters and zoom of the link graph. */
export function graphBar({ graph, store, view }) {
  const pruning = slider(
    "Nodes",
    "pruning",
    { value: store.state.pruning, max: graph.threshold },
    (value) => store.set({ pruning: value }),
    (value) => `${percent(value)} of influence`,
  );
  const edges = slider(
    "Links",
    "edge-threshold",
    { value: fromShare(store.state.edgeMin), max: 1 },
    (value) => store.set({ edgeMin: toShare(value) }),
    (value) => (value ? `from ${percent(toShare(value))}` : "all"),
  );
  const known = graph.nodes.some((node) => node.density !== null);
  const density = slider(
    "Density",
    "density",
    { value: fromDensity(store.state.density), max: 1 },
    (value) => store.set({ density: toDensity(value) }),
    (value) => (value < 1 ? `to ${percent(toDensity(value))}` : "all"),
  );
  density.title = "Hide features that are active on a larger share of tokens";
  const errors = toggle("Errors", "show-errors", !store.state.hideErrors, (on) => store.set({ hideErrors: !on }));
  const faint = toggle("Faint links", "all-edges", store.state.allEdges, (on) => store.set({ allEdges: on }));
  const type = h(
    "select",
    {
      "data-testid": "link-type",
      "aria-label": "Links of the selected node",
      on: { change: (event) => store.set({ linkType: event.target.value }) },
    },
    [
      ["both", "in + out"],
      ["input", "inputs"],
      ["output", "outputs"],
    ].map(([value, text]) => h("option", { value, selected: value === store.state.linkType }, text)),
  );
  const shown = h("span", { class: "quiet counts", role: "status", "data-testid": "counts" });
  const update = () => {
    const [all, links] = [graph.nodes.length, view.links.length];
    replace(
      shown,
      `${view.count === all ? "" : `${whole(view.count)} of `}${whole(all)} nodes \u00b7 ${whole(links)} links`,
    );
    shown.title = links > MOST_FAINT ? `of the faint links the ${whole(MOST_FAINT)} strongest are drawn` : "";
    pruning.show(store.state.pruning);
    edges.show(fromShare(store.state.edgeMin));
    density.show(fromDensity(store.state.density));
    errors.querySelector("input").checked = !store.state.hideErrors;
    type.value = store.state.linkType === "either" ? "both" : store.state.linkType;
  };
  store.subscribe(update);
  update();
  return [pruning, edges, known ? density : null, errors, faint, type, h("span", { class: "spacer" }), partNote({ graph, store }), shown];
}

const whole = (value) => value.toLocaleString("en");

/** Buttons in a corner of the link graph. */
export function zoomButtons(view) {
  const [out, fit, into] = [() => view.zoom(1 / 1.4), () => view.fit(), () => view.zoom(1.4)];
  return h(
    "span",
    { class: "buttons corner" },
    button("\u2212", "Zoom out", out),
    button("Fit", "Show the whole graph", fit, "fit"),
    button("+", "Zoom in", into),
  );
}

// Most shares are small, so the slider runs over their cube root.
const toShare = (value) => value ** 3;
const fromShare = (share) => Math.cbrt(share);

// Densities differ by powers of ten, of which the slider has four.
const toDensity = (value) => Number((10 ** (4 * (value - 1))).toPrecision(3));
const fromDensity = (density) => Math.max(0, 1 + Math.log10(density) / 4);

/** Tools of the subgraph. */
export function subgraphBar({ store, actions, subgraph }) {
  const group = h("button", {
    class: "small",
    "data-testid": "group",
    on: { click: () => (store.state.collecting ? actions.finishCollecting() : actions.startCollecting()) },
  });
  const numbers = toggle("Percent", "edge-numbers", store.state.edgeNumbers, (on) => store.set({ edgeNumbers: on }));
  const clear = h(
    "button",
    { class: "small", "data-testid": "unpin-all", on: { click: () => actions.unpinAll() } },
    "Clear",
  );
  const tidy = h(
    "button",
    { class: "small", title: "Forget the places chosen by hand", on: { click: () => store.set({ positions: {} }) } },
    "Tidy",
  );
  const hint = h("span", { class: "quiet", role: "status" });
  const update = () => {
    const { collecting, pinned } = store.state;
    group.textContent = collecting ? (collecting.length > 1 ? `Group these ${collecting.length}` : "Cancel") : "Group";
    group.setAttribute("aria-pressed", String(collecting !== null));
    hint.textContent = collecting ? "Choose the nodes of the group" : `${pinned.length} pinned`;
    clear.disabled = group.disabled = pinned.length === 0 && !collecting;
  };
  store.subscribe(update);
  update();
  const zoom = h(
    "span",
    { class: "buttons" },
    button("\u2212", "Zoom the subgraph out", () => subgraph.zoom(1 / 1.25)),
    button("Fit", "Show the whole subgraph", () => subgraph.zoom(null)),
    button("+", "Zoom the subgraph in", () => subgraph.zoom(1.25)),
  );
  return [hint, h("span", { class: "spacer" }), numbers, group, tidy, clear, zoom];
}

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

/** A button that opens the choice of theme in turn: as the system, light, dark. */
export function themeButton(onChange) {
  const names = { auto: "as the system", light: "light", dark: "dark" };
  const glyphs = { auto: "\u25d0", light: "\u25cb", dark: "\u25cf" };
  const order = Object.keys(names);
  const element = button(
    "",
    "",
    () => {
      const next = order[(order.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % order.length];
      document.documentElement.dataset.theme = next;
      describe(next);
      onChange();
    },
    "theme",
  );
  const describe = (theme) => {
    element.textContent = glyphs[theme];
    element.title = `Theme: ${names[theme]}`;
    element.setAttribute("aria-label", `Theme: ${names[theme]}`);
  };
  describe(document.documentElement.dataset.theme ?? "auto");
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", onChange);
  return element;
}

/** A small button; `label` is what it is called. */
export function button(text, label, click, id = null) {
  return h("button", { class: "small", title: label, "aria-label": label, "data-testid": id, on: { click } }, text);
}

/** A slider whose both ends can be reached, whatever they are: a step would leave out ends that are no multiple of it. */
function slider(name, id, { value, max }, change, words) {
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

function toggle(name, id, on, change) {
  const input = h("input", {
    type: "checkbox",
    checked: on,
    "data-testid": id,
    on: { change: () => change(input.checked) },
  });
  return h("label", { class: "toggle" }, input, name);
}
