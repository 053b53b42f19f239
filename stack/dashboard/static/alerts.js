// What Prometheus says is wrong now.

import { element } from "./dom.js";
import { format } from "./format.js";

const SHOWN = 6;
const NAMED = new Set(["alertname", "severity", "run"]);

export function show(place, found, run) {
  const own = found.filter(({ labels }) => !run || !labels.run || labels.run === run);
  const firing = own.filter(({ state }) => state === "firing").sort((one, other) => rank(other) - rank(one) || name(one).localeCompare(name(other)));
  const pending = own.length - firing.length;
  const waiting = pending ? ` ${pending} pending: true, but not for long enough yet.` : "";
  const parts = firing.slice(0, SHOWN).map(card);
  if (!firing.length) parts.push(element("p", { class: "quiet", text: `No alert is firing.${waiting}` }));
  else if (pending || firing.length > SHOWN) {
    const more = firing.length > SHOWN ? `${firing.length - SHOWN} more are firing.` : "";
    parts.push(element("p", { text: `${more}${waiting}`.trim() }));
  }
  place.replaceChildren(...parts);
  place.dataset.firing = firing.length;
}

function rank({ labels }) {
  return labels.severity === "critical" || labels.severity === "page" ? 1 : 0;
}

function name({ labels }) {
  return `${labels.alertname} ${labels.run ?? ""} ${JSON.stringify(labels)}`;
}

function card({ labels, annotations, activeAt }) {
  const since = (Date.now() - Date.parse(activeAt)) / 1000;
  const others = Object.entries(labels).filter(([name]) => !NAMED.has(name)).map(([name, value]) => `${name} ${value}`);
  const where = [labels.run, labels.severity, ...others, `for ${format(Math.max(0, Math.round(since)), "seconds")}`].filter(Boolean);
  const text = annotations.summary ?? annotations.description ?? "";
  return element(
    "div", { class: `alert ${rank({ labels }) ? "critical" : "warning"}` },
    element("b", { text: labels.alertname }), " ", element("small", { text: where.join(" · ") }),
    text ? element("p", { text }) : null,
  );
}
