// What the user has chosen: one plain object, changed in one place, with undo for what took work to make.

const KEPT_BY_UNDO = ["pinned", "groups", "labels", "positions"];
const STEPS = 200;

/** The state before anything is chosen, for a graph; fields: those that panels add. */
export function initialState(graph, fields) {
  const added = Object.entries(fields).map(([name, { initial }]) => [name, initial(graph)]);
  return {
    clicked: null,
    hovered: null,
    focused: null,
    frozen: false,
    pinned: [],
    groups: [],
    labels: {},
    positions: {},
    query: "",
    collecting: null,
    offer: null,
    lit: null,
    path: null,
    effect: null,
    ...Object.fromEntries(added),
  };
}

export class Store {
  /** fields: as for `initialState`. */
  constructor(state, fields) {
    this.state = state;
    this.fields = fields;
    this.listeners = [];
    this.past = [];
    this.future = [];
  }

  /** Call `listener(state, changed names)` after each change. */
  subscribe(listener) {
    this.listeners.push(listener);
  }

  /** Change some fields; changes to pins, groups, labels and positions can be undone. */
  set(patch) {
    const changed = Object.keys(patch).filter((name) => patch[name] !== this.state[name]);
    if (!changed.length) return;
    if (changed.some((name) => KEPT_BY_UNDO.includes(name))) {
      this.past.push(kept(this.state));
      if (this.past.length > STEPS) this.past.shift();
      this.future = [];
    }
    this._apply(patch, changed);
  }

  undo() {
    this._travel(this.past, this.future);
  }

  redo() {
    this._travel(this.future, this.past);
  }

  get canUndo() {
    return this.past.length > 0;
  }

  get canRedo() {
    return this.future.length > 0;
  }

  _travel(from, to) {
    if (!from.length) return;
    to.push(kept(this.state));
    this._apply(from.pop(), KEPT_BY_UNDO);
  }

  _apply(patch, changed) {
    this.state = { ...this.state, ...patch };
    const names = new Set(changed);
    for (const listener of this.listeners) listener(this.state, names);
  }
}

function kept(state) {
  return Object.fromEntries(KEPT_BY_UNDO.map((name) => [name, state[name]]));
}
