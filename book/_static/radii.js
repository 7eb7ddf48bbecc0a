// Images withstood against deployed size, at any radius of the attack that was measured.
"use strict";

// data: {radii, start, ticks, curves: [{name, color, sizes, rates, stds}], others: the same}; rates[k] and
// their standard deviations over seeds are those at radii[k], in %; start is the place of the radius that the picture shows.
KINDS.radii = {
  slider: ({ radii, start }) => ({ label: "radius of the attack", steps: radii.length - 1, start }),
  look: ({ radii, curves }, position) => ({
    position,
    value: `ε = ${radii[position]}`,
    legend: curves.map(({ name, color, rates }) => {
      const ends = [Math.min(...rates[position]), Math.max(...rates[position])].map((rate) => rate.toFixed(0));
      return { name, color, text: `${[...new Set(ends)].join(" to ")} %` };
    }),
  }),
  draw: ({ ticks, curves, others }, { position }, width) => {
    const x = { from: 4.5, to: 118, ticks, label: "deployed parameters, % of the dense network", log: true };
    const y = { from: 0, to: 100, ticks: [0, 20, 40, 60, 80, 100], label: "images withstood, %" };
    const { X, Y, area, element } = axes(width, 330, x, y);
    const bars = ({ sizes, rates, stds }) =>
      sizes.map((size, i) => {
        const [rate, std] = [rates[position][i], stds[position][i]];
        return svg("line", { x1: X(size), x2: X(size), y1: Y(Math.max(rate - std, 0)), y2: Y(Math.min(rate + std, 100)) });
      });
    const dots = (points, r) =>
      points.sizes.map((size, i) => svg("circle", { cx: X(size), cy: Y(points.rates[position][i]), r }));
    area.append(svg("g", { class: "others" }, ...dots(others, 3)));
    for (const curve of curves) {
      const points = curve.sizes.map((size, i) => `${X(size)},${Y(curve.rates[position][i])}`).join(" ");
      const group = svg("g", { class: "curve" }, svg("polyline", { points }), ...bars(curve), ...dots(curve, 4));
      group.style.setProperty("--series", curve.color);
      area.append(group);
    }
    return element;
  },
};
