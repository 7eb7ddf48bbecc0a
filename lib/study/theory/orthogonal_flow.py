"""ODEtoODE on small networks: do gradients keep their norm, and what does the constraint cost and bring?

The claims are those of Choromanski et al., NeurIPS 2020. Features are the 64 leading principal components of the
images, without a learned embedding, so that the parameters are those of the flow; every network has φ = |·|.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.attacks.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from study.data import Images, load
from study.statistics.verdicts import Finding, Lines
from wellcond.linalg import svd
from wellcond.methods.orthogonal_flow import GatedField, IsospectralField, OrthogonalFlow, exponential

WIDTH = 64
STEPS = 5
"""Of the trained flows, whose T is 1."""
DEPTHS = (10, 30, 100, 300, 1000)
STRENGTHS = (1.0, 2.0, 4.0, 8.0)
DATASETS = {"digits": (None, 30), "mnist": (5_000, 15)}
"""Training images (None: all) and epochs."""

# ------------------------------------------------------------------------ networks


class Unconstrained(nn.Module):
    """The same flow of flows without the constraint: W' = W Σ_k g_k(t) A_k with any A_k, on GL(d)."""

    def __init__(self, count: int = 2, steps: int = STEPS) -> None:
        super().__init__()
        self.steps = steps
        self.start = nn.Parameter(torch.randn(WIDTH, WIDTH) / math.sqrt(WIDTH))
        self.A = nn.Parameter(torch.randn(count, WIDTH, WIDTH) / math.sqrt(2 * WIDTH))  # the norm of GatedField's B_k
        self.gates = nn.Parameter(torch.randn(count, 2))
        self.bias = nn.Parameter(torch.zeros(WIDTH))

    def weights(self) -> list[Tensor]:
        """W_0, ..., W_{steps-1}."""
        W, h = [self.start], 1 / self.steps
        for k in range(self.steps - 1):
            gates = torch.tanh(self.gates[:, 0] * (k + 0.5) * h + self.gates[:, 1])
            W.append(exponential(W[-1], h * torch.tensordot(gates, self.A, 1)))
        return W

    def forward(self, x: Tensor) -> Tensor:
        for W in self.weights():
            x = x + (x @ W.mT + self.bias).abs() / self.steps
        return x


class Still(nn.Module):
    """Ω = 0: one W on O(d) for all times."""

    def forward(self, t: float, W: Tensor) -> Tensor:
        return torch.zeros_like(W)


class Residual(nn.Module):
    """x <- x + |W_k x + b_k|, k = 1, ..., layers."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).abs()
        return x


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "gated": lambda: OrthogonalFlow(WIDTH, GatedField(WIDTH), steps=STEPS),
    "isospectral": lambda: OrthogonalFlow(WIDTH, IsospectralField(WIDTH), steps=STEPS),
    "constant": lambda: OrthogonalFlow(WIDTH, Still(), steps=STEPS),
    "unconstrained": Unconstrained,
    "residual": Residual,
}
"""gated, unconstrained and residual have 12,000 to 13,000 parameters, the other two fewer."""

# ------------------------------------------------------------------------ (a) gradient norms


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
    module = OrthogonalFlow(WIDTH, GatedField(WIDTH, 2), steps=steps, integrator="exponential").double()
    module.field.angles.data *= strength
    return module.weights()


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
        _finding("Gradients neither vanish nor explode", "largest |log‖∂L/∂x‖| along 1,000 steps, T = 1",
                 worst["flow on O(d)"], 0, 1),
        _finding("whatever the depth", "exponent of ‖∂L/∂x(0)‖ in N, 10 to 1,000 steps", exponents("flow on O(d)"),
                 -0.05, 0.05),
        _finding("whatever the parameter flow", "the same largest |log| with Ω eight times as strong",
                 extremes["flow on O(d)"], 0, 1),
        _finding("Without the constraint they do explode or vanish", "the same, unconstrained flow eight times as "
                 "strong", extremes["unconstrained flow"], 1),
        _finding("and in a residual network", "largest |log‖∂L/∂x‖| along 1,000 steps of size 1/N",
                 worst["residual, step 1/N"], 1),
    ]  # fmt: skip


def _finding(
    claim: str, measured: str, values: Iterable[float], low: float = -math.inf, high: float = math.inf
) -> Finding:
    return Finding("orthogonal_flow", claim, measured, tuple(values), low, high)


# ------------------------------------------------------------------------ (b), (c) accuracy, clean and corrupted


class Components(nn.Module):
    """Images to their `WIDTH` leading principal components, scaled to a mean square of one a component."""

    def __init__(self, images: Images) -> None:
        super().__init__()
        pixels = images.pixels(slice(None)).flatten(1)
        self.mean = pixels.mean(0)
        self.basis = svd(pixels - self.mean)[2][:WIDTH].mT
        self.scale = ((pixels - self.mean) @ self.basis).square().mean().sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return ((x.flatten(1) - self.mean) @ self.basis) / self.scale


def train(network: nn.Module, features: Tensor, labels: Tensor, epochs: int, lr: float, batch: int = 250) -> None:
    """Adam with a cosine schedule."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    steps = math.ceil(len(labels) / batch) * epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for index in torch.randperm(len(labels)).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(network(features[index]), labels[index]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(network: nn.Module, features: Tensor, labels: Tensor) -> float:
    """In percent."""
    return 100 * float((network(features).argmax(1) == labels).double().mean())


