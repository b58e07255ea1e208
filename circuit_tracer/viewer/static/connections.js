// The selected node's inputs and outputs, strongest first.

import { h, number, percent, replace } from "./dom.js";
import { layerName, nodeLabel, placeName, tokenText } from "./labels.js";
import { inputShares } from "./graph_math.js";
import { inputsOf, outputsOf } from "./read_graph.js";
import { shareWidth } from "./palette.js";

const MOST_ROWS = 300;

export class Connections {
  constructor(graph, store, actions, view) {
    Object.assign(this, { graph, store, actions, view });
    this.element = h("div", { class: "connections", "data-testid": "connections" });
    store.subscribe((_, changed) => {
      const on = ["clicked", "pinned", "labels", "pruning", "edgeMin", "hideErrors", "groupByToken"];
      if (on.some((name) => changed.has(name))) this.draw();
    });
    this.draw();
  }

  draw() {
    const { graph, store, actions } = this;
    const { state } = store;
    const node = state.clicked === null ? undefined : graph.byId.get(state.clicked);
    if (!node) {
      replace(
        this.element,
        h(
          "div",
          { class: "empty" },
          h("p", {}, "Select a node to see where its input comes from and where its output goes."),
          h("p", { class: "quiet" }, "Click, or focus the graph and use the arrow keys and Enter."),
        ),
      );
      return;
    }
    const pinned = state.pinned.includes(node.id);
    const head = h(
      "div",
      { class: "node-head" },
      h(
        "div",
        { class: "node-title" },
        h("strong", {}, nodeLabel(graph, state, node)),
        h("span", { class: "quiet" }, placeName(graph, node)),
      ),
      h(
        "button",
        {
          class: "small",
          "aria-pressed": String(pinned),
          "data-testid": "pin",
          on: { click: () => actions.togglePin(node.id) },
        },
        pinned ? "Pinned" : "Pin",
      ),
    );
    replace(this.element, head, this._balance(node), this._lists(node));
  }

  /** How the input divides, and the sum rule if the file carries it. */
  _balance(node) {
    const inputs = inputsOf(this.graph, node.index);
    if (!inputs.length) return null;
    const shares = inputShares(this.graph, node.index);
    const parts = Object.entries(shares).filter(([, share]) => share > 0);
    const bar = h("div", {
      class: "balance",
      role: "img",
      "aria-label": parts.map(([kind, share]) => `${kind}s ${percent(share)}`).join(", "),
    });
    for (const [kind, share] of parts) bar.append(h("span", { class: `part ${kind}`, style: { "flex-grow": share } }));
    const words = parts.map(([kind, share]) => `${percent(share)} ${kind}s`).join(" \u00b7 ");
    const total = `sum of |inputs| in this file: ${number(this.graph.mass[node.index])}`;
    const rule = node.raw.sum_rule;
    return h(
      "div",
      { class: "balance-box" },
      bar,
      h("div", { class: "quiet" }, words, h("br"), total),
      rule && typeof rule === "object" ? h("div", { class: "quiet", "data-testid": "sum-rule" }, sumRule(rule)) : null,
    );
  }

  _lists(node) {
    const { graph } = this;
    const inputs = this._rows(inputsOf(graph, node.index), graph.links.source, "from");
    const outputs = this._rows(outputsOf(graph, node.index), graph.links.target, "to");
    return h(
      "div",
      { class: "lists" },
      this._list("Inputs", inputs, "inputs", node),
      this._list("Outputs", outputs, "outputs", node),
    );
  }

  /** Shown links, strongest first. */
  _rows(links, ends) {
    const { share } = this.graph.links;
    const shown = [...links].filter(
      (link) => this.view.shown[ends[link]] && Math.abs(share[link]) >= this.store.state.edgeMin,
    );
    return shown
      .sort((a, b) => Math.abs(share[b]) - Math.abs(share[a]))
      .map((link) => ({ link, node: this.graph.nodes[ends[link]] }));
  }

