// One attention head: what it does in general, where it looks from a token of this prompt, and why it looks there.

import { button } from "./controls.js";
import { chipText, h, number, percent, redraw } from "./dom.js";
import { headFacts, highest } from "./head_facts.js";
import { headStrip } from "./head_strip.js";
import { headName, lookText, namedHeads, parseLook, typedLook } from "./heads.js";
import { tokenText } from "./labels.js";
import { headChip } from "./names.js";
import { readScore, scoreInFile, scoresOfFile } from "./scores.js";
import { scoreLists, twoDecimals } from "./score_lists.js";
import { traceTarget } from "./server_tools.js";

const MOST_NAMED = 60;
const MOST_DIAGNOSED = 8;

export const panel = {
  id: "head",
  title: "Head",
  area: "lists",
  on: ["head", "labels", "throughHead"],
  shows: "head",
  stays: "inside",
  fields: {
    head: { initial: () => null, address: "head", read: (text, initial) => (parseLook(text) ? text : initial) },
  },
  mount: (root, page) => new HeadPanel(root, page),
};

class HeadPanel {
  constructor(element, page) {
    Object.assign(this, { element, page, answers: new Map(), table: null });
    page.explain.table().then(
      (table) => {
        this.table = table;
        this.update(page.store.state, new Set());
      },
      () => {},
    );
  }

  update(state, changed) {
    const look = parseLook(state.head);
    if (look && changed.has("head")) this._ask(state.head, this._asked(look));
    redraw(this.element, this._naming(state.head), look ? this._look(look, state) : this._list());
  }

  /** A look that can be asked about: from the last token, where no query was chosen. */
  _asked(look) {
    const { tokens } = this.page.graph;
    return { ...look, query: look.query ?? tokens.length - 1 };
  }

  async _ask(name, look) {
    const { explain, graph } = this.page;
    if (!explain.hasModel || this.answers.get(name)?.score) return;
    this.answers.set(name, { ...this.answers.get(name), asking: true, problem: null });
    try {
      const answer = await explain.look(look);
      for (const [id, label] of Object.entries(answer.labels)) graph.otherNames.set(id, label);
      this.answers.set(name, { score: readScore(answer) });
    } catch (error) {
      this.answers.set(name, { problem: error.message });
    }
    const { state } = this.page.store;
    if (state.head === name) this.update(state, new Set());
  }

  /** A field for the name of a head. */
  _naming(text) {
    const look = parseLook(text);
    const input = h("input", {
      type: "text",
      value: look ? headName(look.layer, look.head) : "",
      placeholder: "L5H3",
      size: 8,
      "aria-label": "Head, as L5H3",
      "data-testid": "head-name",
      on: {
        change: () => {
          const wanted = typedLook(input.value);
          if (wanted) this._go({ ...wanted, query: wanted.query ?? look?.query ?? null });
          else if (!input.value.trim()) this.page.actions.chooseHead(null);
          else input.setCustomValidity("Write layer and head as L5H3, or as L5H3:8:5 for where it looks.");
          input.reportValidity();
        },
        input: () => input.setCustomValidity(""),
      },
    });
    return h(
      "div",
      { class: "list-head" },
      h("label", { class: "quiet" }, "head ", input),
      look ? this._tools(look) : null,
    );
  }

  _tools(look) {
    const { graph, store } = this.page;
    const name = headName(look.layer, look.head);
    const on = store.state.throughHead?.split(" ")[0] === name;
    const filter = h(
      "button",
      {
        class: "small",
        "aria-pressed": String(on),
        "data-testid": "head-filter-button",
        title: "Show the links through this head alone",
        on: { click: () => store.set({ throughHead: on ? null : name }) },
      },
      "its links",
    );
    return graph.links.heads ? filter : null;
  }

  /** Without a head: those that are worth a look. */
  _list() {
    const { page } = this;
    const named = namedHeads(page.graph);
    const known = highest(this.table, "induction", MOST_DIAGNOSED);
    const chip = (each, words) => h("li", {}, headChip(page, each), h("span", { class: "quiet" }, ` ${words}`));
    const count = ({ first, last }) =>
      [first ? `first of ${first}` : "", last ? `last of ${last}` : ""].filter(Boolean).join(", ");
    if (!named.length && !known.length)
      return h(
        "div",
        { class: "empty" },
        h("p", {}, "Name a head to see where it looks, and why."),
        h("p", { class: "quiet" }, "Or click one in the tab Edge."),
      );
    return [
      known.length
        ? h(
            "section",
            { "data-testid": "head-known" },
            h("h3", {}, "Highest induction scores"),
            h(
              "ul",
              { class: "head-list" },
              known.map((each) => chip(each, percent(each.score))),
            ),
          )
        : null,
      named.length
        ? h(
            "section",
            { "data-testid": "head-named" },
            h("h3", {}, "Heads that this graph\u2019s links name", h("span", { class: "count" }, String(named.length))),
            h(
              "ul",
              { class: "head-list" },
              named.slice(0, MOST_NAMED).map((each) => chip(each, count(each))),
            ),
            named.length > MOST_NAMED ? h("p", { class: "quiet" }, `and ${named.length - MOST_NAMED} more`) : null,
          )
        : null,
    ];
  }

