// The server behind the page, if there is one: its API as functions. The page works without it.

/** Why the server refused, in its own words. */
export class ServerProblem extends Error {}

export class ServerClient {
  /** token: what changes need; other origins cannot know it. */
  constructor(token) {
    this.token = token;
  }

  /** The answer to one request; throws ServerProblem. */
  async ask(method, address, body = undefined) {
    let response;
    try {
      response = await fetch(address, {
        method,
        cache: "no-store",
        headers: {
          "X-Circuit-Tracer-Token": this.token,
          ...(body === undefined ? {} : { "Content-Type": "application/json" }),
        },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (error) {
      throw new ServerProblem(`the server cannot be reached (${error.message}); is it still running?`);
    }
    const answer = await response.json().catch(() => null);
    if (!response.ok) throw new ServerProblem(answer?.error ?? `the server answered ${response.status}`);
    return answer;
  }

  session() {
    return this.ask("GET", "api/session");
  }

  tokens(prompt) {
    return this.ask("POST", "api/tokens", prompt);
  }

  /** What the model would say next. */
  outputs(prompt) {
    return this.ask("POST", "api/outputs", prompt);
  }

  saveView(slug, view) {
    return this.ask("PUT", `${graphAddress(slug)}/view`, view);
  }

  prune(slug, thresholds) {
    return this.ask("POST", `${graphAddress(slug)}/prune`, thresholds);
  }

  /** Groups of the graph's nodes: {supernodes: [[name, id, ...]], pinned, purity}. */
  group(slug) {
    return new RunningJob(this, this.ask("POST", `${graphAddress(slug)}/group`, {}));
  }

  trace(request) {
    return new RunningJob(this, this.ask("POST", "api/traces", request));
  }

  /** request: {source, target}. */
  explainEdge(slug, request) {
    return this.ask("POST", `${graphAddress(slug)}/explain-edge`, request);
  }

  /** All links of the file. */
  explainLinks(slug) {
    return new RunningJob(this, this.ask("POST", `${graphAddress(slug)}/explain-links`, {}));
  }

  /** request: {layer, head, query, key, versus}; key null for the one that is looked at most. */
  explainLook(slug, request) {
    return this.ask("POST", `${graphAddress(slug)}/explain-score`, request);
  }

  /** request: {a, b, target, positions}: names of graphs, or ids of rows of a run. */
  compare(request) {
    return this.ask("POST", "api/comparisons", request);
  }

  heads() {
    return this.ask("GET", "api/heads");
  }

  intervene(slug, request) {
    return new RunningJob(this, this.ask("POST", `${graphAddress(slug)}/intervene`, request));
  }

  steer(slug, request) {
    return new RunningJob(this, this.ask("POST", `${graphAddress(slug)}/steer`, request));
  }
}

const graphAddress = (slug) => `api/graphs/${encodeURIComponent(slug)}`;

/** A job of the server: its progress, its result, and its end. */
class RunningJob {
  constructor(client, started) {
    this.client = client;
    this.started = started;
  }

  /** Call `onReport(report)` with each report; resolves to the last one. Throws ServerProblem. */
  async follow(onReport = () => {}) {
    const first = await this.started;
    onReport(first);
    return new Promise((resolve, reject) => {
      const events = new EventSource(`api/jobs/${first.id}/events`);
      events.onmessage = ({ data }) => {
        const report = JSON.parse(data);
        onReport(report);
        if (report.state === "running") return;
        events.close();
        resolve(report);
      };
      events.onerror = () => {
        events.close();
        this.client.ask("GET", `api/jobs/${first.id}`).then((report) => {
          if (report.state === "running") reject(new ServerProblem("the server stopped telling of its progress"));
          else resolve(report);
        }, reject);
      };
    });
  }

  /** Follow to the end; the result, null if it was cancelled. Throws ServerProblem with the reason of a failure. */
  async result(onReport) {
    const report = await this.follow(onReport);
    if (report.state === "failed") throw new ServerProblem(report.error);
    return report.result;
  }

  async cancel() {
    const { id } = await this.started;
    return this.client.ask("DELETE", `api/jobs/${id}`);
  }
}
