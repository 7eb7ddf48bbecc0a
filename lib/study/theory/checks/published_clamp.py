"""T6: the projection onto the constraint rests where it is; the published clamp does not."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from study.statistics.verdicts import Check, Lines, Panel, Reading, median_by_x
from study.theory.flows import Method, exact, integrate, published
from study.theory.problems import RANK, draw, point


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
