// The link graph: tokens across, layers up. A picture of everything is kept and moved while one pans, and drawn anew
// in small pieces when it no longer fits; names and rings are drawn above it at each frame.

import { h } from "./dom.js";
import { drawGutters, drawNames } from "./graph_names.js";
import { layOut } from "./layout.js";
import { nearestLink } from "./link_hits.js";
import { outsideSign, tellOutside } from "./outside.js";
import { CanvasPen } from "./pens.js";
import { readPalette } from "./palette.js";
import { drawOverlay, drawScene, faintLinks, MOST_CURVED, strongLinks } from "./scene.js";
import { matching, visibleLinks, visibleNodes } from "./visible.js";

const OVERSCAN = 0.3;
const REACH = 30;
const LINK_REACH = 5;
const SLICE = 9;
const SMALL = 6000;
const MOST_ZOOM = 40;
const WHOLE = { zoom: 1, x: 0.5, y: 0.5 };
const RELAYOUT = ["pruning", "density", "hideErrors", "pinned", "clicked"];
const REDRAW = ["edgeMin", "throughHead", "linkType", "allEdges", "groups", "query", "labels", "path", "effect"];

export class LinkGraph {
  /**
   * look: how this graph differs from others on the page, all of it optional. label: what it is called aloud; present: by node, 1 for
   * those that this graph has, where others keep their places; shades: by node, a signed share that colours it, NaN for none;
   * outlines: by node, the name of a colour, "" for the usual; named: so many nodes are named unasked; facts(node): [[name, value]] for its tooltip; linkHint: what a
   * click on a link does.
   */
  constructor(graph, store, look = {}) {
    this.graph = graph;
    this.store = store;
    this.look = { label: "Attribution graph", linkHint: "click: the heads it runs through", ...look };
    this.camera = { zoom: 1, x: 0, y: 0 };
    this.scene = h("canvas", { "aria-hidden": "true" });
    this.overlay = h("canvas", { "aria-hidden": "true" });
    this.tooltip = h("div", { class: "tooltip", hidden: true, "data-testid": "tooltip", "aria-hidden": "true" });
    this.element = h(
      "div",
      {
        class: "link-graph",
        tabindex: 0,
        role: "application",
        "aria-label": this.look.label,
        "aria-describedby": "graph-help",
        "data-testid": "link-graph",
      },
      this.scene,
      this.overlay,
      this.tooltip,
    );
    this.sign = outsideSign("Show the whole graph", "outside", () => this.fit());
    this.job = null;
    this.picture = null;
    this.pointed = null;
    this.waiting = false;
    this.palette = readPalette();
    this._filter();
    new ResizeObserver(() => this.resize()).observe(this.element);
    store.subscribe((_, changed) => this._changed(changed));
  }

  /** Fit the panel; keeps the zoom, and what is in the middle. */
  resize() {
    const { clientWidth: width, clientHeight: height } = this.element;
    if (!width || !height) return;
    this.width = width;
    this.height = height;
    this.scale = Math.min(2, window.devicePixelRatio || 1);
    for (const canvas of [this.scene, this.overlay]) {
      canvas.width = width * this.scale;
      canvas.height = height * this.scale;
    }
    this._layOut();
  }

  /** Read the colours again after the theme changed. */
  recolour() {
    this.palette = readPalette();
    this._redraw();
  }

  /** The nearest shown node within reach of a point of the panel, or null. */
  nearest(x, y, reach = REACH) {
    const { zoom } = this.camera;
    let best = null;
    let distance = reach * reach;
    for (const node of this.graph.nodes) {
      if (!this.shown[node.index]) continue;
      const dx = this.layout.x[node.index] * zoom + this.camera.x - x;
      const dy = this.layout.y[node.index] * zoom + this.camera.y - y;
      const squared = dx * dx + dy * dy;
      if (squared < distance) [best, distance] = [node, squared];
    }
    return best;
  }

  /** The link under a point of the panel, or null: of those that stand out, else of the faint ones that are drawn. */
  linkAt(x, y, faint = true) {
    const view = this.view();
    for (const links of [strongLinks(view), faint ? faintLinks(view) : []]) {
      const found = nearestLink(view, links, x, y, LINK_REACH, links.length <= MOST_CURVED);
      if (found !== null) return found;
    }
    return null;
  }

