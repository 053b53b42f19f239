// A row for each combination of labels, a column for each query: the newest values.

import { newest, severalRuns } from "./ask.js";
import { element } from "./dom.js";
import { format, level } from "./format.js";
import { Shell } from "./shell.js";

export class Table {
  constructor(panel) {
    this.panel = panel;
    this.shell = new Shell(panel, "table");
    this.element = this.shell.element;
  }

  refresh(window, signal) {
    return this.shell.guarded(async () => {
      const answers = await Promise.all(this.panel.queries.map((query) => newest(query.expr, window, signal)));
      const rows = new Map();
      const several = severalRuns(answers.flat());
      answers.forEach((found, column) => {
        for (const { labels, value } of found) {
          const names = [...(several ? ["run"] : []), ...this.panel.keys].map((key) => labels[key] ?? "");
          const key = JSON.stringify(names);
          if (!rows.has(key)) rows.set(key, { names, values: [] });
          rows.get(key).values[column] = value;
        }
      });
      if (!rows.size) {
        this.shell.set("empty", { text: this.panel.empty });
        return;
      }
      this.shell.set("ok", { points: answers.flat().length });
      this.show([...rows.values()].sort((one, other) => String(one.names).localeCompare(String(other.names))), several);
    });
  }

  show(rows, several) {
    const { keys, queries, unit, words } = this.panel;
    const headings = [...(several ? ["run"] : []), ...keys].map((text, index) => element("th", { text, scope: "col", class: index ? "" : "name" }));
    const columns = queries.map(({ legend }) => element("th", { text: legend, scope: "col" }));
    const lines = rows.map(({ names, values }) => element(
      "tr", {},
      ...names.map((text, index) => element(index ? "td" : "th", { text, scope: index ? null : "row", class: index ? "" : "name" })),
      ...queries.map((query, column) => {
        const found = level(values[column], query.steps);
        return element("td", { text: format(values[column], query.unit ?? unit, words), class: found, title: found === "ok" ? null : found });
      }),
    ));
    const table = element("table", {}, element("thead", {}, element("tr", {}, ...headings, ...columns)), element("tbody", {}, ...lines));
    this.shell.body.replaceChildren(element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": this.panel.title }, table));
  }
}
