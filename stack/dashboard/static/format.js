// Values and times as text.

const DAY = 86400;

function digits(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 100 || Number.isInteger(value)) return String(Math.round(value));
  return String(Number(value.toPrecision(3)));
}

function number(value) {
  const size = Math.abs(value);
  if (size >= 1e12) return value.toExponential(1);
  if (size >= 1e9) return `${digits(value / 1e9)} G`;
  if (size >= 1e6) return `${digits(value / 1e6)} M`;
  if (size >= 1e4) return `${digits(value / 1e3)} k`;
  if (size > 0 && size < 1e-4) return value.toExponential(1);
  return digits(value);
}

function seconds(value) {
  const size = Math.abs(value);
  if (size === 0) return "0 s";
  if (size < 1e-3) return `${digits(value * 1e6)} µs`;
  if (size < 1) return `${digits(value * 1e3)} ms`;
  if (size < 120) return `${digits(value)} s`;
  if (size < 7200) return `${digits(value / 60)} min`;
  if (size < 2 * DAY) return `${digits(value / 3600)} h`;
  return `${digits(value / DAY)} d`;
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let index = 0;
  while (Math.abs(value) >= 1024 && index < units.length - 1) {
    value /= 1024;
    index += 1;
  }
  return `${digits(value)} ${units[index]}`;
}

const UNITS = {
  number,
  seconds,
  bytes,
  per_second: (value) => `${number(value)}/s`,
  share: (value) => `${digits(value * 100)}%`,
};

export function format(value, unit, words = {}) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (words[value] !== undefined) return words[value];
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  return UNITS[unit](value);
}

const decimal = Array.from({ length: 12 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** (power - 9))).flat();

/** Between the lines of an axis: steps that read well in the unit; other units take the library's. */
export const INCREMENTS = {
  seconds: [
    ...decimal.filter((value) => value < 15), 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 6 * 3600, 12 * 3600,
    ...[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000].map((days) => days * DAY),
  ],
  bytes: Array.from({ length: 50 }, (_, power) => 2 ** power),
};

export function span(value) {
  const units = [[DAY, "day"], [3600, "hour"], [60, "minute"], [1, "second"]];
  const [size, name] = units.find(([least]) => value >= least && value % least === 0) ?? [1, "second"];
  const count = Math.round(value / size);
  return count === 1 ? name : `${count} ${name}s`;
}

const pad = (value) => String(value).padStart(2, "0");

/** Of an axis or of a cursor: as much of the date as a range of that many seconds needs. */
export function time(moment, rangeSeconds, exact = false) {
  const date = new Date(moment * 1000);
  const clock = `${pad(date.getHours())}:${pad(date.getMinutes())}`;
  if (exact && rangeSeconds < DAY) return `${clock}:${pad(date.getSeconds())}`;
  if (rangeSeconds < 1.5 * DAY) return clock;
  const day = `${date.getDate()} ${date.toLocaleString("en", { month: "short" })}`;
  return exact ? `${day} ${clock}` : day;
}

/** The level of a value: steps begin at values, the first below all. */
export function level(value, steps) {
  let found = "ok";
  if (value === null || value === undefined || Number.isNaN(value)) return found;
  for (const step of steps) if (step.value === null || value >= step.value) found = step.level;
  return found;
}
