// Lines over time, with what is bad behind them and a legend that tells values under the cursor.

import { grid, legend, series, severalRuns } from "./ask.js";
import { element } from "./dom.js";
import { format, INCREMENTS, time } from "./format.js";
import { colour, frame, keys, seriesColour, seriesDash } from "./paint.js";
import { limits, Shell } from "./shell.js";

const HEIGHT = 190;
const FROM_ZERO = new Set(["per_second", "share", "seconds", "bytes"]);

export class Line {
  constructor(panel, { onZoom }) {
    this.panel = panel;
    this.onZoom = onZoom;
    this.shell = new Shell(panel, "line");
    this.element = this.shell.element;
    this.plot = element("div", { class: "plot", tabindex: "0", role: "img" });
    this.list = element("ul", { class: "legend" });
    this.limits = limits(panel.steps, (value) => this.write(value));
    this.shell.body.append(this.plot, this.list);
    if (this.limits.length) this.shell.body.append(this.limitText());
    this.hidden = new Set();
    keys(this.plot, () => this.chart);
    new ResizeObserver(() => this.resize()).observe(this.plot);
  }

  write(value) {
    return format(value, this.panel.unit, this.panel.words);
  }

  limitText() {
    const words = this.limits.flatMap(({ level, text }, index) => [
      index ? ", " : "", element("b", { class: level, text: level }), ` ${text}`,
    ]);
    return element("p", { class: "limits" }, ...words);
  }

  refresh(window, signal) {
    return this.shell.guarded(async () => {
      this.window = grid(window, Math.min(300, Math.max(60, Math.round(this.plot.clientWidth / 2))));
      const asked = this.panel.queries.map((query) => series(query.expr, this.window, signal));
      const answers = (await Promise.all(asked)).map((found, index) => ({ found, query: this.panel.queries[index] }));
      const several = severalRuns(answers.flatMap(({ found }) => found));
      this.lines = answers.flatMap(({ found, query }) =>
        found.map(({ labels, values }) => ({ name: legend(query.legend, labels, several) || this.panel.title, values })));
      this.lines = this.lines.filter(({ values }) => values.some((value) => value !== null));
      this.show();
    });
  }

  show() {
    const points = this.lines.reduce((sum, { values }) => sum + values.filter((value) => value !== null).length, 0);
    if (!points) {
      this.shell.set("empty", { text: this.panel.empty });
      return;
    }
    this.shell.set("ok", { points });
    const times = Array.from({ length: this.window.points + 1 }, (_, index) => this.window.start + index * this.window.step);
    const data = [times, ...this.lines.map(({ values }) => values.map((value) => (Number.isFinite(value) ? value : null)))];
    const names = JSON.stringify(this.lines.map(({ name }) => name));
    if (this.chart && names === this.names) this.chart.setData(data);
    else this.build(data);
    this.names = names;
    this.tell(null);
  }

  build(data) {
    this.chart?.destroy();
    this.listed();
    const options = frame({
      width: this.plot.clientWidth, height: HEIGHT, onZoom: this.onZoom,
      range: () => [this.window.start, this.window.end],
      times: (moment) => time(moment, this.window.end - this.window.start),
      hooks: { drawClear: [(u) => this.behind(u)], draw: [(u) => this.marks(u)], setCursor: [(u) => this.tell(u.cursor.idx)] },
    });
    options.axes[1].values = (_, splits) => splits.map((value) => (value === null ? "" : this.write(value)));
    options.axes[1].space = 34;
    if (INCREMENTS[this.panel.unit]) options.axes[1].incrs = INCREMENTS[this.panel.unit];
    options.scales.y = this.panel.logarithmic ? { distr: 3, range: (_, low, high) => (low ? [low / 1.3, high * 1.3] : [1, 10]) } : { range: (_, low, high) => this.range(low, high) };
    if (this.panel.logarithmic) {
      options.axes[1].filter = (_, splits) => thinned(splits);
      options.axes[1].grid.filter = options.axes[1].filter;
    }
    options.series = [{}, ...this.lines.map((line, index) => ({
      stroke: seriesColour(index), width: 1.75, dash: seriesDash(index), show: !this.hidden.has(line.name), spanGaps: false,
      points: { show: (u, number) => u.data[number].filter((value) => value !== null).length < 3, size: 6 },
    }))];
    this.chart = new uPlot(options, data, this.plot);
  }

