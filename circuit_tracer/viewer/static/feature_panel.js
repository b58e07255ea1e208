// What a node means: its label, numbers, logit effects and the texts on which it is most active.

import { h, number, percent, replace, visibleToken } from "./dom.js";
import { isToken, neuronpediaPage, nodeLabel, outputName, placeName } from "./labels.js";
import { differenceForm } from "./logit_difference.js";

const CONTEXT = 14;

export const panel = {
  id: "feature",
  title: "Feature",
  area: "feature",
  on: ["clicked", "hovered", "focused", "labels"],
  mount: (root, page) => new FeaturePane(root, page),
};

class FeaturePane {
  constructor(element, { graph, store, actions, source }) {
    Object.assign(this, { element, graph, store, actions, source });
    this.shown = undefined;
  }

  update({ hovered, clicked }, changed) {
    const again = changed.has("labels");
    const node = this.graph.byId.get(hovered ?? clicked ?? "") ?? null;
    if (!again && node === this.shown) return;
    if (this.element.contains(document.activeElement) && document.activeElement.matches("input.label-input") && !again)
      return;
    this.shown = node;
    if (!node) {
      replace(
        this.element,
        h("div", { class: "empty" }, h("p", {}, "Point at a node to read what it stands for."), this._targets()),
      );
      return;
    }
    const details = h("div", { class: "details" });
    replace(
      this.element,
      this._head(node),
      this._facts(node),
      node.kind === "target" ? this._targets() : null,
      details,
      this._raw(node),
    );
    if (node.feature !== null) this._load(node, details);
  }

  _head(node) {
    const { state } = this.store;
    const editable = node.kind !== "token" && node.kind !== "target";
    const place = h(
      "div",
      { class: "quiet" },
      node.kind === "feature" && node.feature !== null
        ? `feature ${node.feature} \u00b7 ${placeName(this.graph, node)}`
        : placeName(this.graph, node),
      neuronpediaLink(this.graph, node),
    );
    if (!editable) return h("div", {}, h("h3", { class: "feature-title" }, nodeLabel(this.graph, state, node)), place);
    const input = h("input", {
      class: "label-input",
      value: state.labels[node.featureKey] ?? node.label,
      placeholder: nodeLabel(this.graph, state, node),
      "aria-label": "Label (for this feature at all tokens)",
      title: "Edit the label; it applies to this feature at all tokens",
      "data-testid": "label-input",
    });
    input.addEventListener("change", () => this.actions.relabel(node, input.value));
    input.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter") input.blur();
      if (event.key === "Escape") {
        input.value = state.labels[node.featureKey] ?? node.label;
        input.blur();
      }
    });
    return h("div", {}, input, place);
  }

  _facts(node) {
    const facts = [
      ["activation", node.activation === null ? null : number(node.activation)],
      [isToken(node) ? "probability" : "weight", node.probability === null ? null : number(node.probability)],
      ["influence rank", node.influence === null ? null : `within the first ${percent(node.influence)}`],
    ];
    const same =
      node.feature === null
        ? []
        : this.graph.nodes.filter((other) => other.featureKey === node.featureKey && other !== node);
    if (same.length)
      facts.push([
        "also active at",
        same.map((other) => placeName(this.graph, other).split(" \u00b7 ").at(-1)).join(", "),
      ]);
    return h(
      "dl",
      { class: "facts" },
      facts
        .filter(([, value]) => value !== null)
        .map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])
        .flat(),
    );
  }

  /** All outputs with their probabilities. */
  _targets() {
    const targets = this.graph.nodes
      .filter((node) => node.kind === "target")
      .sort((a, b) => (b.probability ?? 0) - (a.probability ?? 0));
    const bar = (node) =>
      h("span", { class: "probability", style: { width: `${Math.min(1, Math.abs(node.probability ?? 0)) * 100}%` } });
    return h(
      "div",
      { class: "targets" },
      h("h4", {}, "Outputs"),
      h(
        "ul",
        { class: "rows" },
        targets
          .slice(0, 20)
          .map((node) =>
            h(
              "li",
              {},
              h(
                "button",
                { class: "row", on: { click: () => this.actions.select(node.id) } },
                h("span", { class: "what" }, outputName(node)),
                h("span", { class: "value" }, number(node.probability ?? NaN)),
                bar(node),
              ),
            ),
          ),
      ),
      differenceForm(this.graph, this.store),
    );
  }

  async _load(node, details) {
    const { feature, reason } = await this.source(node);
    if (this.shown !== node) return;
    if (!feature) {
      replace(details, h("p", { class: "quiet", "data-testid": "no-examples" }, `No examples: ${reason}.`));
      return;
    }
    replace(details, logits(feature), histogram(feature), examples(feature));
  }

  _raw(node) {
    return h(
      "details",
      { class: "raw" },
      h("summary", {}, "All fields of the file"),
      h("pre", { tabindex: 0 }, JSON.stringify(node.raw, null, 1)),
    );
  }
}

