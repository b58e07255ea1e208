// What the server says of heads. Each thing is asked once, and one after the other, since the model does one thing at a time.

export class Explainer {
  /** server: {client, session, slug}, or null without one. */
  constructor(server) {
    this.server = server;
    this.answers = new Map();
    this.last = Promise.resolve();
  }

  /** Whether there is a model to ask. */
  get hasModel() {
    return Boolean(this.server?.session.model);
  }

  /** Whether the server has a table of what every head does. */
  get hasTable() {
    return Boolean(this.server?.session.heads);
  }

  /** The heads that a link runs through. */
  edge(source, target) {
    return this._ask(`${source}>${target}`, ({ client, slug }) => client.explainEdge(slug, { source, target }));
  }

  /** Why a head looks at a key; key null: the one it looks at most. look: as `parseLook` has it, with a query. */
  look(look) {
    return this._ask(JSON.stringify(look), ({ client, slug }) => client.explainLook(slug, look));
  }

  /** The diagnosis of all heads, or null. */
  async table() {
    return this.hasTable ? this._ask("table", ({ client }) => client.heads()) : null;
  }

  _ask(name, act) {
    if (!this.answers.has(name)) {
      const answer = this.last.then(() => act(this.server));
      this.last = answer.catch(() => this.answers.delete(name));
      this.answers.set(name, answer);
    }
    return this.answers.get(name);
  }
}
