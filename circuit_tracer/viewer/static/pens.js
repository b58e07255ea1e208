// Two ways to draw the same scene: on a canvas, and as SVG elements for a file.

import { svg } from "./dom.js";

const FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif";

/** Draws on a 2D context. */
export class CanvasPen {
  constructor(context) {
    this.context = context;
  }

  rectangle(x, y, width, height, fill) {
    this.context.fillStyle = fill;
    this.context.fillRect(x, y, width, height);
  }

  /** Many lines of one style; points: x1, y1, x2, y2, ... ; curved ones leave and arrive vertically. */
  lines(points, { color, width, alpha = 1, curved = false, dash = null }) {
    const context = this.context;
    context.globalAlpha = alpha;
    context.strokeStyle = color;
    context.lineWidth = width;
    context.setLineDash(dash ?? []);
    context.beginPath();
    for (let at = 0; at < points.length; at += 4) {
      const [x1, y1, x2, y2] = [points[at], points[at + 1], points[at + 2], points[at + 3]];
      context.moveTo(x1, y1);
      if (curved) context.bezierCurveTo(x1, (y1 + y2) / 2, x2, (y1 + y2) / 2, x2, y2);
      else context.lineTo(x2, y2);
    }
    context.stroke();
    context.globalAlpha = 1;
    context.setLineDash([]);
  }

  /** Many glyphs of one shape and style; places: x, y, ... */
  glyphs(shape, places, radius, { fill, stroke, width = 1, alpha = 1, dash = null }) {
    const context = this.context;
    context.globalAlpha = alpha;
    context.beginPath();
    for (let at = 0; at < places.length; at += 2) trace(context, shape, places[at], places[at + 1], radius);
    if (fill) {
      context.fillStyle = fill;
      context.fill();
    }
    if (stroke) {
      context.strokeStyle = stroke;
      context.lineWidth = width;
      context.setLineDash(dash ?? []);
      context.stroke();
      context.setLineDash([]);
    }
    context.globalAlpha = 1;
  }

  /** angle: in radians around (x, y), clockwise. */
  text(x, y, text, { color, size, align = "left", weight = 400, halo = null, angle = 0 }) {
    const context = this.context;
    context.font = `${weight} ${size}px ${FONT}`;
    context.textAlign = align;
    context.textBaseline = "middle";
    context.save();
    context.translate(x, y);
    context.rotate(angle);
    if (halo) {
      context.strokeStyle = halo;
      context.lineWidth = 3;
      context.lineJoin = "round";
      context.strokeText(text, 0, 0);
    }
    context.fillStyle = color;
    context.fillText(text, 0, 0);
    context.restore();
  }
}

function trace(context, shape, x, y, r) {
  if (shape === "circle") {
    context.moveTo(x + r, y);
    context.arc(x, y, r, 0, 2 * Math.PI);
  } else if (shape === "square") {
    context.rect(x - r * 0.9, y - r * 0.9, r * 1.8, r * 1.8);
  } else {
    const corners =
      shape === "triangle"
        ? [
            [0, -1.1],
            [1, 0.8],
            [-1, 0.8],
          ]
        : [
            [0, -1.2],
            [1.2, 0],
            [0, 1.2],
            [-1.2, 0],
          ];
    corners.forEach(([dx, dy], at) => context[at ? "lineTo" : "moveTo"](x + dx * r, y + dy * r));
    context.closePath();
  }
}

/** Collects SVG elements in `root`. */
export class SvgPen {
  constructor(root) {
    this.root = root;
  }

  rectangle(x, y, width, height, fill) {
    this.root.append(svg("rect", { x, y, width, height, fill }));
  }

  lines(points, { color, width, alpha = 1, curved = false, dash = null }) {
    const parts = [];
    for (let at = 0; at < points.length; at += 4) {
      const [x1, y1, x2, y2] = [points[at], points[at + 1], points[at + 2], points[at + 3]].map(short);
      const middle = short((y1 + y2) / 2);
      parts.push(curved ? `M${x1} ${y1}C${x1} ${middle} ${x2} ${middle} ${x2} ${y2}` : `M${x1} ${y1}L${x2} ${y2}`);
    }
    if (!parts.length) return;
    const look = { fill: "none", stroke: color, "stroke-width": short(width), "stroke-opacity": alpha };
    this.root.append(svg("path", { d: parts.join(""), "stroke-dasharray": dash?.join(" "), ...look }));
  }

  glyphs(shape, places, radius, { fill, stroke, width = 1, alpha = 1, dash = null }) {
    const look = { fill: fill ?? "none", stroke: stroke ?? "none", "stroke-width": width, opacity: alpha };
    look["stroke-dasharray"] = dash?.join(" ");
    for (let at = 0; at < places.length; at += 2) {
      const [x, y] = [short(places[at]), short(places[at + 1])];
      if (shape === "circle") this.root.append(svg("circle", { cx: x, cy: y, r: radius, ...look }));
      else if (shape === "square") {
        const side = 1.8 * radius;
        this.root.append(
          svg("rect", { x: short(x - side / 2), y: short(y - side / 2), width: side, height: side, ...look }),
        );
      } else {
        const corners =
          shape === "triangle"
            ? [
                [0, -1.1],
                [1, 0.8],
                [-1, 0.8],
              ]
            : [
                [0, -1.2],
                [1.2, 0],
                [0, 1.2],
                [-1.2, 0],
              ];
        const d = corners.map(([dx, dy]) => `${short(x + dx * radius)} ${short(y + dy * radius)}`).join("L");
        this.root.append(svg("path", { d: `M${d}Z`, ...look }));
      }
    }
  }

  text(x, y, text, { color, size, align = "left", weight = 400, halo = null, angle = 0 }) {
    const anchor = { left: "start", center: "middle", right: "end" }[align];
    const look = { "font-size": size, "font-family": FONT, "font-weight": weight, "dominant-baseline": "central" };
    if (halo)
      Object.assign(look, { stroke: halo, "stroke-width": 3, "stroke-linejoin": "round", "paint-order": "stroke" });
    if (angle) look.transform = `rotate(${short((angle * 180) / Math.PI)} ${short(x)} ${short(y)})`;
    this.root.append(
      svg("text", { x: short(x), y: short(y), fill: color, "text-anchor": anchor, ...look }, text),
    );
  }
}

const short = (value) => Math.round(value * 10) / 10;
