// Text in boxes: cut into lines here, so that the page and its pictures cut it alike.

export const BOX_PADDING = 16; // both sides of a box's text
const DOT = 14; // from one member's dot to the next
const canvas = document.createElement("canvas").getContext("2d");
const family = () => getComputedStyle(document.body).fontFamily;

/** The page's letters for SVG. */
export const boxFont = (size, weight) => ({ "font-family": family(), "font-size": size, "font-weight": weight });

/** {dots, more}: members of a group that a box has room to show, and how many are left. */
export function memberDots(nodes, look) {
  const room = Math.floor((look.width - BOX_PADDING) / DOT);
  const shown = nodes.length > room ? room - 2 : nodes.length;
  return { dots: nodes.slice(0, shown), more: nodes.length - shown };
}

/** Width of a text in pixels. */
export function textWidth(text, size, weight = 400) {
  canvas.font = `${weight} ${size}px ${family()}`;
  return canvas.measureText(text).width;
}

/** A text on at most `most` lines of a width; what does not fit ends in an ellipsis. */
export function textLines(text, width, size, weight = 400, most = 2) {
  const fits = (part) => textWidth(part, size, weight) <= width;
  const lines = [];
  let rest = text.trim();
  while (rest && lines.length < most - 1 && !fits(rest)) {
    const words = rest.split(/(?<=[\s,;/-])/);
    let line = "";
    while (words.length && fits((line + words[0]).trimEnd())) line += words.shift();
    if (!line) line = longest([...rest], fits);
    lines.push(line.trimEnd());
    rest = rest.slice(line.length).trimStart();
  }
  if (rest) lines.push(fits(rest) ? rest : `${longest([...rest], (part) => fits(`${part}\u2026`)).trimEnd()}\u2026`);
  return lines;
}

/** The longest beginning that passes, of one letter at least. */
function longest(letters, passes) {
  let [low, high] = [1, letters.length];
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (passes(letters.slice(0, middle).join(""))) low = middle;
    else high = middle - 1;
  }
  return letters.slice(0, low).join("");
}
