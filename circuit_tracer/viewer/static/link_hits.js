// Which link lies under the pointer. Links are drawn as in scene.js: curves that leave and arrive vertically, or straight lines where
// there are many.

const STEPS = 20;

/**
 * The link nearest to a point, among link numbers `links`, the last of equals (they are drawn on top); null beyond `reach`.
 * view: {graph, layout, camera}; curved: whether they are drawn so.
 */
export function nearestLink({ graph, layout, camera }, links, x, y, reach, curved) {
  const { source, target } = graph.links;
  const at = (node) => [layout.x[node] * camera.zoom + camera.x, layout.y[node] * camera.zoom + camera.y];
  let best = null;
  let least = reach * reach;
  for (const link of links) {
    const [x1, y1] = at(source[link]);
    const [x2, y2] = at(target[link]);
    if (x < Math.min(x1, x2) - reach || x > Math.max(x1, x2) + reach) continue;
    if (y < Math.min(y1, y2) - reach || y > Math.max(y1, y2) + reach) continue;
    const squared = curved ? toCurve(x, y, x1, y1, x2, y2) : toSegment(x, y, x1, y1, x2, y2);
    if (squared <= least) [best, least] = [link, squared];
  }
  return best;
}

function toCurve(x, y, x1, y1, x2, y2) {
  const middle = (y1 + y2) / 2;
  let least = Infinity;
  let [px, py] = [x1, y1];
  for (let step = 1; step <= STEPS; step += 1) {
    const t = step / STEPS;
    const u = 1 - t;
    const nx = (u * u * u + 3 * u * u * t) * x1 + (3 * u * t * t + t * t * t) * x2;
    const ny = u * u * u * y1 + (3 * u * u * t + 3 * u * t * t) * middle + t * t * t * y2;
    least = Math.min(least, toSegment(x, y, px, py, nx, ny));
    [px, py] = [nx, ny];
  }
  return least;
}

/** Squared distance of a point to a segment. */
function toSegment(x, y, x1, y1, x2, y2) {
  const [dx, dy] = [x2 - x1, y2 - y1];
  const along = Math.max(0, Math.min(1, ((x - x1) * dx + (y - y1) * dy) / (dx * dx + dy * dy || 1)));
  return (x - x1 - along * dx) ** 2 + (y - y1 - along * dy) ** 2;
}
