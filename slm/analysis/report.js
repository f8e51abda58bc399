"use strict";
// Draws the charts of report.html: <figure data-chart="i"> gets chart i of the JSON in #charts as inline SVG.
// A click on a name in a legend hides or shows its line; the buttons above a group of charts choose the x axis.

const CHARTS = JSON.parse(document.getElementById("charts").textContent);
const MARGIN = {left: 62, right: 14, top: 10, bottom: 42};

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function tag(name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** A number in at most `digits` significant digits: 12,345 as 12.3k, 0.00012 as 1.2e-4. */
function format(value, digits = 4) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (size >= 1e15 || (size > 0 && size < 1e-4)) {
    const [mantissa, exponent] = value.toExponential(Math.min(digits, 3) - 1).split("e");
    return `${Number(mantissa)}e${Number(exponent)}`;
  }
  for (const [unit, suffix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]])
    if (size >= unit) {
      const scale = unit === 1e4 ? 1e3 : unit;
      return Number((value / scale).toPrecision(digits)) + suffix;
    }
  return String(Number(value.toPrecision(digits)));
}

function linearTicks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw) || 10 * power;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  if (decades < 0.6) return linearTicks(low, high, count);
  const every = Math.max(1, Math.ceil(decades / count)), ticks = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) {
    if (e % every) continue;
    for (const m of decades < 1.5 ? [1, 2, 3, 5] : decades < 3 ? [1, 3] : [1]) ticks.push(Number((m * 10 ** e).toPrecision(3)));
  }
  return ticks.filter(t => t >= low * 0.999 && t <= high * 1.001);
}

/** A function from values to pixels, with its ticks. `grid`: the only values that there are, if they are few. */
function scale(low, high, log, from, to, count, grid) {
  if (log && low <= 0) log = false;
  if (low === high && low === 0) high = 1;
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const f = log ? Math.log : v => v;
  const map = v => from + (f(v) - f(low)) / (f(high) - f(low)) * (to - from);
  map.ticks = grid || (log ? logTicks : linearTicks)(low, high, count);
  return map;
}

function extent(values, log) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (v !== null && v !== undefined && (!log || v > 0)) { low = Math.min(low, v); high = Math.max(high, v); }
  return low <= high ? [low, high] : [log ? 1 : 0, log ? 10 : 1];
}

function path(points) {
  let text = "", pen = "M";
  for (const [x, y] of points) {
    if (!Number.isFinite(x) || !Number.isFinite(y)) { pen = "M"; continue; }
    text += `${pen}${x.toFixed(1)},${y.toFixed(1)}`;
    pen = "L";
  }
  return text;
}

class View {
  constructor(figure) {
    this.figure = figure;
    this.chart = CHARTS[Number(figure.dataset.chart)];
    this.axis = Object.keys(this.chart.axes)[0];
    this.hidden = new Set();
    this.legend = figure.appendChild(tag("div", "legend"));
    this.plot = figure.appendChild(tag("div", "plot"));
    this.tip = tag("div", "tip");
    const fit = () => { if (this.plot.clientWidth !== this.width) this.draw(); };
    new ResizeObserver(() => requestAnimationFrame(fit)).observe(this.plot);
  }

  choose(axis) {
    if (axis in this.chart.axes) { this.axis = axis; this.draw(); }
  }

  get drawn() {
    return this.chart.series.filter(s => this.axis in s.x);
  }

  get visible() {
    return this.drawn.filter(s => !this.hidden.has(s.name));
  }

  draw() {
    this.width = this.plot.clientWidth;
    this.height = Math.round(Math.max(210, Math.min(this.width * 0.56, 400)));
    if (!this.width) return;
    this.drawLegend();
    const svg = element("svg", {width: this.width, height: this.height, viewBox: `0 0 ${this.width} ${this.height}`,
      role: "img", "aria-label": this.chart.title});
    this.setScales();
    this.drawAxes(svg);
    const clip = `clip${this.figure.dataset.chart}`;
    const rectangle = {x: MARGIN.left, y: MARGIN.top - 4, width: Math.max(1, this.width - MARGIN.left - MARGIN.right + 6),
      height: this.height - MARGIN.top - MARGIN.bottom + 8};
    svg.appendChild(element("clipPath", {id: clip})).appendChild(element("rect", rectangle));
    const lines = svg.appendChild(element("g", {"clip-path": `url(#${clip})`}));
    if (this.chart.floor !== null) {
      const y = this.y(this.chart.floor);
      lines.appendChild(element("path", {d: `M${MARGIN.left},${y}H${this.width - MARGIN.right}`, class: "floor"}));
    }
    for (const series of this.visible) this.drawSeries(lines, series);
    this.plot.replaceChildren(svg, this.tip);
    this.tip.hidden = true;
    svg.addEventListener("pointermove", event => this.show(event, svg));
    svg.addEventListener("pointerleave", () => { this.tip.hidden = true; this.cursor?.remove(); });
  }

