// Where feature details come from: inside the page, one JSON file a feature, or circuit-tracer's indexed binary file.

const cantor = (layer, index) => ((layer + index) * (layer + index + 1)) / 2 + index;

/**
 * A function from a node to {feature} or {reason}. `inline`: details by paired number; `base`: an address with a
 * folder of files, or null when nothing may be fetched.
 */
export function featureSource(inline, base) {
  const known = new Map();
  const index = base ? loadIndex(base) : null;
  return async (node) => {
    if (node.feature === null) return { reason: "this node is no feature of a dictionary" };
    const key = cantor(node.layer, node.feature);
    if (inline && Object.hasOwn(inline, key)) return checked(inline[key]);
    if (!base)
      return {
        reason: inline
          ? "the page was made without examples for this feature"
          : "the page was made without feature examples",
      };
    if (!known.has(key)) known.set(key, load(await index, base, node, key));
    return known.get(key);
  };
}

/** Put the share of tokens that each feature is active on into the nodes, as far as the page's details, by paired number, say. */
export function addDensities(graph, inline) {
  for (const node of graph.nodes) {
    const details = node.kind === "feature" && node.feature !== null ? inline?.[cantor(node.layer, node.feature)] : null;
    if (Number.isFinite(details?.activation_frequency)) node.density = details.activation_frequency;
  }
}

async function loadIndex(base) {
  try {
    const response = await fetch(`${base}/index.json.gz`);
    return response.ok ? JSON.parse(await inflate(await response.arrayBuffer(), "gzip")) : null;
  } catch {
    return null;
  }
}

async function load(index, base, node, key) {
  try {
    const entry = index?.[node.layer];
    if (entry) return checked(await readRecord(base, entry, node.feature));
    const response = await fetch(`${base}/${key}.json`);
    if (!response.ok) return { reason: `no examples at ${base}/${key}.json (${response.status})` };
    return checked(await response.json());
  } catch (error) {
    return { reason: `the examples could not be read: ${error.message}` };
  }
}

/** One record: four bytes of length, little endian, then that many bytes of zlib or gzip. */
async function readRecord(base, entry, feature) {
  const [start, end] = [entry.offsets[feature], entry.offsets[feature + 1]];
  if (start === undefined || end === undefined || end - start <= 4)
    throw new Error("the index has no record of this feature");
  const response = await fetch(`${base}/${entry.filename}`, { headers: { Range: `bytes=${start}-${end - 1}` } });
  if (!response.ok) throw new Error(`status ${response.status}`);
  let bytes = new Uint8Array(await response.arrayBuffer());
  if (response.status === 200) bytes = bytes.subarray(start, end);
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const packed = bytes.subarray(4, 4 + length);
  return JSON.parse(await inflate(packed, packed[0] === 0x1f && packed[1] === 0x8b ? "gzip" : "deflate"));
}

/** The text in compressed bytes. */
export async function inflate(bytes, kind) {
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream(kind))).text();
}

function checked(feature) {
  if (typeof feature !== "object" || feature === null) return { reason: "the examples are no object" };
  return { feature };
}
