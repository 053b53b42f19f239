// Questions to Prometheus, by way of the server of this page.

export class Unreachable extends Error {}

async function get(path, signal) {
  let response;
  try {
    response = await fetch(path, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable("The server of this page does not answer: has `stack dashboard` been stopped?");
  }
  const told = await response.json().catch(() => ({ error: `status ${response.status}` }));
  if (response.status === 502) throw new Unreachable(told.error);
  if (!response.ok || told.status === "error") throw new Error(told.error);
  return told;
}

export const boards = () => get("/panels.json");

export async function alerts(signal) {
  return (await get("/api/v1/alerts", signal)).data.alerts;
}

/** Series over a window, as {labels, values}: values lie on the window's grid, null where there is none. */
export async function series(expr, window, signal) {
  const asked = new URLSearchParams({ query: fill(expr, window), start: window.start, end: window.end, step: window.step });
  const told = await get(`/api/v1/query_range?${asked}`, signal);
  return told.data.result.map(({ metric, values }) => {
    const grid = new Array(window.points + 1).fill(null);
    for (const [moment, text] of values) {
      const value = Number(text);
      if (!Number.isNaN(value)) grid[Math.round((moment - window.start) / window.step)] = value;
    }
    return { labels: metric, values: grid };
  });
}

/** The newest values, as {labels, value}. */
export async function newest(expr, window, signal) {
  const asked = new URLSearchParams({ query: fill(expr, window), time: window.end });
  const told = await get(`/api/v1/query?${asked}`, signal);
  return told.data.result.map(({ metric, value }) => ({ labels: metric, value: Number(value[1]) }));
}

const WITH_A_RUN = "stack_train_step|stack_daily_version|stack_audit_version|stack_serve_workers";

export async function runs(window, signal) {
  const found = await newest(`group by (run) (last_over_time({__name__=~"${WITH_A_RUN}"}[$__range]))`, window, signal);
  return found.map(({ labels }) => labels.run).filter(Boolean).sort();
}

/** The grid of a chart: `points` steps that end at `end`. */
export function grid({ start, end, run, scrape }, points) {
  points = Math.max(2, Math.min(points, Math.floor((end - start) / scrape)));
  return { start, end, step: (end - start) / points, points, run, scrape };
}

function fill(expr, { start, end, step, run, scrape }) {
  const chosen = run ? run.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replaceAll("\\", "\\\\").replaceAll('"', '\\"') : ".*";
  return expr
    .replaceAll("$__rate_interval", `${Math.ceil(Math.max(4 * scrape, step + scrape))}s`)
    .replaceAll("$__range", `${Math.ceil(end - start)}s`)
    .replaceAll("$run", () => chosen);
}

/** What a series is called: its legend, with the run before it where there are several. */
export function legend(template, labels, severalRuns) {
  const text = template.replace(/\{\{(\w+)\}\}/g, (_, name) => labels[name] ?? "").trim();
  return severalRuns && labels.run ? [labels.run, text].filter(Boolean).join(" · ") : text;
}

export function severalRuns(found) {
  return new Set(found.map(({ labels }) => labels.run)).size > 1;
}