function neuronpediaLink(graph, node) {
  const href = neuronpediaPage(graph, node);
  if (!href) return null;
  const attributes = { href, target: "_blank", rel: "noopener noreferrer", "data-testid": "neuronpedia" };
  return [" \u00b7 ", h("a", attributes, "Neuronpedia")];
}

const strings = (value) => (Array.isArray(value) ? value.filter((each) => typeof each === "string") : []);

function logits(feature) {
  const list = (title, tokens, kind) =>
    tokens.length
      ? h(
          "div",
          {},
          h("h4", {}, title),
          h(
            "p",
            { class: "chips" },
            tokens.slice(0, 12).map((token) => h("span", { class: `chip ${kind}` }, visibleToken(token))),
          ),
        )
      : null;
  return h(
    "div",
    { class: "logits", "data-testid": "logits" },
    list("Makes likelier", strings(feature.top_logits), "positive"),
    list("Makes less likely", strings(feature.bottom_logits), "negative"),
  );
}

function histogram(feature) {
  const counts = Array.isArray(feature.histogram) ? feature.histogram.filter(Number.isFinite) : [];
  const frequency = Number.isFinite(feature.activation_frequency)
    ? `active on ${percent(feature.activation_frequency)} of tokens`
    : null;
  if (!counts.length) return frequency ? h("p", { class: "quiet" }, frequency) : null;
  const most = Math.log1p(Math.max(...counts));
  const bars = counts.map((count) => h("span", { style: { height: `${(100 * Math.log1p(count)) / most}%` } }));
  return h(
    "div",
    {},
    h("h4", {}, "Activations", frequency ? h("span", { class: "quiet" }, ` ${frequency}`) : null),
    h("div", { class: "histogram", role: "img", "aria-label": "histogram of activations, logarithmic" }, bars),
  );
}

function examples(feature) {
  const quantiles = Array.isArray(feature.examples_quantiles) ? feature.examples_quantiles : [];
  const whole = quantiles.filter((quantile) => Array.isArray(quantile?.examples) && quantile.examples.length);
  if (!whole.length)
    return h(
      "p",
      { class: "quiet", "data-testid": "no-examples" },
      "No examples: this feature was never active in the corpus.",
    );
  const most = Number.isFinite(feature.act_max) && feature.act_max > 0 ? feature.act_max : strongest(whole);
  return h(
    "div",
    { "data-testid": "examples" },
    whole.map((quantile) => [
      h("h4", {}, String(quantile.quantile_name ?? "Examples")),
      ...quantile.examples.map((example) => exampleLine(example, most)),
    ]),
  );
}

function strongest(quantiles) {
  const all = quantiles.flatMap((quantile) => quantile.examples.flatMap((example) => example?.tokens_acts_list ?? []));
  return all.reduce((most, value) => (Number.isFinite(value) && value > most ? value : most), 1e-9);
}

/** One text: the tokens around the strongest one, each shaded by its activation; a click shows all of it. */
function exampleLine(example, most) {
  const tokens = mergeBytes(strings(example?.tokens));
  const values = Array.isArray(example?.tokens_acts_list) ? example.tokens_acts_list : [];
  const peak = values.reduce((best, value, at) => (value > (values[best] ?? -Infinity) ? at : best), 0);
  const centre = Number.isInteger(example?.train_token_ind) ? example.train_token_ind : peak;
  const line = h("button", { class: "example", "aria-expanded": "false", title: "Show the whole text" });
  const show = (all) => {
    const [from, to] = all
      ? [0, tokens.length]
      : [Math.max(0, centre - CONTEXT), Math.min(tokens.length, centre + CONTEXT + 1)];
    const parts = tokens
      .slice(from, to)
      .map((token, at) => exampleToken(token, values[from + at], most, from + at === centre));
    replace(line, from > 0 ? "\u2026" : null, parts, to < tokens.length ? "\u2026" : null);
    line.setAttribute("aria-expanded", String(all));
  };
  line.addEventListener("click", () => show(line.getAttribute("aria-expanded") === "false"));
  show(false);
  return line;
}

function exampleToken(token, value, most, isCentre) {
  const active = Number.isFinite(value) && value > 0;
  const text = token.replaceAll("\n", "\u23ce");
  if (!active && !isCentre) return text;
  const strength = active ? 0.1 + 0.6 * Math.min(1, value / most) : 0;
  return h(
    "span",
    {
      class: isCentre ? "lit centre" : "lit",
      title: active ? number(value) : null,
      style: { "--strength": strength.toFixed(2) },
    },
    text,
  );
}

/** Runs of tokens that are \xNN escapes become the characters that their bytes spell, at the first of them. */
function mergeBytes(tokens) {
  const escaped = /^(?:\\x[0-9a-f]{2})+$/i;
  const merged = tokens.slice();
  for (let at = 0; at < tokens.length; at += 1) {
    let end = at;
    while (end < tokens.length && escaped.test(tokens[end])) end += 1;
    if (end === at) continue;
    const codes = tokens.slice(at, end).join("").split("\\x").slice(1);
    merged.fill("", at, end);
    merged[at] = new TextDecoder().decode(Uint8Array.from(codes, (code) => parseInt(code, 16)));
    at = end;
  }
  return merged;
}
