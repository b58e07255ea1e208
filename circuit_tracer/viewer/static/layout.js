// Where nodes stand: tokens across, layers up, wide columns where many nodes are.

const MARGIN = { left: 46, right: 14, top: 22, bottom: 46 };
const NARROWEST = 34;
const SPACING = 13;

/**
 * Places at zoom 1 for a panel of width x height CSS pixels: {x, y, columns, rows, width, height}.
 *
 * columns: {left, width} by position; rows: {y, height} by layer + 1. A column's width grows with the most nodes any
 * of its cells has to show side by side; when all do not fit, the picture becomes wider than the panel and one pans.
 */
export function layOut(graph, shown, width, height) {
  const n_rows = graph.topLayer + 2;
  const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
  const rowHeight = Math.max(inner.height / n_rows, 12);
  const stack = Math.max(1, Math.floor((rowHeight * 0.82) / SPACING));
  const cells = fillCells(graph, shown);
  const columns = columnWidths(graph, cells, stack, inner.width);
  const x = new Float32Array(graph.nodes.length);
  const y = new Float32Array(graph.nodes.length);
  const rows = Array.from({ length: n_rows }, (_, row) => ({
    y: MARGIN.top + (n_rows - row - 0.5) * rowHeight,
    height: rowHeight,
  }));
  for (const [key, members] of cells) {
    const column = columns[key % graph.tokens.length];
    const row = rows[Math.floor(key / graph.tokens.length)];
    placeCell(members, column, row, stack, x, y);
  }
  const last = columns.at(-1);
  return {
    x,
    y,
    columns,
    rows,
    width: last.left + last.width + MARGIN.right,
    height: n_rows * rowHeight + MARGIN.top + MARGIN.bottom,
    margin: MARGIN,
  };
}

/** Nodes by cell, the most important first; targets by probability. */
function fillCells(graph, shown) {
  const cells = new Map();
  for (const node of graph.nodes) {
    if (!shown[node.index]) continue;
    const key = (node.layer + 1) * graph.tokens.length + node.position;
    if (!cells.has(key)) cells.set(key, []);
    cells.get(key).push(node);
  }
  const rank = (node) => (node.kind === "target" ? -(node.probability ?? 0) : (node.influence ?? 2));
  for (const members of cells.values()) members.sort((a, b) => rank(a) - rank(b));
  return cells;
}

function columnWidths(graph, cells, stack, available) {
  const across = new Array(graph.tokens.length).fill(1);
  for (const [key, members] of cells) {
    const position = key % graph.tokens.length;
    across[position] = Math.max(across[position], Math.ceil(members.length / stack));
  }
  // A column narrower than the widest needs is filled by closer spacing, not by leaving other columns none.
  const wanted = across.map((count) => NARROWEST + Math.sqrt(count - 1) * SPACING * 2.2);
  const total = wanted.reduce((sum, each) => sum + each, 0);
  const scale = Math.max(available / total, NARROWEST / Math.max(NARROWEST, Math.min(...wanted)));
  let left = MARGIN.left;
  return wanted.map((each) => {
    const column = { left, width: each * scale };
    left += column.width;
    return column;
  });
}

function placeCell(members, column, row, stack, x, y) {
  const lines = Math.min(stack, Math.ceil((members.length * SPACING) / (column.width - 10)));
  const across = Math.ceil(members.length / Math.max(1, lines));
  const step = Math.min(SPACING * 1.25, (column.width - 10) / across);
  members.forEach((node, place) => {
    const line = Math.floor(place / across);
    const inLine = line === Math.ceil(members.length / across) - 1 ? members.length - line * across : across;
    x[node.index] = column.left + column.width / 2 + ((place % across) - (inLine - 1) / 2) * step;
    y[node.index] = row.y + (line - (Math.ceil(members.length / across) - 1) / 2) * SPACING;
  });
}
