// The view in the address, under the names of circuit-tracer's and Neuronpedia's pages, and in the file's qParams.

import { boxLinks, makeBoxes } from "./boxes.js";
import { placeBoxes } from "./circuit_layout.js";
import { initialState } from "./store.js";

/** Whether the address can carry a query; a file or a notebook keeps its view behind the #. */
const hasQuery = () => location.protocol === "http:" || location.protocol === "https:";

export function addressParams() {
  return new URLSearchParams(hasQuery() && location.search ? location.search : location.hash.slice(1));
}

/** The state that an address asks for, on top of what the file saved; fields: those that panels add. */
export function readState(graph, fields, params) {
  const { saved } = graph;
  const state = initialState(graph, fields);
  const exists = (id) => graph.byId.has(id);
  const list = (name, fallback) => (params.has(name) ? params.get(name).split(",").filter(Boolean) : fallback);
  state.pinned = [...new Set(list("pinnedIds", saved.pinned))].filter(exists);
  const groups = params.has("supernodes") ? parsed(params.get("supernodes"), []) : null;
  const asked = groups === null ? saved.groups : namedGroups(groups);
  state.groups = asked
    .map((group) => ({ name: group.name, members: [...new Set(group.members)].filter(exists) }))
    .filter((group) => group.members.length);
  state.pinned = [...new Set([...state.pinned, ...state.groups.flatMap((group) => group.members)])];
  const clicked = params.get("clickedId") || saved.clicked;
  state.clicked = exists(clicked) ? clicked : null;
  state.labels = readLabels(graph, params.has("clerps") ? parsed(params.get("clerps"), []) : saved.labels);
  for (const [name, { address, read }] of addressed(fields)) {
    const text = params.get(address);
    state[name] = read ? read(text, state[name], params) : (text ?? state[name]);
  }
  state.positions = readPositions(graph, state, params.get("sg_pos") ?? saved.positions);
  return state;
}

/** Parameters that differ from the defaults and from what the file saved; others in the address (slug and the like) stay. */
export function writeState(graph, { state, fields }, params) {
  const view = savedView(graph, state);
  const set = (name, value) => (value ? params.set(name, value) : params.delete(name));
  set("pinnedIds", view.pinnedIds.join(",") || (graph.saved.pinned.length ? "," : ""));
  set("supernodes", view.supernodes.length ? JSON.stringify(view.supernodes) : graph.saved.groups.length ? "[]" : "");
  set("clickedId", view.clickedId || (graph.saved.clicked ? "none" : ""));
  set("clerps", view.clerps.length ? JSON.stringify(view.clerps) : graph.saved.labels.length ? "[]" : "");
  set("sg_pos", view.sg_pos || (graph.saved.positions ? "none" : ""));
  for (const [name, { address, initial }] of addressed(fields)) {
    if (state[name] === initial(graph)) params.delete(address);
    else params.set(address, String(state[name]));
  }
  return params;
}

/** The fields of panels that the address keeps. */
export function addressed(fields) {
  return Object.entries(fields).filter(([, { address }]) => address);
}

/** Put the parameters into the address, without a step of history; a page that has no address of its own keeps none. */
export function showInAddress(params) {
  const text = params.toString();
  try {
    if (hasQuery()) history.replaceState(null, "", `${location.pathname}${text ? `?${text}` : ""}`);
    else history.replaceState(null, "", `#${text}`);
  } catch {
    // A frame made of a string (a notebook) may not change its address; the view still works.
  }
}

/** The view with the types that files carry in qParams; clerps as [[node id, label]]. */
export function savedView(graph, state) {
  const boxes = makeBoxes(graph, state);
  const moved = boxes.some((box) => state.positions[box.key]);
  const byKey = new Map(graph.nodes.map((node) => [node.featureKey, node.id]));
  return {
    pinnedIds: state.pinned,
    supernodes: state.groups.map((group) => [group.name, ...group.members]),
    linkType: state.linkType,
    clickedId: graph.byId.has(state.clicked) ? state.clicked : "",
    sg_pos: moved ? thousandths(graph, boxes, state.positions) : "",
    clerps: Object.entries(state.labels)
      .filter(([key]) => byKey.has(key))
      .map(([key, label]) => [byKey.get(key), label]),
  };
}

/** The same for the file, which does not have the difference of two outputs: the address asks for it. */
export function fileView(graph, state) {
  const has = (id) => id !== graph.difference;
  const groups = state.groups.map((group) => ({ ...group, members: group.members.filter(has) }));
  return savedView(graph, {
    ...state,
    pinned: state.pinned.filter(has),
    groups: groups.filter((group) => group.members.length),
    clicked: has(state.clicked) ? state.clicked : null,
    labels: Object.fromEntries(Object.entries(state.labels).filter(([key]) => has(key))),
  });
}

/** "x0 y0 x1 y1 ..." in thousandths of the panel, the boxes in the order of their keys; all of them, moved or not. */
function thousandths(graph, boxes, positions) {
  const { places, width, height } = placeBoxes(boxes, boxLinks(graph, boxes), positions, 1000, 600);
  return places.map(([x, y]) => `${Math.round((x / width) * 1000)} ${Math.round((y / height) * 1000)}`).join(" ");
}

const parsed = (text, fallback) => {
  try {
    return JSON.parse(text) ?? fallback;
  } catch {
    return fallback;
  }
};

function namedGroups(groups) {
  return (Array.isArray(groups) ? groups : [])
    .filter((group) => Array.isArray(group) && group.length > 1 && group.every((each) => typeof each === "string"))
    .map(([name, ...members]) => ({ name, members }));
}

/** Labels of [[node id, text]]; Neuronpedia writes {layer}_{paired number}_{position} for the id. */
function readLabels(graph, pairs) {
  const labels = {};
  const byPair = new Map(graph.nodes.map((node) => [`${node.layer}_${node.raw.feature}_${node.position}`, node]));
  for (const pair of Array.isArray(pairs) ? pairs : []) {
    if (!Array.isArray(pair) || typeof pair[1] !== "string") continue;
    const node = graph.byId.get(pair[0]) ?? byPair.get(String(pair[0]));
    if (node) labels[node.featureKey] = pair[1];
  }
  return labels;
}

function readPositions(graph, state, text) {
  const numbers = (text ?? "").split(/\s+/).filter(Boolean);
  const boxes = makeBoxes(graph, state);
  if (numbers.length !== 2 * boxes.length) return {};
  const place = (at) => [Number(numbers[2 * at]), Number(numbers[2 * at + 1])];
  return Object.fromEntries(
    boxes.map((box, at) => [box.key, place(at)]).filter(([, [x, y]]) => Number.isFinite(x) && Number.isFinite(y)),
  );
}