  _list(title, rows, name, node) {
    const group = name === "inputs" && this.store.state.groupByToken;
    const section = h("section", { "aria-label": title, "data-testid": name });
    const heading = h("h3", {}, title, h("span", { class: "count" }, String(rows.length)));
    if (name === "inputs" && rows.length > 1) {
      const box = h("input", {
        type: "checkbox",
        checked: group,
        "data-testid": "group-by-token",
        on: { change: (event) => this.store.set({ groupByToken: event.target.checked }) },
      });
      heading.append(h("label", { class: "toggle" }, box, "by token"));
    }
    section.append(heading);
    if (!rows.length) section.append(h("p", { class: "quiet" }, "none shown"));
    if (group) for (const block of this._byToken(rows)) section.append(block);
    else section.append(this._rowList(rows, node));
    return section;
  }

  _byToken(rows) {
    const tokens = new Map();
    for (const row of rows) {
      if (!tokens.has(row.node.position)) tokens.set(row.node.position, []);
      tokens.get(row.node.position).push(row);
    }
    const total = (members) => members.reduce((sum, { link }) => sum + this.graph.links.share[link], 0);
    const ordered = [...tokens].sort(([, a], [, b]) => Math.abs(total(b)) - Math.abs(total(a)));
    return ordered.map(([position, members]) =>
      h(
        "details",
        { class: "token-group", open: true },
        h(
          "summary",
          {},
          h("span", { class: "chip" }, tokenText(this.graph, position)),
          h("span", { class: "quiet" }, ` token ${position}`),
          h("span", { class: "value" }, percent(total(members), true)),
        ),
        this._rowList(members),
      ),
    );
  }

  _rowList(rows) {
    const list = h(
      "ul",
      { class: "rows" },
      rows.slice(0, MOST_ROWS).map((row) => h("li", {}, this._row(row))),
    );
    if (rows.length > MOST_ROWS)
      list.append(
        h("li", { class: "quiet" }, `and ${rows.length - MOST_ROWS} weaker ones; raise the link threshold to choose`),
      );
    return list;
  }

  _row({ link, node }) {
    const { graph, store, actions } = this;
    const { state } = store;
    const share = graph.links.share[link];
    const weight = graph.links.weight[link];
    const clicked = graph.byId.get(state.clicked);
    const arrow = node.position === clicked.position ? "" : node.position < clicked.position ? "\u2190" : "\u2192";
    const bar = h("span", {
      class: `share ${share < 0 ? "negative" : "positive"}`,
      style: { width: `${shareWidth(share, 100).toFixed(1)}%` },
    });
    return h(
      "button",
      {
        class: state.pinned.includes(node.id) ? "row pinned" : "row",
        title: `weight ${number(weight)}`,
        "data-id": node.id,
        on: {
          click: (event) => (event.metaKey || event.ctrlKey ? actions.togglePin(node.id) : actions.click(node.id)),
          pointerenter: () => actions.hover(node.id),
          pointerleave: () => actions.hover(null),
          focus: () => actions.hover(node.id),
        },
      },
      h("span", { class: "where" }, layerName(graph, node.layer)),
      h("span", { class: "what" }, nodeLabel(graph, state, node)),
      h("span", { class: "token" }, arrow ? `${arrow} ${tokenText(graph, node.position)}` : ""),
      h("span", { class: "value" }, percent(share, true)),
      bar,
    );
  }
}

/** inputs + unselected + bias = pre-activation, with what is left over. */
function sumRule(rule) {
  const parts = [
    ["inputs", rule.inputs],
    ["unselected", rule.unselected],
    ["bias", rule.bias],
  ].map(([name, value]) => `${name} ${number(value)}`);
  return `${parts.join(" + ")} = ${number(rule.pre_activation)} before activation; off by ${number(rule.residual)} (relative)`;
}
