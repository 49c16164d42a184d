"use strict";
// What every figure uses: elements, numbers in words, scales and their ticks.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  // Strings become text nodes, never markup: prompts come from strangers.
  element.append(...children.filter((child) => child !== null));
  return element;
}

function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function byId(id) {
  return document.getElementById(id);
}

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

function inWords(value) {
  if (!isNumber(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1).replace("e+", "e");
  return size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : size >= 0.1 ? value.toFixed(2) : value.toFixed(4).replace(/0+$/, "");
}

function compact(value) {
  for (const [unit, size] of [["T", 1e12], ["B", 1e9], ["M", 1e6]]) {
    if (Math.abs(value) >= size) return `${+(value / size).toPrecision(3)}${unit}`;
  }
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(0);
  return Number.isInteger(value) ? value.toLocaleString("en") : String(+value.toPrecision(3));
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (isNumber(value)) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  return [low, high];
}

// A scale maps [low, high] to [from, to]; on a logarithmic one, 0 has a place of its own at the end.
function makeScale([low, high], [from, to], isLog, zero = null) {
  const of = isLog ? (value) => Math.log(value > 0 ? value : zero ?? low) : (value) => value;
  const start = of(zero ?? low), end = of(high);
  return (value) => from + (end === start ? 0.5 : (of(value) - start) / (end - start)) * (to - from);
}

function linearTicks([low, high], most) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const ticks = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index++) {
    ticks.push(+(index * step).toPrecision(12));
  }
  return ticks;
}

function logTicks([low, high], most) {
  for (const factors of [[1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
    for (const every of factors.length > 1 ? [1] : [1, 2, 3, 4, 6]) {
      const ticks = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += every) {
        ticks.push(...factors.map((factor) => factor * 10 ** power));
      }
      const inside = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
      if (inside.length <= most) return inside.map((tick) => +tick.toPrecision(3));
    }
  }
  return [low, high];
}
