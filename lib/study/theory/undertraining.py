"""Does the recipe of a dense network train a sparse one to its end, and a low-rank one?

Kuznedelev et al. find that sparse networks which are trained by a dense recipe end under-trained: their training loss
and the entropy of their outputs stay high, and longer training with a schedule of its own gains more than for dense
networks. Whether networks of low rank are under-trained too is this study's question, as it compares them by the epochs
of dense ones. Here every network is trained for 1, 2, 4 and 8 times the epochs of the recipe, each time with the
learning rate of three that is best on held-out images, in the mean over the seeds. The dense recipe is the shortest
training with the learning rate that is best for the dense network there.

    gain(m) = test accuracy of m after 8 times the epochs at its own learning rate - after the dense recipe

    needed(m) = epochs until its test accuracy at its own learning rate stays within TOLERANCE of that after 8 times the
    epochs, interpolated in their logarithm: a lower bound of the epochs to a limit

Predictions, written before the run. The claim is confirmed if the networks with 98 % of zeros, by AC/DC and by gradual
pruning, gain over a point more than the dense one, with a higher entropy after the recipe, and if those with 98 % need
more epochs than those with 90 %; it is refuted if they gain less. Low-rank networks are under-trained if U Vᵀ and
U S Vᵀ of a tenth of the rank gain more than a point over dense; we expect it at ratio 0.9, less at 0.5. Comparisons by
the dense recipe are fair if the gap of CondLR to dense, or to U Vᵀ, moves by less than half a point from the recipe to
the longest training.
After a pilot on held-out images the phases of AC/DC are twice as long as published and end earlier, and rates around
0.3 were chosen, for all methods alike.

Sources: Kuznedelev, Kurtic, Iofinova, Frantar, Peste and Alistarh, TMLR 2024 (arXiv 2308.02060). The network, the task
and the two numbers above are ours; momentum and milestones are those of the study on MNIST, as fractions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import wellcond as wc
from study.data import Images, load
from study.statistics.verdicts import Finding, Lines
from study.training.ensemble import Stack
from wellcond.methods.alternating_compression import Schedule, SparseTraining, alternating, gradual
from wellcond.methods.method import constrained_factors, dense, factors, plain_groups
from wellcond.methods.settings import Settings

finding = partial(Finding, "undertraining")
BUDGETS = (1, 2, 4, 8)
"""Lengths of training, in multiples of EPOCHS."""
EPOCHS, IMAGES, HELD_OUT, TEST, BATCH = 4, 1600, 3000, 5000, 64
RATES = (0.1, 0.3, 0.9)
MOMENTUM, MILESTONES, GAMMA = 0.3, (0.6, 0.85), 0.3
TOLERANCE = 0.5
"""Points of test accuracy."""


Part = tuple[Tensor, Tensor]
"""Images (N, 1, 14, 14) and their labels."""


def convnet() -> nn.Sequential:
    """conv 16@5x5 of stride 3, conv 32@3x3, fc 64, fc 10, LeakyReLU(0.01), for 14 x 14 inputs: 13,840 weights.

    Weights start as of He et al., ICCV 2015; biases at zero.
    """
    convolutions = nn.Conv2d(1, 16, 5, stride=3), nn.LeakyReLU(), nn.Conv2d(16, 32, 3), nn.LeakyReLU()
    network = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(128, 64), nn.LeakyReLU(), nn.Linear(64, 10))
    for layer in wc.weight_layers(network).values():
        nn.init.kaiming_normal_(layer.weight, 0.01)
        nn.init.zeros_(layer.bias)
    return network


def halved(images: Images) -> Part:
    """Means over 2 x 2 pixels, in units of 0.3 around 0.13, about the deviation and the mean of MNIST."""
    return (F.avg_pool2d(images.pixels(slice(None)), 2) - 0.13) / 0.3, images.labels


class Method(NamedTuple):
    """prepare, settings: what becomes of the dense network, as for a method of the library; schedule: of its zeros."""

    prepare: Callable[[nn.Module, Settings], nn.Module] = dense
    settings: Settings = Settings()
    schedule: Schedule | None = None


SPARSITIES, RATIOS = (0.9, 0.95, 0.98), (0.5, 0.8, 0.9)
METHODS = {
    ("dense", 0.0): Method(),
    **{("AC/DC", s): Method(schedule=alternating(s, period=0.1, last_dense=0.5, final=0.6)) for s in SPARSITIES},
    **{("gradual", s): Method(schedule=gradual(s)) for s in SPARSITIES},
    **{("U Vᵀ", r): Method(factors, Settings(ratio=r)) for r in RATIOS},
    **{("CondLR", r): Method(constrained_factors, Settings(ratio=r, max_cond=1.1)) for r in RATIOS},
}
"""By name, and the share of zeros or the ratio of rank removed."""


def fit(method: Method, starts: Sequence[nn.Module], data: Sequence[Part], epochs: int) -> list[nn.Module]:
    """One network for each start, with its own data, and each of RATES, all trained as one stack."""
    models = [method.prepare(copy.deepcopy(start), method.settings) for start in starts for _ in RATES]
    stack = Stack(models)
    optimizer = stack.optimizer(wc.LowRankSGD(plain_groups(models[0], method.settings), momentum=MOMENTUM))
    rates = torch.tensor(RATES * len(starts))  # steps are linear in the gradients: a member's rate weights its loss
    size = len(data[0][1]) // BATCH * BATCH
    if method.schedule is not None:
        weights = [p for name, p in stack.parameters.items() if name.endswith("weight")]
        SparseTraining(optimizer, weights, method.schedule, steps=epochs * size // BATCH, stacked=True)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = GAMMA ** sum(epoch >= milestone * epochs for milestone in MILESTONES)
        for index in torch.split(torch.randperm(len(data[0][1]))[:size], BATCH):
            x, y = (torch.stack([part[k][index] for part in data for _ in RATES]) for k in range(2))
            optimizer.zero_grad()
            (rates * stack.losses(x, y)).sum().backward()  # type: ignore[no-untyped-call]
            stack.isolate(optimizer)
            optimizer.step()
    stack.write_back(range(len(models)))
    return models


@torch.no_grad()
def measure(model: nn.Module, train: Part, held_out: Part, test: Part) -> dict[str, float]:
    """Accuracies in percent, the loss on training images, and the mean entropy of the outputs on them."""
    model.eval()
    accuracy = {
        name: 100 * float((model(x).argmax(1) == y).double().mean())
        for name, (x, y) in (("held out", held_out), ("test", test))
    }
    log_p = F.log_softmax(model(train[0]), 1)
    entropy = -(log_p.exp() * log_p).sum(1).mean()
    return {**accuracy, "loss": float(F.nll_loss(log_p, train[1])), "entropy": float(entropy)}


def needed(accuracies: Sequence[float]) -> float:
    """The multiple of EPOCHS from which on the accuracies at BUDGETS stay within TOLERANCE of the last."""
    level, found = accuracies[-1] - TOLERANCE, 1.0
    for (b, low), (c, high) in pairwise(zip(BUDGETS, accuracies, strict=True)):
        if low < level <= high:
            found = b * (c / b) ** ((level - low) / (high - low))
    return found


def train_all(seeds: int, dataset: str) -> pd.DataFrame:
    """What is measured of every network, and the share of the parameters that it keeps, by name, amount, budget, rate
    and seed."""
    data = [load(dataset, seed=seed, n_train=IMAGES, n_test=TEST) for seed in range(seeds)]
    train = [halved(part.train) for part in data]
    others = [(halved(part.validation.first(HELD_OUT)), halved(part.test)) for part in data]
    starts, rows = [], []
    for seed in range(seeds):
        torch.manual_seed(seed)
        starts.append(convnet())
    for (name, amount), method in METHODS.items():
        for budget in BUDGETS:
            torch.manual_seed(0)
            for k, model in enumerate(fit(method, starts, train, budget * EPOCHS)):
                seed, rate = k // len(RATES), RATES[k % len(RATES)]
                keys = {"name": name, "amount": amount, "budget": budget, "rate": rate, "seed": seed}
                zeros = sum(int((p == 0).sum()) for p in model.parameters()) if method.schedule else 0
                kept = (wc.count_parameters(model).deployed - zeros) / wc.count_parameters(starts[0]).deployed
                rows.append({**keys, "kept": kept, **measure(model, train[seed], *others[seed])})
    return pd.DataFrame(rows).set_index(["name", "amount", "budget", "rate"])


def undertraining(seeds: int = 3, dataset: str = "mnist") -> tuple[list[Finding], pd.DataFrame]:
    """Panels error (test error in percent), loss and entropy against epochs, gain (over that of dense) and needed
    (epochs) against the share of parameters kept in percent; series as "CondLR 0.9"."""
    runs, lines = train_all(seeds, dataset), Lines()
    held_out = runs.groupby(level=[0, 1, 2, 3])["held out"].mean()
    best = held_out.groupby(level=[0, 1, 2]).idxmax()
    first, last = BUDGETS[0], BUDGETS[-1]

    def own(name: str, amount: float, budget: int) -> pd.DataFrame:
        return runs.loc[best[name, amount, budget]].set_index("seed")

    def recipe(name: str, amount: float) -> pd.DataFrame:
        return runs.loc[name, amount, *best["dense", 0.0, first][2:]].set_index("seed")

    gains, epochs = {}, {}
    for key in METHODS:
        at = [own(*key, budget) for budget in BUDGETS]
        accuracies: list[list[float]] = pd.concat([part["test"] for part in at], axis=1).to_numpy().tolist()
        gains[key] = at[-1]["test"] - recipe(*key)["test"]
        epochs[key] = pd.Series([EPOCHS * needed(values) for values in accuracies])
        series, kept = f"{key[0]} {key[1]:g}", 100 * float(at[-1]["kept"].mean())
        for budget, part in zip(BUDGETS, at, strict=True):
            for panel, values in (("error", 100 - part["test"]), ("loss", part["loss"]), ("entropy", part["entropy"])):
                lines.add(panel, series, EPOCHS * budget, list(values))
        lines.add("recipe", series, EPOCHS, list(100 - recipe(*key)["test"]))
        lines.add("gain", key[0], kept, list(gains[key] - gains["dense", 0.0]))
        lines.add("needed", key[0], kept, list(epochs[key]))

    def more(name: str, amount: float) -> list[float]:
        return list(gains[name, amount] - gains["dense", 0.0])

    def moved(one: tuple[str, float], two: tuple[str, float]) -> list[float]:
        """How far the lead of one over two moves from the dense recipe to the longest training."""
        return list(gains[one] - gains[two])

    sparse, thin = SPARSITIES[-1], RATIOS[-1]
    entropy = [recipe(name, amount)["entropy"] for name, amount in (("gradual", sparse), ("dense", 0.0))]
    gain = f"gain by {last} times the epochs over that of dense, points"
    return [
        finding("Dense recipes under-train sparse networks", f"{sparse:.0%} zeros by AC/DC, {gain}",
                more("AC/DC", sparse), 1),
        finding("by gradual pruning as well", f"{sparse:.0%} zeros, {gain}", more("gradual", sparse), 1),
        finding("and leave their outputs uncertain", "entropy over that of dense, gradual pruning",
                list(entropy[0] / entropy[1]), 1),
        finding("The sparser, the more epochs", f"epochs, {sparse:.0%} zeros over {SPARSITIES[0]:.0%}, gradual",
                list(epochs["gradual", sparse] / epochs["gradual", SPARSITIES[0]]), 1),
        finding("Dense recipes under-train U Vᵀ", f"ratio {thin:g}, {gain}", more("U Vᵀ", thin), 1),
        finding("and U S Vᵀ with κ ≤ 1.1", f"ratio {thin:g}, {gain}", more("CondLR", thin), 1),
        finding("at half the rank too", f"U S Vᵀ, κ ≤ 1.1, ratio {RATIOS[0]:g}, {gain}", more("CondLR", RATIOS[0]), 1),
        finding("The lower the rank, the more epochs", f"epochs, ratio {thin:g} over {RATIOS[0]:g}, κ ≤ 1.1",
                list(epochs["CondLR", thin] / epochs["CondLR", RATIOS[0]]), 1),
        finding("The dense recipe is fair to κ ≤ 1.1 against dense", "ratio 0.8, points by which its lead moves",
                moved(("CondLR", 0.8), ("dense", 0.0)), -0.5, 0.5),
        finding("and against U Vᵀ", "ratio 0.8, points by which its lead moves",
                moved(("CondLR", 0.8), ("U Vᵀ", 0.8)), -0.5, 0.5),
    ], lines.frame  # fmt: skip
