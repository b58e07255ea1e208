// Testing a graph on the model: change features of nodes and supernodes, and see what becomes of outputs, features and text.

import { changeWords } from "./effect.js";
import { chipText, h, number, percent, replace } from "./dom.js";
import { isEditable } from "./read_graph.js";
import { groupId, selectedNodes } from "./selection.js";
import { nodeLabel, placeName } from "./labels.js";

const HOWS = [
  ["ablate", "switch off"],
  ["scale", "scale by"],
  ["set", "set to"],
  ["add", "add"],
];
const PLACES = [
  ["own", "at their tokens"],
  ["all", "everywhere"],
  ["generated", "on new tokens"],
];
const KINDS = [
  ["direct", "everything reacts"],
  ["constrained", "only direct effects"],
  ["iterative", "features react"],
];
const AMOUNTS = { ablate: "", scale: -1, set: 5, add: 5 };

export const panel = {
  id: "test",
  title: "Test",
  area: "lists",
  on: ["clicked", "groups", "labels", "effect"],
  stays: true,
  available: ({ server }) => Boolean(server?.session.model),
  mount: (root, page) => new TestPanel(root, page),
};

class TestPanel {
  constructor(element, { graph, store, server }) {
    Object.assign(this, { graph, store, server });
    this.edits = [];
    this.job = null;
    this.add = h("button", { class: "small", "data-testid": "test-add", on: { click: () => this._addSelection() } });
    this.list = h("ul", { class: "edits", "data-testid": "test-edits" });
    this.kind = select("What reacts", "test-kind", KINDS, "direct");
    this.count = h("input", {
      type: "number",
      min: 1,
      max: 2000,
      value: 20,
      "aria-label": "New tokens",
      "data-testid": "test-count",
    });
    this.warmth = h("input", {
      type: "number",
      min: 0,
      max: 10,
      step: 0.1,
      value: 0,
      "aria-label": "Temperature",
      "data-testid": "test-temperature",
    });
    this.run = button("Intervene", "test-run", () => this._intervene());
    this.write = button("Write on", "test-write", () => this._steer());
    this.cancel = button("Cancel", "test-cancel", () => this.job?.cancel().catch(() => {}));
    this.clear = button("Clear the graph", "effect-clear", () => this.store.set({ effect: null }));
    this.status = h("p", { class: "quiet", role: "status", "data-testid": "test-status" });
    this.found = h("div", { "data-testid": "test-result" });
    element.append(
      h("div", { class: "list-head" }, h("span", { class: "quiet" }, "Changes to the model"), this.add),
      this.list,
      h("div", { class: "test-row" }, this.kind, this.run),
      h(
        "div",
        { class: "test-row" },
        h("label", {}, this.count, " tokens"),
        h("label", {}, "temperature ", this.warmth),
        this.write,
      ),
      this.status,
      this.cancel,
      this.clear,
      this.found,
    );
    this._draw();
  }

  /** The selected features as one change. */
  _addSelection() {
    const chosen = this._chosen();
    if (!chosen || this.edits.some((edit) => edit.key === chosen.key)) return;
    this.edits.push({ ...chosen, how: "ablate", amount: "", at: "own" });
    this._draw();
  }

  /** {key, name, nodes} of the selection, or null if it holds no feature. */
  _chosen() {
    const { graph } = this;
    const { state } = this.store;
    const nodes = selectedNodes(graph, state).filter(isEditable);
    if (!nodes.length) return null;
    const group = state.groups.find((each) => groupId(each) === state.clicked);
    const name = group ? group.name : `${nodeLabel(graph, state, nodes[0])} (${placeName(graph, nodes[0])})`;
    return { key: state.clicked, name, isGroup: Boolean(group), nodes: nodes.map((node) => node.id) };
  }

  _draw() {
    replace(
      this.list,
      this.edits.length
        ? this.edits.map((edit) => this._row(edit))
        : h("li", { class: "quiet" }, "Select a feature or a supernode, then add it here."),
    );
    this.update();
  }

  update() {
    const chosen = this._chosen();
    this.add.textContent = chosen ? `Add ${chosen.isGroup ? "supernode" : "feature"}` : "Add selection";
    this.add.disabled = !chosen || this.edits.some((edit) => edit.key === chosen.key);
    const busy = this.job !== null;
    this.run.disabled = this.write.disabled = busy || !this.edits.length;
    this.cancel.hidden = !busy;
    this.clear.hidden = busy || this.store.state.effect === null;
  }

  _row(edit) {
    const amount = h("input", {
      type: "number",
      step: "any",
      value: edit.amount,
      hidden: edit.how === "ablate",
      "aria-label": `Amount for ${edit.name}`,
      "data-testid": "edit-amount",
      on: { input: (event) => (edit.amount = event.target.value) },
    });
    const how = select(`How to change ${edit.name}`, "edit-how", HOWS, edit.how, (value) => {
      edit.how = value;
      edit.amount = amount.value = AMOUNTS[value];
      amount.hidden = value === "ablate";
    });
    const at = select(`Where to change ${edit.name}`, "edit-at", PLACES, edit.at, (value) => (edit.at = value));
    const remove = () => {
      this.edits = this.edits.filter((each) => each !== edit);
      this._draw();
    };
    return h(
      "li",
      { class: "edit" },
      h("span", { class: "what", title: edit.name }, edit.name),
      h("button", { class: "small", "aria-label": `Leave ${edit.name} as it is`, on: { click: remove } }, "\u00d7"),
      h("span", { class: "edit-how" }, how, amount, at),
    );
  }

