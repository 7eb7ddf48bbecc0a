"""T1: the defect of one step, against the smallest singular value and against the condition number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from study.statistics.verdicts import Check, Guide, Lines, Panel, Reading, ratio, slope_between
from study.theory import flows
from study.theory.flows import TAU, Field, Method, exact, integrate, matrix
from study.theory.problems import draw, geometric, norms, point, repeated


def constant(Z: Tensor) -> Field:
    """F(W) = Z."""
    return lambda W, k: Z


def step_bound(sigma: Tensor, mu: float) -> float:
    """C_R of Theorem A at singular values σ: (3 + 5/4 (κ - 1)) μ²/σ_min."""
    kappa = float(sigma.max() / sigma.min())
    return (3 + 1.25 * (kappa - 1)) * mu**2 / float(sigma.min())


def one_step(seeds: int = 3, points: int = 5, *, follows: Callable[..., Method] = exact) -> Check:
    """T1. The defect of a step against the smallest singular value and against the scale."""
    random, h = draw(seeds), 1e-4
    smallest = np.geomspace(1, 10**-2.5, 2 * points + 1)
    inside = np.linspace(1, 1 + TAU, points)
    Spectrum = Callable[[float], Tensor]
    cases: list[tuple[str, str, Spectrum, str, np.ndarray]] = [  # panel, series, spectrum at x, retraction, all x
        ("small", "all σ = x, QR", lambda x: x * geometric(1.0), "qr", smallest),
        ("small", "σ from 1 to x, polar", lambda x: geometric(1 / x), "polar", smallest),
        ("small", "σ from 1 to x, QR", lambda x: geometric(1 / x), "qr", smallest),
        ("inside", "QR", lambda x: geometric(x), "qr", inside),
        ("inside", "polar", lambda x: geometric(x), "polar", inside),
    ]
    lines = Lines()
    worst = 0.0
    for panel, series, sigma, retraction, xs in cases:
        start = flows.joined(point(random, sigma(float(x))) for x in xs)
        field = repeated(random.unit, len(xs))
        method = follows(retraction=retraction)
        moved = integrate(method, constant(field), start, lr=h, steps=1)
        tangent = field - flows.normal_part(start, field)
        defects = norms((moved - matrix(start) - h * tangent) / h**2, seeds)
        for x, values in zip(xs, defects, strict=True):
            unit = defects[0] if panel == "inside" else [1.0] * seeds
            lines.add(panel, series, float(x), list(np.divide(values, unit)))
            worst = max(worst, max(values) / step_bound(sigma(float(x)), 1.0))
    expected = {"all σ = x, QR": (-1, 0.05), "σ from 1 to x, polar": (-1, 0.2), "σ from 1 to x, QR": (-2, 0.3)}
    measured = []
    for series, (exponent, tolerance) in expected.items():
        line = lines.line("small", series)
        measured.append(slope_between(f"slope, {series}", line[line["x"] < 0.06], exponent, tolerance))
    for x in inside:  # C_R over its value at κ = 1
        lines.add("inside", "bound of Theorem A", float(x), [float(x * (1 + 1.25 * (x - 1) / 3))])
    allowed = (1 + TAU) * (1 + 1.25 * TAU / 3)
    for series in ("QR", "polar"):
        growth = ratio(lines.line("inside", series), 1 + TAU, 1.0)
        what = f"defect at κ = {1 + TAU:g} over κ = 1, {series}"
        measured.append(Reading(what, f"≤ {allowed:.2f}", 0, allowed, growth))
    measured.append(Reading("largest defect over C_R h²", "≤ 1", 0, 1, worst))
    return Check(
        "T1",
        tuple(measured),
        (
            Panel(
                "small",
                "small singular values",
                "x",
                "defect / h²",
                (Guide("σ from 1 to x, polar", -1), Guide("σ from 1 to x, QR", -2, high=0.06)),
            ),
            Panel("inside", "inside the constraint, σ_max = 1", "κ(S)", "defect / defect at κ = 1", log=""),
        ),
        lines.frame,
    )
