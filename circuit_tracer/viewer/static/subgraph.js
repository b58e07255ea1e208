// The panel of pinned nodes: boxes to drag, group and rename, and the links among them.

import { boxCaption, boxLinks, makeBoxes, previewed } from "./boxes.js";
import { BOX_PADDING, memberDots, textLines } from "./box_text.js";
import { LEGIBLE, placeBoxes } from "./circuit_layout.js";
import { circuitPicture } from "./circuit_picture.js";
import { h, replace, svg } from "./dom.js";
import { nodeLabel } from "./labels.js";
import { outsideSign, tellOutside } from "./outside.js";
import { readPalette } from "./palette.js";
import { strongestPaths } from "./paths.js";
import { routeWires } from "./routes.js";
import { groupId } from "./selection.js";
import { drawWires } from "./wires.js";

const ZOOMS = [0.1, 2.5];
const ROUTES = 6;
const WHOLE = "whole"; // a zoom at which everything is in the panel, however small
const WHILE_HIDDEN = [960, 420]; // for pictures
const DRAWN = ["pinned", "groups", "labels", "positions", "collecting", "clicked", "edgeNumbers", "effect", "offer"];

export class Subgraph {
  constructor(graph, store, actions) {
    Object.assign(this, { graph, store, actions });
    this.zoomed = null;
    this.content = null;
    this.wires = svg("svg", { class: "wires", "aria-hidden": "true" });
    this.boxes = h("div", { class: "boxes" });
    this.stage = h("div", { class: "stage" }, this.wires, this.boxes);
    this.element = h(
      "div",
      { class: "subgraph", "data-testid": "subgraph", on: { scroll: () => this._tellOutside() } },
      this.stage,
    );
    this.sign = outsideSign("Show the whole circuit", "circuit-outside", () => this.zoom(null));
    store.subscribe((_, changed) => {
      if (DRAWN.some((name) => changed.has(name))) this.draw();
      else if (changed.has("hovered") || changed.has("lit")) this._emphasise();
    });
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  draw() {
    const state = previewed(this.store.state);
    const focused = document.activeElement?.closest?.("[data-key]")?.dataset.key;
    const boxes = makeBoxes(this.graph, state);
    this.element.classList.toggle("offered", state.offer !== null);
    if (!boxes.length) {
      this.content = null;
      this.sign.hidden = true;
      this._drawNothing();
      return;
    }
    const { clientWidth, clientHeight } = this.element;
    const [panelWidth, panelHeight] = clientWidth && clientHeight ? [clientWidth, clientHeight] : WHILE_HIDDEN;
    const links = boxLinks(this.graph, boxes);
    const least = this.zoomed === WHOLE ? 0 : LEGIBLE;
    this.content = { boxes, links, ...placeBoxes(boxes, links, state.positions, panelWidth, panelHeight, least) };
    this.content.wires = routeWires(this.content);
    const { places, width, height, look } = this.content;
    this.scale = typeof this.zoomed === "number" ? this.zoomed : this.content.scale;
    const fits = width * this.scale <= panelWidth + 1 && height * this.scale <= panelHeight + 1;
    this.element.classList.toggle("fits", fits);
    this.stage.className = `stage look-${look.name}`;
    const style = { width, height, "--box-width": look.width, "--box-height": look.height, "--box-font": look.font };
    for (const [name, value] of Object.entries(style)) this.stage.style.setProperty(name, `${value}px`);
    this.stage.style.transform = `scale(${this.scale})`;
    replace(
      this.boxes,
      boxes.map((box, at) => this._box(box, places[at])),
    );
    this._emphasise();
    this._tellOutside();
    if (focused !== undefined) this.boxes.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  /** By a factor; null: so that all of it is seen. */
  zoom(factor) {
    this.zoomed = factor === null ? WHOLE : Math.max(ZOOMS[0], Math.min(ZOOMS[1], this.scale * factor));
    this.draw();
  }

  /** Say how many boxes are not wholly in the panel, and where they are. */
  _tellOutside() {
    if (!this.content) return;
    const { places, look } = this.content;
    const { scrollLeft, scrollTop, clientWidth, clientHeight } = this.element;
    const sides = new Set();
    let count = 0;
    for (const [x, y] of clientWidth ? places : []) {
      const across = x * this.scale - scrollLeft;
      const along = y * this.scale - scrollTop;
      const [wide, high] = [(look.width / 2) * this.scale - 1, (look.height / 2) * this.scale - 1];
      const found = [
        across < wide && "left",
        across > clientWidth - wide && "right",
        along < high && "above",
        along > clientHeight - high && "below",
      ].filter(Boolean);
      for (const side of found) sides.add(side);
      if (found.length) count += 1;
    }
    tellOutside(this.sign, count, sides);
  }

  /** The subgraph as it is seen, as an SVG element for a file. */
  picture() {
    if (!this.content) this.draw(); // a panel that was never shown
    return circuitPicture(this.graph, previewed(this.store.state), this.content, readPalette());
  }

  _drawNothing() {
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
        h("p", {}, "Pin nodes to build the circuit: Ctrl-click, the Pin button, or P."),
        h("p", { class: "quiet" }, "Group them: hold G and click, or use Group."),
        h("p", {}, start),
      ),
    );
    replace(this.wires);
    this.stage.className = "stage";
    this.stage.removeAttribute("style");
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

  _box(box, [x, y]) {
    const { state } = this.store;
    const { look } = this.content;
    const ids = box.nodes.map((node) => node.id);
    const caption = boxCaption(this.graph, state, box);
    const chosen = state.collecting && ids.every((id) => state.collecting.includes(id));
    const classes = [
      "box",
      box.nodes[0].kind,
      ids.length > 1 ? "group" : "",
      chosen ? "chosen" : "",
      ids.includes(state.clicked) || (box.group && groupId(box.group) === state.clicked) ? "clicked" : "",
    ];
    const lines = textLines(box.name, look.width - BOX_PADDING, look.font, 600, look.lines);
    const name = h("span", { class: "box-name" }, lines.join("\n"));
    const element = h(
      "div",
      {
        class: classes.filter(Boolean).join(" "),
        tabindex: 0,
        role: "group",
        "aria-label": `${box.group ? "supernode" : "node"} ${box.name}, ${caption}`,
        title: `${box.name}\n${caption}`,
        "data-key": box.key,
        "data-testid": "box",
        style: { left: `${x - look.width / 2}px`, top: `${y - look.height / 2}px` },
      },
      name,
      h("span", { class: "box-caption" }, caption),
      ids.length > 1 ? this._members(box, look) : null,
      state.offer ? null : this._tools(box, name),
    );
    element.addEventListener("pointerenter", () => this.actions.hover(ids[0]));
    element.addEventListener("pointerleave", () => this.actions.hover(null));
    if (state.offer) return element;
    this._drag(element, box, ids);
    element.addEventListener("dblclick", () => this._rename(box, name));
    element.addEventListener("keydown", (event) => this._onKey(event, element, box, ids, name));
    return element;
  }

  _members({ nodes }, look) {
    const { dots, more } = memberDots(nodes, look);
    return h(
      "span",
      { class: "members" },
      dots.map((node) => this._member(node)),
      more ? h("span", { class: "more" }, `+${more}`) : null,
    );
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
    const { width, height, places, look } = this.content;
    places[at] = [
      Math.max(look.width / 2, Math.min(width - look.width / 2, x)),
      Math.max(look.height / 2, Math.min(height - look.height / 2, y)),
    ];
    element.style.left = `${places[at][0] - look.width / 2}px`;
    element.style.top = `${places[at][1] - look.height / 2}px`;
    this.content.wires = routeWires(this.content);
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

  /** Draw the links, and let what is pointed at or read of stand out. */
  _emphasise() {
    if (!this.content) return;
    const { hovered, lit } = this.store.state;
    const has = (box, ids) => box.nodes.some((node) => ids.includes(node.id));
    for (const element of this.boxes.querySelectorAll(".box")) {
      const box = this.content.boxes.find((each) => each.key === element.dataset.key);
      element.classList.toggle("hovered", hovered !== null && has(box, [hovered]));
      element.classList.toggle("lit", lit !== null && has(box, lit));
      element.classList.toggle("dim", lit !== null && !has(box, lit));
    }
    this._drawWires();
  }

  _drawWires() {
    const { width, height, boxes } = this.content;
    const { hovered, lit, edgeNumbers } = this.store.state;
    const at = (ids) => new Set([...boxes.keys()].filter((box) => boxes[box].nodes.some((node) => ids.includes(node.id))));
    this.wires.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.wires.setAttribute("width", width);
    this.wires.setAttribute("height", height);
    let stands = null;
    if (lit !== null) {
      const within = at(lit);
      stands = ({ from, to }) => within.has(from) && within.has(to);
    } else if (hovered !== null && at([hovered]).size) {
      const within = at([hovered]);
      stands = ({ from, to }) => within.has(from) || within.has(to);
    }
    replace(this.wires, drawWires(this.content, readPalette(), edgeNumbers, stands));
  }
}
