// What all panels have: a card with a title, what to look for, a body, and a state that says how far it is.

import { element } from "./dom.js";

/** States: loading, ok, empty, error, down. A number of points that are shown is kept beside it. */
export class Shell {
  constructor(panel, kind) {
    this.panel = panel;
    this.body = element("div", { class: "body" });
    this.message = element("p", { class: "message" });
    this.message.hidden = true;
    this.moment = element("time");
    const title = element("h2", { text: panel.title });
    const head = element("header", {}, title, this.moment);
    this.look = element("p", { class: "look", text: panel.look });
    const inner = kind === "tile" ? [head, this.body, this.message, this.look] : [head, this.look, this.body, this.message];
    this.element = element("article", { class: `panel ${kind}`, "aria-label": panel.title }, ...inner);
    this.set("loading");
  }

  set(state, { text = "", points = 0 } = {}) {
    this.element.dataset.state = state;
    this.element.dataset.points = points;
    this.body.hidden = state === "empty" || state === "error";
    this.message.hidden = !text;
    this.message.textContent = text;
  }

  /** Does what a panel does with its answer, and says what went wrong otherwise. */
  async guarded(work) {
    try {
      await work();
    } catch (error) {
      if (error.name !== "AbortError") this.set("error", { text: error.message });
    }
  }
}

/** The steps of a panel in words: "warning from 90%, critical from 98%". */
export function limits(steps, write) {
  return steps.flatMap((step, index) => {
    const before = steps[index - 1];
    if (step.value === null || before === undefined) return [];
    const rising = rank(step.level) > rank(before.level);
    return [{ level: rising ? step.level : before.level, value: step.value, text: `${rising ? "from" : "below"} ${write(step.value)}` }];
  });
}

const rank = (level) => ["ok", "warning", "critical"].indexOf(level);
