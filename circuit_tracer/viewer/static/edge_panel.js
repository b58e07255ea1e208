// One link: the attention heads that it runs through, at its source and at its target, how many in a row, and whole paths.

import { signedBars } from "./bars.js";
import { h, number, percent, redraw } from "./dom.js";
import { explainedHeads, headName, leftOver } from "./heads.js";
import { headChip, nodeName, tokenChip } from "./names.js";
import { linkOf } from "./selection.js";
import { splitLinksButton } from "./server_tools.js";

const MOST_HEADS = 12;
const MOST_HOPS = 8;

export const panel = {
  id: "edge",
  title: "Edge",
  area: "lists",
  on: ["edge", "labels"],
  shows: "edge",
  stays: "inside",
  fields: { edge: { initial: () => null, address: "edge" } },
  mount: (root, page) => new EdgePanel(root, page),
};

class EdgePanel {
  constructor(element, page) {
    Object.assign(this, { element, page, answers: new Map(), all: false, split: splitLinksButton(page) });
  }

  update(state, changed) {
    const { graph } = this.page;
    const link = linkOf(graph, state.edge);
    if (changed?.has("edge")) this.all = false;
    if (link === null) {
      redraw(this.element, this._empty(state.edge));
      return;
    }
    if (changed?.has("edge")) this._ask(state.edge);
    this._draw(state.edge, link);
  }

  _empty(edge) {
    const words =
      edge === null ? "Click a link to see which attention heads it runs through." : "This file has no such link.";
    return h(
      "div",
      { class: "empty" },
      h("p", {}, words),
      h("p", { class: "quiet" }, "In the graph, or \u201cheads\u201d in a row of Connections."),
      this.split,
    );
  }

  /** Ask the server, and draw anew when it has answered. */
  async _ask(edge) {
    const { explain, store } = this.page;
    if (!explain.hasModel || this.answers.get(edge)?.heads) return;
    this.answers.set(edge, { asking: true });
    try {
      this.answers.set(edge, { heads: explainedHeads(await explain.edge(...edge.split(">"))) });
    } catch (error) {
      this.answers.set(edge, { problem: error.message });
    }
    const link = linkOf(this.page.graph, edge);
    if (store.state.edge === edge && link !== null) this._draw(edge, link);
  }

  _draw(edge, link) {
    const { graph } = this.page;
    const answer = this.answers.get(edge) ?? {};
    const heads = answer.heads ?? graph.links.heads?.[link] ?? null;
    const ends = [graph.links.source[link], graph.links.target[link]].map((node) => graph.nodes[node]);
    redraw(
      this.element,
      this._head(ends, link),
      this._status(edge, answer, heads),
      heads ? this._heads(heads, ends, graph.links.weight[link]) : null,
    );
  }

  _head(ends, link) {
    const { graph } = this.page;
    const { weight, share } = graph.links;
    const [from, to] = ends.map((node) => [
      nodeName(this.page, node.id),
      " ",
      node.kind === "token" ? null : tokenChip(graph, node.position),
    ]);
    return h(
      "div",
      { class: "edge-head", "data-testid": "edge-ends" },
      h("div", {}, from, h("span", { class: "quiet" }, " \u2192 "), to),
      h(
        "div",
        { class: "quiet" },
        `weight ${number(weight[link])} \u00b7 ${percent(share[link], true)} of its target\u2019s input`,
      ),
    );
  }

  /** What is being asked, what went wrong, or what it needs. */
  _status(edge, { asking, problem }, heads) {
    const again = h(
      "button",
      { class: "small", "data-testid": "edge-again", on: { click: () => this._again(edge) } },
      "Ask again",
    );
    const words = asking
      ? h("p", { class: "quiet" }, "asking the model \u2026")
      : problem
        ? h("p", {}, h("span", { class: "finding" }, problem), " ", again)
        : this.page.explain.hasModel
          ? null
          : h(
              "p",
              { class: "quiet" },
              heads
                ? "The strongest heads, as the file has them; all of them and whole paths need circuit-tracer serve with the model."
                : "This file does not say which heads its links run through. Export it after explain_edges, or open it in circuit-tracer serve with the model.",
            );
    return h("div", { role: "status", "data-testid": "edge-status" }, words);
  }

  _again(edge) {
    this._ask(edge);
    this.update(this.page.store.state, new Set());
  }

  _heads(heads, [source, target], weight) {
    const { graph } = this.page;
    const at = (node) => tokenChip(graph, node.position);
    return [
      h("div", { class: "edge-facts", "data-testid": "edge-hops" }, hopWords(heads)),
      this._ends("first", ["First head", "picks it up at", at(source)], heads, weight, { key: source.position }),
      this._ends("last", ["Last head", "delivers it at", at(target)], heads, weight, { query: target.position }),
      heads.byHops ? hopBars(heads, weight) : null,
      heads.paths ? this._paths(heads, weight) : null,
      heads.through ? this._through(heads) : null,
      heads.residual === undefined
        ? null
        : h(
            "p",
            { class: "quiet", "data-testid": "edge-residual" },
            `These sums miss the link by ${number(heads.residual)} (relative).`,
          ),
      this.split,
    ];
  }

