// As much of the helpers around d3 as circuit-tracer's page uses, for the test that draws our graphs with that page.
(() => {
  const kebab = (name) => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
  const lengths = /^(width|height|left|top|right|bottom|font-?size|(min|max)-?(width|height)|(padding|margin).*|gap)$/i;

  /** "tag.class#id" as [tag, classes, id]. */
  const described = (name) => {
    const [, tag, rest] = /^([^.#]+)(.*)$/.exec(name);
    return [tag, [...rest.matchAll(/\.([^.#]+)/g)].map((match) => match[1]).join(" "), /#([^.#]+)/.exec(rest)?.[1]];
  };

  const plainAppend = d3.selection.prototype.append;
  const dressed = (selection, classes, id) => {
    if (classes) selection.attr("class", classes);
    if (id) selection.attr("id", id);
    return selection;
  };
  const each = (selection, values, apply) => {
    for (const [name, value] of Object.entries(values)) apply(selection, name, value);
    return selection;
  };
  const style = (selection, name, value) => {
    const unit = (result) => (typeof result === "number" && lengths.test(name) ? `${result}px` : result);
    const made = typeof value === "function" ? function (...args) { return unit(value.apply(this, args)); } : unit(value);
    selection.style(kebab(name), made);
  };
  const moved = (node, place) => {
    if (node.namespaceURI.endsWith("svg")) node.setAttribute("transform", `translate(${place[0]},${place[1]})`);
    else node.style.transform = `translate(${place[0]}px,${place[1]}px)`;
  };

  Object.assign(d3.selection.prototype, {
    append(name) {
      if (typeof name !== "string") return plainAppend.call(this, name);
      const [tag, classes, id] = described(name);
      return dressed(plainAppend.call(this, tag), classes, id);
    },
    appendMany(name, data) {
      const [tag, classes, id] = described(name);
      return dressed(plainAppend.call(this.selectAll(null).data(data).enter(), tag), classes, id);
    },
    selectAppend(name) {
      return this.each(function () {
        if (!d3.select(this).select(name).node()) d3.select(this).append(name);
      }).select(name);
    },
    at(name, value) {
      const values = typeof name === "string" ? { [name]: value } : name;
      return each(this, values, (selection, key, each) => selection.attr(key === "viewBox" ? key : kebab(key), each));
    },
    st(name, value) {
      return each(this, typeof name === "string" ? { [name]: value } : name, style);
    },
    translate(place, axis) {
      return this.each(function (...args) {
        const found = typeof place === "function" ? place.apply(this, args) : place;
        moved(this, axis === undefined ? found : axis ? [0, found] : [found, 0]);
      });
    },
    parent() {
      return d3.selectAll(this.nodes().map((node) => node.parentNode));
    },
  });

  d3.nestBy = (rows, key) =>
    [...d3.group(rows, key)].map(([name, group]) => Object.assign([...group], { key: name }));
  d3.clamp = (least, value, most) => Math.max(least, Math.min(most, value));
  d3.attachTooltip = (selection, tooltip) =>
    selection
      .on("mouseover.attach", () => tooltip.classed("tooltip-hidden", false))
      .on("mouseout.attach", () => tooltip.classed("tooltip-hidden", true));

  d3.conventions = ({ sel, margin: given, layers = "s", width, height }) => {
    const margin = { top: 20, left: 20, bottom: 20, right: 20, ...given };
    const box = sel.node().getBoundingClientRect();
    const c = { sel, margin };
    c.totalWidth = width ? width + margin.left + margin.right : box.width;
    c.totalHeight = height ? height + margin.top + margin.bottom : box.height;
    c.width = c.totalWidth - margin.left - margin.right;
    c.height = c.totalHeight - margin.top - margin.bottom;
    sel.style("position", "relative");
    c.layers = [...layers].map((kind, order) => {
      const place = { position: order ? "absolute" : "static", left: 0, top: 0 };
      if (kind === "s") {
        const svg = sel.append("svg").at({ width: c.totalWidth, height: c.totalHeight }).st(place);
        return svg.append("g").translate([margin.left, margin.top]);
      }
      if (kind === "d") {
        const inner = { left: margin.left, top: margin.top, width: c.width, height: c.height };
        return sel.append("div").st({ ...place, position: "absolute", ...inner });
      }
      const canvas = sel.append("canvas").at({ width: c.totalWidth, height: c.totalHeight }).st(place);
      const context = canvas.node().getContext("2d");
      context.translate(margin.left, margin.top);
      return context;
    });
    c.svg = c.layers.find((layer) => typeof layer.append === "function");
    c.x = d3.scaleLinear().range([0, c.width]);
    c.y = d3.scaleLinear().range([c.height, 0]);
    c.xAxis = d3.axisBottom(c.x);
    c.yAxis = d3.axisLeft(c.y);
    c.drawAxis = (svg) => {
      svg.append("g.x.axis").translate([0, c.height]).call(c.xAxis);
      svg.append("g.y.axis").call(c.yAxis);
    };
    return c;
  };
})();
