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

CIFAR-10, predictions before its run: the same claims with the same bands, for a smaller table: 2,000 images, 2 epochs
in the recipe, and 1, 2 and 8 times as many. On held-out images of seed 100 the rates of MNIST were right again, the
dense network gained nothing from 4 epochs to 16, and with 98 % of zeros it gained 7 points: we expect all claims that
hold on MNIST, though smaller in proportion to what can be learned from 2,000 images.

Sources: Kuznedelev, Kurtic, Iofinova, Frantar, Peste and Alistarh, TMLR 2024 (arXiv 2308.02060). The network, the task
and the two numbers above are ours; momentum and milestones are those of the study on MNIST, as fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

import wellcond as wc
from study.data import Images, load
from study.statistics.verdicts import Finding, Lines
from study.theory.compressed_training import METHODS, RATIOS, SPARSITIES, Method, Part, fit, measure
from study.theory.small_networks import convnet32, lenet14

TOLERANCE = 0.5
"""Points of test accuracy."""


def halved(images: Images) -> Part:
    """Means over 2 x 2 pixels, in units of 0.3 around 0.13, about the deviation and the mean of MNIST."""
    return (F.avg_pool2d(images.pixels(slice(None)), 2) - 0.13) / 0.3, images.labels


def centred(images: Images) -> Part:
    """All pixels, in units of 0.25 around 0.47, about the deviation and the mean of CIFAR-10."""
    return (images.pixels(slice(None)) - 0.47) / 0.25, images.labels


class Protocol(NamedTuple):
    """What is trained on which images; budgets: lengths of training, in multiples of the epochs of the recipe."""

    system: str
    dataset: str
    network: Callable[[], nn.Module]
    view: Callable[[Images], Part]
    epochs: int
    train: int
    held_out: int = 3000
    test: int = 5000
    batch: int = 64
    rates: tuple[float, ...] = (0.1, 0.3, 0.9)
    budgets: tuple[int, ...] = (1, 2, 4, 8)
    methods: Mapping[tuple[str, float], Method] = METHODS


MNIST = Protocol("undertraining", "mnist", lenet14, halved, epochs=4, train=1600)
FEWER = [("dense", 0), ("AC/DC", 0.98), ("gradual", 0.9), ("gradual", 0.98), ("U Vᵀ", 0.8), ("U Vᵀ", 0.9)]
FEWER += [("CondLR", r) for r in RATIOS]
CIFAR10 = Protocol(
    "undertraining_cifar",
    "cifar10",
    convnet32,
    centred,
    epochs=2,
    train=2000,
    held_out=1500,
    test=2500,
    budgets=(1, 2, 8),
    methods={key: METHODS[key] for key in FEWER},
)


def needed(budgets: Sequence[int], accuracies: Sequence[float]) -> float:
    """The budget from which on the accuracies at the budgets stay within TOLERANCE of the last."""
    level, found = accuracies[-1] - TOLERANCE, 1.0
    for (b, low), (c, high) in pairwise(zip(budgets, accuracies, strict=True)):
        if low < level <= high:
            found = b * (c / b) ** ((level - low) / (high - low))
    return found


def train_all(seeds: int, p: Protocol) -> pd.DataFrame:
    """What is measured of every network, and the share of the parameters that it keeps, by name, amount, budget, rate
    and seed."""
    data = [load(p.dataset, seed=seed, n_train=p.train, n_test=p.test) for seed in range(seeds)]
    train = [p.view(part.train) for part in data]
    others = [(p.view(part.validation.first(p.held_out)), p.view(part.test)) for part in data]
    starts, rows = [], []
    for seed in range(seeds):
        torch.manual_seed(seed)
        starts.append(p.network())
    for (name, amount), method in p.methods.items():
        for budget in p.budgets:
            torch.manual_seed(0)
            for k, model in enumerate(fit(method, starts, train, budget * p.epochs, p.rates, p.batch)):
                seed, rate = k // len(p.rates), p.rates[k % len(p.rates)]
                keys = {"name": name, "amount": amount, "budget": budget, "rate": rate, "seed": seed}
                zeros = sum(int((W == 0).sum()) for W in model.parameters()) if method.schedule else 0
                kept = (wc.count_parameters(model).deployed - zeros) / wc.count_parameters(starts[0]).deployed
                rows.append({**keys, "kept": kept, **measure(model, train[seed], *others[seed])})
    return pd.DataFrame(rows).set_index(["name", "amount", "budget", "rate"])


def undertraining(seeds: int = 3, p: Protocol = MNIST) -> tuple[list[Finding], pd.DataFrame]:
    """Panels error (test error in percent), loss and entropy against epochs, gain (over that of dense) and needed
    (epochs) against the share of parameters kept in percent; series as "CondLR 0.9"."""
    runs, lines, finding = train_all(seeds, p), Lines(), partial(Finding, p.system)
    held_out = runs.groupby(level=[0, 1, 2, 3])["held out"].mean()
    best = held_out.groupby(level=[0, 1, 2]).idxmax()
    first, last = p.budgets[0], p.budgets[-1]

    def own(name: str, amount: float, budget: int) -> pd.DataFrame:
        return runs.loc[best[name, amount, budget]].set_index("seed")

    def recipe(name: str, amount: float) -> pd.DataFrame:
        return runs.loc[name, amount, *best["dense", 0.0, first][2:]].set_index("seed")

    gains, epochs = {}, {}
    for key in p.methods:
        at = [own(*key, budget) for budget in p.budgets]
        accuracies: list[list[float]] = pd.concat([part["test"] for part in at], axis=1).to_numpy().tolist()
        gains[key] = at[-1]["test"] - recipe(*key)["test"]
        epochs[key] = pd.Series([p.epochs * needed(p.budgets, values) for values in accuracies])
        series, kept = f"{key[0]} {key[1]:g}", 100 * float(at[-1]["kept"].mean())
        for budget, part in zip(p.budgets, at, strict=True):
            for panel, values in (("error", 100 - part["test"]), ("loss", part["loss"]), ("entropy", part["entropy"])):
                lines.add(panel, series, p.epochs * budget, list(values))
        lines.add("recipe", series, p.epochs, list(100 - recipe(*key)["test"]))
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
