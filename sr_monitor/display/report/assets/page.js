"use strict";
// What is shown, and how it is chosen: the run, the measurement, the axis, the colours.

const data = JSON.parse(byId("data").textContent);
const state = { run: 0, frame: 0, pair: 0, axis: "steps", logX: false, logY: false, palette: "rgb", playing: null };
const FIGURES = {
  slope: [slopeFigure, () => Object.keys(data.runs[0].numbers).some((name) => name.startsWith(SLOPE))],
  curves: [curvesFigure, (run) => run.frames.some((frame) => frame.curve)],
  slopes: [slopesFigure, (run) => run.frames.some((frame) => frame.slopes?.length)],
  slices: [slicesFigure, (run) => run.frames.some((frame) => frame.slices?.length)],
  pairs: [pairsFigure, (run) => run.pairs.length > 0],
  groups: [groupsFigure, () => data.groups.length > 0],
};
let moves = [];

function choice(host, options, current, pick) {
  host.append(make("span", {}, ...options.map(([value, label, style]) =>
    make("button", { type: "button", "aria-pressed": String(value === current), "data-value": String(value), onclick: () => pick(value) }, label))));
  if (options[0].length > 2) host.querySelectorAll("button").forEach((button, index) => button.style.setProperty("--own", options[index][2]));
}

function axesThere() {
  return Object.keys(AXES).filter((axis) => data.runs.filter((run) => placesOf(run, axis).some(isNumber)).length === data.runs.length
    && (axis !== "parameters" || data.runs.length > 1 || data.runs[0].isSweep));
}

function renderControls() {
  const runs = data.runs.map((run, index) => [index, run.name, colorOf(index)]);
  byId("legend").replaceChildren();
  if (runs.length > 1) choice(byId("legend"), runs, state.run, (run) => choose({ run }));
  byId("axes").replaceChildren();
  if (axesThere().length > 1) choice(byId("axes"), axesThere().map((axis) => [axis, axis]), state.axis, (axis) => update({ axis, logX: wantsLog(axis) }));
  choice(byId("axes"), [[false, "linear x"], [true, "log x"]], state.logX, (logX) => update({ logX }));
  choice(byId("axes"), [[false, "linear y"], [true, "log y"]], state.logY, (logY) => update({ logY }));
  byId("palette").replaceChildren();
  choice(byId("palette"), [["rgb", "the paper's colours"], ["safe", "for colour-blind readers"]], state.palette, (palette) => update({ palette }));
  document.documentElement.dataset.palette = state.palette;
  byId("slope-hint").textContent = data.runs.length > 1 ? "Choose a run above to see it below." : "A click shows that measurement below.";
}

// Steps that grow by factors are spread evenly by a logarithmic axis.
function wantsLog(axis) {
  const values = data.runs.flatMap((run) => placesOf(run, axis)).filter((value) => isNumber(value) && value > 0).sort((a, b) => a - b);
  const middle = values[Math.floor(values.length / 2)];
  return values.length > 2 && (axis === "parameters" || values.at(-1) / middle > 6);
}

// Draw everything again; a hidden figure shows nothing of this run.
function render() {
  const run = data.runs[state.run], focused = document.activeElement?.closest(".choice")?.id, value = document.activeElement?.dataset?.value;
  renderControls();
  if (focused) byId(focused).querySelector(`[data-value="${value}"]`)?.focus();
  moves = [];
  for (const [id, [figure, isThere]] of Object.entries(FIGURES)) {
    byId(id).hidden = !isThere(run);
    if (isThere(run)) moves.push(figure());
  }
  const slider = byId("slider");
  slider.max = Math.max(0, run.frames.length - 1);
  byId("player").hidden = run.frames.length < 2;
  move();
}

// Show the chosen measurement.
function move() {
  const run = data.runs[state.run], frame = run.frames[state.frame];
  moves.forEach((each) => each());
  if (!frame) return;
  const at = run.steps.indexOf(frame.step), slope = run.numbers[`${SLOPE}median`]?.[at], tokens = run.tokens?.[at];
  const rest = [isNumber(tokens) ? `${compact(tokens)} tokens` : "", isNumber(slope) ? `slope ${inWords(slope)}` : ""].filter(Boolean).join(" · ");
  byId("slider").value = state.frame;
  byId("slider").setAttribute("aria-valuetext", `${nameOf(run, frame)}, ${rest}`);
  byId("now").replaceChildren(make("b", {}, nameOf(run, frame)), rest ? ` · ${rest}` : "");
}

function update(changes) {
  Object.assign(state, changes);
  render();
}

// Choose a run, a measurement by its place or its step, or a pair.
function choose({ run = state.run, frame = null, step = null, pair = null }) {
  const frames = data.runs[run].frames, isNew = run !== state.run;
  const wanted = step ?? (isNew ? data.runs[state.run].frames[state.frame]?.step : null);
  const nearest = () => frames.reduce((best, each, index) => (Math.abs(each.step - wanted) < Math.abs(frames[best].step - wanted) ? index : best), 0);
  state.frame = frame ?? (wanted === null ? Math.min(state.frame, frames.length - 1) : nearest());
  state.pair = pair ?? (isNew ? 0 : state.pair);
  state.run = run;
  if (isNew) render();
  else move();
}

function stop() {
  clearInterval(state.playing);
  state.playing = null;
  byId("play").textContent = "▶";
  byId("play").setAttribute("aria-label", "Play");
}

function play() {
  if (state.playing) return stop();
  const last = data.runs[state.run].frames.length - 1;
  if (state.frame >= last) choose({ frame: 0 });
  byId("play").textContent = "❚❚";
  byId("play").setAttribute("aria-label", "Pause");
  state.playing = setInterval(() => (state.frame < data.runs[state.run].frames.length - 1 ? choose({ frame: state.frame + 1 }) : stop()), 700);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "light" : "dark";
  byId("theme").setAttribute("aria-label", `Switch to ${byId("theme").textContent} colours`);
}

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
setTheme(prefersDark.matches ? "dark" : "light");
prefersDark.addEventListener("change", () => { setTheme(prefersDark.matches ? "dark" : "light"); render(); });
byId("theme").addEventListener("click", () => { setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"); render(); });
byId("slider").addEventListener("input", () => { stop(); choose({ frame: Number(byId("slider").value) }); });
byId("play").addEventListener("click", play);
document.addEventListener("keydown", (event) => {
  const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!way || event.target === byId("slider") || event.altKey || event.ctrlKey || event.metaKey) return;
  stop();
  choose({ frame: Math.max(0, Math.min(data.runs[state.run].frames.length - 1, state.frame + way)) });
});
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; render(); } });
state.axis = axesThere()[0] ?? "steps";
state.logX = wantsLog(state.axis);
const medians = data.runs.flatMap((run) => run.numbers[`${SLOPE}median`] ?? []).filter((value) => isNumber(value) && value > 0);
state.logY = medians.length > 0 && Math.max(...medians) / Math.min(...medians) > 10;
state.frame = data.runs[0].frames.length - 1;
render();
