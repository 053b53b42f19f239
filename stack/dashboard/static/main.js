// The page: which board, of which run, over which time; asks again and again.

import * as alerts from "./alerts.js";
import * as ask from "./ask.js";
import { element } from "./dom.js";
import { format, span } from "./format.js";
import { Heatmap } from "./heatmap.js";
import { Line } from "./line.js";
import * as address from "./state.js";
import { Table } from "./table.js";
import { Tile } from "./tile.js";

const KINDS = { line: Line, stat: Tile, table: Table, heatmap: Heatmap };
const THEMES = ["", "light", "dark"];
const at = (id) => document.getElementById(id);

class Page {
  constructor({ boards, scrape_seconds, prometheus }) {
    this.boards = boards;
    this.scrape = scrape_seconds;
    this.prometheus = prometheus;
    this.panels = [];
    this.state = address.read();
    this.tabs();
    this.controls();
    at("footer").textContent = `Prometheus at ${prometheus}. Times are of this machine. Drag over a chart to look closer; arrow keys move along it.`;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.repaint());
    window.addEventListener("hashchange", () => { this.state = address.read(); this.open(); });
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.refresh(); });
    this.open();
  }

  get board() {
    return this.boards.find(({ name }) => name === this.state.board) ?? this.boards[0];
  }

  tabs() {
    this.buttons = this.boards.map(({ name, title }) => {
      const button = element("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "boards", text: title });
      button.addEventListener("click", () => this.choose({ board: name, from: 0, to: 0 }));
      return button;
    });
    at("tabs").append(...this.buttons);
    at("tabs").addEventListener("keydown", (event) => {
      const now = this.buttons.indexOf(document.activeElement);
      const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: this.buttons.length - 1 }[event.key];
      if (now < 0 || next === undefined) return;
      event.preventDefault();
      const button = this.buttons.at(next % this.buttons.length);
      button.focus();
      button.click();
    });
  }

  controls() {
    at("controls").addEventListener("submit", (event) => event.preventDefault());
    at("run").addEventListener("change", (event) => this.choose({ run: event.target.value }));
    at("range").addEventListener("change", (event) => this.choose({ range: Number(event.target.value), from: 0, to: 0 }));
    at("refresh").addEventListener("change", (event) => this.choose({ refresh: Number(event.target.value) }));
    at("now").addEventListener("click", () => this.choose({ from: 0, to: 0 }));
    at("theme").addEventListener("click", () => {
      this.choose({ theme: THEMES[(THEMES.indexOf(this.state.theme) + 1) % THEMES.length] });
    });
    at("refresh").replaceChildren(...address.REFRESH.map((seconds) =>
      element("option", { value: seconds, text: seconds ? `every ${format(seconds, "seconds")}` : "off" })));
  }

  choose(changes) {
    Object.assign(this.state, changes);
    address.write(this.state);
    this.open();
  }

  /** Shows what the state says, and asks for it. */
  open() {
    document.documentElement.dataset.theme = this.state.theme;
    const { board } = this;
    this.buttons.forEach((button, index) => {
      const chosen = this.boards[index] === board;
      button.setAttribute("aria-selected", String(chosen));
      button.tabIndex = chosen ? 0 : -1;
      if (chosen) button.scrollIntoView({ block: "nearest", inline: "nearest" });
    });
    document.title = `${board.title} · stack`;
    at("boards").setAttribute("aria-labelledby", `tab-${board.name}`);
    at("about").textContent = board.about;
    this.ranges();
    this.runs([]);
    at("refresh").value = String(this.state.refresh);
    at("now").hidden = !this.state.to;
    if (this.shown !== board) this.build(board);
    else if (this.theme !== this.state.theme) this.repaint();
    this.theme = this.state.theme;
    this.refresh();
  }

  ranges() {
    const own = this.state.range || this.board.range_seconds;
    const all = [...new Set([...address.RANGES, own])].sort((one, other) => one - other);
    const options = all.map((seconds) => element("option", { value: seconds, text: span(seconds) }));
    if (this.state.to) options.unshift(element("option", { value: 0, text: `${span(Math.round(this.state.to - this.state.from))}, drawn` }));
    at("range").replaceChildren(...options);
    at("range").value = String(this.state.to ? 0 : own);
  }

  runs(found) {
    if (found.length) this.known = found;
    const all = [...new Set([...(this.known ?? []), ...(this.state.run ? [this.state.run] : [])])].sort();
    const key = JSON.stringify([all, this.state.run]);
    if (key === this.listed) return;
    this.listed = key;
    at("run").replaceChildren(element("option", { value: "", text: "all" }), ...all.map((run) => element("option", { value: run, text: run })));
    at("run").value = this.state.run;
  }

  build(board) {
    this.shown = board;
    const onZoom = (from, to) => this.choose({ from: Math.round(from), to: Math.round(to) });
    this.panels = board.panels.map((panel) => new KINDS[panel.kind](panel, { onZoom }));
    at("tiles").replaceChildren(...this.panels.filter(({ panel }) => panel.kind === "stat").map((one) => one.element));
    at("panels").replaceChildren(...this.panels.filter(({ panel }) => panel.kind !== "stat").map((one) => one.element));
  }

  repaint() {
    for (const panel of this.panels) panel.repaint?.();
  }

  window() {
    const { scrape } = this;
    const { run, from, to } = this.state;
    if (to > from) return { start: from, end: to, run, scrape };
    const end = Math.floor(Date.now() / 1000);
    return { start: end - (this.state.range || this.board.range_seconds), end, run, scrape };
  }

  async refresh() {
    clearTimeout(this.timer);
    this.asking?.abort();
    this.asking = new AbortController();
    const { signal } = this.asking;
    const window = this.window();
    try {
      const firing = await ask.alerts(signal);
      at("down").hidden = true;
      alerts.show(at("alerts"), firing, this.state.run);
      const runs = ask.runs(window, signal).then((found) => this.runs(found));
      await Promise.all([runs, ...this.panels.map((panel) => panel.refresh(window, signal))]);
      at("updated").textContent = `updated ${new Date().toLocaleTimeString("en-GB")}`;
      document.body.dataset.state = "ready";
    } catch (error) {
      if (error.name === "AbortError") return;
      this.down(error);
    }
    if (!signal.aborted) this.later();
  }

  down(error) {
    document.body.dataset.state = "down";
    at("down").textContent = error.message;
    at("down").hidden = false;
    at("updated").textContent = `not updated since ${at("updated").textContent.replace(/^.*updated (since )?/, "") || "the start"}`.replace("Loading", "the start");
    at("alerts").replaceChildren();
    for (const { shell } of this.panels) shell.set("down", { text: shell.element.dataset.points === "0" ? "Prometheus does not answer." : "" });
  }

  later() {
    const { refresh, to } = this.state;
    if (refresh && !to) this.timer = setTimeout(() => (document.hidden ? this.later() : this.refresh()), refresh * 1000);
  }
}

ask.boards().then((told) => new Page(told)).catch((error) => {
  at("down").textContent = error.message;
  at("down").hidden = false;
});
