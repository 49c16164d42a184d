"use strict";
// Planes through three prompts. A picture's channels are how close the output is to A's, B's and C's.

// Yellow, vermilion and blue: apart in lightness, too, for readers who confuse red and green.
const SAFE = [[240, 228, 66], [213, 94, 0], [0, 89, 178]];
const planes = new Map(); // by address: what is drawn, in each palette

async function loadPlane(url) {
  if (!planes.has(url)) {
    const image = new Image();
    image.src = url;
    planes.set(url, image.decode().then(() => ({ rgb: canvasOf(image), safe: recoloured(canvasOf(image)) })));
  }
  return planes.get(url);
}

function canvasOf(image) {
  const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  canvas.getContext("2d", { willReadFrequently: true }).drawImage(image, 0, 0);
  return canvas;
}

// The mean of the corners' colours, weighted by closeness squared, as dark as the closest is far.
function recoloured(canvas) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const picture = context.getImageData(0, 0, canvas.width, canvas.height), data = picture.data;
  for (let at = 0; at < data.length; at += 4) {
    const close = [data[at] / 255, data[at + 1] / 255, data[at + 2] / 255];
    const weights = close.map((value) => value * value);
    const total = weights[0] + weights[1] + weights[2] || 1, light = Math.max(...close);
    for (let channel = 0; channel < 3; channel++) {
      const mean = weights.reduce((sum, weight, corner) => sum + weight * SAFE[corner][channel], 0) / total;
      data[at + channel] = mean * light;
    }
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

// Paint once the picture is there, unless something else was wanted since.
function paint(canvas, slice, palette) {
  canvas.wanted = slice ? slice.png : null;
  if (!slice) {
    canvas.width = canvas.width; // empties it
    return Promise.resolve();
  }
  return loadPlane(slice.png).then((plane) => {
    if (canvas.wanted !== slice.png) return;
    const source = plane[palette];
    canvas.width = source.width;
    canvas.height = source.height;
    canvas.getContext("2d").drawImage(source, 0, 0);
  });
}

// Rings at A, B and C; an arrowhead at the edge points to one outside.
function marksOf(slice) {
  if (!slice) return [];
  const [low, high] = slice.span, size = 200;
  const points = { A: [0, 0], B: [1, 0], C: [slice.foot, 1] };
  return Object.entries(points).flatMap(([name, [u, v]]) => {
    if (!isNumber(u)) return [];
    const x = (size * (u - low)) / (high - low), y = size * (1 - (v - low) / (high - low));
    const inX = Math.max(9, Math.min(size - 9, x)), inY = Math.max(9, Math.min(size - 9, y));
    const isInside = x >= 0 && x <= size && y >= 0 && y <= size;
    const turn = (Math.atan2(y - inY, x - inX) * 180) / Math.PI;
    const mark = isInside
      ? draw("circle", { cx: x, cy: y, r: 4.5 })
      : draw("path", { d: "M-4,-5L5,0L-4,5Z", transform: `translate(${inX},${inY}) rotate(${turn})` });
    const up = name === "C" ? -13 : 13;
    const side = name === "A" ? -8 : name === "B" ? 8 : 0;
    return [mark, draw("text", { x: (isInside ? x : inX) + side, y: (isInside ? y : inY) + up }, name)];
  });
}
