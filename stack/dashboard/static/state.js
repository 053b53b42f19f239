// What is looked at, kept in the address: a link shows somebody else the same.

export const REFRESH = [0, 5, 15, 60];
export const RANGES = [900, 3600, 6 * 3600, 86400, 2 * 86400, 7 * 86400, 30 * 86400];
const DEFAULT_REFRESH = 15;

/** board, run ("" is all), range in seconds (0: the board's own), from and to (a range that was drawn), refresh, theme. */
export function read() {
  const told = new URLSearchParams(location.hash.slice(1));
  const number = (name, fallback) => (told.has(name) && Number.isFinite(Number(told.get(name))) ? Number(told.get(name)) : fallback);
  return {
    board: told.get("board") ?? "", run: told.get("run") ?? "", range: number("range", 0), from: number("from", 0), to: number("to", 0),
    refresh: number("refresh", DEFAULT_REFRESH), theme: told.get("theme") ?? "",
  };
}

export function write(state) {
  const kept = Object.entries(state).filter(([name, value]) => value && !(name === "refresh" && value === DEFAULT_REFRESH));
  if (state.refresh === 0) kept.push(["refresh", 0]);
  history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
}
