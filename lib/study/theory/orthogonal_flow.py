"""ODEtoODE on small networks: what does the constraint to O(d) cost in accuracy, and bring on corrupted images?

Whether gradients keep their norm is in `gradient_norms`. The claims are those of Choromanski et al., NeurIPS 2020.
Features are the 64 leading principal components of the images, without a learned embedding, so that the parameters are
those of the flow; every network has φ = |·|.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.attacks.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from study.data import Images, load
from study.statistics.verdicts import Finding, Lines
from study.theory.gradient_norms import WIDTH, Unconstrained, depths, finding
from wellcond.linalg import svd
from wellcond.methods.orthogonal_flow import GatedField, IsospectralField, OrthogonalFlow

STEPS = 5
"""Of the trained flows, whose T is 1."""
DATASETS = {"digits": (None, 30), "mnist": (5_000, 15)}
"""Training images (None: all) and epochs."""

# ------------------------------------------------------------------------ networks


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
    "unconstrained": lambda: Unconstrained(steps=STEPS),
    "residual": Residual,
}
"""gated, unconstrained and residual have 12,000 to 13,000 parameters, the other two fewer."""

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
        for index in torch.split(torch.randperm(len(labels)), batch):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(features[index]), labels[index])
            loss.backward()  # type: ignore[no-untyped-call]
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
        finding("As accurate as a residual network of equal size", f"{dataset}, gated minus residual, points",
                 list(means["gated", True] - means["residual", True]), -0.5),
        finding("more accurate on corrupted images", f"{dataset}, gated minus residual, points, mean over corruptions",
                 list(means["gated", False] - means["residual", False]), 0),
        finding("and the constraint is why", f"{dataset}, drop of the unconstrained flow minus drop of gated, points",
                 list(drop["unconstrained"] - drop["gated"]), 0),
    ]  # fmt: skip


def orthogonal_flow(seeds: int = 3, dataset: str = "mnist") -> tuple[list[Finding], pd.DataFrame]:
    """Panels depth, strength, and one a corruption with clean images at severity 0."""
    lines = Lines()
    findings = [*depths(seeds, lines), *accuracies(dataset, seeds, lines)]
    return findings, lines.frame