  _requests() {
    return this.edits.map(({ name, isGroup, nodes, how, amount, at }) => ({
      nodes,
      how,
      amount: Number(amount) || 0,
      at,
      ...(isGroup ? { name: name.slice(0, 200) } : {}),
    }));
  }

  async _intervene() {
    const request = { edits: this._requests(), semantics: this.kind.value };
    const result = await this._follow(this.server.client.intervene(this.server.slug, request), "intervening \u2026");
    if (!result) return;
    this.store.set({ effect: result });
    replace(this.found, this._outcome(result));
  }

  async _steer() {
    const request = {
      edits: this._requests(),
      max_new_tokens: Math.max(1, Math.round(Number(this.count.value)) || 20),
      temperature: Math.max(0, Number(this.warmth.value) || 0),
    };
    const live = h("p", { class: "written", "data-testid": "live-text" });
    replace(this.found, h("h4", {}, "With the changes"), live);
    const result = await this._follow(
      this.server.client.steer(this.server.slug, request),
      "writing \u2026",
      ({ text }) => {
        live.textContent = text;
      },
    );
    if (result) replace(this.found, writings(result));
  }

  /** The result of a job, with its state shown; null if it was cancelled or failed. */
  async _follow(job, words, onReport = () => {}) {
    this.job = job;
    this.status.className = "quiet";
    this.status.textContent = words;
    this.update();
    let result = null;
    try {
      result = await job.result(onReport);
      this.status.textContent = result ? "" : "cancelled";
    } catch (error) {
      this.status.className = "finding";
      this.status.textContent = error.message;
    }
    this.job = null;
    this.update();
    return result;
  }

  _outcome(result) {
    const first = [...result.tokens].sort((a, b) => a.rank_before - b.rank_before)[0];
    const after = [...result.tokens].sort((a, b) => a.rank_after - b.rank_after)[0];
    const words = result.changed_top
      ? [h("del", {}, chipText(first.text)), " \u2192 ", h("ins", {}, chipText(after.text))]
      : ["still ", h("strong", {}, chipText(first.text))];
    return [
      h("p", { class: "verdict", "data-testid": "verdict" }, words),
      h(
        "p",
        { class: "quiet" },
        `${result.edits.join("; ")} \u00b7 ${result.semantics}. The graph shows what changed.`,
      ),
      oddsTable(result.tokens),
      this._largest(result),
    ];
  }

  /** The features that changed most, of the graph and beyond it. */
  _largest(result) {
    const { graph, store } = this;
    const inGraph = Object.entries(result.nodes)
      .map(([id, [before, after]]) => ({ node: graph.byId.get(id), before, after }))
      .filter(({ node, before, after }) => node && isEditable(node) && before !== after)
      .map(({ node, before, after }) => [
        `${nodeLabel(graph, store.state, node)} (${placeName(graph, node)})`,
        before,
        after,
      ]);
    const others = result.others.map((each) => [
      `feature ${each.feature} of layer ${each.layer}, not in the graph`,
      each.before,
      each.after,
    ]);
    const rows = [...inGraph, ...others].sort((a, b) => Math.abs(b[2] - b[1]) - Math.abs(a[2] - a[1])).slice(0, 12);
    if (!rows.length) return h("p", { class: "quiet" }, "No feature changed.");
    return h(
      "table",
      { "data-testid": "moved" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ["feature", "before", "after"].map((name) => h("th", { scope: "col" }, name)),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map(([name, before, after]) =>
          h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, number(before)), h("td", {}, number(after))),
        ),
      ),
    );
  }
}

function oddsTable(tokens) {
  return h(
    "table",
    { "data-testid": "odds" },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        ["next token", "before", "after", ""].map((name) => h("th", { scope: "col" }, name)),
      ),
    ),
    h(
      "tbody",
      {},
      tokens
        .slice(0, 12)
        .map((each) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, h("span", { class: "chip" }, chipText(each.text))),
            h("td", {}, percent(each.probability_before)),
            h("td", {}, percent(each.probability_after)),
            h("td", {}, changeWords(each.probability_before, each.probability_after)),
          ),
        ),
    ),
  );
}

/** Both texts, with the tokens marked from which on they differ. */
function writings({ prompt, steered, unsteered, edits }) {
  let same = 0;
  while (same < steered.tokens.length && steered.tokens[same] === unsteered.tokens[same]) same += 1;
  const shared = unsteered.tokens.slice(0, same).join("").length;
  const text = (title, id, written, mark) =>
    h(
      "section",
      {},
      h("h4", {}, title),
      h(
        "p",
        { class: "written", "data-testid": id },
        h("span", { class: "quiet" }, prompt),
        ...split(written.text, same === 0 ? 0 : shared).map((piece, at) => (at ? h(mark, {}, piece) : piece)),
      ),
    );
  return [
    h("p", { class: "quiet" }, edits.join("; ")),
    text("Without", "text-without", unsteered, "del"),
    text("With the changes", "text-with", steered, "ins"),
    same === steered.tokens.length && same === unsteered.tokens.length
      ? h("p", { class: "quiet" }, "The text is the same.")
      : null,
  ];
}

const split = (text, at) => [text.slice(0, at), text.slice(at)].filter((piece, place) => place === 0 || piece);

function select(label, id, options, value, change = () => {}) {
  return h(
    "select",
    { "aria-label": label, "data-testid": id, on: { change: (event) => change(event.target.value) } },
    options.map(([name, text]) => h("option", { value: name, selected: name === value }, text)),
  );
}

const button = (text, id, click) => h("button", { class: "small", "data-testid": id, on: { click } }, text);
