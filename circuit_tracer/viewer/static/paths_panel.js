// The strongest routes between two pinned nodes.

import { h, percent, redraw } from "./dom.js";
import { layerName, nodeLabel } from "./labels.js";
import { strongestPaths } from "./paths.js";

export const panel = {
  id: "paths",
  title: "Paths",
  area: "lists",
  on: ["pinned", "labels"],
  mount: (root, page) => new Routes(root, page),
};

class Routes {
  constructor(element, { graph, store, actions }) {
    Object.assign(this, { element, graph, store, actions });
    this.from = null;
    this.to = null;
    this.many = 5;
  }

  update() {
    const pinned = this.store.state.pinned
      .map((id) => this.graph.byId.get(id))
      .sort((a, b) => a.layer - b.layer || a.position - b.position);
    if (pinned.length < 2) {
      redraw(
        this.element,
        h("div", { class: "empty" }, h("p", {}, "Pin two nodes to see the strongest routes from one to the other.")),
      );
      return;
    }
    const has = (id) => pinned.some((node) => node.id === id);
    if (!has(this.from)) this.from = pinned[0].id;
    if (!has(this.to)) this.to = pinned.at(-1).id;
    const choose = (label, name) =>
      h(
        "label",
        {},
        label,
        h(
          "select",
          {
            "data-testid": `path-${name}`,
            on: {
              change: (event) => {
                this[name] = event.target.value;
                this.update();
              },
            },
          },
          pinned.map((node) => h("option", { value: node.id, selected: this[name] === node.id }, this._words(node))),
        ),
      );
    const count = h(
      "label",
      {},
      "paths",
      h("input", {
        type: "number",
        min: 1,
        max: 50,
        value: this.many,
        "data-testid": "path-count",
        on: {
          change: (event) => {
            this.many = Math.max(1, Math.min(50, Math.round(Number(event.target.value)) || 5));
            this.update();
          },
        },
      }),
    );
    const ends = [this.from, this.to].map((id) => this.graph.byId.get(id).index);
    const paths = strongestPaths(this.graph, [ends[0]], ends[1], this.many);
    redraw(
      this.element,
      h("div", { class: "path-ends" }, choose("from", "from"), choose("to", "to"), count),
      paths.length
        ? h(
            "ol",
            { class: "path-list" },
            paths.map((path) => h("li", {}, this._path(path))),
          )
        : h("p", { class: "quiet" }, "No route leads from the first to the second node in this file."),
      h("p", { class: "quiet" }, "Percent: the product of the shares of input along the route."),
    );
  }

  _words(node) {
    return `${layerName(this.graph, node.layer)} ${nodeLabel(this.graph, this.store.state, node)}`;
  }

  _path(path) {
    const names = path.nodes.map((index) => this.graph.nodes[index]);
    const steps = names.flatMap((node, at) => [
      at ? h("span", { class: "quiet" }, " \u2192 ") : null,
      h("span", {}, nodeLabel(this.graph, this.store.state, node)),
    ]);
    const show = () => this.store.set({ path: path.nodes });
    const hide = () => this.store.set({ path: null });
    return h(
      "div",
      { class: "path", on: { pointerenter: show, pointerleave: hide } },
      h("span", { class: "value" }, percent(path.weight, true)),
      h("span", { class: "steps" }, steps),
      h(
        "button",
        {
          class: "small",
          "data-id": names.map((node) => node.id).join(" "),
          "aria-label": "Pin all nodes of this route",
          on: { focus: show, blur: hide, click: () => this.actions.pin(names.map((node) => node.id)) },
        },
        "Pin",
      ),
    );
  }
}
