// Drawing for the figures with a slider: elements of SVG, and axes with their ticks.
"use strict";

const svg = (name, attributes, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
  element.append(...children);
  return element;
};

// An axis {from, to, ticks, label, log} on the way from `low` to `high`, in pixels: x -> its place.
const scale = ({ from, to, log }, low, high) => {
  const of = log ? Math.log : (x) => x;
  return (x) => low + ((of(x) - of(from)) / (of(to) - of(from))) * (high - low);
};

// An empty drawing with axes: the element, the area for what is drawn, and where a value of x and of y is.
const axes = (width, height, x, y) => {
  const [left, right, top, bottom] = [46, width - 8, 26, height - 42];
  const [X, Y] = [scale(x, left, right), scale(y, bottom, top)];
  const grid = [
    ...x.ticks.map((t) => svg("line", { x1: X(t), x2: X(t), y1: top, y2: bottom })),
    ...y.ticks.map((t) => svg("line", { x1: left, x2: right, y1: Y(t), y2: Y(t) })),
  ];
  const words = [
    ...x.ticks.map((t) => svg("text", { x: X(t), y: bottom + 17, "text-anchor": "middle" }, `${t}`)),
    ...y.ticks.map((t) => svg("text", { x: left - 7, y: Y(t) + 4, "text-anchor": "end" }, `${t}`)),
    svg("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, x.label),
    svg("text", { x: 4, y: 14 }, y.label),
  ];
  const area = svg("g", {});
  const size = { viewBox: `0 0 ${width} ${height}`, width, height };
  return { X, Y, area, top, bottom, element: svg("svg", size, svg("g", { class: "grid" }, ...grid), area, ...words) };
};
