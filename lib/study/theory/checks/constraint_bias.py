"""T5: the bias of the constraint is the distance of the target from the admissible set."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from study.statistics.verdicts import Check, Guide, Lines, Panel, Reading, slope_between
from study.theory import flows
from study.theory.flows import TAU, Method, exact, integrate, matrix
from study.theory.problems import Draw, M, N, draw, geometric, lengths, norms, point
from wellcond import spectrum


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
