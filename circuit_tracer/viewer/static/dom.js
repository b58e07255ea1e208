// Building elements. Text only ever enters as text nodes, so labels and tokens are never read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (name === "style") {
      for (const [property, text] of Object.entries(value)) element.style.setProperty(property, text);
    } else if (name in element && typeof value === "boolean") {
      element[name] = value;
    } else {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) {
      element.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
  }
  return element;
}

/** An HTML element: h("button", {class: "x", on: {click}}, "text", child). Null children are left out. */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element, built the same way. */
export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Replace everything inside an element. */
export function replace(element, ...children) {
  element.replaceChildren(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

/**
 * Replace everything inside an element as `replace` does; what has the keyboard's focus in it gets it back where it is there
 * again (by data-id, else data-testid), else the first control does, so that it does not fall out of the panel.
 */
export function redraw(element, ...children) {
  const had = element.contains(document.activeElement) ? document.activeElement : null;
  const name = had && ["data-id", "data-testid"].find((each) => had.hasAttribute(each));
  const alike = name && `[${name}="${CSS.escape(had.getAttribute(name))}"]`;
  const place = alike ? [...element.querySelectorAll(alike)].indexOf(had) : 0;
  replace(element, ...children);
  if (!had) return element;
  const found = alike ? [...element.querySelectorAll(alike)] : [];
  const next = found[Math.min(place, found.length - 1)] ?? element.querySelector("button, select, input");
  next?.focus({ preventScroll: true });
  return element;
}

/** A number as people read it: three significant digits, a true minus sign. */
export function number(value) {
  if (!Number.isFinite(value)) return "n/a";
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e5) ? size.toExponential(1) : String(Number(size.toPrecision(3)));
  return value < 0 ? `\u2212${text}` : text;
}

/** A share as a percentage, with its sign if asked for. */
export function percent(share, signed = false) {
  if (!Number.isFinite(share)) return "n/a";
  const size = Math.abs(share) * 100;
  if (size < 0.005) return "0%";
  const text = size >= 9.95 || size === 0 ? size.toFixed(0) : size >= 0.095 ? size.toFixed(1) : size.toFixed(2);
  const sign = share < 0 ? "\u2212" : signed ? "+" : "";
  return `${sign}${text}%`;
}

/** A probability as terminal and pictures write it: to a tenth of a percent, so that 99.7% is not 100%. */
export function probability(value) {
  if (!Number.isFinite(value)) return "n/a";
  return value > 0 && value < 0.0005 ? "<0.1%" : `${(value * 100).toFixed(1)}%`;
}

/** A token on a chip, which must not look empty. */
export function chipText(token) {
  return visibleToken(token).trim() || "\u2423";
}

/** A token with the spaces around it made visible: " France" is another token than "France". */
export function spacedText(token) {
  return visibleToken(token.replace(/^ +| +$/g, (spaces) => "\u2423".repeat(spaces.length))) || "\u2423";
}

/** Whitespace made visible, so that a token can be told from its neighbours. */
export function visibleToken(token) {
  return token
    .replaceAll("\n", "\u23ce")
    .replaceAll("\t", "\u2192")
    .replaceAll("\r", "\u21b5")
    .replace(/^ (?=\S)/, "");
}
