// The selected node's inputs and outputs, strongest first.

import { h, number, percent, redraw } from "./dom.js";
import { layerName, nodeLabel, tokenText } from "./labels.js";
import { headChip } from "./names.js";
import { shareWidth } from "./palette.js";
import { errorsName } from "./read_graph.js";
import { lookOf } from "./scores.js";
import { edgeId, selection } from "./selection.js";
import { linkFilter } from "./visible.js";

const MOST_ROWS = 300;
const PARTS = { feature: "features", token: "tokens", cut: "cut by pruning" };

export const panel = {
  id: "connections",
  title: "Connections",
  area: "lists",
  on: [
    "clicked",
    "pinned",
    "groups",
    "labels",
    "pruning",
    "edgeMin",
    "density",
    "hideErrors",
    "throughHead",
    "groupByToken",
  ],
  fields: { groupByToken: { initial: () => false } },
  mount: (root, page) => new Connections(root, page),
};

class Connections {
  constructor(element, { graph, store, actions, view, explain }) {
    Object.assign(this, { element, graph, store, actions, view });
    this.hasHeads = graph.links.heads !== null || explain.hasModel;
  }

  update(state) {
    const { graph, actions } = this;
    const chosen = selection(graph, state);
    if (!chosen) {
      redraw(
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
    const ids = chosen.nodes.map((node) => node.id);
    const pinned = ids.every((id) => state.pinned.includes(id));
    const look = ids.length === 1 ? lookOf(chosen.nodes[0]) : null;
    const pin = () => (ids.length === 1 ? actions.togglePin(ids[0]) : actions.removeBox(ids));
    const head = h(
      "div",
      { class: "node-head" },
      h("div", { class: "node-title" }, h("strong", {}, chosen.name), h("span", { class: "quiet" }, chosen.place)),
      look ? headChip(this, look, look) : null,
      h(
        "button",
        { class: "small", "aria-pressed": String(pinned), "data-testid": "pin", on: { click: pin } },
        pinned ? "Pinned" : "Pin",
      ),
    );
    const lists = ["inputs", "outputs"].map((name) => this._list(name, this._rows(chosen[name]), chosen));
    redraw(this.element, head, this._balance(chosen), h("div", { class: "lists" }, lists));
  }

  /** How the input divides, and the sum rule if the file carries it. */
  _balance(chosen) {
    if (!chosen.mass) return null;
    const parts = Object.entries(chosen.kinds).filter(([, share]) => share > 0);
    const nameOf = (kind) => PARTS[kind] ?? errorsName(this.graph);
    const bar = h("div", {
      class: "balance",
      role: "img",
      "aria-label": parts.map(([kind, share]) => `${nameOf(kind)} ${percent(share)}`).join(", "),
    });
    for (const [kind, share] of parts) bar.append(h("span", { class: `part ${kind}`, style: { "flex-grow": share } }));
    const words = parts.map(([kind, share]) => `${percent(share)} ${nameOf(kind)}`).join(" \u00b7 ");
    const total = `sum of |inputs|: ${number(chosen.mass)}`;
    const rule = chosen.nodes.length === 1 ? chosen.nodes[0].raw.sum_rule : null;
    return h(
      "div",
      { class: "balance-box" },
      bar,
      h("div", { class: "quiet" }, words, h("br"), total),
      rule && typeof rule === "object" ? h("div", { class: "quiet", "data-testid": "sum-rule" }, sumRule(rule)) : null,
    );
  }

  /** Neighbours that are shown, strongest first. */
  _rows(neighbours) {
    const { state } = this.store;
    const passes = linkFilter(this.graph, { ...state, edgeMin: 0 });
    const rows = [...neighbours].map(([index, sums]) => ({ node: this.graph.nodes[index], ...sums }));
    return rows
      .filter(({ node, share }) => this.view.shown[node.index] && Math.abs(share) >= state.edgeMin)
      .filter(({ links }) => links.some(passes))
      .sort((one, other) => Math.abs(other.share) - Math.abs(one.share));
  }

  _list(name, rows, chosen) {
    const title = name === "inputs" ? "Inputs" : "Outputs";
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
    if (group) for (const block of this._byToken(rows, chosen)) section.append(block);
    else section.append(this._rowList(rows, chosen));
    return section;
  }

  _byToken(rows, chosen) {
    const tokens = new Map();
    for (const row of rows) {
      if (!tokens.has(row.node.position)) tokens.set(row.node.position, []);
      tokens.get(row.node.position).push(row);
    }
    const total = (members) => members.reduce((sum, { share }) => sum + share, 0);
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
        this._rowList(members, chosen),
      ),
    );
  }

  _rowList(rows, chosen) {
    const list = h(
      "ul",
      { class: "rows" },
      rows.slice(0, MOST_ROWS).map((row) => h("li", { class: "linked" }, this._row(row, chosen), this._heads(row))),
    );
    if (rows.length > MOST_ROWS)
      list.append(
        h("li", { class: "quiet" }, `and ${rows.length - MOST_ROWS} weaker ones; raise the link threshold to choose`),
      );
    return list;
  }

  /** The way to the heads of a row's link; a supernode's rows stand for several. */
  _heads({ node, links }) {
    if (!this.hasHeads || links.length > 1) return null;
    const label = `Heads of the link with ${nodeLabel(this.graph, this.store.state, node)}`;
    const choose = () => this.actions.chooseEdge(edgeId(this.graph, links[0]));
    return h(
      "button",
      {
        class: "to-heads",
        title: "Which attention heads this link runs through",
        "aria-label": label,
        on: { click: choose },
      },
      "heads",
    );
  }

  _row({ node, weight, share }, chosen) {
    const { graph, store, actions } = this;
    const { state } = store;
    const positions = chosen.nodes.map((each) => each.position);
    const isBefore = node.position < Math.min(...positions);
    const arrow = isBefore ? "\u2190" : node.position > Math.max(...positions) ? "\u2192" : "";
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