  setScales() {
    const [label, log] = this.chart.axes[this.axis], series = this.visible;
    const xs = series.flatMap(s => s.style === "optimum" ? s.x[this.axis].slice(0, 1) : s.x[this.axis]);
    let [left, right] = extent(xs, log);
    const distinct = [...new Set(xs.filter(x => x !== null))].sort((a, b) => a - b);
    const grid = this.chart.grid ? [...new Set(series.filter(s => ["line", "failed"].includes(s.style)).flatMap(s => s.x[this.axis]))] : null;
    if (!log && !this.chart.grid && left > 0 && left < right / 2) left = 0;
    const pad = log ? (right / left) ** 0.03 : (right - left) * 0.03;
    const ends = !this.chart.grid || distinct.length < 2 ? [left, right] : log ? [left / pad, right * pad] : [left - pad, right + pad];
    const ticks = Math.max(2, Math.floor(this.width / 90));
    this.x = scale(...ends, log, MARGIN.left, this.width - MARGIN.right, ticks, grid && grid.length < 12 ? grid.sort((a, b) => a - b) : null);
    const values = series.filter(s => s.style !== "failed").flatMap(s => [...s.y, ...(s.low || []), ...(s.high || [])]);
    let [low, high] = this.chart.limits || extent([...values, this.chart.floor], this.chart.log);
    if (!this.chart.limits) {
      const room = this.chart.log ? (high / low) ** 0.05 : (high - low) * 0.06;
      [low, high] = this.chart.log ? [low / room, high * room] : [low < 0 || low - room > 0 ? low - room : 0, high + room];
    }
    this.y = scale(low, high, this.chart.log, this.height - MARGIN.bottom, MARGIN.top, Math.floor(this.height / 50));
    this.xLabel = label;
  }

  drawAxes(svg) {
    const bottom = this.height - MARGIN.bottom, right = this.width - MARGIN.right;
    const [first, second] = this.y.ticks, largest = Math.max(...this.y.ticks.map(Math.abs));
    const digits = second === undefined ? 4 : Math.min(8, Math.max(4, Math.ceil(Math.log10(largest / (second - first))) + 1));
    for (const tick of this.y.ticks) {
      const y = this.y(tick);
      svg.appendChild(element("path", {d: `M${MARGIN.left},${y}H${right}`, class: "grid"}));
      svg.appendChild(element("text", {x: MARGIN.left - 7, y: y + 4, "text-anchor": "end"}, format(tick, digits)));
    }
    let end = -Infinity;
    for (const tick of this.x.ticks) {
      const x = this.x(tick), text = format(tick), half = text.length * 3.6;
      if (x < MARGIN.left - 1 || x > right + 1) continue;
      svg.appendChild(element("path", {d: `M${x},${MARGIN.top}V${bottom}`, class: "grid"}));
      if (x - half < end || x + half > this.width) continue;
      svg.appendChild(element("text", {x, y: bottom + 17, "text-anchor": "middle"}, text));
      end = x + half + 8;
    }
    svg.appendChild(element("path", {d: `M${MARGIN.left},${bottom}H${right}`, class: "axis"}));
    svg.appendChild(element("text", {x: (MARGIN.left + right) / 2, y: this.height - 6, "text-anchor": "middle", class: "label"}, this.xLabel));
    const middle = (MARGIN.top + bottom) / 2;
    svg.appendChild(element("text", {x: 13, y: middle, "text-anchor": "middle", class: "label",
      transform: `rotate(-90 13 ${middle})`}, this.chart.unit));
  }

  drawSeries(group, series) {
    const xs = series.x[this.axis], at = i => [this.x(xs[i]), xs[i] === null || series.y[i] === null ? NaN : this.y(series.y[i])];
    const color = `var(--${series.color})`;
    if (series.style === "failed") {
      for (const x of xs.map(this.x))
        group.appendChild(element("path", {d: `M${x - 4},${MARGIN.top}l8,8m0,-8l-8,8`, stroke: color, class: "line"}));
      return;
    }
    if (series.style === "optimum") {
      const [x, low, high] = xs.map(v => v === null ? null : this.x(v)), y = this.y(series.y[0]);
      if (low !== null && high !== null)
        group.appendChild(element("path", {d: `M${low},${y}H${high}M${low},${y - 6}v12M${high},${y - 6}v12`, stroke: color, class: "interval"}));
      group.appendChild(element("path", {d: `M${x - 7},${y}l7,-7l7,7l-7,7Z`, fill: color, class: "diamond"}));
      return;
    }
    if (series.low) {
      const upper = xs.map((x, i) => [this.x(x), this.y(series.high[i])]), lower = xs.map((x, i) => [this.x(x), this.y(series.low[i])]);
      group.appendChild(element("path", {d: path([...upper, ...lower.reverse()]) + "Z", fill: color, stroke: color,
        class: xs.length > 1 ? "band" : "line"}));
    }
    group.appendChild(element("path", {d: path(xs.map((_, i) => at(i))), stroke: color,
      class: `line ${series.style}`}));
    if ((series.style === "line" && xs.length <= 40) || xs.length === 1)
      for (let i = 0; i < xs.length; i++)
        if (at(i).every(Number.isFinite)) group.appendChild(element("circle", {cx: at(i)[0], cy: at(i)[1], r: 2.8, fill: color}));
  }

