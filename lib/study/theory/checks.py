"""Numerical checks of the approximation theorem, each with the number that would have falsified it.

Every check integrates a matrix flow Ẇ = F(W) with the production layers and optimizers (see `flows`), in float64, from
full cores S, and compares with an accurate solution. Its sizes are arguments: `seeds`, the number of random instances,
and `points`, the number of step sizes or other abscissae of a line. SIZES has those of the presets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from study.statistics.verdicts import (
    Check,
    Guide,
    Lines,
    Panel,
    Reading,
    least_squares,
    median_by_x,
    ratio,
    slope,
    slope_between,
)
from study.theory import flows
from study.theory.flows import AUGMENTED, KLS, Field, Method, exact, integrate, matrix, published
from study.theory.network import network_layer
from study.theory.problems import RANK, Draw, M, N, draw, geometric, lengths, norms, point, repeated, rotating
from wellcond import spectrum, stiefel
from wellcond.integrator import Factors

SIZES = {"smoke": {"seeds": 3, "points": 5}, "paper": {"seeds": 5, "points": 6}}
"""Arguments of every check, by preset; "smoke" takes less than a minute for all of them on one core."""

TAU = 0.1
ROTATION = 1.05  # κ of the rotating spectrum: inside the bound 1 + TAU
CONDLR = exact(1 + TAU)
COVERED = (CONDLR, KLS, AUGMENTED)
"""The methods of the theorems: A, its counterpart in the literature, and B."""


# --- T1: one step -----------------------------------------------------------------------------------------------------


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


# --- T2: order in the step --------------------------------------------------------------------------------------------


def order(seeds: int = 3, points: int = 5, *, follows: Sequence[Method] = COVERED) -> Check:
    """T2. Order one in h where the field is tangent; the published step converges to another flow."""
    random = draw(seeds)
    start, field = point(random, geometric(ROTATION)), rotating(random)
    left, right = torch.matrix_exp(random.left), torch.matrix_exp(-random.right)
    solution = left @ matrix(start) @ right
    other = published(1 + TAU)
    lines = Lines()
    for method in (*follows, other):
        for h in lengths(points):
            (errors,) = norms(integrate(method, field, start, lr=h, steps=round(1 / h)) - solution, seeds)
            lines.add("order", method.label, h, errors)
    kappas, h = [ROTATION, 10.0, 1e2, 1e4, 1e6], 0.05
    start = flows.joined(point(random, geometric(kappa)) for kappa in kappas)
    size = matrix(start).norm(dim=(-2, -1), keepdim=True)
    turned = repeated(left, len(kappas)) @ matrix(start) @ repeated(right, len(kappas))
    free = exact(label="no bound on κ(S)")
    for method in (free, KLS, AUGMENTED):
        reached = integrate(method, rotating(random, len(kappas)), start, lr=h, steps=round(1 / h))
        for kappa, errors in zip(kappas, norms((reached - turned) / size, seeds), strict=True):
            lines.add("kappa", method.label, kappa, errors)
    measured = [slope_between(f"slope, {m.label}", lines.line("order", m.label), 1, 0.1) for m in follows]
    measured.append(Reading(f"slope, {other.label}", "0", -0.1, 0.2, *slope(lines.line("order", other.label))))
    growth = ratio(lines.line("kappa", free.label), kappas[-1], kappas[0])
    measured.append(Reading("error at κ = 1e6 over κ = 1.05, no bound", "≤ 1.5", 0, 1.5, growth))
    return Check(
        "T2",
        tuple(measured),
        (
            Panel("order", f"rotation, κ(S) = {ROTATION}", "step h", "error at t = 1", (Guide(follows[0].label, 1),)),
            Panel("kappa", f"every κ(S), h = {h:g}", "κ(S)", "relative error at t = 1"),
        ),
        lines.frame,
    )


# --- T3: the normal component -----------------------------------------------------------------------------------------


def normal_component(seeds: int = 3, points: int = 5, *, follows: Sequence[Method] = COVERED) -> Check:
    """T3. The error grows in proportion to ε above the floor left by the step."""
    random, sizes, h = draw(seeds), 0.2 * 3.0 ** -np.arange(points), 1 / 160
    start = point(random, geometric(ROTATION))
    stacked = flows.joined([start] * points)
    turn = rotating(random, points)
    push = torch.tensor(sizes).repeat_interleave(seeds)[:, None, None] * repeated(random.unit, points)

    def field(W: Tensor, k: int) -> Tensor:
        return turn(W, k) + push

    solution = flows.reference(field, matrix(stacked), time=1.0)
    lines = Lines()
    for method in follows:
        reached = integrate(method, field, stacked, lr=h, steps=round(1 / h))
        for eps, errors in zip(sizes, norms(reached - solution, seeds), strict=True):
            lines.add("normal", method.label, float(eps), errors)
    measured = []
    for method in follows:
        line = lines.line("normal", method.label)
        measured.append(slope_between(f"slope, {method.label}", line[line["x"] >= sizes[2]], 1, 0.1))
    largest = [float(median_by_x(lines.line("normal", method.label)).iloc[-1]) for method in follows]
    measured.append(Reading("largest over smallest error at the largest ε", "1", 1, 1.1, max(largest) / min(largest)))
    return Check(
        "T3",
        tuple(measured),
        (
            Panel(
                "normal",
                f"rotation and a push, h = {h:g}",
                "ε",
                "error at t = 1",
                (Guide(follows[0].label, 1, sizes[2]),),
            ),
        ),
        lines.frame,
    )


def rotated_target(seeds: int = 3, points: int = 5, *, follows: Method = CONDLR) -> Check:
    """T3b. The plateau of the error is quadratic in the angle between the bases and those of the target."""
    random = draw(seeds)
    angles = np.geomspace(0.3, 0.03, points)
    # frames orthogonal to U and V, towards which the start is turned away from the target
    away_U, away_V = (
        stiefel.qr(torch.cat([X, Z[..., :RANK]], -1))[..., RANK:]
        for X, Z in ((random.U, random.left), (random.V, random.right))
    )

    def turned(angle: float) -> Factors:
        cos, sin = math.cos(angle), math.sin(angle)
        W = point(random, geometric(ROTATION))
        return Factors(cos * W.U + sin * away_U, W.S, cos * W.V + sin * away_V)

    start = flows.joined(map(turned, angles))
    A = repeated(matrix(point(random, torch.linspace(ROTATION, 1, RANK, dtype=torch.float64))), points)
    solution = A + math.exp(-1) * (matrix(start) - A)
    lines = Lines()
    for h in lengths(points + 2):
        reached = integrate(follows, lambda W, k: A - W, start, lr=h, steps=round(1 / h))
        for angle, errors in zip(angles, norms(reached - solution, seeds), strict=True):
            lines.add("steps", f"φ = {angle:.2g}", h, errors)
            if h == lengths(points + 2)[-1]:
                lines.add("plateau", "smallest step", float(angle), errors)
    return Check(
        "T3b",
        (slope_between("slope of the plateau in φ", lines.line("plateau", "smallest step"), 2, 0.2),),
        (
            Panel("steps", "from order one to a plateau", "step h", "error at t = 1"),
            Panel("plateau", "the plateau", "angle φ", "error at the smallest step", (Guide("smallest step", 2),)),
        ),
        lines.frame,
    )


# --- T4: stiffness ----------------------------------------------------------------------------------------------------

FREE = (exact(label="USV-Euler, QR"), exact(retraction="polar", label="USV-Euler, polar"), KLS, AUGMENTED)


def stiffness(seeds: int = 3, points: int = 5, *, robust: Sequence[Method] = (KLS, AUGMENTED)) -> Check:
    """T4. A persistent small singular value and noise: what the inverse of S costs, and who does not pay."""
    random, noise, time = draw(seeds), 0.3, 2.0
    kappas = [1.05, 10.0, 100.0, 1e4]
    start = flows.joined(point(random, geometric(kappa)) for kappa in kappas)
    A = matrix(start)
    hs = lengths(points)
    lines = Lines()
    for h in hs:
        generator = torch.Generator().manual_seed(1)
        steps = round(time / h)
        # the same noise for every κ and every method
        draws = noise / math.sqrt(N + M) * torch.randn(steps, seeds, N, M, generator=generator, dtype=A.dtype)

        def field(W: Tensor, k: int, draws: Tensor = draws) -> Tensor:
            return A - W + repeated(draws[k], len(kappas))

        for method in dict.fromkeys([*FREE[:2], *robust]):
            errors = norms(integrate(method, field, start, lr=h, steps=steps) - A, seeds)
            for kappa, values in zip(kappas, errors, strict=True):
                if h == hs[1]:
                    lines.add("kappa", method.label, kappa, values)
                if kappa == kappas[-1]:
                    lines.add("steps", method.label, h, values)
    measured = []
    for method in robust:
        growth = ratio(lines.line("kappa", method.label), kappas[-1], kappas[0])
        what = f"error at κ = 1e4 over κ = {kappas[0]:g}, {method.label}"
        measured.append(Reading(what, "0.7 to 1.4", 0.7, 1.4, growth))
    measured += [slope_between(f"slope, {m.label}", lines.line("steps", m.label), 0.5, 0.15) for m in robust]
    growth = ratio(lines.line("kappa", FREE[1].label), kappas[-1], kappas[0])
    what = f"error at κ = 1e4 over κ = {kappas[0]:g}, {FREE[1].label}"
    measured.append(Reading(what, "≤ 1.4", 0, 1.4, growth))
    euler = lines.line("steps", FREE[0].label)
    measured.append(Reading(f"slope, {FREE[0].label}", "≤ 0.35", -math.inf, 0.35, *slope(euler)))
    last = [float(median_by_x(lines.line("steps", label)).iloc[0]) for label in (FREE[0].label, robust[0].label)]
    what = f"{FREE[0].label} over {robust[0].label}, κ = 1e4, smallest step"
    measured.append(Reading(what, "≥ 2", 2, math.inf, last[0] / last[1]))
    return Check(
        "T4",
        tuple(measured),
        (
            Panel("kappa", f"h = {hs[1]:g}", "κ of the target", "error at t = 2"),
            Panel("steps", "κ = 10⁴", "step h", "error at t = 2", (Guide(FREE[1].label, 0.5),)),
        ),
        lines.frame,
    )


# --- T5: bias ---------------------------------------------------------------------------------------------------------


def bias(seeds: int = 3, points: int = 5, *, follows: Callable[[float], Method] = exact) -> Check:
    """T5. What the constraint costs: the distance of the target from the admissible set, and nothing else."""
    random, kappas, bounds = draw(seeds), np.geomspace(3, 100, points).tolist(), (1 + TAU, 1.5, 2.5)
    targets = torch.cat([matrix(point(random, geometric(kappa))) for kappa in kappas])
    elsewhere = Draw(*(A[seeds:] for A in draw(2 * seeds)))
    start = flows.joined([point(elsewhere, geometric(1.0))] * len(kappas))

    def nearest(kappa: float, bound: float) -> Tensor:
        return spectrum.nearest_rule(geometric(kappa), bound)

    def distance(kappa: float, bound: float) -> float:
        return float(torch.dist(nearest(kappa, bound), geometric(kappa)))

    lines = Lines()
    h, time = 0.25, 100.0
    for bound in bounds:
        reached = integrate(follows(bound), lambda W, k: targets - W, start, lr=h, steps=round(time / h))
        for kappa, errors in zip(kappas, norms(reached - targets, seeds), strict=True):
            lines.add("bias", f"κ(S) ≤ {bound:g}", distance(kappa, bound), errors)
    near = flows.joined(point(random, nearest(kappa, bounds[0])) for kappa in kappas)
    hs = lengths(points)
    for h in hs:
        generator = torch.Generator().manual_seed(2)

        def field(W: Tensor, k: int, generator: torch.Generator = generator) -> Tensor:
            noise = torch.randn(W.shape, generator=generator, dtype=W.dtype)
            return targets - W + 0.3 / math.sqrt(N + M) * noise

        reached = integrate(follows(bounds[0]), field, near, lr=h, steps=round(2 / h))
        for kappa, errors in zip(kappas, norms(reached - targets, seeds), strict=True):
            if kappa in (kappas[0], kappas[-1]):
                floor = distance(kappa, bounds[0])
                lines.add("noise", f"κ(A) = {kappa:.0f}", h, [error / floor - 1 for error in errors])
    line = lines.frame.query("panel == 'bias'")
    quotient = line["y"] / line["x"]
    mild = lines.line("noise", f"κ(A) = {kappas[0]:.0f}")
    measured = (
        Reading("smallest error over distance", "1", 0.999, 1.02, float(quotient.min())),
        Reading("largest error over distance", "1", 0.999, 1.02, float(quotient.max())),
        slope_between(f"slope of the excess under noise, κ(A) = {kappas[0]:.0f}", mild, 1, 0.2),
    )
    return Check(
        "T5",
        measured,
        (
            Panel("bias", "the error that remains", "distance of A", "error", (Guide(f"κ(S) ≤ {bounds[-1]:g}", 1),)),
            Panel(
                "noise",
                f"noise adds O(h), κ(S) ≤ {bounds[0]:g}",
                "step h",
                "error / distance − 1",
                (Guide(f"κ(A) = {kappas[0]:.0f}", 1),),
            ),
        ),
        lines.frame,
    )


# --- T6: the clamp ----------------------------------------------------------------------------------------------------


def clamp(seeds: int = 3, points: int = 5, *, follows: Callable[[float], Method] = exact) -> Check:
    """T6. With no field at all the projection rests, and the mean-centred clip keeps moving."""
    random, bound = draw(seeds), 2.0
    start = point(random, torch.tensor([10.0, 1, 1, 1], dtype=torch.float64))
    lines = Lines()
    methods = (follows(bound), published(bound))
    for method in methods:
        steps = [*range(1, points + 2), 50]
        reached = [integrate(method, lambda W, k: torch.zeros_like(W), start, lr=0.1, steps=k) for k in steps]
        for k, W in zip(steps, reached, strict=True):
            sigma = torch.linalg.svdvals(W)
            lines.add("kappa", method.label, k, (sigma[:, 0] / sigma[:, RANK - 1]).tolist())
            distance = (W - reached[0]).norm(dim=(-2, -1)) / reached[0].norm(dim=(-2, -1))
            lines.add("moved", method.label, k, distance.tolist())
    moved = [float(median_by_x(lines.line("moved", method.label)).iloc[-1]) for method in methods]
    limit = float(median_by_x(lines.line("kappa", methods[1].label)).iloc[-1])
    measured = (
        Reading("κ after 50 clamps of (10, 1, 1, 1), bound 2", "1.5", 1.49, 1.51, limit),
        Reading("moved by 49 more projections, relative", "0", 0, 1e-12, moved[0]),
        Reading("moved by 49 more clamps, relative", "≥ 0.05", 0.05, math.inf, moved[1]),
    )
    return Check(
        "T6",
        measured,
        (
            Panel("kappa", "condition number, bound 2", "steps", "κ(S)", log="x"),
            Panel("moved", "distance moved since the first step", "steps", "relative distance", log="x"),
        ),
        lines.frame,
    )


# --- T7: the constants ------------------------------------------------------------------------------------------------

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


CHECKS: dict[str, Callable[..., Check]] = {
    "T1": one_step,
    "T2": order,
    "T3": normal_component,
    "T3b": rotated_target,
    "T4": stiffness,
    "T5": bias,
    "T6": clamp,
    "T7": constants,
    "T8": network_layer,
}
"""The checks by their names; each takes `seeds` and `points`, and the method that is claimed to pass."""
