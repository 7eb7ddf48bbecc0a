"""Do gradients keep their norm on their way through a deep network? The claim of ODEtoODE, and its rivals.

Networks are random and as they are before training, of width 64, in float64, with φ = |·| and no bias.
Source: Choromanski et al., NeurIPS 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.statistics.verdicts import Finding, Lines
from wellcond.methods.orthogonal_flow import GatedField, OrthogonalFlow, exponential

finding = partial(Finding, "orthogonal_flow")
WIDTH = 64
DEPTHS = (10, 30, 100, 300, 1000)
STRENGTHS = (1.0, 2.0, 4.0, 8.0)


class Unconstrained(nn.Module):
    """The same flow of flows without the constraint: W' = W Σ_k g_k(t) A_k with any A_k, on GL(d)."""

    def __init__(self, count: int = 2, steps: int = 10) -> None:
        super().__init__()
        self.steps = steps
        self.start = nn.Parameter(torch.randn(WIDTH, WIDTH) / math.sqrt(WIDTH))
        self.A = nn.Parameter(torch.randn(count, WIDTH, WIDTH) / math.sqrt(2 * WIDTH))  # the norm of GatedField's B_k
        self.gates = nn.Parameter(torch.randn(count, 2))
        self.bias = nn.Parameter(torch.zeros(WIDTH))

    def weights(self) -> list[Tensor]:
        """W_0, ..., W_{steps-1}."""
        W: list[Tensor] = [self.start]
        h = 1 / self.steps
        for k in range(self.steps - 1):
            gates = torch.tanh(self.gates[:, 0] * (k + 0.5) * h + self.gates[:, 1])
            W.append(exponential(W[-1], h * torch.tensordot(gates, self.A, 1)))
        return W

    def forward(self, x: Tensor) -> Tensor:
        for W in self.weights():
            x = x + (x @ W.mT + self.bias).abs() / self.steps
        return x


def gradient_norms(weights: list[Tensor], h: float, skip: float = 1.0, count: int = 16) -> Tensor:
    """log ||∂L/∂x_k||, k = N - 1, ..., 0, as (N, count), for x <- skip x + h |W_k x|, random x_0 and unit ∂L/∂x_N."""
    x, g = F.normalize(torch.randn(2, count, WIDTH, dtype=torch.float64), dim=-1)
    signs, growth = [], []
    for W in weights:
        y = x @ W.mT
        signs.append(y.sign())
        x = F.normalize(skip * x + h * y.abs())  # without a bias, signs do not depend on the scale of x
    for W, sign in zip(reversed(weights), reversed(signs), strict=True):
        g = skip * g + h * (sign * g) @ W
        growth.append(g.norm(dim=1).log())
        g = F.normalize(g)
    return torch.stack(growth).cumsum(0)


def gaussian(steps: int) -> list[Tensor]:
    """Independent W_k with entries N(0, 1/d): |Wx| has, on average, the norm of x."""
    return list(torch.randn(steps, WIDTH, WIDTH, dtype=torch.float64) / math.sqrt(WIDTH))


def flow(steps: int, strength: float = 2.0) -> list[Tensor]:
    """The weights of a random gated flow on O(d) with Ω scaled by `strength`."""
    field = GatedField(WIDTH, 2)
    field.angles.data *= strength
    return OrthogonalFlow(WIDTH, field, steps=steps, integrator="exponential").double().weights()


def free_flow(steps: int, strength: float = 2.0) -> list[Tensor]:
    """The weights of a random flow of flows without the constraint, its field scaled by `strength`."""
    module = Unconstrained(steps=steps).double()
    module.A.data *= strength
    return module.weights()


RANDOM: dict[str, Callable[[int], Tensor]] = {
    "flow on O(d)": lambda steps: gradient_norms(flow(steps), 1 / steps),
    "unconstrained flow": lambda steps: gradient_norms(free_flow(steps), 1 / steps),
    "residual, step 1/N": lambda steps: gradient_norms(gaussian(steps), 1 / steps),
    "residual, step 1": lambda steps: gradient_norms(gaussian(steps), 1.0),
    "no skip connection": lambda steps: gradient_norms(gaussian(steps), 1.0, skip=0.0),
}
"""Networks of a given depth as they are before training."""


def excursion(norms: Tensor) -> float:
    """The largest |log| of a norm: at most T on O(d)."""
    return float(norms.abs().max())


@torch.no_grad()
def depths(seeds: int, lines: Lines) -> list[Finding]:
    """Gradient norms of random networks against their depth, and against the strength of the parameter flow."""
    worst: dict[str, list[float]] = {name: [] for name in RANDOM}
    for name, make in RANDOM.items():
        for steps in DEPTHS:
            found = []
            for seed in range(seeds):
                torch.manual_seed(seed)
                norms = make(steps)
                found.append(float(norms[-1].median()) / math.log(10))
                if steps == DEPTHS[-1]:
                    worst[name].append(excursion(norms))
            lines.add("depth", name, steps, found)
    extremes: dict[str, list[float]] = {}
    for name, weights in (("flow on O(d)", flow), ("unconstrained flow", free_flow)):
        for strength in STRENGTHS:
            found = []
            for seed in range(seeds):
                torch.manual_seed(seed)
                found.append(excursion(gradient_norms(weights(100, strength), 0.01)))
            lines.add("strength", name, strength, found)
            extremes[name] = found

    def exponents(name: str) -> tuple[float, ...]:
        by_seed = lines.line("depth", name).groupby("seed")
        return tuple(float(np.polyfit(np.log10(own["x"]), own["y"], 1)[0]) for _, own in by_seed)

    return [
        finding("Gradients neither vanish nor explode", "largest |log‖∂L/∂x‖| along 1,000 steps, T = 1",
                 worst["flow on O(d)"], 0, 1),
        finding("whatever the depth", "exponent of ‖∂L/∂x(0)‖ in N, 10 to 1,000 steps", exponents("flow on O(d)"),
                 -0.05, 0.05),
        finding("whatever the parameter flow", "the same largest |log| with Ω eight times as strong",
                 extremes["flow on O(d)"], 0, 1),
        finding("Without the constraint they do explode or vanish", "the same, unconstrained flow eight times as "
                 "strong", extremes["unconstrained flow"], 1),
        finding("and in a residual network", "largest |log‖∂L/∂x‖| along 1,000 steps of size 1/N",
                 worst["residual, step 1/N"], 1),
    ]  # fmt: skip
