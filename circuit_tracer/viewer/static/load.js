// Getting a graph: from inside the page, from the folder it is served with, or from a file that the user opens.

import { inflate } from "./feature_source.js";
import { GraphProblem } from "./read_graph.js";

/** The JSON in a data block of the page, or null. */
export function embedded(id) {
  const text = document.getElementById(id)?.textContent;
  return text ? parse(text) : null;
}

/** The document in a file, plain or gzipped. */
export async function fromFile(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const packed = bytes[0] === 0x1f && bytes[1] === 0x8b;
  let text;
  try {
    text = packed ? await inflate(bytes, "gzip") : new TextDecoder().decode(bytes);
  } catch {
    throw new GraphProblem(["the file is cut short or no gzip file"]);
  }
  return parse(text);
}

/** The document in a gzipped text of a data block, as base64. */
export async function unpacked(text) {
  if (typeof text !== "string") throw new GraphProblem(["the graph of this row is not in this page"]);
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return fromFile(new Blob([bytes]));
}

/** {graphs, warning}: the metadata of the graphs beside the page, [] if there are none, and what is wrong with the list. */
export async function listGraphs(address) {
  try {
    const response = await fetch(address, { cache: "no-store" });
    const { graphs, warning } = response.ok ? await response.json() : {};
    const named = Array.isArray(graphs) ? graphs.filter((entry) => typeof entry?.slug === "string") : [];
    return { graphs: named, warning: typeof warning === "string" ? warning : null };
  } catch {
    return { graphs: [], warning: null };
  }
}

/** A graph of that list. */
export async function fromServer(address) {
  let response;
  try {
    response = await fetch(address, { cache: "no-store" });
  } catch (error) {
    throw new GraphProblem([`${address} cannot be reached (${error.message})`]);
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => null);
    const reason = typeof answer?.error === "string" ? `: ${answer.error}` : "";
    throw new GraphProblem([`${address} answered ${response.status}${reason}`]);
  }
  return fromFile(await response.blob());
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new GraphProblem([`the file is no JSON, or it is cut short: ${error.message}`]);
  }
}