  /** Values with air around them, from zero where zero means something, and as far as limits that are near. */
  range(low, high) {
    if (low === null || low === undefined) return [0, 1];
    const air = (high - low || Math.abs(high) || 1) * 0.08;
    const near = (high - low || Math.abs(high)) * 0.75;
    let [bottom, top] = [low - air, high + air];
    for (const { value } of this.limits) {
      if (value > high && value < high + near) top = Math.max(top, value + air);
      if (value < low && value > low - near) bottom = Math.min(bottom, value - air);
    }
    if (low >= 0 && (FROM_ZERO.has(this.panel.unit) || low < 0.4 * high)) bottom = 0;
    return [bottom, top];
  }

  behind(u) {
    const { left, top, width, height } = u.bbox;
    const pixel = (value) => Math.max(top, Math.min(top + height, u.valToPos(value, "y", true)));
    this.panel.steps.forEach((step, index) => {
      if (step.level === "ok") return;
      const next = this.panel.steps[index + 1];
      const upper = next ? pixel(next.value) : top;
      const lower = step.value === null ? top + height : pixel(step.value);
      u.ctx.fillStyle = colour(step.level, 0.08);
      u.ctx.fillRect(left, upper, width, lower - upper);
    });
  }

  marks(u) {
    const { left, top, width, height } = u.bbox;
    u.ctx.save();
    u.ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
    u.ctx.lineWidth = devicePixelRatio;
    for (const { level, value } of this.limits) {
      const y = u.valToPos(value, "y", true);
      if (!(y > top && y < top + height)) continue;
      u.ctx.strokeStyle = colour(level);
      u.ctx.beginPath();
      u.ctx.moveTo(left, y);
      u.ctx.lineTo(left + width, y);
      u.ctx.stroke();
    }
    u.ctx.restore();
  }

  listed() {
    this.told = this.lines.map(() => element("b"));
    const items = this.lines.map(({ name }, index) => {
      const mark = element("i");
      mark.style.background = seriesColour(index);
      const pressed = String(!this.hidden.has(name));
      const button = element(
        "button", { type: "button", "aria-pressed": pressed, title: name }, mark, element("span", { text: name }), this.told[index],
      );
      button.addEventListener("click", () => this.toggle(index, button));
      return element("li", {}, button);
    });
    this.list.replaceChildren(...items);
  }

  toggle(index, button) {
    const { name } = this.lines[index];
    const show = this.hidden.delete(name) || !this.hidden.add(name);
    button.setAttribute("aria-pressed", String(show));
    this.chart.setSeries(index + 1, { show });
  }

  /** Values at a place of the grid; the newest where there is none. */
  tell(index) {
    if (!this.told) return;
    const at = (values) => (index === null || index === undefined ? values.findLast((value) => value !== null) : values[index]);
    this.lines.forEach(({ values }, number) => { this.told[number].textContent = this.write(at(values)); });
    const range = this.window.end - this.window.start;
    const moment = this.window.start + (index ?? 0) * this.window.step;
    this.shell.moment.textContent = index === null || index === undefined ? "" : time(moment, range, true);
    const said = this.lines.map(({ name, values }) => `${name} ${this.write(at(values))}`).join(", ");
    this.plot.setAttribute("aria-label", `${this.panel.title}, ${this.shell.moment.textContent || "now"}: ${said}`);
  }

  resize() {
    const width = this.plot.clientWidth;
    if (this.chart && width && width !== this.chart.width) this.chart.setSize({ width, height: HEIGHT });
  }

  repaint() {
    if (this.chart) this.build(this.chart.data);
    this.tell(null);
  }
}

/** Of a logarithmic scale: 1, 2 and 5 of each power of ten; the powers alone where there are many. */
function thinned(splits) {
  const leading = (value) => Number((value / 10 ** Math.floor(Math.log10(value) + 1e-9)).toFixed(3));
  const tens = splits.filter((value) => value !== null && leading(value) === 1).length;
  return splits.map((value) => (value !== null && (tens > 2 ? [1] : [1, 2, 5]).includes(leading(value)) ? value : null));
}