def accuracies(dataset: str, seeds: int, lines: Lines, *, rates: Sequence[float] = (0.003, 0.01)) -> list[Finding]:
    """Test accuracy, clean and under each corruption; the learning rate is the best on validation images, by seed."""
    n_train, epochs = DATASETS[dataset]
    by_seed: dict[tuple[str, bool], list[tuple[int, float]]] = defaultdict(list)
    for seed in range(seeds):
        data = load(dataset, seed=seed, n_train=n_train)
        components = Components(data.train)
        train_x, held_out = (components(part.pixels(slice(None))) for part in (data.train, data.validation.first(5000)))
        test, index = data.test.pixels(slice(None)), torch.arange(len(data.test))
        tests = {("clean", 0): components(test)} | {
            (name, severity): components(corrupt(name, test, severity, index, seed=seed))
            for name in CORRUPTIONS for severity in SEVERITIES
        }  # fmt: skip
        for name, make in NETWORKS.items():
            tried = []
            for lr in rates:
                torch.manual_seed(seed)
                network = nn.Sequential(make(), nn.Linear(WIDTH, data.num_classes))
                train(network, train_x, data.train.labels, epochs, lr)
                tried.append((accuracy(network, held_out, data.validation.labels[: len(held_out)]), lr, network))
            network = max(tried, key=lambda entry: entry[:2])[2]
            for (kind, severity), features in tests.items():
                rate = accuracy(network, features, data.test.labels)
                lines.add(kind, name, severity, [rate], seed)
                by_seed[name, kind == "clean"].append((seed, rate))
    means = {key: pd.DataFrame(values).groupby(0)[1].mean() for key, values in by_seed.items()}
    drop = {name: means[name, True] - means[name, False] for name in NETWORKS}
    return [
        _finding("As accurate as a residual network of equal size", f"{dataset}, gated minus residual, points",
                 means["gated", True] - means["residual", True], -0.5),
        _finding("more accurate on corrupted images", f"{dataset}, gated minus residual, points, mean over corruptions",
                 means["gated", False] - means["residual", False], 0),
        _finding("and the constraint is why", f"{dataset}, drop of the unconstrained flow minus drop of gated, points",
                 drop["unconstrained"] - drop["gated"], 0),
    ]  # fmt: skip


def orthogonal_flow(seeds: int = 3, dataset: str = "mnist") -> tuple[list[Finding], pd.DataFrame]:
    """Panels depth, strength, and one a corruption with clean images at severity 0."""
    lines = Lines()
    findings = [*depths(seeds, lines), *accuracies(dataset, seeds, lines)]
    return findings, lines.frame
