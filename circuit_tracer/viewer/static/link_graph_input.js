// Pointer, wheel, touch and keys on the link graph.

import { h, number, percent, replace } from "./dom.js";
import { effectWords } from "./effect.js";
import { isToken, nodeLabel, placeName } from "./labels.js";
import { inputsOf, outputsOf } from "./read_graph.js";
import { edgeId, linkOf, selection } from "./selection.js";

const CLICK_DISTANCE = 5;
const BESIDE_A_LINK = 11; // pixels within which a node is meant where a link is as near

/** Connect a LinkGraph to gestures. `announce` says a sentence to people who hear the page. */
export function listen(view, actions, announce) {
  listenToPointers(view, actions);
  view.element.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const unit = event.deltaMode === 1 ? 18 : 1;
      if (event.shiftKey) view.pan(-(event.deltaX || event.deltaY) * unit, 0);
      else view.zoom(Math.exp(-event.deltaY * unit * (event.ctrlKey ? 0.01 : 0.0016)), ...local(view, event));
    },
    { passive: false },
  );
  view.element.addEventListener("keydown", (event) => onKey(view, actions, announce, event));
  view.element.addEventListener("blur", () => view.store.set({ focused: null }));
}

function local(view, event) {
  const box = view.element.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function listenToPointers(view, actions) {
  const pointers = new Map();
  let travelled = 0;
  view.element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    view.element.focus({ preventScroll: true });
    pointers.set(event.pointerId, local(view, event));
    if (pointers.size === 1) travelled = 0;
    view.element.setPointerCapture(event.pointerId);
  });
  view.element.addEventListener("pointermove", (event) => {
    const now = local(view, event);
    const before = pointers.get(event.pointerId);
    if (!before) return hover(view, actions, event, now);
    travelled += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (pointers.size === 2) pinch(view, pointers, event.pointerId, now);
    else if (travelled > CLICK_DISTANCE) view.pan(now[0] - before[0], now[1] - before[1]);
    pointers.set(event.pointerId, now);
    view.element.classList.toggle("panning", travelled > CLICK_DISTANCE);
    return undefined;
  });
  const release = (event) => {
    const place = pointers.get(event.pointerId);
    pointers.delete(event.pointerId);
    view.element.classList.remove("panning");
    if (!place || pointers.size || travelled > CLICK_DISTANCE || event.type !== "pointerup") return;
    const { node, link } = pointedAt(view, place, true);
    if (event.metaKey || event.ctrlKey) {
      if (node) actions.togglePin(node.id);
    } else if (node) actions.click(node.id);
    else if (link !== null) actions.chooseEdge(edgeId(view.graph, link));
    else if (!view.store.state.collecting) actions.select(null);
  };
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) view.element.addEventListener(end, release);
  view.element.addEventListener("pointerleave", () => {
    view.tooltip.hidden = true;
    view.point(null);
    actions.hover(null);
  });
}

