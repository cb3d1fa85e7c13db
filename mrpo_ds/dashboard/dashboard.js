"use strict";
// Draws the charts of a dashboard from the JSON in the page, into the figures that are there. Loads nothing.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const HEIGHT = 210, LEFT = 52, RIGHT = 16, TOP = 10, BOTTOM = 24;
  const MARKED_POINTS = 40; // lines with fewer points show every one of them
  const DASHES = ["", "6 3", "2 3", "9 3 2 3", "1 2"];
  const data = JSON.parse(document.getElementById("data").textContent);
  const hiddenRuns = new Set();
  let smoothing = 0;

  // ---- numbers ------------------------------------------------------------------------------------------------------

  function show(value) {
    if (value === null || value === undefined) return "none";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e");
    return String(Number(value.toPrecision(size >= 1000 ? 5 : 4)));
  }

  function stepName(first, last) {
    return first === last ? `step ${first}` : `steps ${first} to ${last}`;
  }

  // Round numbers, about `count` of them, from low to high.
  function ticks(low, high, count, whole) {
    const rough = (high - low) / Math.max(count, 1);
    const power = 10 ** Math.floor(Math.log10(rough));
    let width = [1, 2, 5, 10].map((part) => part * power).find((part) => part >= rough * 0.999);
    if (whole) width = Math.max(1, Math.round(width));
    const made = [];
    for (let at = Math.ceil(low / width - 1e-9); at * width <= high + width * 1e-9; at++) {
      made.push(Number((at * width).toPrecision(12)));
    }
    return made;
  }

  function logTicks(low, high) {
    const made = [], wide = Math.log10(high / low);
    const parts = wide > 3 ? [1] : wide > 1 ? [1, 3] : [1, 2, 3, 5];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const part of parts) {
        const value = part * 10 ** power;
        if (value >= low * 0.999 && value <= high * 1.001) made.push(Number(value.toPrecision(3)));
      }
    }
    const every = Math.ceil(made.length / 6);
    return made.filter((_, place) => place % every === 0);
  }

  // The exponential mean that begins without a bias, of the values that are there.
  function smoothed(values, weight) {
    let sum = 0, share = 0;
    return values.map((value) => {
      sum = weight * sum + (1 - weight) * value;
      share = weight * share + (1 - weight);
      return sum / share;
    });
  }

  // ---- parts of the page --------------------------------------------------------------------------------------------

  function make(name, attributes, parent, text) {
    const made = document.createElementNS(SVG, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.appendChild(made);
    return made;
  }

  function element(name, className, parent, text) {
    const made = document.createElement(name);
    made.className = className;
    if (text !== undefined) made.textContent = text;
    parent.appendChild(made);
    return made;
  }

  function colour(number) {
    return number < 8 ? `var(--c${number})` : `hsl(${Math.round(number * 137.5) % 360} 60% 50%)`;
  }

  // A button that switches something on and off.
  function toggle(parent, text, pressed, change) {
    const button = element("button", "toggle", parent, text);
    button.type = "button";
    button.setAttribute("aria-pressed", String(pressed));
    button.addEventListener("click", () => {
      const now = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(now));
      change(now);
    });
    return button;
  }

  function swatch(button, stroke, dash) {
    const svg = make("svg", { width: 22, height: 10, "aria-hidden": "true", class: "swatch" });
    const line = make("line", { x1: 0, x2: 22, y1: 5, y2: 5 }, svg);
    line.style.stroke = stroke;
    line.style.strokeDasharray = dash || "none";
    button.prepend(svg);
  }

  // ---- a line -------------------------------------------------------------------------------------------------------

  // The points of a line, without those where its run had no value.
  function pointsOf(spec) {
    const run = data.runs[spec.run];
    const axis = run.axes[spec.metric.split("/")[0]], series = run.series[spec.metric];
    const points = { first: [], last: [], x: [], mean: [], low: [], high: [], thinned: Boolean(series.low) };
    series.mean.forEach((mean, place) => {
      if (mean === null) return;
      points.first.push(axis.first[place]);
      points.last.push(axis.last[place]);
      points.x.push((axis.first[place] + axis.last[place]) / 2);
      points.mean.push(mean);
      points.low.push(series.low ? series.low[place] : mean);
      points.high.push(series.high ? series.high[place] : mean);
    });
    return points;
  }

  // ---- a chart ------------------------------------------------------------------------------------------------------

  class Chart {
    constructor(figure, spec) {
      this.spec = spec;
      this.lines = spec.lines.map((line) => ({
        ...line,
        name: [spec.byRun ? data.runs[line.run].name : "", line.label].filter(Boolean).join(", "),
        stroke: colour(spec.byRun ? line.run : line.style),
        dash: spec.byRun ? DASHES[line.style % DASHES.length] : "",
        isEval: line.metric.startsWith("eval/"),
        points: pointsOf(line),
        off: false,
      }));
      this.log = false;
      this.at = null; // the step that is pointed at
      this.plot = figure.querySelector(".plot");
      this.tools = figure.querySelector(".tools");
      this.tip = element("div", "tip", this.plot);
      this.tip.setAttribute("role", "status");
      this.tip.hidden = true;
      this.addTools();
      this.listen();
    }

    addTools() {
      if (!this.spec.byRun && this.spec.legend) {
        for (const line of this.lines) {
          const button = toggle(this.tools, line.name, true, (on) => this.redrawAfter(() => (line.off = !on)));
          swatch(button, line.stroke, line.dash);
        }
      }
      const labels = new Map(this.lines.map((line) => [line.label, line.style]));
      if (this.spec.byRun && labels.size > 1) {
        for (const [label, style] of labels) {
          const mine = this.lines.filter((line) => line.label === label);
          const button = toggle(this.tools, label, true, (on) =>
            this.redrawAfter(() => mine.forEach((line) => (line.off = !on)))
          );
          swatch(button, "currentColor", DASHES[style % DASHES.length]);
        }
      }
      const positive = this.lines.every((line) => line.points.low.every((value) => value > 0));
      const button = toggle(this.tools, "log", false, (on) => this.redrawAfter(() => (this.log = on)));
      button.disabled = !positive;
      button.title = positive ? "logarithmic scale" : "a logarithmic scale needs values above 0";
      button.classList.add("scale");
    }

    redrawAfter(change) {
      change();
      this.draw();
    }

    shown() {
      return this.lines.filter((line) => !line.off && !(this.spec.byRun && hiddenRuns.has(line.run)));
    }

    // The scales of both axes for what is shown.
    scales(width) {
      const lines = this.shown().filter((line) => line.points.x.length);
      const all = (name) => lines.flatMap((line) => line.points[name]);
      const wider = ([low, high], one) => [Math.min(low, one), Math.max(high, one)];
      const span = (values) => values.reduce(wider, [Infinity, -Infinity]);
      let [left, right] = span(all("x")), [low] = span(all("low")), [, high] = span(all("high"));
      if (!lines.length) [left, right, low, high] = [0, 1, 0, 1];
      if (left === right) [left, right] = [left - 1, right + 1];
      if (!this.log) {
        if (this.spec.limits) [low, high] = [Math.min(low, this.spec.limits[0]), Math.max(high, this.spec.limits[1])];
        if (low === high) [low, high] = [low - (Math.abs(low) * 0.1 || 1), high + (Math.abs(high) * 0.1 || 1)];
        const margin = (high - low) * 0.05;
        [low, high] = [low - margin, high + margin];
      } else {
        [low, high] = [low / 1.1, high * 1.1];
      }
      const part = this.log ? (y) => Math.log(y / low) / Math.log(high / low) : (y) => (y - low) / (high - low);
      return {
        left, right, low, high,
        x: (step) => LEFT + ((step - left) / (right - left)) * (width - LEFT - RIGHT),
        y: (value) => HEIGHT - BOTTOM - part(value) * (HEIGHT - TOP - BOTTOM),
        step: (x) => left + ((x - LEFT) / (width - LEFT - RIGHT)) * (right - left),
      };
    }

    draw() {
      const width = Math.round(this.plot.clientWidth);
      if (!width) return;
      this.svg?.remove();
      this.svg = make("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, "aria-hidden": "true" });
      this.plot.prepend(this.svg);
      this.scale = this.scales(width);
      this.drawAxes(width);
      for (const line of this.shown()) this.drawLine(line);
      this.stops = [...new Set(this.shown().flatMap((line) => line.points.x))].sort((a, b) => a - b);
      this.cross = make("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "cross", visibility: "hidden" }, this.svg);
      this.point();
    }

    drawAxes(width) {
      const { left, right, low, high, x, y } = this.scale;
      for (const value of this.log ? logTicks(low, high) : ticks(low, high, 5)) {
        make("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: "grid" }, this.svg);
        make("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, this.svg, show(value));
      }
      for (const step of ticks(left, right, Math.max(2, Math.floor(width / 80)), true)) {
        const ends = { x1: x(step), x2: x(step), y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4 };
        make("line", { ...ends, class: "tick" }, this.svg);
        const name = step >= 1e4 ? `${step / 1000}k` : String(step);
        make("text", { x: x(step), y: HEIGHT - 6, "text-anchor": "middle" }, this.svg, name);
      }
      make("line", { x1: LEFT, x2: width - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM, class: "tick" }, this.svg);
      const { mark } = this.spec;
      if (mark !== null && mark >= low && mark <= high) {
        make("line", { x1: LEFT, x2: width - RIGHT, y1: y(mark), y2: y(mark), class: "mark" }, this.svg);
      }
    }

    drawLine(line) {
      const { points, stroke, dash, isEval } = line, { x, y } = this.scale;
      const spots = (values) => points.x.map((at, place) => `${x(at).toFixed(1)} ${y(values[place]).toFixed(1)}`);
      const path = (values) => `M${spots(values).join("L")}`;
      if (!points.x.length) return;
      const add = (name, attributes) => make(name, attributes, this.svg);
      if (points.thinned) {
        const back = spots(points.low).reverse().join("L");
        const band = add("path", { d: `${path(points.high)}L${back}Z`, class: "band" });
        band.style.fill = band.style.stroke = stroke;
      }
      const smooth = smoothing > 0 && this.spec.smooth && !isEval && points.x.length > 2;
      if (smooth) add("path", { d: path(points.mean), class: "line raw" }).style.stroke = stroke;
      const values = smooth ? smoothed(points.mean, smoothing) : points.mean;
      const main = add("path", { d: path(values), class: "line", "stroke-dasharray": dash || "none" });
      main.style.stroke = stroke;
      if (!smooth && points.x.length <= MARKED_POINTS) {
        const radius = isEval ? 3.5 : 2.2;
        points.x.forEach((at, place) => {
          add("circle", { cx: x(at), cy: y(values[place]), r: radius }).style.fill = stroke;
        });
      }
    }

    // ---- values at a step -------------------------------------------------------------------------------------------

    listen() {
      const point = (event) => {
        if (this.scale) this.pointNear(this.scale.step(event.clientX - this.plot.getBoundingClientRect().left));
      };
      this.plot.addEventListener("pointermove", point);
      this.plot.addEventListener("pointerdown", point);
      this.plot.addEventListener("pointerleave", (event) => {
        if (event.pointerType !== "touch") this.leave(); // a finger that is lifted wants to read; a tap elsewhere blurs
      });
      this.plot.addEventListener("blur", () => this.leave());
      this.plot.addEventListener("keydown", (event) => this.key(event));
    }

    key(event) {
      if (!this.stops) return;
      const last = this.stops.length - 1, far = Math.max(1, Math.round(last / 10));
      const now = this.at === null ? -1 : this.stops.indexOf(this.at);
      const arrows = { ArrowRight: now + 1, ArrowLeft: now < 0 ? last : now - 1 };
      const moves = { ...arrows, PageDown: now + far, PageUp: now - far, Home: 0, End: last };
      if (event.key === "Escape") return this.leave();
      if (!(event.key in moves) || last < 0) return;
      event.preventDefault();
      this.at = this.stops[Math.min(last, Math.max(0, moves[event.key]))];
      this.point();
    }

    pointNear(step) {
      if (!this.stops?.length) return;
      this.at = this.stops.reduce((best, one) => (Math.abs(one - step) < Math.abs(best - step) ? one : best));
      this.point();
    }

    leave() {
      this.at = null;
      this.point();
    }

    // The last point of a line that begins at or before a step.
    static before(points, step) {
      let place = points.first.findIndex((first) => first > step);
      if (place < 0) place = points.first.length;
      return place - 1;
    }

    point() {
      const hide = this.at === null || !this.stops.includes(this.at);
      this.tip.hidden = hide;
      this.cross.setAttribute("visibility", hide ? "hidden" : "visible");
      if (hide) return;
      const at = this.scale.x(this.at);
      this.cross.setAttribute("x1", at);
      this.cross.setAttribute("x2", at);
      this.tip.replaceChildren();
      const heading = element("b", "", this.tip);
      let named = `step ${this.at}`;
      for (const line of this.shown()) {
        const { points } = line, place = Chart.before(points, this.at);
        const row = element("div", "", this.tip);
        row.style.setProperty("--stroke", line.stroke);
        const label = line.name || this.spec.title;
        if (place < 0) {
          row.textContent = `${label}: none yet`;
          continue;
        }
        const inside = points.last[place] >= this.at;
        if (inside && points.x[place] === this.at) named = stepName(points.first[place], points.last[place]);
        const range = points.thinned && points.low[place] < points.high[place];
        row.textContent =
          `${label}: ${show(points.mean[place])}` +
          (range ? ` (${show(points.low[place])} to ${show(points.high[place])})` : "") +
          (inside ? "" : ` (${stepName(points.first[place], points.last[place])})`);
      }
      heading.textContent = named;
      const room = this.plot.clientWidth - this.tip.offsetWidth;
      const wanted = at + 12 > room ? at - 12 - this.tip.offsetWidth : at + 12;
      this.tip.style.left = `${Math.max(0, Math.min(room, wanted))}px`;
    }
  }

  // ---- the page -----------------------------------------------------------------------------------------------------

  const charts = data.charts.map((spec, number) => new Chart(document.getElementById(`chart-${number}`), spec));
  let waiting = false;
  function drawAll() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      charts.forEach((chart) => chart.draw());
    });
  }

  const slider = document.getElementById("smoothing"), said = document.getElementById("smoothing-value");
  slider.value = String(data.smoothing); // browsers keep what was chosen before a reload
  const smooth = () => {
    smoothing = Number(slider.value);
    said.textContent = smoothing ? smoothing.toFixed(2) : "off";
    drawAll();
  };
  slider.addEventListener("input", smooth);
  document.getElementById("controls").hidden = false;

  const legend = document.getElementById("runs");
  if (legend) {
    data.runs.forEach((run, number) => {
      const button = toggle(legend, run.name, true, (on) => {
        if (on) hiddenRuns.delete(number);
        else hiddenRuns.add(number);
        drawAll();
      });
      swatch(button, colour(number), "");
    });
  }

  const widths = new ResizeObserver((entries) => {
    for (const entry of entries) {
      const chart = charts.find((one) => one.plot === entry.target);
      if (chart.svg && Number(chart.svg.getAttribute("width")) !== Math.round(entry.target.clientWidth)) chart.draw();
    }
  });
  smooth();
  charts.forEach((chart) => widths.observe(chart.plot));
})();
