"""T2: order one in the step where the field is tangent, at every condition number."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from study.statistics.verdicts import Check, Guide, Lines, Panel, Reading, ratio, slope, slope_between
from study.theory import flows
from study.theory.flows import AUGMENTED, COVERED, KLS, TAU, Method, exact, integrate, matrix, published
from study.theory.problems import ROTATION, draw, geometric, lengths, norms, point, repeated, rotating


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
