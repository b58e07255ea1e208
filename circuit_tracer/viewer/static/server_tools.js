// What a page with a server can do to its graph: save the view, prune anew, load another part.

import { h, replace } from "./dom.js";
import { toast } from "./toast.js";
import { field, traceDialog } from "./trace_dialog.js";
import { fileView, writeState } from "./url_state.js";

/** Save pins, supernodes, places and labels in the graph's file. */
export async function saveOnServer({ graph, store, server }) {
  try {
    await server.client.saveView(server.slug, fileView(graph, store.state));
    toast("Saved on the server, in the graph\u2019s file.");
  } catch (error) {
    toast(`Not saved: ${error.message}`, true);
  }
}

/** Trace another prompt, beginning with this one. */
export function traceAnother({ graph, server }) {
  traceDialog(server, promptOf(graph));
}

/** Trace this prompt with another target. */
export function traceTarget({ graph, server }, target) {
  traceDialog(server, promptOf(graph), target);
}

function promptOf({ metadata: { prompt }, tokens }) {
  const between = tokens.slice(1).some((token) => /^\s/.test(token)) ? "" : " ";
  return typeof prompt === "string" && prompt ? prompt : tokens.join(between);
}

/** A button that splits all links of the graph's file over heads, after which the page is loaded again; null where it cannot. */
export function splitLinksButton({ graph, server }) {
  if (!server?.session.model || !server.canPrune || graph.links.heads) return null;
  const problem = h("p", { class: "finding", role: "alert", "data-testid": "split-problem" });
  const go = h("button", { class: "small", "data-testid": "split-links" }, "Split all links over heads");
  go.addEventListener("click", async () => {
    go.disabled = true;
    replace(problem, "");
    try {
      await server.client.explainLinks(server.slug).result();
      location.reload();
    } catch (error) {
      replace(problem, error.message);
      go.disabled = false;
    }
  });
  return h(
    "div",
    { class: "split" },
    go,
    h("p", { class: "quiet" }, "Then the graph can show the links through a head alone."),
    problem,
  );
}

/** Thresholds to prune the whole graph at; the page is loaded again with what it shows kept in its address. */
export function pruneDialog({ graph, store, server }) {
  const given = graph.metadata.pruning_settings ?? {};
  const input = (name, label, value) =>
    field(label, `prune-${name}`, {
      type: "number",
      min: 0,
      max: 1,
      step: "any",
      value: given[`${name}_threshold`] ?? value,
    });
  const [node, edge] = [
    input("node", "Keep nodes with this share of influence", 0.8),
    input("edge", "Keep links with this share of influence", 0.98),
  ];
  const problem = h("p", { class: "finding", role: "alert", "data-testid": "prune-problem" });
  const go = h("button", { class: "primary", type: "submit", "data-testid": "prune-go" }, "Prune");
  const prune = async () => {
    go.disabled = true;
    replace(problem);
    try {
      await server.client.prune(server.slug, {
        node_threshold: Number(node.input.value),
        edge_threshold: Number(edge.input.value),
        keep: store.state.pinned,
      });
      location.reload();
    } catch (error) {
      replace(problem, error.message);
      go.disabled = false;
    }
  };
  const dialog = h("dialog", { "aria-labelledby": "prune-title", "data-testid": "prune-dialog" });
  dialog.append(
    h(
      "div",
      { class: "dialog-head" },
      h("h2", { id: "prune-title" }, "Prune the whole graph anew"),
      h("button", { class: "small", on: { click: () => dialog.close() } }, "Close"),
    ),
    h(
      "form",
      { class: "form", on: { submit: (event) => (event.preventDefault(), prune()) } },
      h("p", { class: "quiet" }, "The graph\u2019s file is written anew; pins, supernodes and labels stay."),
      h("div", { class: "fields" }, node.element, edge.element),
      problem,
      h("div", { class: "form-end" }, go),
    ),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

/** What part of a large graph is shown, with a way to the part around the selection; null for a whole one. */
export function partNote({ graph, store }) {
  const { part } = graph.metadata;
  if (typeof part !== "object" || part === null) return null;
  const around = h("button", { class: "small", "data-testid": "around" }, "Around the selection");
  around.addEventListener("click", () => {
    const { clicked, groups, pinned } = store.state;
    const params = writeState(graph, store, new URLSearchParams(location.search));
    const ids = graph.byId.has(clicked) ? [clicked] : pinned.concat(groups.flatMap((group) => group.members));
    params.set("around", [...new Set(ids)].join(","));
    location.search = params.toString();
  });
  const update = () => {
    around.disabled = store.state.clicked === null && !store.state.pinned.length;
  };
  store.subscribe(update);
  update();
  const words = `part of ${Number(part.of_nodes).toLocaleString("en")} nodes, ${Number(part.of_links).toLocaleString("en")} links`;
  return h("span", { class: "part-note", "data-testid": "part" }, h("span", { class: "quiet" }, words), around);
}