  drawLegend() {
    const lines = this.drawn.filter(s => !["optimum", "failed"].includes(s.style));
    const names = [...new Map(lines.map(s => [s.name, s])).values()];
    const entries = names.length < 2 && this.chart.floor === null ? [] : names.map(series => {
      const button = tag("button", "entry", series.name);
      button.type = "button";
      button.prepend(Object.assign(tag("span", "swatch"), {style: `background: var(--${series.color})`}));
      button.setAttribute("aria-pressed", String(!this.hidden.has(series.name)));
      button.title = "click: hide or show; double click: this one alone, or all";
      button.addEventListener("click", event => this.toggle(series.name, event.detail > 1));
      return button;
    });
    if (this.chart.floor !== null) entries.push(tag("span", "entry floor-entry", this.chart.floorLabel));
    if (this.visible.some(s => s.style === "optimum")) entries.push(tag("span", "entry", "◆ optimum of the parabola, 95 % interval"));
    if (this.visible.some(s => s.style === "failed")) entries.push(tag("span", "entry", "× failed"));
    this.legend.replaceChildren(...entries);
  }

  toggle(name, alone) {
    const others = this.drawn.map(s => s.name).filter(n => n !== name);
    if (alone) this.hidden = others.every(n => this.hidden.has(n)) ? new Set() : new Set(others);
    else if (this.hidden.has(name)) this.hidden.delete(name);
    else this.hidden.add(name);
    this.draw();
  }

  /** The values next to the pointer, those of the nearest lines first. */
  show(event, svg) {
    const box = svg.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    const found = [];
    for (const series of this.visible.filter(s => !["optimum", "failed"].includes(s.style))) {
      const xs = series.x[this.axis];
      let best = -1;
      for (let i = 0; i < xs.length; i++)
        if (xs[i] !== null && series.y[i] !== null && (best < 0 || Math.abs(this.x(xs[i]) - px) < Math.abs(this.x(xs[best]) - px))) best = i;
      if (best >= 0) found.push({series, x: xs[best], y: series.y[best], distance: Math.abs(this.y(series.y[best]) - py)});
    }
    this.cursor?.remove();
    if (!found.length) return;
    found.sort((a, b) => a.distance - b.distance);
    const x = this.x(found[0].x);
    this.cursor = svg.appendChild(element("path", {d: `M${x},${MARGIN.top}V${this.height - MARGIN.bottom}`, class: "cursor"}));
    const rows = found.slice(0, 6).map(({series, y}) => {
      const row = tag("div", "", `${series.detail} ${format(y, 5)}`);
      row.prepend(Object.assign(tag("span", "swatch"), {style: `background: var(--${series.color})`}));
      return row;
    });
    this.tip.replaceChildren(tag("div", "where", `${this.xLabel} ${format(found[0].x)}`), ...rows);
    this.tip.hidden = false;
    const left = x + 12 + this.tip.offsetWidth > this.width ? x - 12 - this.tip.offsetWidth : x + 12;
    this.tip.style.left = `${Math.max(0, left)}px`;
    this.tip.style.top = `${MARGIN.top + 4}px`;
  }
}

/** Buttons that choose the x axis of all charts of a group. */
function addAxisButtons(group, views) {
  const labels = new Map(views.flatMap(view => Object.entries(view.chart.axes).map(([name, [label]]) => [name, label])));
  if (labels.size < 2) return;
  const bar = tag("div", "axes");
  bar.setAttribute("role", "group");
  bar.append(tag("span", "", "x axis"));
  for (const [name, label] of labels) {
    const button = tag("button", "", label);
    button.type = "button";
    button.dataset.axis = name;
    button.addEventListener("click", () => {
      for (const other of bar.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
      for (const view of views) view.choose(name);
    });
    button.setAttribute("aria-pressed", String(views[0].axis === name));
    bar.append(button);
  }
  group.prepend(bar);
}

/** A click on a head of a table sorts its rows: numbers by value, empty cells last. */
function makeSortable(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...body.rows].sort((a, b) => {
        const [p, q] = [key(a), key(b)];
        if (!p || !q) return (p ? 0 : 1) - (q ? 0 : 1);
        return (down ? -1 : 1) * (Number.isNaN(p - q) ? p.localeCompare(q) : p - q);
      });
      body.append(...rows);
    });
  });
}

document.documentElement.classList.add("with-script");
for (const group of document.querySelectorAll(".charts")) {
  const views = [...group.querySelectorAll("[data-chart]")].map(figure => new View(figure));
  views.forEach(view => view.draw());
  if (views.length) addAxisButtons(group, views);
}
for (const table of document.querySelectorAll("table.sortable")) makeSortable(table);
for (const details of document.querySelectorAll("details")) // charts inside had no width while it was closed
  details.addEventListener("toggle", () => window.dispatchEvent(new Event("resize")));
