"""T3 and T3b: what the normal component of the field, or a target off the tangent space, leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from study.statistics.verdicts import Check, Guide, Lines, Panel, Reading, median_by_x, slope_between
from study.theory import flows
from study.theory.flows import CONDLR, COVERED, Method, integrate, matrix
from study.theory.problems import RANK, ROTATION, draw, geometric, lengths, norms, point, repeated, rotating
from wellcond import stiefel
from wellcond.integrator import Factors


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
