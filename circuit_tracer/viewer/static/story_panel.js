// The story that a graph's file carries: a sentence each with what tested it. Reading one lights its nodes.

import { h, number, percent, redraw } from "./dom.js";

const STATUS = { holds: "holds", "does not hold": "refuted", "not tested": "untested" }; // words of the file, and their class
const AS_SHARE = new Set(["probability"]);

export const panel = {
  id: "story",
  title: "Story",
  short: "Story",
  area: "lists",
  fields: { sentence: { initial: () => null } },
  on: ["sentence"],
  stays: true,
  first: ({ graph }) => storyOf(graph) !== null,
  available: ({ graph }) => storyOf(graph) !== null,
  mount(root, page) {
    const view = new StoryView(page);
    root.append(view.element);
    return { update: () => view.update() };
  },
};

/** {title, sentences, leftOut} of a graph's file, or null for none that can be read. */
export function storyOf({ metadata: { story } }) {
  const told = Array.isArray(story?.sentences) ? story.sentences.filter((each) => typeof each?.text === "string") : [];
  if (!told.length) return null;
  const leftOut = Array.isArray(story.left_out) ? story.left_out.filter((each) => typeof each === "string") : [];
  return { title: typeof story.title === "string" ? story.title : "Story", sentences: told.map(readSentence), leftOut };
}

function readSentence({ text, node_ids: nodes, status, evidence, rephrased_by: by }) {
  const known = Object.hasOwn(STATUS, status) ? status : "not tested";
  return {
    text,
    nodes: Array.isArray(nodes) ? nodes.map(String) : [],
    status: known,
    evidence: typeof evidence?.text === "string" ? evidence.text : null,
    measurements: Array.isArray(evidence?.measurements) ? evidence.measurements.map(Object) : [],
    by: typeof by === "string" ? by : null,
  };
}

class StoryView {
  constructor({ graph, store, actions }) {
    Object.assign(this, { graph, store, actions, story: storyOf(graph) });
    this.element = h("div", { class: "story" });
  }

  update() {
    const { title, sentences, leftOut } = this.story;
    const tested = sentences.filter(({ status }) => status !== "not tested").length;
    const held = sentences.filter(({ status }) => status === "holds").length;
    redraw(
      this.element,
      h("h2", {}, title),
      h(
        "p",
        { class: "quiet" },
        `${sentences.length} sentences, ${tested} tested by interventions, of which ${held} hold.`,
      ),
      h(
        "ol",
        { class: "sentences" },
        sentences.map((sentence, at) => h("li", {}, this._sentence(sentence, at))),
      ),
      leftOut.length ? h("p", { class: "quiet" }, "What this leaves out") : null,
      leftOut.map((text) => h("p", { class: "left-out" }, text)),
    );
  }

  _sentence(sentence, at) {
    const open = this.store.state.sentence === at;
    const ids = sentence.nodes.filter((id) => this.graph.byId.has(id));
    const light = () => this.store.set({ lit: ids.length ? ids : null });
    const dark = () => this.store.set({ lit: this._kept() });
    const choose = () => this.store.set({ sentence: open ? null : at, lit: open || !ids.length ? null : ids });
    return h(
      "div",
      { class: open ? "sentence open" : "sentence", on: { pointerenter: light, pointerleave: dark } },
      h(
        "button",
        {
          class: "told",
          "aria-expanded": String(open),
          "data-id": String(at),
          "data-testid": "sentence",
          on: { click: choose, focus: light, blur: dark },
        },
        sentence.text,
      ),
      h(
        "p",
        { class: "evidence" },
        h("span", { class: `status ${STATUS[sentence.status]}` }, sentence.status),
        sentence.evidence,
      ),
      sentence.by === null
        ? null
        : h("p", { class: "quiet" }, `Worded by ${sentence.by}; numbers and names as measured.`),
      open ? this._details(sentence, ids) : null,
    );
  }

  /** What stays lit when the pointer goes: the sentence that is open. */
  _kept() {
    const { sentence } = this.store.state;
    const ids = this.story.sentences[sentence]?.nodes.filter((id) => this.graph.byId.has(id)) ?? [];
    return ids.length ? ids : null;
  }

  _details({ measurements, nodes }, ids) {
    const lost = nodes.length - ids.length;
    return h(
      "div",
      { class: "measured" },
      measurements.length ? measuredTable(measurements) : null,
      h(
        "p",
        { class: "list-head" },
        h("span", { class: "quiet" }, `${nodes.length} nodes${lost ? `, ${lost} of them not in this file` : ""}`),
        h("button", { class: "small", on: { click: () => this.actions.pin(ids) } }, "Pin them"),
      ),
    );
  }
}

/** Each number that was measured, before and after, beside what the graph predicted and random groups did. */
function measuredTable(rows) {
  const has = (name) => rows.some((row) => Number.isFinite(row[name]));
  const columns = ["before", "after", "predicted", "random"].filter(has);
  return h(
    "table",
    { "data-testid": "measured" },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", {}, "measured"),
        columns.map((name) => h("th", {}, name)),
      ),
    ),
    h(
      "tbody",
      {},
      rows.map((row) => {
        const words = (value) => (AS_SHARE.has(row.quantity) ? percent(value) : number(value));
        const name = `${row.quantity} of ${row.read}, ${row.done}`;
        return h(
          "tr",
          {},
          h("th", { scope: "row" }, name),
          columns.map((column) => h("td", {}, Number.isFinite(row[column]) ? words(row[column]) : "")),
        );
      }),
    ),
  );
}
