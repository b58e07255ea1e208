// All nodes as a list, filtered by words: the way to a node for those who know its name or cannot see the picture.

import { h, number, percent, probability, redraw } from "./dom.js";
import { isToken, layerName, nodeLabel, tokenText } from "./labels.js";
import { errorsTitle } from "./read_graph.js";
import { matching } from "./visible.js";

const MOST_ROWS = 200;
const SECTIONS = [
  ["Outputs", ["target"]],
  ["Features", ["feature", "attention feature", "bias", "unknown"]],
  [null, ["error", "attention error"]],
  ["Tokens", ["token"]],
];
const SO_FAR = "Share of all influence that this node and the more important ones carry together";

export const panel = {
  id: "nodes",
  title: "Nodes",
  area: "lists",
  on: ["query", "labels", "pinned", "pruning", "density", "hideErrors"],
  mount: (root, page) => new NodeList(root, page),
};

class NodeList {
  constructor(element, { graph, store, actions, view }) {
    Object.assign(this, { element, graph, store, actions, view });
  }

  update(state) {
    const found = (matching(this.graph, state) ?? this.graph.nodes).slice();
    found.sort(
      (a, b) =>
        (a.influence ?? 2) - (b.influence ?? 2) || (b.probability ?? 0) - (a.probability ?? 0) || b.layer - a.layer,
    );
    const hidden = found.filter((node) => !this.view.shown[node.index]).length;
    const words = `${found.length} ${found.length === 1 ? "node" : "nodes"}${hidden ? `, ${hidden} of them hidden by the filters` : ""}`;
    const pinAll = h(
      "button",
      {
        class: "small",
        "data-testid": "pin-found",
        disabled: !state.query || !found.length,
        on: { click: () => this.actions.pin(found.slice(0, 50).map((node) => node.id)) },
      },
      "Pin all",
    );
    redraw(
      this.element,
      h("div", { class: "list-head" }, h("span", { class: "quiet", role: "status" }, words), pinAll),
      SECTIONS.map(([title, kinds]) =>
        this._section(
          title ?? errorsTitle(this.graph),
          found.filter(({ kind }) => kinds.includes(kind)),
        ),
      ),
    );
  }

  _section(title, nodes) {
    if (!nodes.length) return null;
    const ranked = nodes.some((node) => node.influence !== null);
    return h(
      "section",
      {},
      h(
        "div",
        { class: "headings" },
        h("h4", {}, `${title} `, h("span", { class: "count" }, nodes.length)),
        ranked ? h("span", { class: "quiet", title: SO_FAR }, "most important first \u00b7 influence so far") : null,
      ),
      h("ul", { class: "rows" }, nodes.slice(0, MOST_ROWS).map((node) => h("li", {}, this._row(node)))),
      nodes.length > MOST_ROWS
        ? h("p", { class: "quiet" }, `The first ${MOST_ROWS} are listed; add words to narrow the search.`)
        : null,
    );
  }

  _row(node) {
    const { graph, store, actions } = this;
    return h(
      "button",
      {
        class: store.state.pinned.includes(node.id) ? "row pinned" : "row",
        "data-id": node.id,
        on: {
          click: (event) => (event.metaKey || event.ctrlKey ? actions.togglePin(node.id) : actions.select(node.id)),
          pointerenter: () => actions.hover(node.id),
          pointerleave: () => actions.hover(null),
          focus: () => actions.hover(node.id),
        },
      },
      h("span", { class: "where" }, layerName(graph, node.layer)),
      h("span", { class: "what" }, nodeLabel(graph, store.state, node)),
      h("span", { class: "token" }, node.kind === "token" ? "" : tokenText(graph, node.position)),
      h("span", { class: "value", title: node.influence === null ? null : SO_FAR }, valueText(node)),
    );
  }
}

/** How important a node is: of an output its probability. */
function valueText(node) {
  if (node.influence !== null) return percent(node.influence);
  if (node.kind !== "target" || node.probability === null) return "";
  return isToken(node) ? probability(node.probability) : number(node.probability);
}
