// What one can do with nodes and groups, whatever the gesture: mouse, keyboard, list row or button.

import { previewed } from "./boxes.js";
import { groupId } from "./selection.js";

const MOST_PINNED = 200;

/** Actions on a store for a graph; every one is a single change of the state, and so a single step of undo. */
export class Actions {
  constructor(graph, store) {
    this.graph = graph;
    this.store = store;
  }

  click(id) {
    if (this.store.state.collecting) this.collect(id);
    else this.store.set({ clicked: this.store.state.clicked === id ? null : id, hovered: null });
  }

  select(id) {
    this.store.set({ clicked: id, hovered: null });
  }

  hover(id) {
    if (!this.store.state.frozen) this.store.set({ hovered: id });
  }

  /** edge: as `edgeId` writes it, or null. */
  chooseEdge(edge) {
    this.store.set({ edge });
  }

  /** look: what `lookText` writes, or null. */
  chooseHead(look) {
    this.store.set({ head: look });
  }

  togglePin(id) {
    if (!this.graph.byId.has(id)) return;
    const { pinned, groups } = this.store.state;
    if (pinned.includes(id))
      this.store.set({ pinned: pinned.filter((each) => each !== id), groups: without(groups, [id]) });
    else this.pin([id]);
  }

  pin(ids) {
    const { pinned } = this.store.state;
    const added = ids.filter((id) => this.graph.byId.has(id) && !pinned.includes(id));
    if (added.length) this.store.set({ pinned: [...pinned, ...added].slice(0, MOST_PINNED) });
  }

  unpinAll() {
    this.store.set({ pinned: [], groups: [], positions: {} });
  }

  /** Start or end choosing the members of a new group. */
  startCollecting() {
    this.store.set({ collecting: [] });
  }

  collect(id) {
    const { collecting, groups } = this.store.state;
    const ids = groups.find((group) => group.members.includes(id))?.members ?? [id];
    const has = collecting.includes(id);
    this.store.set({
      collecting: has ? collecting.filter((each) => !ids.includes(each)) : [...collecting, ...ids],
    });
  }

  finishCollecting() {
    const ids = this.store.state.collecting ?? [];
    if (ids.length > 1) this.group(ids);
    this.store.set({ collecting: null });
  }

  /** Make one group of nodes; groups that they were in merge into it. */
  group(ids) {
    const { pinned, groups } = this.store.state;
    const merged = groups.filter((group) => group.members.some((id) => ids.includes(id)));
    const members = [...new Set([...merged.flatMap((group) => group.members), ...ids])];
    const name = merged[0]?.name ?? this.commonName(members);
    this.store.set({
      pinned: [...new Set([...pinned, ...members])],
      groups: [...groups.filter((group) => !merged.includes(group)), { name, members }],
      collecting: null,
    });
  }

  /** Show groups, {groups: [{name, members}], pinned, words}, before they are taken; null: no longer. */
  offerGroups(offer) {
    this.store.set({ offer, collecting: null });
  }

  /** Take the groups that are offered in place of all others: one step of undo. */
  acceptGroups() {
    const { groups, pinned } = previewed(this.store.state);
    this.store.set({ offer: null, groups, pinned, positions: {} });
  }

  ungroup(group) {
    const { groups, clicked } = this.store.state;
    const left = clicked === groupId(group) ? null : clicked;
    this.store.set({ groups: groups.filter((each) => each !== group), clicked: left });
  }

  renameGroup(group, name) {
    const text = name.trim();
    if (!text || text === group.name) return;
    this.store.set({
      groups: this.store.state.groups.map((each) => (each === group ? { ...each, name: text } : each)),
    });
  }

  removeBox(ids) {
    const { pinned, groups } = this.store.state;
    this.store.set({ pinned: pinned.filter((id) => !ids.includes(id)), groups: without(groups, ids) });
  }

  /** Give a feature another label, at all its tokens; an empty text restores the file's. */
  relabel(node, text) {
    const labels = { ...this.store.state.labels };
    const clean = text.trim();
    if (clean === (labels[node.featureKey] ?? node.label)) return;
    if (clean && clean !== node.label) labels[node.featureKey] = clean;
    else delete labels[node.featureKey];
    this.store.set({ labels });
  }

  move(key, place) {
    this.store.set({ positions: { ...this.store.state.positions, [key]: place } });
  }

  commonName(ids) {
    const node = this.graph.byId.get(ids[0]);
    return this.store.state.labels[node.featureKey] || node.label || "group";
  }
}

function without(groups, ids) {
  return groups
    .map((group) => ({ ...group, members: group.members.filter((id) => !ids.includes(id)) }))
    .filter((group) => group.members.length > 1);
}