  _look(look, state) {
    const { graph, explain } = this.page;
    const { asking, problem, score: asked } = this.answers.get(state.head) ?? {};
    const score = asked ?? scoreInFile(graph, look);
    const query = Math.min(look.query ?? score?.query ?? graph.tokens.length - 1, graph.tokens.length - 1);
    const [key, versus] =
      look.key === null ? [score?.key ?? null, score?.versus ?? null] : [look.key, look.versus];
    const where = { ...look, query, key, versus };
    const ready = score !== null || explain.hasModel;
    return [
      headFacts(this.table, look),
      ready ? this._choice(where) : this._offline(),
      ready
        ? headStrip(graph, score?.pattern ?? null, where, (key) => this._go({ ...where, key, versus: null }))
        : null,
      ready && where.key !== null ? this._versus(where) : null,
      h(
        "div",
        { role: "status", "data-testid": "head-status" },
        asking ? h("p", { class: "quiet" }, "asking the model \u2026") : null,
        problem ? h("p", { class: "finding" }, problem) : null,
        problem ? button("Ask again", "Ask the model again", () => this._again(state.head), "head-again") : null,
      ),
      score ? [this._sentence(score), scoreLists(this.page, score)] : null,
      score?.residual
        ? h("p", { class: "quiet" }, `These sums miss the score by ${number(score.residual)} (relative).`)
        : null,
    ];
  }

  _go(where) {
    this.page.actions.chooseHead(lookText(where));
  }

  _again(name) {
    this._ask(name, this._asked(parseLook(name)));
    this.update(this.page.store.state, new Set());
  }

  /** Which token looks. */
  _choice({ layer, head, query }) {
    const { graph } = this.page;
    return h(
      "label",
      { class: "choice" },
      h("span", { class: "quiet" }, "looks from"),
      h(
        "select",
        {
          "data-testid": "head-query",
          "aria-label": "The token that looks",
          on: { change: (event) => this._go({ layer, head, query: Number(event.target.value) }) },
        },
        graph.tokens.map((_, at) =>
          h("option", { value: at, selected: at === query }, `${at}  ${chipText(graph.tokens[at])}`),
        ),
      ),
    );
  }

  /** What the key is compared with. */
  _versus(where) {
    const { graph } = this.page;
    const others = Array.from({ length: where.query + 1 }, (_, at) => at).filter((at) => at !== where.key);
    const option = (value, text) =>
      h("option", { value, selected: String(where.versus ?? "") === String(value) }, text);
    return h(
      "label",
      { class: "choice" },
      h("span", { class: "quiet" }, "at ", h("strong", {}, tokenText(graph, where.key)), " rather than"),
      h(
        "select",
        {
          "data-testid": "head-versus",
          "aria-label": "Rather than",
          on: {
            change: ({ target: { value } }) =>
              this._go({ ...where, versus: value === "" ? null : value === "rest" ? "rest" : Number(value) }),
          },
        },
        option("", "nothing: the score itself"),
        others.length ? option("rest", "the rest, by its attention") : null,
        others.map((at) => option(at, `${at}  ${chipText(graph.tokens[at])}`)),
      ),
    );
  }

  _sentence(score) {
    const share = score.pattern?.[score.key];
    const what = score.versus === null ? "score" : "log attention differs by";
    const words = score.score === null ? "" : `${what} ${twoDecimals(score.score)}`;
    const target = `attn:${lookText(score)}`;
    return h(
      "div",
      { class: "list-head", "data-testid": "head-score" },
      h(
        "span",
        {},
        [share === undefined ? "" : `${percent(share)} of its attention`, words].filter(Boolean).join(" \u00b7 "),
      ),
      this.page.explain.hasModel
        ? button(
            "Trace this",
            `Trace the prompt with ${target} as what is explained`,
            () => traceTarget(this.page, target),
            "head-trace",
          )
        : null,
    );
  }

  /** A page without a model: what of the file there is to see. */
  _offline() {
    const { graph } = this.page;
    const kept = scoresOfFile(graph);
    return h(
      "div",
      { "data-testid": "head-offline" },
      h(
        "p",
        { class: "quiet" },
        "Where this head looks, and why, needs circuit-tracer serve with the model.",
        kept.length ? " This file explains:" : "",
      ),
      h(
        "ul",
        { class: "head-list" },
        kept.map((look) =>
          h("li", {}, headChip(this.page, look, look), h("span", { class: "quiet" }, ` ${lookWords(graph, look)}`)),
        ),
      ),
    );
  }
}

/** A look in words: in at Paris rather than the rest. */
function lookWords(graph, { query, key, versus }) {
  const words = `${tokenText(graph, query)} at ${tokenText(graph, key)}`;
  if (versus === null) return words;
  return `${words} rather than ${versus === "rest" ? "the rest" : tokenText(graph, versus)}`;
}
