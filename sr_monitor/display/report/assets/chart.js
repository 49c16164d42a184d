"use strict";
// Diagrams with two axes: lines with bands, and bars.

const MARGIN = { left: 46, right: 14, top: 14, bottom: 40 };

// Axes over a host element: {svg, x, y, width, height}. `axis` has domain, label, isLog, zero, ticks.
function makeAxes(host, height, xAxis, yAxis) {
  const width = Math.max(220, host.clientWidth);
  const right = width - MARGIN.right, bottom = height - MARGIN.bottom;
  const x = makeScale(xAxis.domain, [MARGIN.left, right], xAxis.isLog, xAxis.zero);
  const y = makeScale(yAxis.domain, [bottom, MARGIN.top], yAxis.isLog);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": yAxis.label });
  const ticksOf = (axis, most) => (axis.isLog ? logTicks : linearTicks)(axis.domain, most);
  for (const tick of ticksOf(yAxis, height / 42)) {
    svg.append(
      draw("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(tick), y2: y(tick) }),
      draw("text", { x: MARGIN.left - 8, y: y(tick) + 4, "text-anchor": "end" }, compact(tick)),
    );
  }
  const xTicks = ticksOf(xAxis, width / 80).map((tick) => [tick, compact(tick)]);
  if (xAxis.zero) xTicks.unshift([xAxis.zero, "0"]);
  let last = -Infinity;
  for (const [tick, label] of xTicks) {
    if (x(tick) - last < 30) continue;
    last = x(tick);
    svg.append(
      draw("line", { class: "axis", x1: last, x2: last, y1: bottom, y2: bottom + 4 }),
      draw("text", { x: last, y: bottom + 17, "text-anchor": "middle" }, label),
    );
  }
  svg.append(
    draw("line", { class: "axis", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }),
    draw("text", { class: "label", x: (MARGIN.left + right) / 2, y: height - 5, "text-anchor": "middle" }, xAxis.label),
  );
  host.replaceChildren(svg);
  return { host, svg, x, y, width, height, bottom, right };
}

// Points to the data of an SVG path; what is no number leaves a gap.
function pathOf(axes, xs, ys) {
  let data = "", isDown = false;
  xs.forEach((value, index) => {
    const there = isNumber(value) && isNumber(ys[index]);
    if (there) data += `${isDown ? "L" : "M"}${axes.x(value).toFixed(1)},${axes.y(ys[index]).toFixed(1)}`;
    isDown = there;
  });
  return data;
}

function drawLine(axes, xs, ys, attributes) {
  axes.svg.append(draw("path", { d: pathOf(axes, xs, ys), ...attributes }));
}

function drawBand(axes, xs, low, high, color) {
  const whole = xs.map((_, index) => index).filter((index) => isNumber(low[index]) && isNumber(high[index]));
  if (whole.length < 2) return;
  const pick = (values) => whole.map((index) => values[index]);
  const up = pathOf(axes, pick(xs), pick(high));
  const back = pathOf(axes, pick(xs).reverse(), pick(low).reverse()).replace("M", "L");
  axes.svg.append(draw("path", { class: "band", d: `${up}${back}Z`, fill: color }));
}

function drawDots(axes, xs, ys, color, radius = 3) {
  xs.forEach((value, index) => {
    if (isNumber(value) && isNumber(ys[index])) {
      axes.svg.append(draw("circle", { cx: axes.x(value), cy: axes.y(ys[index]), r: radius, fill: color }));
    }
  });
}

function drawAcross(axes, value) {
  axes.svg.append(draw("line", { class: "dotted", x1: MARGIN.left, x2: axes.right, y1: axes.y(value), y2: axes.y(value) }));
}

// A vertical line that the slider moves.
function addCursor(axes) {
  const line = draw("line", { class: "cursor", y1: MARGIN.top, y2: axes.bottom, visibility: "hidden" });
  axes.svg.append(line);
  return (value) => {
    line.setAttribute("visibility", isNumber(value) ? "visible" : "hidden");
    if (isNumber(value)) for (const end of ["x1", "x2"]) line.setAttribute(end, axes.x(value));
  };
}

// The nearest of the places to the pointer: `say` writes its tip, `pick` is called by a click.
function addPointer(axes, places, say, pick) {
  const tip = make("div", { class: "tip", hidden: "" });
  axes.host.append(tip);
  const nearest = (event) => {
    const box = axes.svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * axes.width;
    return places.reduce((best, place) => (Math.abs(axes.x(place) - at) < Math.abs(axes.x(best) - at) ? place : best));
  };
  axes.svg.style.cursor = "pointer";
  axes.svg.addEventListener("pointermove", (event) => {
    const place = nearest(event);
    tip.replaceChildren(...say(place).map((line) => make("div", {}, line)));
    tip.hidden = false;
    const left = (axes.x(place) / axes.width) * axes.host.clientWidth + 10;
    tip.style.left = `${Math.max(0, Math.min(left, axes.host.clientWidth - tip.offsetWidth))}px`;
  });
  axes.svg.addEventListener("pointerleave", () => { tip.hidden = true; });
  axes.svg.addEventListener("click", (event) => pick(nearest(event)));
}

// The domain of values, with some air; a flat one is opened.
function domainOf(values, isLog, least = null) {
  let [low, high] = extent(isLog ? values.filter((value) => value > 0) : values);
  if (low === Infinity) return [isLog ? 0.1 : 0, 1];
  if (isLog) return low === high ? [low / 2, high * 2] : [low / 1.06, high * 1.06];
  const air = (high - low) * 0.06 || Math.abs(high) * 0.1 || 0.5;
  const bottom = low >= 0 && low - air < 0 ? 0 : low - air;
  return [least === null ? bottom : Math.min(least, bottom), high + air];
}
