// A histogram over time: a row for each bucket, darker where more observations fell.

import { grid, series } from "./ask.js";
import { element } from "./dom.js";
import { format, time } from "./format.js";
import { colour, frame, keys } from "./paint.js";
import { Shell } from "./shell.js";

const HEIGHT = 190;
const COLUMNS = 72;

export class Heatmap {
  constructor(panel, { onZoom }) {
    this.panel = panel;
    this.onZoom = onZoom;
    this.shell = new Shell(panel, "heatmap");
    this.element = this.shell.element;
    this.plot = element("div", { class: "plot", tabindex: "0", role: "img", "aria-label": panel.title });
    this.key = element("p", { class: "key", "aria-live": "off" });
    this.shell.body.append(this.plot, this.key);
    keys(this.plot, () => this.chart);
    new ResizeObserver(() => this.resize()).observe(this.plot);
  }

  refresh(window, signal) {
    return this.shell.guarded(async () => {
      this.window = grid({ ...window, scrape: window.scrape * 4 }, COLUMNS);
      this.window.scrape = window.scrape;
      const found = await series(this.panel.queries[0].expr, this.window, signal);
      this.rows = trimmed(rows(found));
      const points = this.rows.reduce((sum, { counts }) => sum + counts.filter((count) => count > 0).length, 0);
      if (!points) {
        this.shell.set("empty", { text: this.panel.empty });
        return;
      }
      this.shell.set("ok", { points });
      this.totals = this.rows[0].counts.map((_, index) => this.rows.reduce((sum, { counts }) => sum + counts[index], 0));
      this.most = Math.max(...this.rows.flatMap(({ counts }) => counts.map((count, index) => this.share(count, index))));
      const times = Array.from({ length: this.window.points + 1 }, (_, index) => this.window.start + index * this.window.step);
      const data = [times, this.totals];
      if (this.chart && this.chart.scales.y.max === this.rows.length) this.chart.setData(data);
      else this.build(data);
      this.tell(null);
    });
  }

  share(count, index) {
    return this.totals[index] > 0 ? count / this.totals[index] : 0;
  }

  build(data) {
    this.chart?.destroy();
    const options = frame({
      width: this.plot.clientWidth, height: HEIGHT, onZoom: this.onZoom,
      range: () => [this.window.start, this.window.end],
      times: (moment) => time(moment, this.window.end - this.window.start),
      hooks: { draw: [(u) => this.cells(u)], setCursor: [(u) => this.tell(u.cursor.idx)] },
    });
    options.scales.y = { range: () => [0, this.rows.length] };
    const every = Math.ceil(this.rows.length / 6);
    options.axes[1].splits = () => this.rows.map((_, index) => index + 1).filter((edge) => edge % every === 0);
    options.axes[1].values = (_, splits) => splits.map((edge) => this.edge(this.rows[edge - 1].upper));
    options.axes[1].grid = { show: false };
    options.series = [{}, { show: true, stroke: "transparent", points: { show: false } }];
    options.cursor.points = { show: false };
    this.chart = new uPlot(options, data, this.plot);
  }

  edge(value) {
    return value === Infinity ? "more" : format(value, this.panel.unit);
  }

  cells(u) {
    const shades = Array.from({ length: 24 }, (_, index) => colour("c0", 0.06 + (0.94 * (index + 1)) / 24));
    const x = (index) => Math.round(u.valToPos(this.window.start + index * this.window.step, "x", true));
    this.rows.forEach(({ counts }, row) => {
      const top = Math.round(u.valToPos(row + 1, "y", true));
      const height = Math.round(u.valToPos(row, "y", true)) - top;
      counts.forEach((count, index) => {
        const share = this.share(count, index);
        if (share <= 0 || index === 0) return;
        u.ctx.fillStyle = shades[Math.min(23, Math.floor(24 * Math.sqrt(share / this.most)))];
        u.ctx.fillRect(x(index - 1), top, x(index) - x(index - 1), Math.max(1, height - 1));
      });
    });
  }

  tell(index) {
    const at = index ?? this.totals.findLastIndex((total) => total > 0);
    if (at < 0 || !this.totals[at]) {
      this.key.textContent = "nothing at that time";
      return;
    }
    const shares = this.rows.map(({ counts }) => this.share(counts[at], at));
    const row = shares.indexOf(Math.max(...shares));
    const { lower, upper } = this.rows[row];
    const moment = time(this.window.start + at * this.window.step, this.window.end - this.window.start, true);
    const span = upper === Infinity ? `more than ${this.edge(lower)}` : `${this.edge(lower)} to ${this.edge(upper)}`;
    const count = format(Math.round(this.totals[at]), "number");
    this.shell.moment.textContent = index === null ? "" : moment;
    this.key.textContent = `${format(shares[row], "share")} of ${count} took ${span}${index === null ? ", last" : ""}`;
    this.plot.setAttribute("aria-label", `${this.panel.title}, ${this.key.textContent}`);
  }

  resize() {
    const width = this.plot.clientWidth;
    if (this.chart && width && width !== this.chart.width) this.chart.setSize({ width, height: HEIGHT });
  }

  repaint() {
    this.chart?.redraw(false);
    if (this.chart) this.build(this.chart.data);
  }
}

/** Prometheus counts observations up to each bucket's upper edge; a row has those of its own bucket. */
function rows(found) {
  const sorted = found
    .map(({ labels, values }) => ({ upper: labels.le === "+Inf" ? Infinity : Number(labels.le), values }))
    .sort((one, other) => one.upper - other.upper);
  return sorted.map(({ upper, values }, index) => ({
    lower: index ? sorted[index - 1].upper : 0,
    upper,
    counts: values.map((value, place) => Math.max(0, (value ?? 0) - (index ? sorted[index - 1].values[place] ?? 0 : 0))),
  }));
}

/** Without empty buckets at either end. */
function trimmed(all) {
  const used = all.map(({ counts }) => counts.some((count) => count > 0));
  const first = Math.max(0, used.indexOf(true) - 1);
  return all.slice(first, used.lastIndexOf(true) + 1);
}
