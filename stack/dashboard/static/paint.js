// Colours of the canvas: read from the style sheet, so that light and dark are in one place.

const probe = document.createElement("i");
probe.hidden = true;
document.documentElement.append(probe);

export function colour(name, alpha = 1) {
  probe.style.color = `color-mix(in srgb, var(--${name}) ${alpha * 100}%, transparent)`;
  return getComputedStyle(probe).color;
}

const COLOURS = 8;

export const seriesColour = (index) => colour(`c${index % COLOURS}`);

/** Where colours come round again, lines are dashed. */
export const seriesDash = (index) => (index < COLOURS ? [] : [6, 3]);

/** What every chart has: axes, a cursor that all charts of a board share, a drag that chooses a range. */
export function frame({ width, height, range, times, onZoom, hooks }) {
  const axis = { stroke: colour("soft"), font: "11px system-ui, sans-serif", ticks: { show: false } };
  const lines = { stroke: colour("grid"), width: 1 };
  return {
    width, height, padding: [8, 10, 0, 0],
    legend: { show: false },
    cursor: {
      sync: { key: "board", setSeries: false }, y: false, drag: { x: true, y: false, setScale: false, dist: 8 },
      points: { size: 7 },
    },
    axes: [
      { ...axis, grid: { show: false }, size: 26, gap: 6, space: 64, values: (_, splits) => splits.map(times) },
      { ...axis, grid: lines, gap: 6, size: (u, values) => axisSize(u, values) },
    ],
    hooks: {
      ...hooks,
      setSelect: [(u) => {
        if (u.select.width < 8) return;
        onZoom(u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x"));
        u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
      }],
    },
    scales: { x: { time: true, range: () => range() } },
  };
}

function axisSize(u, values) {
  const longest = (values ?? []).reduce((most, text) => (text.length > most.length ? text : most), "");
  u.ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
  return Math.ceil(u.ctx.measureText(longest).width / devicePixelRatio) + 14;
}

/** The arrow keys move the cursor of a chart that has the focus. */
export function keys(element, plot) {
  element.addEventListener("keydown", (event) => {
    const u = plot();
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (!u || (move === undefined && event.key !== "Escape")) return;
    event.preventDefault();
    if (event.key === "Escape") {
      u.setCursor({ left: -10, top: -10 });
      return;
    }
    const last = u.data[0].length - 1;
    const from = u.cursor.idx ?? (move > 0 ? -1 : last + 1);
    const index = Math.max(0, Math.min(last, from + move));
    u.setCursor({ left: u.valToPos(u.data[0][index], "x"), top: u.bbox.height / devicePixelRatio / 2 });
  });
}
