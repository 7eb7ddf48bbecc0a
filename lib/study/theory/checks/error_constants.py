"""T7: the error as a function of ε and h together, and what its constants depend on."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from study.statistics.verdicts import Check, Guide, Lines, Panel, Reading, least_squares, slope_between
from study.theory import flows
from study.theory.flows import Method, exact, integrate, matrix
from study.theory.problems import draw, geometric, lengths, norms, point, repeated, rotating

WIDE = exact(2.0)
MODELS = {"sum": 1, "squares": 2}
"""The exponent p of the model eᵖ = c₀ᵖ + (c₁ ε)ᵖ + (c₂ h)ᵖ."""


def fit_constants(eps: np.ndarray, h: np.ndarray, e: np.ndarray, p: int) -> tuple[np.ndarray, float]:
    """c₀, c₁, c₂ of least squared relative residual of eᵖ, and the largest relative residual of e."""
    A = np.column_stack([np.ones_like(e), eps, h]) ** p
    c, _ = least_squares(A / (e**p)[:, None], np.ones_like(e))
    residual = np.abs((A @ c) ** (1 / p) / e - 1)
    return np.sign(c) * np.abs(c) ** (1 / p), float(residual.max())


def constants(seeds: int = 3, points: int = 5, *, follows: Method = WIDE) -> Check:
    """T7. The error as a function of ε and h together: which constants it has, and what they depend on."""
    random, hs, sizes = draw(seeds), lengths(points, 0.1), [0.001 * 4.0**k for k in range(points)]
    settings = [(kappa, 1.0) for kappa in (1.02, 1.1, 1.25, 1.5, 1.8)] + [(1.1, s) for s in (2.0, 4.0, 8.0)]
    cases = [(kappa, s, eps) for kappa, s in settings for eps in sizes]

    def sigma(kappa: float, s: float) -> Tensor:
        return s * geometric(kappa) / geometric(kappa).square().mean().sqrt()

    start = flows.joined(point(random, sigma(kappa, s)) for kappa, s, _ in cases)
    turn = rotating(random, len(cases))
    scale, size = (
        torch.tensor(column, dtype=torch.float64).repeat_interleave(seeds)[:, None, None]
        for column in list(zip(*cases, strict=True))[1:]
    )
    push = size * repeated(random.unit, len(cases))

    def field(W: Tensor, k: int) -> Tensor:
        return turn(W, k) / scale + push

    solution = flows.reference(field, matrix(start), time=1.0, steps=50)
    errors = np.array([norms(integrate(follows, field, start, lr=h, steps=round(1 / h)) - solution, seeds) for h in hs])
    lines = Lines()
    worst = dict.fromkeys(MODELS, 0.0)
    for model, p in MODELS.items():
        for kappa, s in settings:
            here = [k for k, case in enumerate(cases) if case[:2] == (kappa, s)]
            grid = [np.array(sizes)[None, :], np.array(hs)[:, None]]
            eps, step = (np.broadcast_to(A, (len(hs), len(sizes))).ravel() for A in grid)
            found = [fit_constants(eps, step, errors[:, here, seed].ravel(), p) for seed in range(seeds)]
            worst[model] = max(worst[model], *(residual for _, residual in found))
            for seed, (c, _) in enumerate(found if model == "squares" else ()):
                unit = c[2] * step
                for x, y in zip(c[1] * eps / unit, errors[:, here, seed].ravel() / unit, strict=True):
                    lines.add("collapse", "measured", x, [y], seed)
            for k in (1, 2):
                values = [float(c[k]) for c, _ in found]
                name = f"c{'₀₁₂'[k]}, {model}"
                if s == 1:
                    lines.add("kappa", name, kappa, values)
                if kappa == 1.1:
                    lines.add("scale", name, s, values)
    collapsed = lines.line("collapse", "measured")["x"]
    for x in np.geomspace(collapsed.min(), collapsed.max(), 50):
        lines.add("collapse", "√(1 + x²)", x, [math.hypot(1, x)])
        lines.add("collapse", "1 + x", x, [1 + x])
    for j, h in enumerate(hs):
        for case, values in zip(cases, errors[j].tolist(), strict=True):
            if case[:2] == (1.1, 1.0):
                lines.add("surface", f"ε = {case[2]:.2g}", h, values)
    measured = []
    for model, residual, tolerance in (("sum", 0.3, 0.2), ("squares", 0.03, 0.1)):
        what = f"largest relative residual, {model}"
        measured.append(Reading(what, f"≤ {residual:g}", 0, residual, worst[model]))
        for name, by_scale in ((f"c₁, {model}", 0), (f"c₂, {model}", -1)):
            measured.append(slope_between(f"slope of {name} in κ", lines.line("kappa", name), 0, 0.1))
            measured.append(slope_between(f"slope of {name} in s", lines.line("scale", name), by_scale, tolerance))
    return Check(
        "T7",
        tuple(measured),
        (
            Panel("surface", "the grid at κ = 1.1, s = 1", "step h", "error at t = 1"),
            Panel("collapse", "all κ and s on one curve", "c₁ ε / c₂ h", "error / c₂ h", lines=False),
            Panel("kappa", "the constants, s = 1", "κ(S)", "fitted constants", log=""),
            Panel("scale", "the constants, κ = 1.1", "scale s", "fitted constants", (Guide("c₂, squares", -1),)),
        ),
        lines.frame,
    )