  /** Bars of one end: the direct part, the heads, and what is not listed; together the link. */
  _ends(end, title, heads, weight, where) {
    const listed = heads[end];
    const shown = this.all ? listed : listed.slice(0, MOST_HEADS);
    const left = leftOver(weight, heads, shown);
    const rest = listed.length - shown.length;
    const row = (name, value) => ({
      name,
      value,
      text: percent(value / weight, true),
      title: `weight ${number(value)}`,
    });
    const rows = [
      ...(heads.direct ? [row(h("span", { class: "quiet" }, "direct"), heads.direct)] : []),
      ...shown.map((each) => row(headChip(this.page, each, this._where(end, each, heads, where)), each.weight)),
      ...(left ? [row(h("span", { class: "quiet" }, rest ? `${rest} others` : "others"), left)] : []),
    ];
    const more = h(
      "button",
      { class: "small", "data-testid": `edge-all-${end}`, on: { click: () => this._showAll() } },
      this.all ? "the strongest" : `all ${listed.length}`,
    );
    return h(
      "section",
      { "data-testid": `edge-${end}` },
      h(
        "h3",
        {},
        title[0],
        h("span", { class: "quiet" }, title[1]),
        title[2],
        listed.length > MOST_HEADS ? more : null,
      ),
      rows.length
        ? signedBars(`${title[0]}s, shares of the link`, rows)
        : h("p", { class: "quiet" }, "It runs through no head."),
    );
  }

  _showAll() {
    this.all = !this.all;
    this.update(this.page.store.state, new Set());
  }

  /** Where a head of this link looks: on the strongest path that begins or ends with it, as far as paths are known. */
  _where(end, { layer, head }, heads, otherwise) {
    const step = (path) => (end === "first" ? 0 : path.heads.length - 1);
    const path = heads.paths?.find((each) => {
      const found = each.heads[step(each)];
      return found?.layer === layer && found.head === head;
    });
    if (!path) return otherwise.query === undefined ? {} : otherwise;
    return { query: path.positions[step(path) + 1], key: path.positions[step(path)] };
  }

  _paths({ paths, rest }, weight) {
    const left = Math.abs(rest.weight) + rest.mass > 1e-6 * Math.abs(weight);
    return h(
      "section",
      { "data-testid": "edge-paths" },
      h("h3", {}, "Whole paths"),
      paths.length
        ? h(
            "ol",
            {},
            paths.map((path) => h("li", { class: "path" }, this._path(path, weight))),
          )
        : h("p", { class: "quiet" }, "none"),
      left
        ? h(
            "p",
            { class: "quiet" },
            `Other paths add up to ${percent(rest.weight / weight, true)}, of parts of ${percent(rest.mass / Math.abs(weight))} or more.`,
          )
        : null,
    );
  }

  _path({ heads, positions, weight }, whole) {
    const { graph } = this.page;
    const steps = heads.flatMap((each, at) => [
      headChip(this.page, each, { query: positions[at + 1], key: positions[at] }),
      tokenChip(graph, positions[at + 1]),
    ]);
    return [
      h("span", { class: "value", title: `weight ${number(weight)}` }, percent(weight / whole, true)),
      h("span", { class: "steps" }, tokenChip(graph, positions[0]), ...steps),
    ];
  }

  /** What the link loses with a head: amounts, and no shares, because a path through two heads counts for both. */
  _through({ through }) {
    return h(
      "details",
      { class: "raw", "data-testid": "edge-through" },
      h("summary", {}, "What it loses without a head"),
      h(
        "p",
        { class: "quiet" },
        "All paths through the head, in units of the weight. Paths count for each of their heads, so these are no shares.",
      ),
      signedBars(
        "What the link loses without a head",
        through.slice(0, MOST_HEADS).map((each) => ({
          name: headChip(this.page, each),
          value: each.weight,
          text: number(each.weight),
          title: headName(each.layer, each.head),
        })),
      ),
    );
  }
}

function hopWords({ hops, direct, first }) {
  if (direct !== 0 && !first.length) return "all of it is direct";
  const count = hops === null ? "" : `${number(hops)} heads in a row on average`;
  return [count, direct === 0 ? "nothing is direct" : null].filter(Boolean).join(" \u00b7 ");
}

/** The link by the number of heads on its paths. */
function hopBars({ byHops }, weight) {
  const shown = byHops.slice(0, MOST_HOPS);
  const more = byHops.slice(MOST_HOPS).reduce((sum, value) => sum + value, 0);
  const names = ["none", "1 head", ...shown.slice(2).map((_, at) => `${at + 2} heads`)];
  const rows = shown.map((value, at) => [names[at], value]);
  if (byHops.length > MOST_HOPS) rows.push([`${MOST_HOPS} or more`, more]);
  const telling = rows.filter(([, value]) => Math.abs(value / weight) >= 5e-5);
  return h(
    "section",
    { "data-testid": "edge-by-hops" },
    h("h3", {}, "By the number of heads"),
    signedBars(
      "By the number of heads, shares of the link",
      telling.map(([name, value]) => ({
        name,
        value,
        text: percent(value / weight, true),
        title: `weight ${number(value)}`,
      })),
    ),
  );
}
