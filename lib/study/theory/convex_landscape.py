"""Where SGD ends on two-layer ReLU networks, measured by the convex programs of `convex_view`.

The claim is that of Wang, Lacotte and Pilanci, ICLR 2022: a stationary point is the global optimum of the convex
program over the activation patterns that its neurons have. Data: two classes of the digits, 200 images, 10 principal
components.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import wellcond as wc
from study.data import load
from study.statistics.verdicts import Finding, Lines
from study.theory.convex_view import Problem, Solution, balanced, network, patterns, solve, violated

finding = partial(Finding, "convex_landscape")
CLASSES, IMAGES, DIMENSION = (3, 8), 200, 10
WIDTHS = (3, 10, 30, 100)
TRACKED = (30,)
STRENGTHS = (0.1, 0.01)
"""β as a share of the smallest β at which the optimum is the network that is zero."""
STEPS = 4000
"""Of SGD on batches of 50 in the first third, on all images afterwards."""
LR = 0.3
RIVALS: dict[str, dict[str, Any] | None] = {
    "dense SGD": None,
    "U S Vᵀ, full rank": {"rank": DIMENSION},
    "U S Vᵀ, half the rank": {"rank": DIMENSION // 2},
    "U S Vᵀ, κ ≤ 1.1": {"rank": DIMENSION, "max_cond": 1.1},
}
"""How the first layer of a wide network is trained: densely, or by LowRankSGD."""


def pair(seed: int, strength: float) -> Problem:
    """Images of two classes, targets ±1; X is centred, and its rows have a mean square of one."""
    train = load("digits", seed=seed).train
    chosen = (train.labels == CLASSES[0]) | (train.labels == CLASSES[1])
    pixels = train.pixels(chosen).flatten(1).double()[:IMAGES]
    pixels = pixels - pixels.mean(0)
    X = pixels @ torch.linalg.svd(pixels, full_matrices=False).Vh[:DIMENSION].mT
    X = X / X.square().sum(1).mean().sqrt()
    y = torch.where(train.labels[chosen][:IMAGES] == CLASSES[0], 1.0, -1.0).double()
    u = F.normalize(torch.randn(5000, DIMENSION, dtype=X.dtype))
    return Problem(X, y, strength * float(((X @ u.mT).relu().mT @ y).abs().max()))


def descend(problem: Problem, u: Tensor, a: Tensor, steps: int) -> list[tuple[int, Tensor, Tensor]]:
    """SGD with momentum 0.9 and a cosine schedule on F / n; the network after some of the steps, and at the end."""
    X, y, beta = problem
    n = len(y)
    m_u, m_a = torch.zeros_like(u), torch.zeros_like(a)
    seen = []
    for k in range(steps):
        some = torch.randint(n, (50,)) if k < steps // 3 else slice(None)
        x, target = X[some], y[some]
        H = (x @ u.mT).relu()
        error = (H @ a - target) / len(target)
        g_u, g_a = ((H > 0) * error[:, None] * a).mT @ x + beta / n * u, error @ H + beta / n * a
        m_u, m_a = 0.9 * m_u + g_u, 0.9 * m_a + g_a
        rate = LR * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * k / steps)))
        u, a = u - rate * m_u, a - rate * m_a
        if k in (steps // 20, steps // 6, steps // 3, steps // 2) or k == steps - 1:
            seen.append((k + 1, u, a))
    return seen


def start(width: int) -> tuple[Tensor, Tensor]:
    """Neurons of norm about one, output weights of norm about one together."""
    u, a = torch.randn(width, DIMENSION, dtype=torch.float64), torch.randn(width, dtype=torch.float64)
    return u / DIMENSION**0.5, a / width**0.5


def optimum(problem: Problem, D: Tensor, rounds: int = 8) -> Solution:
    """The program over D and over every pattern that the search finds to be worth adding, until it finds none."""
    for _ in range(rounds):
        found = solve(problem, D, tolerance=1e-4)
        u, a = network(found.V)
        new = violated(problem, problem.residual(u, a))
        if not len(new):
            break
        D = torch.unique(torch.cat([D[found.V.norm(dim=2).amax(0) > 0], new]), dim=0)
    return found


def rival(problem: Problem, options: dict[str, Any] | None, width: int, steps: int, lr: float = LR / 3) -> float:
    """F after full-batch training of width neurons by LowRankSGD, the penalty as its weight decay."""
    X, y, beta = problem
    n = len(y)
    model: nn.Module = nn.Sequential(
        nn.Linear(DIMENSION, width, bias=False), nn.ReLU(), nn.Linear(width, 1, bias=False)
    ).double()
    bound: dict[str, Any] = {"max_cond": options["max_cond"]} if options and "max_cond" in options else {}
    if options:
        model = wc.factorize(model, rank=int(options["rank"]), skip="2")
    if bound:
        wc.constrain(model, **bound)
    optimizer = wc.LowRankSGD(wc.param_groups(model, **bound), lr=lr, momentum=0.9, weight_decay=beta / n)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        ((model(X)[:, 0] - y).square().sum() / (2 * n)).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        u, a = wc.densify(model).parameters()
        return problem.objective(*balanced(u, a[0]))


def convex_landscape(seeds: int = 3) -> tuple[list[Finding], pd.DataFrame]:
    """Panels training (excess over the optimum of the patterns of that moment, against the step), width (excess over
    the global optimum) and rivals (the same, against the number of the rival)."""
    lines, own, wide, narrow = Lines(), [], [], []
    rivals: dict[str, list[float]] = {name: [] for name in RIVALS}
    for seed in range(seeds):
        excess, above = [], {}
        for strength in STRENGTHS:
            torch.manual_seed(seed)
            problem, known = pair(seed, strength), []
            for width in WIDTHS:
                seen = descend(problem, *start(width), STEPS)
                for k, u, a in seen if width in TRACKED and strength == STRENGTHS[-1] else seen[-1:]:
                    D, value = patterns(problem.X, u), problem.objective(*balanced(u, a))
                    excess.append(value / solve(problem, D, most=4000).lower - 1)
                    if width in TRACKED and strength == STRENGTHS[-1]:
                        lines.add("training", f"{width} neurons", k, [excess[-1]], seed)
                own.append((seed, excess[-1]))
                above[strength, width] = value
                known.append(D)
            best = optimum(problem, torch.unique(torch.cat(known), dim=0)).lower
            for width in WIDTHS:
                above[strength, width] = above[strength, width] / best - 1
                lines.add("width", f"β = {strength:g} β₀", width, [above[strength, width]], seed)
            for number, (name, options) in enumerate(RIVALS.items() if strength == STRENGTHS[0] else ()):
                torch.manual_seed(seed)
                rivals[name].append(rival(problem, options, WIDTHS[-1], STEPS // 4) / best - 1)
                lines.add("rivals", name, number, rivals[name][-1:], seed)
        wide.append(max(above[strength, WIDTHS[-1]] for strength in STRENGTHS))
        narrow.append(min(above[strength, WIDTHS[0]] for strength in STRENGTHS))
    worst = pd.DataFrame(own).groupby(0)[1].max()
    low, bounded = rivals["U S Vᵀ, half the rank"], rivals["U S Vᵀ, κ ≤ 1.1"]
    return [
        finding("A stationary point is the optimum over its own patterns", "largest excess over it, all networks",
                 list(worst), high=1e-3),
        finding("A wide network reaches the global optimum", f"excess over it, {WIDTHS[-1]} neurons", wide, high=1e-3),
        finding("A narrow one does not", f"excess over it, {WIDTHS[0]} neurons", narrow, 1e-3),
        finding("U S Vᵀ of half the rank reaches it too", f"excess over it, {WIDTHS[-1]} neurons", low, high=1e-2),
        finding("A bound on κ keeps away from it", f"excess over it, κ ≤ 1.1, {WIDTHS[-1]} neurons", bounded, 1e-2),
    ], lines.frame  # fmt: skip
