"""T4: a persistent small singular value and noise, where the inverse of S makes the flow stiff."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from study.statistics.verdicts import Check, Guide, Lines, Panel, Reading, median_by_x, ratio, slope, slope_between
from study.theory import flows
from study.theory.flows import AUGMENTED, KLS, Method, exact, integrate, matrix
from study.theory.problems import M, N, draw, geometric, lengths, norms, point, repeated

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
