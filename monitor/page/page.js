// Keeps the status page fresh: fetches it again, puts in what has changed, draws the charts.
//
// The server renders; nothing is rendered here but charts, so both ways of reading the page say the same. Nodes are
// patched in place: scroll position, selection, focus and open details stay. Nothing from the status becomes HTML
// here: what comes is parsed without running anything, and only elements, attributes and texts are carried over.
"use strict";

const EVERY_MS = 2000;
const PATIENCE_MS = 5000; // one answer; a monitor that is stopped accepts a connection and says nothing

let answeredAt = performance.now();
let shownAt = Number(document.getElementById("at").dataset.ms);

// Freshness

function patch(now, next) {
  if (now.isEqualNode(next) || (now.nodeType === 1 && now.classList.contains("plot"))) return;
  if (now.nodeType !== next.nodeType || now.nodeName !== next.nodeName) {
    now.replaceWith(next.cloneNode(true));
    return;
  }
  if (now.nodeType !== 1) {
    now.nodeValue = next.nodeValue;
    return;
  }
  for (const { name } of [...now.attributes])
    if (!next.hasAttribute(name) && name !== "open") now.removeAttribute(name);
  for (const { name, value } of next.attributes) if (now.getAttribute(name) !== value) now.setAttribute(name, value);
  const was = [...now.childNodes];
  const is = [...next.childNodes];
  is.forEach((child, index) => (index < was.length ? patch(was[index], child) : now.append(child.cloneNode(true))));
  was.slice(is.length).forEach((child) => child.remove());
}

async function refresh() {
  const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (fresh.querySelector("main") === null) throw new Error("no status page");
  answeredAt = performance.now();
  shownAt = Number(fresh.getElementById("at").dataset.ms);
  document.title = fresh.title;
  for (const part of ["header", "main", "footer"]) patch(document.querySelector(part), fresh.querySelector(part));
  document.body.classList.remove("silent");
  draw();
}

function complain() {
  const silent = Math.round((performance.now() - answeredAt) / 1000);
  const since = new Date(shownAt).toISOString().slice(11, 19);
  const note = document.getElementById("silent");
  note.textContent =
    `The monitor does not answer. What stands below is ${silent} s old, from ${since} UTC, and may be wrong by now. ` +
    "Ask the cluster itself: kvcli status";
  note.hidden = false;
  document.body.classList.add("silent");
}

async function run() {
  for (;;) {
    await new Promise((done) => setTimeout(done, EVERY_MS));
    if (document.hidden) continue;
    try {
      await refresh();
    } catch {
      complain();
    }
  }
}

// Charts

const plots = new Map();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function amount(value, unit) {
  if (value === null || value === undefined) return "\u2013";
  if (unit === "ms" && value >= 1000) return `${+(value / 1000).toFixed(2)} s`;
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : value === 0 ? 0 : 2;
  const shown = value >= 1e6 ? `${+(value / 1e6).toFixed(2)}M` : value >= 1e5 ? `${Math.round(value / 1e3)}k` :
    (+value.toFixed(digits)).toLocaleString("en-US");
  return unit === "ms" ? `${shown} ms` : shown;
}

function options(figure, box) {
  const unit = figure.dataset.unit;
  const looks = {
    main: { stroke: colour("accent"), width: 1.5, fill: unit === "ms" ? undefined : colour("accent-fill") },
    minor: { stroke: colour("soft"), width: 1.25, dash: [2, 3] },
    bad: { stroke: colour("critical"), width: 1.5 },
  };
  const series = JSON.parse(figure.dataset.series).map(([label, look]) => ({
    label, ...looks[look], points: { show: false }, value: (_, value) => amount(value, unit),
  }));
  const axis = {
    stroke: colour("soft"), font: `11.5px ${getComputedStyle(document.body).fontFamily}`,
    grid: { stroke: colour("line"), width: 1 }, ticks: { show: false },
  };
  return {
    width: box.clientWidth,
    height: box.clientHeight,
    tzDate: (at) => uPlot.tzDate(new Date(at * 1e3), "Etc/UTC"),
    padding: [8, 16, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { setScale: false, x: false }, points: { size: 6 } },
    scales: { y: { range: (_, low, high) => [0, Math.max(high * 1.1, 1)] } },
    series: [{}, ...series],
    axes: [
      { ...axis, size: 22, gap: 4, grid: { show: false }, values: "{HH}:{mm}", space: 70,
        incrs: [60, 120, 300, 600, 900, 1800] },
      { ...axis, size: unit === "ms" ? 56 : 48, gap: 6, space: 36,
        values: (_, ticks) => ticks.map((tick) => amount(tick, unit)) },
    ],
    hooks: { setCursor: [(plot) => told(plot, figure)] },
  };
}

// Under the pointer: the values of that time, in the place of the series' names.
function told(plot, figure) {
  const keys = figure.querySelectorAll(".key");
  JSON.parse(figure.dataset.series).forEach(([label], index) => {
    const at = plot.cursor.idx;
    const value = at === null || at === undefined ? "" : ` ${amount(plot.data[index + 1][at], figure.dataset.unit)}`;
    if (keys[index].textContent !== label + value) keys[index].textContent = label + value;
  });
}

function draw() {
  if (typeof uPlot === "undefined") return; // the drawing of the server stays
  for (const figure of document.querySelectorAll("figure")) {
    const box = figure.querySelector(".plot");
    const points = figure.dataset.points;
    const frame = box.parentElement;
    let drawn = plots.get(figure.id);
    frame.classList.toggle("drawn", points !== undefined);
    if (points === undefined) {
      drawn?.plot.destroy();
      plots.delete(figure.id);
      continue;
    }
    if (drawn === undefined) {
      drawn = { plot: new uPlot(options(figure, box), JSON.parse(points), box), points };
      plots.set(figure.id, drawn);
    } else if (drawn.points !== points) {
      drawn.plot.setData(JSON.parse(points));
      drawn.points = points;
    }
    told(drawn.plot, figure);
  }
}

function redraw() {
  for (const { plot } of plots.values()) plot.destroy();
  plots.clear();
  draw();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
const sizes = new ResizeObserver((boxes) => {
  for (const { target } of boxes)
    plots.get(target.closest("figure").id)?.plot.setSize({ width: target.clientWidth, height: target.clientHeight });
});
for (const box of document.querySelectorAll(".plot")) sizes.observe(box);
document.addEventListener("visibilitychange", () => document.hidden || refresh().catch(complain));

draw();
run();