function pinch(view, pointers, moved, now) {
  const [, other] = [...pointers].find(([id]) => id !== moved);
  const before = pointers.get(moved);
  const ratio =
    Math.hypot(now[0] - other[0], now[1] - other[1]) /
    Math.max(1, Math.hypot(before[0] - other[0], before[1] - other[1]));
  view.zoom(ratio, (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  view.pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
}

/** {node, link} at a point: a node that is near, else a link right there, else a node not far; faint links count where asked. */
function pointedAt(view, [x, y], faint) {
  const near = view.nearest(x, y, BESIDE_A_LINK);
  const link = near || view.store.state.collecting ? null : view.linkAt(x, y, faint);
  return { node: near ?? (link === null ? view.nearest(x, y) : null), link };
}

function hover(view, actions, event, place) {
  if (event.pointerType === "touch") return;
  const { node, link } = pointedAt(view, place, false);
  view.point(link);
  view.element.style.cursor = link === null ? "" : "pointer";
  actions.hover(node?.id ?? null);
  if (link === null) showTooltip(view, node, event.metaKey || event.ctrlKey);
  else showLinkTooltip(view, link, place);
}

function showLinkTooltip(view, link, [x, y]) {
  const { graph, tooltip } = view;
  const { source, target, weight, share } = graph.links;
  const names = [source[link], target[link]].map((node) => nodeLabel(graph, view.store.state, graph.nodes[node]));
  tooltip.hidden = false;
  replace(
    tooltip,
    h("strong", {}, names.join(" \u2192 ")),
    fact("weight", number(weight[link])),
    fact("of its target\u2019s input", percent(share[link], true)),
    view.look.linkHint ? h("div", { class: "quiet" }, view.look.linkHint) : null,
  );
  placeTooltip(view, x, y);
}

/** Show what a node is beside it, or hide the tooltip; `raw` adds every field of the file. */
export function showTooltip(view, node, raw = false) {
  view.tooltip.hidden = !node;
  if (!node) return;
  const { graph } = view;
  const { state } = view.store;
  const lines = [h("strong", {}, nodeLabel(graph, state, node)), h("div", { class: "quiet" }, placeName(graph, node))];
  if (node.activation !== null) lines.push(fact("activation", number(node.activation)));
  if (node.probability !== null) lines.push(fact(isToken(node) ? "probability" : "weight", number(node.probability)));
  for (const [name, value] of view.look.facts?.(node) ?? []) lines.push(fact(name, value));
  const changed = effectWords(state, node.id);
  if (changed) lines.push(fact("intervention", changed));
  lines.push(...sharesWith(selection(graph, state), node));
  if (raw) lines.push(h("pre", {}, JSON.stringify(node.raw, null, 1)));
  replace(view.tooltip, ...lines);
  const { x, y } = view.place(node);
  placeTooltip(view, x, y);
}

/** Beside a point of the panel, inside of it. */
function placeTooltip(view, x, y) {
  const { offsetWidth, offsetHeight } = view.tooltip;
  const left = x + 14 + offsetWidth > view.width ? x - 14 - offsetWidth : x + 14;
  const top = Math.max(4, Math.min(y - offsetHeight / 2, view.height - offsetHeight - 4));
  view.tooltip.style.transform = `translate(${Math.round(Math.max(4, left))}px, ${Math.round(top)}px)`;
}

const fact = (name, value) => h("div", {}, h("span", { class: "quiet" }, `${name} `), value);

function sharesWith(chosen, node) {
  const [into, from] = [chosen?.inputs.get(node.index), chosen?.outputs.get(node.index)];
  return [
    into ? fact("share of the selection\u2019s input", percent(into.share, true)) : null,
    from ? fact("of its input from the selection", percent(from.share, true)) : null,
  ].filter(Boolean);
}

function onKey(view, actions, announce, event) {
  if (event.altKey || event.metaKey || event.ctrlKey) return;
  const { state } = view.store;
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  if (event.key in arrows) {
    if (event.shiftKey) view.pan(-60 * arrows[event.key][0], 60 * arrows[event.key][1]);
    else moveFocus(view, announce, ...arrows[event.key]);
  } else if (event.key === "Enter" || event.key === " ") {
    if (state.focused !== null) actions.click(state.focused);
  } else if (event.key === "p") {
    if (state.focused ?? state.clicked) actions.togglePin(state.focused ?? state.clicked);
  } else if (event.key === "h") {
    const link = linkBetween(view.graph, state.clicked, state.focused);
    if (link !== null) actions.chooseEdge(edgeId(view.graph, link));
  } else if (event.key === "i" || event.key === "o") {
    follow(view, announce, event.key === "i");
  } else return;
  event.preventDefault();
  event.stopPropagation();
}

/** The link from one of two nodes to the other, or null. */
function linkBetween(graph, one, other) {
  return linkOf(graph, `${one}>${other}`) ?? linkOf(graph, `${other}>${one}`);
}

/** Put the keyboard's ring on a node and say what it is. */
function focusNode(view, announce, node) {
  if (!node) return;
  view.reveal(node);
  view.store.set({ focused: node.id, ...(view.store.state.frozen ? {} : { hovered: node.id }) });
  announce(node);
}

function currentNode(view) {
  const { focused, clicked } = view.store.state;
  return view.graph.byId.get(focused ?? clicked ?? "") ?? null;
}

/** Left and right along the row, up and down to the nearest node of the next row that has one. */
function moveFocus(view, announce, dx, dy) {
  const { graph, shown, layout } = view;
  const current = currentNode(view);
  const candidates = graph.nodes.filter((node) => shown[node.index]);
  if (!current) {
    focusNode(view, announce, candidates.findLast((node) => node.kind === "target") ?? candidates[0]);
    return;
  }
  const [x, y] = [layout.x[current.index], layout.y[current.index]];
  let best = null;
  let least = Infinity;
  for (const node of candidates) {
    const across = layout.x[node.index] - x;
    const up = node.layer - current.layer;
    if (node === current || (dx ? up !== 0 : up * dy <= 0)) continue;
    const order = dx * (across || (layout.y[node.index] - y) / 1e4);
    if (dx && order <= 0) continue;
    const cost = dx ? order : Math.abs(up) * 1e6 + Math.abs(across);
    if (cost < least) [best, least] = [node, cost];
  }
  focusNode(view, announce, best);
}

/** To the strongest input or output of the current node. */
function follow(view, announce, toInput) {
  const { graph, shown } = view;
  const current = currentNode(view);
  if (!current) return;
  const ends = toInput ? graph.links.source : graph.links.target;
  const links = [...(toInput ? inputsOf : outputsOf)(graph, current.index)].filter((link) => shown[ends[link]]);
  links.sort((a, b) => Math.abs(graph.links.share[b]) - Math.abs(graph.links.share[a]));
  if (links.length) focusNode(view, announce, graph.nodes[ends[links[0]]]);
}