  /** Where a node stands in the panel. */
  place(node) {
    const { zoom, x, y } = this.camera;
    return { x: this.layout.x[node.index] * zoom + x, y: this.layout.y[node.index] * zoom + y };
  }

  pan(dx, dy) {
    this._aim({ ...this.camera, x: this.camera.x + dx, y: this.camera.y + dy });
  }

  /** Zoom by a factor around a point of the panel, by default its middle. */
  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const zoom = Math.max(1, Math.min(MOST_ZOOM, this.camera.zoom * factor));
    const ratio = zoom / this.camera.zoom;
    this._aim({ zoom, x: x - (x - this.camera.x) * ratio, y: y - (y - this.camera.y) * ratio });
  }

  /** Show everything. */
  fit() {
    this._aim({ zoom: 1, x: 0, y: 0 });
  }

  /** Move just enough that a node is in view. */
  reveal(node) {
    const { x, y } = this.place(node);
    const { margin } = this.layout;
    const edge = { left: margin.left + 20, right: this.width - 20, top: 20, bottom: this.height - margin.bottom - 12 };
    this.pan(
      x < edge.left ? edge.left - x : x > edge.right ? edge.right - x : 0,
      y < edge.top ? edge.top - y : y > edge.bottom ? edge.bottom - y : 0,
    );
  }

  /** All that a pen needs to draw the graph; extent: the part of the panel to draw. */
  view(extent = { left: 0, top: 0, right: this.width, bottom: this.height }) {
    const { graph, look, placed, shown, links, layout, palette, width, height, count, found, touched, pointed } = this;
    return {
      graph,
      look,
      placed,
      shown,
      links,
      layout,
      palette,
      width,
      height,
      count,
      found,
      touched,
      pointed,
      extent,
      state: this.store.state,
      camera: { ...this.camera },
    };
  }

  _changed(changed) {
    const has = (names) => names.some((name) => changed.has(name));
    if (has(RELAYOUT)) {
      const before = this.placed;
      this._filter();
      if (before.some((value, node) => value !== this.placed[node])) this._layOut();
      else this._redraw();
    } else if (has(REDRAW)) {
      this._filter();
      this._redraw();
    }
    this._request();
  }

  _filter() {
    const { state } = this.store;
    const { present } = this.look;
    this.placed = visibleNodes(this.graph, state);
    this.shown = present ? this.placed.map((value, node) => value & present[node]) : this.placed;
    this.links = visibleLinks(this.graph, state, this.shown);
    this.found = matching(this.graph, state);
    this.touched = state.throughHead ? ends(this.graph, this.links) : null;
    this.count = this.shown.reduce((sum, value) => sum + value, 0);
  }

  /** Mark a link under the pointer, null for none. */
  point(link) {
    if (link === this.pointed) return;
    this.pointed = link;
    this._request();
  }

  _layOut() {
    if (!this.width) return;
    const aim = this.layout ? aimOf(this.camera, this.layout) : readAim(this.store.state.zoom);
    this.layout = layOut(this.graph, this.placed, this.width, this.height);
    this._lookAt(aim);
    this._redraw();
  }

  /** Look where another graph of the page does, which has the same places. */
  follow() {
    if (!this.layout || aimText(aimOf(this.camera, this.layout)) === this.store.state.zoom) return;
    this._lookAt(readAim(this.store.state.zoom));
    this._request();
  }

  _lookAt(aim) {
    this.camera = this._within({
      zoom: aim.zoom,
      x: this.width * (0.5 - aim.zoom * aim.x),
      y: this.height * (0.5 - aim.zoom * aim.y),
    });
    this._showSign();
  }

  /** The whole graph fills the panel, so that a nearer look never leaves it. */
  _within({ zoom, x, y }) {
    const inside = (value, size) => Math.max(size * (1 - zoom), Math.min(0, value));
    return { zoom, x: inside(x, this.width), y: inside(y, this.height) };
  }

  _aim(camera) {
    this.camera = this._within(camera);
    this.moved = performance.now();
    clearTimeout(this.keeping);
    this.keeping = setTimeout(() => {
      this.store.set({ zoom: aimText(aimOf(this.camera, this.layout)) });
      this._showSign();
    }, 200);
    this._request();
  }

  _redraw() {
    if (!this.width) return;
    const job = this._startJob();
    if (!this.picture || this.links.length + this.count < SMALL) this._finish(job, Infinity);
    this._request();
  }

  _startJob() {
    const [extraX, extraY] = [this.width * OVERSCAN, this.height * OVERSCAN];
    const extent = { left: -extraX, top: -extraY, right: this.width + extraX, bottom: this.height + extraY };
    const canvas = new OffscreenCanvas((this.width + 2 * extraX) * this.scale, (this.height + 2 * extraY) * this.scale);
    const context = canvas.getContext("2d");
    context.setTransform(this.scale, 0, 0, this.scale, extraX * this.scale, extraY * this.scale);
    const view = this.view(extent);
    this.job = { canvas, extent, camera: view.camera, steps: drawScene(new CanvasPen(context), view) };
    return this.job;
  }

  /** Draw for some milliseconds; put the picture in place once it is complete. */
  _finish(job, milliseconds) {
    const end = performance.now() + milliseconds;
    while (performance.now() < end) {
      if (job.steps.next().done) {
        this.picture = job;
        this.job = null;
        return;
      }
    }
  }

  _request() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this._frame();
    });
  }

  _frame() {
    if (!this.picture) return;
    const moving = performance.now() - (this.moved ?? 0) < 120;
    if (this.job) this._finish(this.job, SLICE);
    else if (this._stale(moving)) this._startJob();
    this._showPicture();
    this._showOverlay();
    if (this.job || this._stale(false)) this._request();
  }

  /** Whether the picture at hand no longer serves: zoomed, or its edge came into view. */
  _stale(moving) {
    const { camera, extent } = this.picture;
    if (moving && this.links.length > SMALL && camera.zoom !== this.camera.zoom) return false;
    if (camera.zoom !== this.camera.zoom) return true;
    const [dx, dy] = [this.camera.x - camera.x, this.camera.y - camera.y];
    const near = moving ? 0.4 : 0.98;
    return Math.abs(dx) > -extent.left * near || Math.abs(dy) > -extent.top * near;
  }

  _showPicture() {
    const context = this.scene.getContext("2d");
    const { camera, extent, canvas } = this.picture;
    const ratio = this.camera.zoom / camera.zoom;
    const left = extent.left * ratio + this.camera.x - camera.x * ratio;
    const top = extent.top * ratio + this.camera.y - camera.y * ratio;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.scene.width, this.scene.height);
    const size = [canvas.width * ratio, canvas.height * ratio];
    context.drawImage(canvas, Math.round(left * this.scale), Math.round(top * this.scale), ...size);
  }

  _showOverlay() {
    const context = this.overlay.getContext("2d");
    context.setTransform(this.scale, 0, 0, this.scale, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    const pen = new CanvasPen(context);
    const view = this.view();
    drawOverlay(pen, view);
    this.names = drawNames(pen, view);
    drawGutters(pen, view);
  }

  /** Say how many nodes are beyond the borders, and on which sides. */
  _showSign() {
    const sides = new Set();
    const { margin } = this.layout;
    const { zoom, x, y } = this.camera;
    let count = 0;
    for (const { index } of zoom > 1 ? this.graph.nodes : []) {
      if (!this.shown[index]) continue;
      const [at, level] = [this.layout.x[index] * zoom + x, this.layout.y[index] * zoom + y];
      const across = at < margin.left - 6 ? "left" : at > this.width ? "right" : null;
      const along = level < 0 ? "above" : level > this.height - margin.bottom + 4 ? "below" : null;
      if (across) sides.add(across);
      if (along) sides.add(along);
      if (across || along) count += 1;
    }
    tellOutside(this.sign, count, sides);
  }
}

/** Where a camera looks: the middle of the panel as shares of the layout. */
function aimOf({ zoom, x, y }, { width, height }) {
  return { zoom, x: (width / 2 - x) / (zoom * width), y: (height / 2 - y) / (zoom * height) };
}

/** "zoom,x,y" for the address, null for the whole graph. */
function aimText({ zoom, x, y }) {
  return zoom > 1 ? [zoom, x, y].map((value) => Number(value.toFixed(4))).join(",") : null;
}

function readAim(text) {
  const [zoom, x, y] = (text ?? "").split(",").map(Number);
  return zoom >= 1 && zoom <= MOST_ZOOM && Number.isFinite(x) && Number.isFinite(y) ? { zoom, x, y } : WHOLE;
}

/** The nodes at both ends of links. */
function ends({ links: { source, target } }, links) {
  return new Set(links.flatMap((link) => [source[link], target[link]]));
}
