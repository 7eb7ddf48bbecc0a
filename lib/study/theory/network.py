"""The approximation theorem on a layer of a network: everything that its bound contains, measured.

A network on scikit-learn's digits, 784 - 64 - 32 - 10 with tanh, in which the 32 x 64 matrix W is a production layer
U S Vᵀ and the rest is frozen: F(W) = -∂L/∂W of the cross-entropy of a fixed set of images. The reference is the flow
of the full matrix from the same starting point, which is the best matrix of rank r and κ <= 1 + τ to a random W.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study import data
from study.statistics.verdicts import Check, Guide, Lines, Panel, Reading, least_squares, median_by_x, slope_between
from study.theory import flows
from study.theory.flows import AUGMENTED, KLS, TAU, Method, exact
from wellcond import spectrum
from wellcond.integrator import Factors
from wellcond.layers import LowRankLinear

IMAGES, WIDE, NARROW, CLASSES = 256, 64, 32, 10
RANKS = (4, 8, 16, NARROW)
TIME = 2.0
FREE = "no bound on κ(S)"


class Problem:
    """One draw of the network: F, its Lipschitz constant, and the admissible starting points."""

    def __init__(self, images: data.Images, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def gaussian(n: int, m: int) -> Tensor:
            return torch.randn(n, m, generator=generator, dtype=torch.float64) / math.sqrt(m)

        self.labels = images.labels
        pixels = images.pixels(slice(None)).double().flatten(1)
        self.features = torch.tanh(2 * pixels @ gaussian(WIDE, pixels.shape[1]).mT)
        self.last = gaussian(CLASSES, NARROW) / 2
        self.W = gaussian(NARROW, WIDE) / 2

    def loss_at(self, y: Tensor) -> Tensor:
        """The loss as a function of y, the outputs of the layer."""
        return F.cross_entropy(torch.tanh(y) @ self.last.mT, self.labels)

    def field(self, W: Tensor, k: int = 0) -> Tensor:
        """F(W) for a dense W (32, 64)."""
        W = W.detach().requires_grad_()
        return -torch.autograd.grad(self.loss_at(self.features @ W.mT), W)[0]

    def lipschitz(self, W: Tensor, iterations: int = 10) -> float:
        """‖D²L(W)‖₂ by power iteration, an estimate from below of the Lipschitz constant of F near W."""
        W, v, size = W.detach().requires_grad_(), self.field(W), torch.ones(())
        gradient = torch.autograd.grad(self.loss_at(self.features @ W.mT), W, create_graph=True)[0]
        for _ in range(iterations):
            v = torch.autograd.grad((gradient * v / v.norm()).sum(), W, retain_graph=True)[0]
            size = v.norm()
        return float(size)

    def start(self, rank: int) -> Factors:
        """The nearest matrix to the random W with this rank and κ(S) <= 1 + TAU."""
        layer = LowRankLinear(WIDE, NARROW, rank, bias=False, dtype=torch.float64)
        layer.set_matrix(self.W)
        U, S, V = flows.factors(layer)
        return Factors(U.clone(), spectrum.clip_condition_number(S, 1 + TAU), V.clone())


def distance(W: Tensor, rank: int, max_cond: float) -> float:
    """Frobenius distance of W from the matrices of this rank with κ <= max_cond: by Mirsky, that of the spectra."""
    sigma = torch.linalg.svdvals(W)
    nearest = torch.zeros_like(sigma)
    head = sigma[:rank]
    nearest[:rank] = spectrum.nearest_rule(head, max_cond) if max_cond < math.inf else head
    return float((nearest - sigma).norm())


@dataclass
class Trail:
    """Along a run: ε = ‖(I - P_Y)F(Y)‖, dist(Y + hF(Y), A)/h, and the largest μ, C_R, and h over its largest value."""

    normal: list[float]
    leaving: list[float]
    mu: float = 0.0
    C_R: float = 0.0

    def note(self, W: Factors, Z: Tensor, max_cond: float, h: float) -> None:
        """Record the point W of a run with steps of length h, and the field Z there."""
        sigma = torch.linalg.svdvals(W.S)
        kappa, mu = float(sigma[0] / sigma[-1]), float(Z.norm())
        self.normal.append(float(flows.normal_part(W, Z).norm()))
        self.leaving.append(distance(flows.matrix(W) + h * Z, len(sigma), max_cond) / h)
        self.mu = max(self.mu, mu)
        self.C_R = max(self.C_R, (3 + 1.25 * (kappa - 1)) * mu**2 / float(sigma[-1]))

    def bound(self, h: float, lipschitz: float) -> float:
        """Theorem A before its last estimate, e^{lT} [Σ h (2ε + leaving) + T (2 C_R + l μ/2) h]."""
        sums = h * float(np.sum(2 * np.array(self.normal) + np.array(self.leaving)))
        return math.exp(lipschitz * TIME) * (sums + TIME * (2 * self.C_R + lipschitz * self.mu / 2) * h)


def follow(problem: Problem, method: Method, start: Factors, max_cond: float, h: float) -> tuple[Tensor, Trail]:
    """The matrix at TIME, and the trail, of training the layer by `method`."""
    layer, trail = flows.layer_at(start), Trail([], [])

    def look() -> None:
        W = flows.factors(layer)
        trail.note(W, problem.field(flows.matrix(W)), max_cond, h)

    optimizer = method.optimizer(nn.ModuleList([layer]), h)
    flows.descend(optimizer, lambda k: problem.loss_at(layer(problem.features)), round(TIME / h), look)
    return layer.matrix().detach(), trail


def network_layer(seeds: int = 3, points: int = 5, *, follows: Callable[[float], Method] = exact) -> Check:
    """T8. Full-batch training of one layer against the gradient flow of the full matrix."""
    hs = [0.25 * 2.0**-k for k in range(points - 1)]
    tight = f"κ(S) ≤ {1 + TAU:g}"
    variants = {  # method and bound; the first at every step, the others at the smallest
        FREE: (follows(math.inf), math.inf),
        tight: (follows(1 + TAU), 1 + TAU),
        KLS.label: (KLS, math.inf),
        AUGMENTED.label: (AUGMENTED, math.inf),
    }
    lines = Lines()
    grid, steepest, worst = [], 0.0, 0.0
    images = data.load("digits", n_train=IMAGES).train
    for seed in range(seeds):
        problem = Problem(images, seed)
        for rank in RANKS:
            start = problem.start(rank)
            solution = flows.reference(problem.field, flows.matrix(start), time=TIME, steps=16)
            lipschitz = max(problem.lipschitz(flows.matrix(start)), problem.lipschitz(solution))
            steepest = max(steepest, lipschitz)
            runs = [(FREE, h) for h in hs[:-1]] + [(name, hs[-1]) for name in variants]
            for name, h in runs:
                method, max_cond = variants[name]
                reached, trail = follow(problem, method, start, max_cond, h)
                error, leaving = float(torch.dist(reached, solution)), TIME * float(np.mean(trail.leaving))
                if name == FREE:
                    lines.add("steps", f"r = {rank}", h, [error], seed)
                if name in (FREE, tight):
                    grid.append((leaving, h, error))
                    worst = max(worst, error / trail.bound(h, lipschitz))
                if h == hs[-1]:
                    lines.add("rank", name, rank, [error], seed)
                    if leaving > 1e-9:  # else there is no normal component, but for rounding
                        lines.add("leaving", name, leaving, [error], seed)
                        for k, eps in enumerate(trail.normal if name == FREE else ()):
                            lines.add("time", f"r = {rank}", k * h, [eps], seed)
    eps, h, e = np.array(grid).T
    (c_1, c_2), (error_1, error_2) = least_squares(np.column_stack([eps, h]), e)
    free = median_by_x(lines.line("rank", FREE))
    limit = math.exp(steepest * TIME)
    measured = (
        slope_between(f"slope in h, r = {NARROW} (ε = 0)", lines.line("steps", f"r = {NARROW}"), 1, 0.1),
        *(slope_between(f"slope in T ε, {name}", lines.line("leaving", name), 1, 0.25) for name in variants),
        Reading(f"c₁ of e = c₁ T ε + c₂ h, at most 3 e^lT = {3 * limit:.0f}", "≤", 0, 3 * limit, c_1, error_1),
        Reading("c₂ of e = c₁ T ε + c₂ h", "≥ 0", 0, math.inf, c_2, error_2),
        Reading("largest error over the bound of the theorem", "≤ 1", 0, 1, worst),
        Reading("largest error over that at the next smaller rank", "< 1", 0, 1, float((free / free.shift()).max())),
    )
    return Check(
        "T8",
        measured,
        (
            Panel("steps", "no bound on κ(S)", "step h", "error at T", (Guide(f"r = {NARROW}", 1),)),
            Panel("rank", f"h = {hs[-1]:g}", "rank r", "error at T", log="y"),
            Panel("time", "normal component along the run", "time", "‖(I − P)F‖", log=""),
            Panel("leaving", f"h = {hs[-1]:g}, every r and seed", "T ε", "error at T", (Guide(FREE, 1),), lines=False),
        ),
        lines.frame,
    )
