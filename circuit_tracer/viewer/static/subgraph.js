// The panel of pinned nodes: boxes to drag, group and rename, and the links among them.

import { h, percent, replace, svg } from "./dom.js";
import { boxLinks, makeBoxes, placeBoxes } from "./boxes.js";
import { boxChange } from "./effect.js";
import { fit } from "./scene.js";
import { nodeLabel, placeName } from "./labels.js";
import { readPalette, shareWidth } from "./palette.js";
import { strongestPaths } from "./paths.js";
import { groupId } from "./selection.js";

const BOX = { width: 148, height: 52 };
const ZOOMS = [0.4, 2.5];
const SMALLEST_FIT = 0.65;
const ROUTES = 6;

export class Subgraph {
  constructor(graph, store, actions) {
    Object.assign(this, { graph, store, actions });
    this.zoomed = null;
    this.wires = svg("svg", { class: "wires", "aria-hidden": "true" });
    this.boxes = h("div", { class: "boxes" });
    this.stage = h("div", { class: "stage" }, this.wires, this.boxes);
    this.element = h("div", { class: "subgraph", "data-testid": "subgraph" }, this.stage);
    store.subscribe((_, changed) => {
      const on = ["pinned", "groups", "labels", "positions", "collecting", "clicked", "edgeNumbers", "effect"];
      if (on.some((name) => changed.has(name))) this.draw();
      else if (changed.has("hovered")) this._markHovered();
    });
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  draw() {
    const { state } = this.store;
    const focused = document.activeElement?.closest?.("[data-key]")?.dataset.key;
    const boxes = makeBoxes(this.graph, state);
    if (!boxes.length) {
      const how = "Pin nodes to build the circuit: Ctrl-click, the Pin button, or P.";
      const start = h(
        "button",
        { "data-testid": "start-routes", on: { click: () => this._pinRoutes() } },
        "Start with the strongest routes",
      );
      replace(
        this.boxes,
        h(
          "div",
          { class: "empty" },
          h("p", {}, how),
          h("p", { class: "quiet" }, "Group them: hold G and click, or use Group."),
          h("p", {}, start),
        ),
      );
      replace(this.wires);
      this.stage.removeAttribute("style");
      return;
    }
    const { clientWidth, clientHeight } = this.element;
    const needed = placeBoxes(boxes, state.positions, clientWidth, clientHeight);
    this.scale =
      this.zoomed ?? Math.max(SMALLEST_FIT, Math.min(1, clientWidth / needed.width, clientHeight / needed.height));
    const { places, width, height } = placeBoxes(
      boxes,
      state.positions,
      clientWidth / Math.min(1, this.scale),
      clientHeight / Math.min(1, this.scale),
    );
    this.content = { boxes, places, width, height, links: boxLinks(this.graph, boxes) };
    this.stage.style.width = `${width}px`;
    this.stage.style.height = `${height}px`;
    this.stage.style.transform = `scale(${this.scale})`;
    replace(
      this.boxes,
      boxes.map((box, at) => this._box(box, places[at])),
    );
    this._drawWires();
    if (focused !== undefined) this.boxes.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  zoom(factor) {
    this.zoomed = factor === null ? null : Math.max(ZOOMS[0], Math.min(ZOOMS[1], this.scale * factor));
    this.draw();
  }

  /** The subgraph as an SVG element for a file. */
  picture() {
    const palette = readPalette();
    const { boxes, places, width, height } = this.content ?? { boxes: [], places: [], width: 300, height: 100 };
    const root = svg("svg", { xmlns: "http://www.w3.org/2000/svg", width, height, viewBox: `0 0 ${width} ${height}` });
    root.append(svg("rect", { width, height, fill: palette.panel }));
    if (this.content) root.append(...this._wires(palette, true));
    boxes.forEach((box, at) => {
      const [x, y] = places[at];
      const text = { "font-family": "system-ui, sans-serif", "text-anchor": "middle", x };
      root.append(
        svg("rect", {
          x: x - BOX.width / 2,
          y: y - BOX.height / 2,
          width: BOX.width,
          height: BOX.height,
          rx: 8,
          fill: palette.paper,
          stroke: palette.muted,
        }),
        svg("text", { ...text, y: y - 3, "font-size": 12, "font-weight": 600, fill: palette.ink }, fit(box.name, 22)),
        svg("text", { ...text, y: y + 14, "font-size": 10, fill: palette.muted }, fit(this._caption(box), 26)),
      );
    });
    return root;
  }

  /** Pin what lies on the strongest routes from tokens to the likeliest output. */
  _pinRoutes() {
    const { nodes } = this.graph;
    const tokens = nodes.filter((node) => node.kind === "token").map((node) => node.index);
    const targets = nodes
      .filter((node) => node.kind === "target")
      .sort((a, b) => (b.probability ?? 0) - (a.probability ?? 0));
    const paths = targets.length ? strongestPaths(this.graph, tokens, targets[0].index, ROUTES) : [];
    this.actions.pin([...new Set(paths.flatMap((path) => path.nodes.map((index) => nodes[index].id)))]);
  }

  _caption(box) {
    const change = boxChange(this.store.state, box.nodes);
    const place = box.group ? `${box.nodes.length} nodes` : placeName(this.graph, box.nodes[0]);
    return change === null ? place : `${place} \u00b7 ${percent(change, true)}`;
  }

  _box(box, [x, y]) {
    const { state } = this.store;
    const ids = box.nodes.map((node) => node.id);
    const chosen = state.collecting && ids.every((id) => state.collecting.includes(id));
    const classes = [
      "box",
      box.nodes[0].kind,
      box.group ? "group" : "",
      chosen ? "chosen" : "",
      ids.includes(state.clicked) || (box.group && groupId(box.group) === state.clicked) ? "clicked" : "",
    ];
    const name = h("span", { class: "box-name" }, box.name);
    const element = h(
      "div",
      {
        class: classes.filter(Boolean).join(" "),
        tabindex: 0,
        role: "group",
        "aria-label": `${box.group ? "supernode" : "node"} ${box.name}, ${this._caption(box)}`,
        title: box.name,
        "data-key": box.key,
        "data-testid": "box",
        style: { left: `${x - BOX.width / 2}px`, top: `${y - BOX.height / 2}px` },
      },
      name,
      h("span", { class: "box-caption" }, this._caption(box)),
      box.group
        ? h(
            "span",
            { class: "members" },
            box.nodes.map((node) => this._member(node)),
          )
        : null,
      this._tools(box, name),
    );
    this._drag(element, box, ids);
    element.addEventListener("pointerenter", () => this.actions.hover(ids[0]));
    element.addEventListener("pointerleave", () => this.actions.hover(null));
    element.addEventListener("dblclick", () => this._rename(box, name));
    element.addEventListener("keydown", (event) => this._onKey(event, element, box, ids, name));
    return element;
  }

  _tools(box, name) {
    const ids = box.nodes.map((node) => node.id);
    const tool = (label, glyph, click) =>
      h(
        "button",
        {
          class: "tool",
          title: label,
          "aria-label": `${label}: ${box.name}`,
          tabindex: -1,
          on: {
            click: (event) => {
              event.stopPropagation();
              click();
            },
            pointerdown: (event) => event.stopPropagation(),
          },
        },
        glyph,
      );
    return h(
      "span",
      { class: "tools" },
      tool("Rename", "\u270e", () => this._rename(box, name)),
      box.group
        ? tool("Ungroup", "\u2297", () => this.actions.ungroup(box.group))
        : tool("Unpin", "\u00d7", () => this.actions.removeBox(ids)),
    );
  }

  _member(node) {
    const label = nodeLabel(this.graph, this.store.state, node);
    return h("button", {
      class: node.id === this.store.state.clicked ? "member clicked" : "member",
      tabindex: -1,
      title: label,
      "aria-label": label,
      "data-id": node.id,
      on: {
        pointerdown: (event) => event.stopPropagation(),
        click: (event) => {
          event.stopPropagation();
          if (event.metaKey || event.ctrlKey) this.actions.togglePin(node.id);
          else this.actions.click(node.id);
        },
        pointerenter: () => this.actions.hover(node.id),
      },
    });
  }

  _drag(element, box, ids) {
    let start = null;
    element.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.target.closest("input")) return;
      const at = this.content.boxes.indexOf(box);
      start = { x: event.clientX, y: event.clientY, at, place: this.content.places[at], moved: false };
      element.setPointerCapture(event.pointerId);
    });
    element.addEventListener("pointermove", (event) => {
      if (!start) return;
      const [dx, dy] = [(event.clientX - start.x) / this.scale, (event.clientY - start.y) / this.scale];
      if (!start.moved && Math.hypot(dx, dy) < 4) return;
      start.moved = true;
      this._moveBox(element, start.at, [start.place[0] + dx, start.place[1] + dy]);
    });
    element.addEventListener("pointerup", (event) => {
      const was = start;
      start = null;
      if (!was) return;
      if (was.moved) this._keep(was.at);
      else if (event.metaKey || event.ctrlKey) this.actions.removeBox(ids);
      else this._choose(box);
    });
    // A drag that the browser ended (a touch that became scrolling, a menu) leaves the box where it was.
    const abandon = () => {
      const was = start;
      start = null;
      if (was?.moved) this._moveBox(element, was.at, was.place);
    };
    for (const end of ["pointercancel", "lostpointercapture"]) element.addEventListener(end, abandon);
  }

  _choose(box) {
    if (this.store.state.collecting) this.actions.collect(box.nodes[0].id);
    else this.actions.click(box.group ? groupId(box.group) : box.nodes[0].id);
  }

  _moveBox(element, at, [x, y]) {
    const { width, height, places } = this.content;
    places[at] = [
      Math.max(BOX.width / 2, Math.min(width - BOX.width / 2, x)),
      Math.max(BOX.height / 2, Math.min(height - BOX.height / 2, y)),
    ];
    element.style.left = `${places[at][0] - BOX.width / 2}px`;
    element.style.top = `${places[at][1] - BOX.height / 2}px`;
    this._drawWires();
  }

  /** Remember where a box was put, in thousandths of the panel. */
  _keep(at) {
    const { width, height, places, boxes } = this.content;
    this.actions.move(boxes[at].key, [
      Math.round((places[at][0] / width) * 1000),
      Math.round((places[at][1] / height) * 1000),
    ]);
  }

  _onKey(event, element, box, ids, name) {
    if (event.target !== element) return;
    const step = { ArrowLeft: [-12, 0], ArrowRight: [12, 0], ArrowUp: [0, -12], ArrowDown: [0, 12] }[event.key];
    const at = this.content.boxes.findIndex((each) => each.key === box.key);
    if (step) {
      const [x, y] = this.content.places[at];
      this._moveBox(element, at, [x + step[0], y + step[1]]);
      this._keep(at);
    } else if (event.key === "Enter" || event.key === " ") this._choose(box);
    else if (event.key === "F2") this._rename(box, name);
    else if (event.key === "Delete" || event.key === "p") this.actions.removeBox(ids);
    else if (event.key === "u" && box.group) this.actions.ungroup(box.group);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Edit the name in place; Enter keeps it, Escape does not. */
  _rename(box, name) {
    const input = h("input", { class: "rename", value: box.name, "aria-label": "New name" });
    let open = true;
    const finish = (keep) => {
      if (!open) return;
      open = false;
      const text = input.value;
      input.replaceWith(name);
      if (!keep) return;
      if (box.group) this.actions.renameGroup(box.group, text);
      else this.actions.relabel(box.nodes[0], text);
    };
    input.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter") finish(true);
      if (event.key === "Escape") finish(false);
    });
    for (const type of ["pointerdown", "dblclick", "click"])
      input.addEventListener(type, (event) => event.stopPropagation());
    input.addEventListener("blur", () => finish(true));
    name.replaceWith(input);
    input.focus();
    input.select();
  }

  _drawWires() {
    const { width, height } = this.content;
    this.wires.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.wires.setAttribute("width", width);
    this.wires.setAttribute("height", height);
    replace(this.wires, this._wires(readPalette(), this.store.state.edgeNumbers));
  }

  _wires(palette, numbers) {
    const { links, places, boxes } = this.content;
    const elements = [];
    for (const { from, to, share } of links) {
      const [x1, y1] = [places[from][0], places[from][1] - BOX.height / 2];
      const [x2, y2] = [places[to][0], places[to][1] + BOX.height / 2];
      const bend = Math.max(24, Math.abs(y1 - y2) / 2);
      const d = `M${x1} ${y1}C${x1} ${y1 - bend} ${x2} ${y2 + bend} ${x2} ${y2}`;
      elements.push(
        svg("path", {
          d,
          fill: "none",
          stroke: palette.share(share),
          "stroke-width": shareWidth(share, 8).toFixed(1),
          "stroke-linecap": "round",
          "data-from": boxes[from].key,
          "data-to": boxes[to].key,
          "data-share": share.toFixed(4),
        }),
      );
      if (!numbers) continue;
      const label = {
        x: (x1 + x2) / 2,
        y: (y1 + y2) / 2,
        "font-size": 10,
        fill: palette.ink,
        "text-anchor": "middle",
        "paint-order": "stroke",
        stroke: palette.panel,
        "stroke-width": 3,
        "font-family": "system-ui, sans-serif",
      };
      elements.push(svg("text", label, percent(share, true)));
    }
    return elements;
  }

  _markHovered() {
    const { hovered } = this.store.state;
    for (const element of this.boxes.querySelectorAll(".box")) {
      const box = this.content?.boxes.find((each) => each.key === element.dataset.key);
      element.classList.toggle("hovered", hovered !== null && Boolean(box?.nodes.some((node) => node.id === hovered)));
    }
  }
}
