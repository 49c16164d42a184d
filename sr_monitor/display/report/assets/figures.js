"use strict";
// The figures of the page. Each draws itself from `data` and `state`, and returns what the slider moves.

const SLOPE = "stable_regions/max_slope/";
const AXES = { steps: "optimizer steps", tokens: "tokens", parameters: "parameters" };

function colorOf(index) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--run-${index % 8}`).trim();
}

function mix(color, share) {
  return `color-mix(in srgb, ${color} ${Math.round(share * 100)}%, var(--paper))`;
}

// Where a run's measurements lie on the chosen axis.
function placesOf(run, axis) {
  if (axis === "steps" && run.isSweep) return run.steps.map(() => null);
  return run[axis] ?? run.steps.map(() => null);
}

// The lines on the chosen axis: a run each; on the axis of sizes, the last measurements of all runs.
function linesOf(names) {
  const lines = data.runs.map((run, index) => ({
    index, run, xs: placesOf(run, state.axis), of: (edge) => run.numbers[names[edge]] ?? [],
  }));
  if (state.axis !== "parameters") return lines;
  const sweeps = lines.filter((line) => line.run.isSweep);
  const ends = lines.filter((line) => !line.run.isSweep && isNumber(line.xs.at(-1))).sort((a, b) => a.xs.at(-1) - b.xs.at(-1));
  const joined = { index: ends[0]?.index ?? 0, run: null, ends, xs: ends.map((line) => line.xs.at(-1)), of: (edge) => ends.map((line) => line.of(edge).at(-1)) };
  return ends.length ? [...sweeps, joined] : sweeps;
}

function xAxisOf(lines, isLog) {
  const values = lines.flatMap((line) => line.xs).filter(isNumber), positive = values.filter((value) => value > 0);
  const [low, high] = extent(isLog ? positive : values);
  if (low === Infinity) return { domain: [0, 1], label: AXES[state.axis] };
  if (!isLog || low === high) return { domain: low === high ? [low - 1, high + 1] : [low, high], label: AXES[state.axis] };
  return { domain: [low, high], isLog: true, zero: values.includes(0) ? low / (high / low) ** 0.09 : null, label: `${AXES[state.axis]}, logarithmic` };
}

function slopeFigure() {
  const lines = linesOf({ median: `${SLOPE}median`, q25: `${SLOPE}q25`, q75: `${SLOPE}q75` });
  const values = lines.flatMap((line) => ["q25", "median", "q75"].flatMap((edge) => line.of(edge)));
  const isLog = state.logY && values.every((value) => !isNumber(value) || value > 0);
  const yAxis = { domain: domainOf(values.concat(isLog ? [1] : [0.9]), isLog), isLog, label: "maximum slope" };
  const axes = makeAxes(byId("slope-chart"), window.innerWidth < 600 ? 260 : 340, xAxisOf(lines, state.logX), yAxis);
  const run = data.runs[state.run];
  if (data.runs.length === 1 && run.emerged && state.axis !== "parameters") {
    const [from, to] = run.emerged.map((step) => axes.x(placesOf(run, state.axis)[run.steps.indexOf(step)]));
    axes.svg.prepend(draw("rect", { class: "emerged", x: from, width: Math.max(1.5, to - from), y: MARGIN.top, height: axes.bottom - MARGIN.top }));
    const isRight = to > axes.width * 0.6;
    axes.svg.append(draw("text", { x: isRight ? from - 6 : to + 6, y: MARGIN.top + 10, "text-anchor": isRight ? "end" : "start" }, "regions emerged"));
  }
  drawAcross(axes, 1);
  axes.svg.append(draw("text", { x: axes.right, y: axes.y(1) - 5, "text-anchor": "end" }, "straight line: no regions"));
  for (const line of lines) drawBand(axes, line.xs, line.of("q25"), line.of("q75"), colorOf(line.index));
  for (const line of lines) {
    const color = colorOf(line.index), width = data.runs.length === 1 || line.run === run ? 2.4 : 1.6;
    drawLine(axes, line.xs, line.of("median"), { class: "line", stroke: color, "stroke-width": width, "stroke-dasharray": line.index > 7 ? "6 4" : null });
    if (line.xs.length <= 60) drawDots(axes, line.xs, line.of("median"), color, line.xs.length > 30 ? 2 : 3);
  }
  addPointer(axes, lines.flatMap((line) => line.xs).filter(isNumber), (place) => tipAt(lines, place), (place) => goTo(lines, place));
  const move = addCursor(axes);
  return () => move(placeNow());
}

function tipAt(lines, place) {
  const found = lines.flatMap((line) => {
    const at = line.xs.indexOf(place);
    if (at < 0 || !isNumber(line.of("median")[at])) return [];
    const name = data.runs.length > 1 ? `${(line.run ?? line.ends[at].run).name}: ` : "";
    return [`${name}${inWords(line.of("median")[at])} (${inWords(line.of("q25")[at])} to ${inWords(line.of("q75")[at])})`];
  });
  return [`${place.toLocaleString("en")} ${state.axis}`, ...found];
}

// Go to the measurement at a place of the axis: of the chosen run if it has one there.
function goTo(lines, place) {
  const line = lines.find((each) => each.run === data.runs[state.run] && each.xs.includes(place)) ?? lines.find((each) => each.xs.includes(place));
  const at = line.xs.indexOf(place), run = line.run ?? line.ends[at].run;
  const step = line.run ? run.steps[at] : run.steps.at(-1);
  choose({ run: data.runs.indexOf(run), step });
}

// Where the shown measurement lies on the axis.
function placeNow() {
  const run = data.runs[state.run], frame = run.frames[state.frame];
  if (!frame || (state.axis === "parameters" && !run.isSweep)) return null;
  return placesOf(run, state.axis)[run.steps.indexOf(frame.step)];
}

function alphasOf(curve) {
  return curve.map((_, index) => index / (curve.length - 1));
}

const PATH_AXIS = { domain: [0, 1], label: "alpha: the way from A to B" };

function curvesFigure() {
  const run = data.runs[state.run];
  const top = Math.max(1.1, ...run.frames.flatMap((frame) => (frame.curve ? frame.curve.q75.filter(isNumber) : [])));
  return () => {
    const axes = makeAxes(byId("curves-chart"), 320, PATH_AXIS, { domain: [0, Math.min(top, 3) * 1.03], label: "relative output distance" });
    const color = colorOf(state.run), now = run.frames[state.frame];
    drawLine(axes, [0, 1], [0, 1], { class: "dotted" });
    run.frames.slice(0, state.frame).forEach((frame, index) => {
      const curve = frame.curve?.median ?? [];
      drawLine(axes, alphasOf(curve), curve, { class: "behind", stroke: mix(color, 0.14 + (0.5 * (index + 1)) / state.frame) });
    });
    if (!now?.curve) return;
    const xs = alphasOf(now.curve.median);
    drawBand(axes, xs, now.curve.q25, now.curve.q75, color);
    drawLine(axes, xs, now.curve.median, { class: "line", stroke: color, "stroke-width": 2.6 });
    axes.svg.append(draw("text", { class: "strong", x: MARGIN.left + 8, y: MARGIN.top + 10 }, nameOf(run, now)));
  };
}

function nameOf(run, frame) {
  return run.isSweep ? `${compact(frame.step)} parameters` : `step ${frame.step.toLocaleString("en")}`;
}

function slopesFigure() {
  const run = data.runs[state.run], all = run.frames.flatMap((frame) => frame.slopes ?? []);
  let [low, high] = extent(all);
  high = Math.max(2, high);
  const isLog = low > 0 && high > 8;
  const domain = [isLog ? Math.min(0.9, low) : Math.min(0, low), high * 1.02], bins = 36;
  return () => {
    const slopes = run.frames[state.frame]?.slopes ?? [], counts = new Array(bins).fill(0);
    const bin = makeScale(domain, [0, bins], isLog);
    for (const slope of slopes) if (isNumber(slope)) counts[Math.max(0, Math.min(bins - 1, Math.floor(bin(slope))))]++;
    const xAxis = { domain, isLog, label: isLog ? "maximum slope, logarithmic" : "maximum slope" };
    const axes = makeAxes(byId("slopes-chart"), 320, xAxis, { domain: [0, Math.max(4, ...counts) * 1.05], label: "pairs" });
    const width = (axes.right - MARGIN.left) / bins;
    counts.forEach((count, index) => {
      const top = axes.y(count);
      if (count) axes.svg.append(draw("rect", { class: "bar", x: MARGIN.left + index * width + 0.5, width: width - 1, y: top, height: axes.bottom - top }));
    });
    const upright = (value, attributes) => axes.svg.append(draw("line", { x1: axes.x(value), x2: axes.x(value), y1: MARGIN.top, y2: axes.bottom, ...attributes }));
    upright(1, { class: "dotted" });
    const at = run.steps.indexOf(run.frames[state.frame]?.step), of = (edge) => run.numbers[`${SLOPE}${edge}`]?.[at];
    if (!isNumber(of("median"))) return;
    const [from, to] = [axes.x(of("q25")), axes.x(of("q75"))], color = colorOf(state.run);
    axes.svg.prepend(draw("rect", { class: "band", fill: color, x: from, width: Math.max(1, to - from), y: MARGIN.top, height: axes.bottom - MARGIN.top }));
    upright(of("median"), { stroke: color, "stroke-width": 2.4 });
    const isRight = axes.x(of("median")) > axes.width * 0.7;
    axes.svg.append(draw("text", { class: "strong", x: axes.x(of("median")) + (isRight ? -6 : 6), y: MARGIN.top + 10, "text-anchor": isRight ? "end" : "start" }, `median ${inWords(of("median"))}`));
  };
}

// The films take some of the frames, evenly spread: as many as two rows hold.
function filmOf(run) {
  const having = run.frames.map((frame, index) => [frame, index]).filter(([frame]) => frame.slices);
  const most = Math.min(16, having.length);
  return Array.from({ length: most }, (_, place) => having[Math.round((place * (having.length - 1)) / Math.max(1, most - 1))]);
}

function slicesFigure() {
  const run = data.runs[state.run], film = filmOf(run);
  const count = Math.max(0, ...run.frames.map((frame) => frame.slices?.length ?? 0));
  const cards = Array.from({ length: count }, (_, triple) => {
    const canvas = make("canvas", { role: "img", "aria-label": `slice ${triple}` });
    const marks = draw("svg", { viewBox: "0 0 200 200", "aria-hidden": "true" });
    const texts = make("ul", { class: "texts" });
    const thumbs = film.map(([frame, index]) => {
      const small = make("canvas"), name = nameOf(run, frame);
      paint(small, frame.slices[triple], state.palette);
      return [index, make("button", { type: "button", "aria-label": `slice ${triple}, ${name}`, onclick: () => choose({ frame: index }) }, make("span", { class: "thumb" }, small), compact(frame.step))];
    });
    const strip = make("div", { class: "film" }, ...thumbs.map(([, button]) => button));
    return { canvas, marks, texts, thumbs, card: make("article", { class: "slice" }, make("div", { class: "plane" }, canvas, marks), texts, strip) };
  });
  byId("slices-grid").replaceChildren(...cards.map(({ card }) => card));
  return () => {
    const frame = run.frames[state.frame], said = run.words[frame?.words]?.triples ?? [];
    const shown = film.reduce((best, [, index]) => (index <= state.frame ? index : best), film[0]?.[1]);
    cards.forEach(({ canvas, marks, texts, thumbs }, triple) => {
      const slice = frame?.slices?.[triple];
      paint(canvas, slice, state.palette);
      marks.replaceChildren(...marksOf(slice));
      texts.replaceChildren(...(said[triple] ?? []).map((text, corner) => make("li", {}, make("b", {}, "ABC"[corner]), make("bdi", {}, text))));
      for (const [index, button] of thumbs) button.setAttribute("aria-current", index === shown);
    });
  };
}

function pairsFigure() {
  const run = data.runs[state.run], half = run.pairs.length / 2;
  const words = run.words.at(-1)?.pairs ?? [];
  const buttons = run.pairs.map((pair, place) => {
    const texts = words[place]?.texts ?? [`prompt A of pair ${pair}`, `prompt B of pair ${pair}`];
    const value = make("span", { class: "value" });
    const lines = texts.map((text, side) => make("span", { class: "text", title: text }, make("bdi", {}, side ? "→ " : "", text)));
    const label = words[place]?.label ? `${words[place].label}: ` : "";
    return { place, value, button: make("button", { type: "button", class: "pair", "aria-label": `${label}from ${texts[0]} to ${texts[1]}`, onclick: () => choose({ pair: place }) }, value, ...lines) };
  });
  const list = (title, some) => [make("h3", {}, title), ...some.map(({ button }) => button)];
  const lists = half >= 1 ? [...list("sharpest", buttons.slice(0, Math.ceil(half))), ...list("flattest", buttons.slice(Math.ceil(half)))] : [];
  byId("pairs-list").replaceChildren(...(half >= 1 ? lists : list("all that count", buttons)));
  const top = Math.min(3, Math.max(1.1, ...run.frames.flatMap((frame) => (frame.pairs ?? []).flatMap((curve) => (curve ?? []).filter(isNumber)))));
  return () => {
    const now = run.frames[state.frame], color = colorOf(state.run);
    for (const { place, value, button } of buttons) {
      value.textContent = inWords(now?.pairSlopes?.[place]);
      button.setAttribute("aria-pressed", place === state.pair);
    }
    const axes = makeAxes(byId("pair-chart"), 320, PATH_AXIS, { domain: [0, top * 1.03], label: "relative output distance" });
    drawLine(axes, [0, 1], [0, 1], { class: "dotted" });
    run.frames.slice(0, state.frame).forEach((frame, index) => {
      const curve = frame.pairs?.[state.pair] ?? [];
      drawLine(axes, alphasOf(curve), curve, { class: "behind", stroke: mix(color, 0.14 + (0.5 * (index + 1)) / state.frame) });
    });
    const curve = now?.pairs?.[state.pair] ?? [];
    drawLine(axes, alphasOf(curve), curve, { class: "line", stroke: color, "stroke-width": 2.6 });
    const texts = words[state.pair]?.texts ?? [];
    byId("pair-caption").textContent = curve.length ? `Pair ${run.pairs[state.pair]}, ${nameOf(run, now)}: maximum slope ${inWords(now.pairSlopes[state.pair])}. A: ${texts[0] ?? "–"}  B: ${texts[1] ?? "–"}` : "This pair was not measured here.";
  };
}

function groupsFigure() {
  const moves = [], sections = data.groups.map((group) => {
    const hosts = group.charts.map((chart) => [chart, make("div", { class: "chart" })]);
    const run = data.runs[state.run];
    const pictures = run.pictures.filter((picture) => picture.group === group.title && picture.shown.length);
    const images = pictures.map((picture) => {
      const image = make("img", { alt: picture.title }), caption = make("figcaption");
      moves.push(() => {
        const step = run.frames[state.frame]?.step ?? 0;
        const shown = picture.shown.reduce((best, each) => (each.step <= step ? each : best), picture.shown[0]);
        if (image.src !== shown.url) image.src = shown.url;
        caption.textContent = `${picture.title}, ${nameOf(run, shown)}. ${picture.meaning}`;
      });
      return make("figure", {}, image, caption);
    });
    const cards = hosts.map(([chart, host]) => make("article", {}, make("h4", {}, chart.title), make("p", {}, chart.meaning), host));
    return {
      hosts,
      element: make("section", {}, make("h2", {}, group.title), make("p", { class: "lead" }, group.about), images.length ? make("div", { class: "pictures" }, ...images) : null, make("div", { class: "charts" }, ...cards)),
    };
  });
  byId("groups").replaceChildren(...sections.map(({ element }) => element));
  for (const [chart, host] of sections.flatMap(({ hosts }) => hosts)) moves.push(numberChart(chart, host));
  return () => moves.forEach((move) => move());
}

// One small chart: every run's line, or the chosen run's many lines.
function numberChart(chart, host) {
  const isMany = chart.lines.length > 1;
  const drawn = chart.lines.flatMap((names, place) => linesOf(names)
    .filter((line) => !isMany || line.run === null || line.run === data.runs[state.run])
    .map((line) => ({ ...line, share: isMany ? 0.25 + (0.75 * place) / (chart.lines.length - 1) : 1, label: names.label })));
  const values = drawn.flatMap((line) => ["q25", "median", "q75"].flatMap((edge) => line.of(edge))).filter(isNumber);
  const axes = makeAxes(host, 170, xAxisOf(drawn, state.logX), { domain: domainOf(values, false), label: chart.title });
  for (const line of drawn) {
    const color = mix(colorOf(line.index), line.share);
    drawBand(axes, line.xs, line.of("q25"), line.of("q75"), color);
    drawLine(axes, line.xs, line.of("median"), { class: "line", stroke: color, "stroke-width": isMany ? 1.4 : 1.8 });
    if (line.xs.length === 1) drawDots(axes, line.xs, line.of("median"), color);
    const last = line.of("median").at(-1);
    if (isMany && isNumber(last)) axes.svg.append(draw("text", { x: axes.right + 3, y: axes.y(last) + 4 }, line.label));
  }
  const move = addCursor(axes);
  return () => move(placeNow());
}
