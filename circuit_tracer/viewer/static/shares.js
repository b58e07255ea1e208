// What every percentage on the page means, as graph/shares.py has it: the share of a link s -> t is its weight over the sum of
// |inputs| of t, over the whole row of the graph: features, errors and tokens, what pruning cut included, biases not. A file says
// that sum as `input_mass` of a node; where it does not, the links of the file are all there is. Of a group the sums go over its
// members, and links inside of it do not count.

/** Give a graph with its links listed by target `mass` and `unseen` (sums of |inputs|: all, and those without a link here) and links.share. */
export function addShares(graph) {
  const { target, weight, count } = graph.links;
  const seen = new Float64Array(graph.nodes.length);
  for (let link = 0; link < count; link += 1) seen[target[link]] += Math.abs(weight[link]);
  graph.unseen = Float64Array.from(graph.nodes, ({ raw }, node) =>
    Number.isFinite(raw.input_mass) ? Math.max(0, raw.input_mass - seen[node]) : 0,
  );
  graph.mass = seen.map((mass, node) => mass + graph.unseen[node]);
  graph.links.share = Float64Array.from(weight, (value, link) => value / (graph.mass[target[link]] || 1));
}

/** Sum of |inputs| of nodes from outside of them. */
export function outsideMass(graph, nodes) {
  const { source, weight } = graph.links;
  const inside = new Set(nodes.map(({ index }) => index));
  let mass = 0;
  for (const node of inside) {
    mass += graph.unseen[node];
    for (let at = graph.inStart[node]; at < graph.inStart[node + 1]; at += 1) {
      const link = graph.inLinks[at];
      if (!inside.has(source[link])) mass += Math.abs(weight[link]);
    }
  }
  return mass;
}
