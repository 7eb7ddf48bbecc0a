// The nearest spectrum with a bounded condition number, for any bound.
"use strict";

// σ clipped to [μ, cμ], and μ: wellcond.spectrum.nearest_rule.  g increases and is linear between its breakpoints.
const nearest = (sigma, c) => {
  const sum = (terms) => terms.reduce((a, b) => a + b, 0);
  const g = (mu) => sum(sigma.map((s) => Math.max(mu - s, 0))) - c * sum(sigma.map((s) => Math.max(s - c * mu, 0)));
  const least = Math.min(...sigma);
  if (Math.max(...sigma) <= c * least) return { mu: least, clipped: sigma };
  const knots = [...sigma, ...sigma.map((s) => s / c)].sort((a, b) => a - b);
  const right = Math.max(1, knots.findIndex((knot) => g(knot) >= 0));
  const [low, high] = knots.slice(right - 1, right + 1);
  const mu = g(high) > g(low) ? low - (g(low) * (high - low)) / (g(high) - g(low)) : low;
  return { mu, clipped: sigma.map((s) => Math.min(Math.max(s, mu), c * mu)) };
};

const STEPS = 240; // from κ = 1 to that of the spectrum, evenly in log κ

// data: {sigma}, descending and positive, {bound}, where the slider stands at first, and the colours of the two spectra.
KINDS.nearest = {
  slider: ({ sigma, bound }) => {
    return { label: "bound on κ", steps: STEPS, start: Math.round((STEPS * Math.log(bound)) / Math.log(sigma[0] / sigma.at(-1))) };
  },
  look: ({ sigma, colors }, position) => {
    const norm = (x) => Math.hypot(...x);
    const c = (sigma[0] / sigma.at(-1)) ** (position / STEPS);
    const { mu, clipped } = nearest(sigma, c);
    const moved = norm(sigma.map((s, i) => s - clipped[i])) / norm(sigma);
    const percent = (share) => `${(100 * share).toFixed(0)} %`;
    return {
      c,
      mu,
      clipped,
      moved,
      value: `1 + τ = ${c.toFixed(2)}`,
      legend: [
        { name: "before", color: colors[0], text: `κ = ${(sigma[0] / sigma.at(-1)).toFixed(2)}` },
        { name: "after", color: colors[1], text: `κ = ${(Math.max(...clipped) / Math.min(...clipped)).toFixed(2)}` },
        { name: "‖S − S⋆‖ / ‖S‖", color: "transparent", text: percent(moved) },
        { name: "‖S⋆‖ / ‖S‖", color: "transparent", text: percent(norm(clipped) / norm(sigma)) },
      ],
    };
  },
  draw: ({ sigma, colors }, { c, mu, clipped }, width) => {
    const indices = sigma.map((_, i) => i + 1);
    const y = { from: 0, to: 1.05 * sigma[0], ticks: [0, 0.2, 0.4, 0.6, 0.8, 1].map((t) => t * sigma[0]), label: "σᵢ" };
    const x = { from: 0.5, to: sigma.length + 0.5, ticks: indices, label: "index i" };
    const { X, Y, area, element } = axes(width, 260, x, y);
    area.append(
      svg("rect", { class: "band", x: X(x.from), width: X(x.to) - X(x.from), y: Y(c * mu), height: Y(mu) - Y(c * mu) }),
      ...indices.map((i) => svg("line", { class: "moved", x1: X(i), x2: X(i), y1: Y(sigma[i - 1]), y2: Y(clipped[i - 1]) })),
      ...[sigma, clipped].flatMap((spectrum, k) =>
        spectrum.map((s, i) => {
          const dot = svg("circle", { class: k ? "full" : "hollow", cx: X(i + 1), cy: Y(s), r: k ? 4 : 6 });
          dot.style.setProperty("--series", colors[k]);
          return dot;
        }),
      ),
    );
    return element;
  },
};
