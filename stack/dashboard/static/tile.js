// The newest value, large, with what it means and its course.

import { grid, legend, series, severalRuns } from "./ask.js";
import { element } from "./dom.js";
import { format, level, time } from "./format.js";
import { Shell } from "./shell.js";

const POINTS = 60;
const MOST = 4;
const SVG = "http://www.w3.org/2000/svg";

export class Tile {
  constructor(panel) {
    this.panel = panel;
    this.shell = new Shell(panel, "tile");
    this.element = this.shell.element;
  }

  refresh(window, signal) {
    return this.shell.guarded(async () => {
      const { expr, legend: template } = this.panel.queries[0];
      const over = grid(window, POINTS);
      const found = (await series(expr, over, signal)).filter(({ values }) => values.some((value) => value !== null));
      if (!found.length) {
        delete this.element.dataset.level;
        this.shell.set("empty", { text: this.panel.empty });
        return;
      }
      this.shell.set("ok", { points: found.length });
      this.show(found, over, template);
    });
  }

  show(found, over, template) {
    const several = severalRuns(found);
    const lines = found.map(({ labels, values }) => {
      const index = values.findLastIndex((value) => value !== null);
      const value = values[index];
      return { name: legend(template, labels, several), value, level: level(value, this.panel.steps), moment: over.start + index * over.step, old: index < over.points };
    });
    const worst = ["critical", "warning"].find((name) => lines.some((line) => line.level === name));
    if (worst) this.element.dataset.level = worst;
    else delete this.element.dataset.level;
    const values = lines.length === 1 ? [this.single(lines[0])] : this.many(lines);
    const parts = [element("div", { class: "values" }, ...values)];
    if (lines.every(({ old }) => old)) {
      const moment = time(Math.max(...lines.map((line) => line.moment)), over.end - over.start, true);
      parts.push(element("p", { class: "old", text: `last seen ${moment}` }));
    }
    const moves = found.length === 1 && new Set(found[0].values.filter((value) => value !== null)).size > 1;
    if (moves) parts.push(course(found[0].values));
    this.shell.body.replaceChildren(...parts);
  }

  write(value) {
    return format(value, this.panel.unit, this.panel.words);
  }

  single(line) {
    return element("p", { class: "value" }, this.write(line.value), mark(line));
  }

  many(lines) {
    const shown = lines.slice(0, MOST).map((line) =>
      element("p", { class: "value many" }, element("span", { text: line.name, title: line.name }), element("b", {}, this.write(line.value), mark(line))));
    if (lines.length > MOST) shown.push(element("p", { class: "old", text: `and ${lines.length - MOST} more` }));
    return shown;
  }
}

function mark(line) {
  return line.level === "ok" ? null : element("small", { class: line.level, text: line.level });
}

/** A small line without axes: it says whether the value moves, and where to. */
function course(values) {
  const known = values.filter(Number.isFinite);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const y = (value) => 24 - (22 * (value - low)) / (high - low || 1);
  const points = values.map((value, index) => (Number.isFinite(value) ? `${(100 * index) / (values.length - 1)},${y(value).toFixed(2)}` : null));
  const present = points.filter(Boolean);
  const line = `M${present.join("L")}`;
  const [first, last] = [present[0].split(",")[0], present.at(-1).split(",")[0]];
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 26");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  for (const [name, path] of [["under", `${line}L${last},26L${first},26Z`], ["", line]]) {
    const drawn = document.createElementNS(SVG, "path");
    drawn.setAttribute("d", path);
    drawn.setAttribute("class", name);
    svg.append(drawn);
  }
  return svg;
}
