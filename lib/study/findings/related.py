"""Claims of related systems, from the small experiments of results/related. Not the published claims themselves, which
are `study.statistics.verdicts.Finding`, but what the book says became of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from study.findings.finding import Number, committed, finding, gap, size, unclear
from study.statistics import frames
from study.statistics.comparison import Gap, student
from study.theory import related


def measured(
    claim: str, low: float, high: float, scale: float = 1, digits: int | None = None, system: str = ""
) -> Number:
    """scale times the mean over three seeds of what was measured for a claim of results/related/claims.csv; `system`
    says which if several make it, by default the first of SYSTEMS."""
    claims = related.load("claims")
    own = claims[claims["claim"] == claim]
    row: Any = (own[own["system"] == system] if system else own).iloc[0]
    return Number(scale * float(row["value"]), low, high, abs(scale) * float(row["margin"]), digits)


def drawn(system: str, panel: str, series: str, x: float | None = None) -> float:
    """The mean of all values of a line of a system's figure at x, its largest one by default."""
    rows = related.load(system)
    own = rows[(rows["panel"] == panel) & (rows["series"] == series)]
    return float(own.loc[own["x"] == (own["x"].max() if x is None else x), "y"].mean())


@finding("Flows on O(d) keep their gradients, and a residual network with steps 1/N keeps them as well.")
def gradients() -> Mapping[str, Number]:
    return {
        "flow": measured("Gradients neither vanish nor explode", 0, 1, digits=2),
        "residual": measured("and in a residual network", 0, 0.4, digits=1),
        "strong": measured("whatever the parameter flow", 0, 1, digits=1),
        "free": measured("Without the constraint they do explode or vanish", 1.5, 8, digits=0),
    }


@finding("The flow on O(d) is less accurate than a residual network of equal size, and not more robust to corruption.")
def price() -> Mapping[str, Number]:
    return {
        "clean": measured("As accurate as a residual network of equal size", 1, 3, scale=-1),
        "corrupted": measured("more accurate on corrupted images", 0.5, 6, scale=-1),
    }


@finding("SGD ends within a percent of certified optima, and a bound on κ far from them.")
def landscape() -> Mapping[str, Number]:
    return {
        "own": measured("A stationary point is the optimum over its own patterns", 0.1, 1, scale=100),
        "wide": measured("A wide network reaches the global optimum", 0.1, 1, scale=100),
        "half": measured("U S Vᵀ of half the rank reaches it too", 0, 0.1, scale=100),
        "bounded": measured("A bound on κ keeps away from it", 20, 70, scale=100),
    }


@finding("Whether layers that are made to descend are more robust stays open; a good start does more.")
def unrolled() -> Mapping[str, Number]:
    start, free = "LISTA, started as ISTA", "LISTA"
    return {
        "rises": measured("Layers of plain LISTA need not descend", 8, 9, digits=0),
        "constraint": measured("Constrained layers do", 0.02, 6),
        "noise": measured("and degrade less under noise", 0.4, 1.1),
        "bounded": measured("A bound on κ(W2) and its norm does the same", 0.5, 1, digits=1),
        "start": Number(drawn("unrolled", "layers", start) / drawn("unrolled", "layers", free), 0.1, 0.4, digits=2),
    }


def _moved(first: str, second: str) -> Number:
    """How far first - second, in points of test accuracy, moves from the 8 epochs of one experiment of LeNet5 on MNIST
    to the 20 of another, all else equal."""
    short, long = (frames.by_seed(committed(name)) for name in ("mnist_compression_aware", "mnist_lenet5"))
    lead = (long[first] - long[second]) - (short[first] - short[second])
    return gap(student(list(lead.dropna())))


def _ends(panel: str, series: str, which: str = "max", system: str = "undertraining") -> pd.Series:
    """The values of a line of the figure of under-training at its largest or smallest ("min") x, by seed."""
    rows = related.load(system)
    own = rows[(rows["panel"] == panel) & (rows["series"] == series)]
    return own[own["x"] == own["x"].agg(which)].set_index("seed")["y"]


@finding(
    "Sparse networks are under-trained by the recipe of a dense one, and so are those of low rank, U S Vᵀ for certain."
)
def undertraining() -> Mapping[str, Number]:
    return {
        "acdc": measured("Dense recipes under-train sparse networks", 10, 50),
        "gradual": measured("by gradual pruning as well", 4, 11),
        "entropy": measured("and leave their outputs uncertain", 3, 6),
        "uv": measured("Dense recipes under-train U Vᵀ", -12, 25),
        "condlr": measured("and U S Vᵀ with κ ≤ 1.1", 2, 14),
        "half": measured("at half the rank too", 1, 4),
    }


@finding("The dense recipe overstates the price of a bound on κ; after the longest training none is left to tell.")
def recipe() -> Mapping[str, Number]:
    lead = {panel: _ends(panel, "dense 0") - _ends(panel, "CondLR 0.8") for panel in ("recipe", "error")}
    return {
        "moved": measured("The dense recipe is fair to κ ≤ 1.1 against dense", 1.5, 8),
        "behind": size(student(list(-lead["recipe"])), 2, 6),
        "ahead": unclear(student(list(lead["error"])), most=2),
        "uv": measured("and against U Vᵀ", -2, 5),
        "dense": Number(float(_ends("needed", "dense").mean()), 6, 12, digits=0),
        "thin": Number(float(_ends("needed", "CondLR", "min").mean()), 13, 25, digits=0),
    }


@finding("LeNet5 on MNIST: from 8 epochs to 20 the comparison with dense moves by a tenth of a point.")
def longer() -> Mapping[str, Number]:
    def of(name: str, low: float, high: float) -> Number:
        return replace(_moved(name, "dense SGD"), low=low, high=high)

    return {
        "condlr": of("CondLR, τ = 0.1, ratio 0.8", -0.2, 0.4),
        "thin": of("CondLR, τ = 0.1, ratio 0.9", 0.05, 0.2),
        "uv": of("U Vᵀ, ratio 0.8", -0.1, 0.1),
    }


@finding("Averaging on the rank-r manifold sends a third a round, and is less accurate; no sign that the merge is why.")
def fixed_rank() -> Mapping[str, Number]:
    digits = partial(measured, system="federated")
    rows = related.load("federated")
    sent = rows[rows["panel"] == "skewed"].groupby("series")["x"].max()
    return {
        "round": Number(float(sent["tangent"] / sent["dense"]), 0.3, 0.4, digits=2),
        "identical": digits("As accurate as dense averaging", 0, 5, scale=-1),
        "skewed": digits("also on clients with two classes each", 0, 12, scale=-1),
        "bytes": digits("with less communication", 0.4, 1, digits=1),
        "equal": digits("and at equal bytes", -10, 10),
        "noise": Number(digits("Noise at 20 dB costs little", -0.5, 0.5).value, -0.5, 0.5, digits=1),
        "order": digits("What the sum of coordinates loses is of second order", 1.7, 2.3, digits=1),
        "products": digits("To send products gains nothing", -3, 3),
        "bound": digits("The bound κ ≤ 1.1 costs little", -2, 2),
    }


@finding("On MNIST low rank costs accuracy on both splits and saves bytes a round; the bound on κ gains under noise.")
def fixed_rank_mnist() -> Mapping[str, Number]:
    mnist = partial(measured, system="federated_mnist")
    return {
        "identical": mnist("As accurate as dense averaging", 1, 5, scale=-1, digits=1),
        "skewed": mnist("also on clients with two classes each", 4, 11, scale=-1),
        "bytes": mnist("with less communication", 0.6, 1.1, digits=1),
        "unequal": mnist("and with less on skewed clients", 0.6, 0.9, digits=1),
        "noise": mnist("Noise at 20 dB costs little", -1, 1, digits=1),
        "own": mnist("and fail from the bases of each client's SVD", 20, 90, scale=-1),
        "common": mnist("Factors one by one are as good from common bases", -6, 0),
        "bound": mnist("and gains under noise", 0.5, 5, digits=1),
    }


@finding("Singular vectors cannot be averaged, least of all under a bound on κ; the subspaces can.")
def bases() -> Mapping[str, Number]:
    digits = partial(measured, system="federated")
    rows = related.load("federated")
    angle = rows[rows["panel"] == "angle"]
    longest = angle.loc[angle.groupby(["series", "seed"])["x"].idxmax()].groupby("series")["y"].mean()
    return {
        "own": digits("and fail from the bases of each client's SVD", 20, 90, scale=-1),
        "subspace": Number(float(longest["tangent, κ ≤ 1.1, subspace"]), 3, 45, digits=0),
        "vector": Number(float(longest["tangent, κ ≤ 1.1, vector"]), 45, 90, digits=0),
        "common": digits("Factors one by one are as good from common bases", -1.5, 1.5),
    }


@finding("Noise makes robust; kernel pooling adds little to it, and that only where the noise is strong.")
def pooling() -> Mapping[str, Number]:
    def kept(series: str, sigma: float) -> float:
        return drawn("kernel_pooling", "l2", series, sigma)

    pooled = "pooling, K = 3"
    return {
        "bare": Number(kept("noise", 0), 30, 42, digits=0),
        "noise": Number(kept("noise", 0.45), 54, 65, digits=0),
        "weak": Number(kept("noise", 0.1) - kept(pooled, 0.1), 1, 9, digits=0),
        "l2": measured("Pooling adds to noise, ℓ₂", 1, 6),
        "linf": measured("and in ℓ∞", -5.4, 8.9),
        "clean": measured("at no cost", -1.4, 1.5, digits=1),
        "alone": measured("Pooling alone makes robust", -18, 17),
        "neighbours": measured("Kernels of similar function emerge", 3, 8, digits=1),
        "kappa": measured("Pooling makes kernels ill-conditioned", 2, 6),
        "bounded": measured("and is more robust than a bound on κ", -3, 6),
        "rank": measured("Robust networks have small norms", -0.5, 0.5, digits=1),
    }


@finding(
    "LARS saves most of what linear scaling loses in large adversarial batches; it does not keep what small ones do."
)
def batches() -> Mapping[str, Number]:
    def kept(name: str, batch: int, low: float, high: float) -> Number:
        return Number(drawn("large_batches", "robust", f"dense, {name}", batch), low, high, digits=0)

    return {
        "small": kept("SGD", 128, 60, 75),
        "scaled": kept("linear scaling", 2048, 5, 15),
        "large": kept("LARS", 2048, 40, 50),
        "lost": measured("LARS keeps it", 15, 30),
        "saved": measured("or loses less", 25, 45),
        "sgd": measured("also less than SGD with a rate of its own", 0, 45),
        "ratio": measured("since layers have ratios of their own", 0.5, 6),
        "uv": measured("It helps U Vᵀ", 0, 32),
        "kappa": measured("and U S Vᵀ with κ ≤ 1.1 as well", 0, 15, digits=1),
        "more": measured("Large batches cost κ ≤ 1.1 no more than dense", 0, 12, digits=1),
        "step": measured("A one-step adversary is enough", 0, 11, scale=-1),
    }


@finding("Eight bits send less than a fifth of the rank does, at a smaller price.")
def compressed() -> Mapping[str, Number]:
    rows = related.load("large_batches")
    sent = rows[rows["panel"] == "sent"].groupby("series")["x"].max()
    rank = drawn("large_batches", "robust", "dense, LARS") - drawn("large_batches", "robust", "κ ≤ 1.1, LARS")
    return {
        "dense": Number(float(sent["dense, LARS"]), 130, 140, digits=0),
        "bits": Number(float(sent["dense, LARS, 8 bits"]), 30, 40, digits=0),
        "rank": Number(float(sent["κ ≤ 1.1, LARS"]), 45, 55, digits=0),
        "both": Number(float(sent["κ ≤ 1.1, LARS, 8 bits"]), 10, 15, digits=0),
        "change": measured("Gradients of 8 bits cost nothing", -4, 4, digits=1),
        "price": Number(rank, 8, 20, digits=0),
    }


def _rewiring(panel: str, series: str, percent: int) -> pd.Series:
    """What was measured of a method at this density, by seed."""
    rows = related.load("rewiring")
    own = rows[(rows["panel"] == panel) & (rows["series"] == series) & (rows["x"] == percent)]
    return own.set_index("seed")["y"]


@finding("Sparse from the start with moving zeros: clean accuracy falls, and pruning a dense network falls less.")
def rewiring() -> Mapping[str, Number]:
    def lead(panel: str, rival: str, percent: int) -> Gap:
        return student(list(_rewiring(panel, rival, percent) - _rewiring(panel, "rewiring", percent)))

    return {
        "clean": Number(drawn("rewiring", "clean", "dense"), 94, 96, digits=0),
        "robust": Number(drawn("rewiring", "robust", "dense"), 66, 75, digits=0),
        "ten_clean": measured("Ten times fewer weights keep the clean accuracy", 4, 7, scale=-1),
        "ten_robust": measured("and the robust one", -1.1, 23, scale=-1),
        "twenty_clean": measured("Twenty times fewer keep the clean accuracy", 7, 8.5, scale=-1),
        "twenty_robust": measured("and the robust one too", 3, 27, scale=-1),
        "pruned_clean": size(lead("clean", "magnitude", 5), 0.5, 5),
        "pruned_robust": unclear(lead("robust", "magnitude", 5)),
    }


@finding(
    "Of as many weights, U Vᵀ does not train at 5 %, is far behind at 10 % and level at 20 %, where indices tip it."
)
def rewiring_and_rank() -> Mapping[str, Number]:
    def lead(percent: int) -> Gap:
        return student(list(_rewiring("robust", "rewiring", percent) - _rewiring("robust", "U Vᵀ", percent)))

    def most(series: str, percent: int) -> float:
        return float(_rewiring("clean", series, percent).max())

    return {
        "chance": Number(max(most("U Vᵀ", 5), most("U S Vᵀ, κ ≤ 1.1", 5)), 9, 12, digits=0),
        "ten": size(lead(10), 10, 30),
        "twenty": unclear(lead(20)),
        "stored": Number(drawn("rewiring", "stored", "rewiring", 20), 22, 24, digits=0),
        "factors": Number(drawn("rewiring", "stored", "U Vᵀ", 20), 19, 20, digits=0),
        "bound": unclear(student(list(_rewiring("robust", "U S Vᵀ, κ ≤ 1.1", 10) - _rewiring("robust", "U Vᵀ", 10)))),
        "channels": Number(float((_rewiring("clean", "channels", 20) < 12).sum()), 2, 2, digits=0),
    }


@finding(
    "On CIFAR-10 gradual pruning repeats it, and the recipe is unfair to κ ≤ 1.1 again; AC/DC and low rank stay open."
)
def undertraining_cifar() -> Mapping[str, Number]:
    own, system = partial(measured, system="undertraining_cifar"), "undertraining_cifar"
    lead = {
        panel: _ends(panel, "dense 0", system=system) - _ends(panel, "CondLR 0.8", system=system)
        for panel in ("recipe", "error")
    }
    return {
        "gradual": own("by gradual pruning as well", 2, 16),
        "acdc": own("Dense recipes under-train sparse networks", -7, 12),
        "condlr": own("and U S Vᵀ with κ ≤ 1.1", -4, 23),
        "behind": unclear(student(list(-lead["recipe"]))),
        "ahead": unclear(student(list(lead["error"]))),
        "moved": own("The dense recipe is fair to κ ≤ 1.1 against dense", 0.5, 12),
    }


@finding("On CIFAR-10 a tenth of the weights keeps the little that the dense network has, as far as three seeds tell.")
def rewiring_cifar() -> Mapping[str, Number]:
    own = partial(measured, system="rewiring_cifar")
    return {
        "dense": Number(drawn("rewiring_cifar", "clean", "dense"), 20, 35, digits=0),
        "clean": own("Ten times fewer keep the clean accuracy", -5, 5, scale=-1),
        "robust": own("and the robust one too", -5, 5, scale=-1),
        "usv": own("and than U S Vᵀ with κ ≤ 1.1", 3, 12),
        "uv": own("More robust than U Vᵀ of as many weights", -8, 20),
    }


@finding("On CIFAR-10 noise makes robust again; whether pooling adds to it is open, and norms and κ fall together.")
def pooling_cifar() -> Mapping[str, Number]:
    system = "kernel_pooling_cifar"
    own = partial(measured, system=system)
    return {
        "bare": Number(drawn(system, "l2", "noise", 0), 15, 25, digits=0),
        "noise": Number(drawn(system, "l2", "noise"), 18, 26, digits=0),
        "l2": own("Pooling adds to noise, ℓ₂", -3, 3),
        "linf": own("and in ℓ∞", 0, 4, scale=-1),
        "clean": own("at no cost", 0, 4, scale=-1),
        "bounded": own("and is more robust than a bound on κ", 4, 15, scale=-1),
        "kappa": own("Pooling makes kernels ill-conditioned", 5, 15),
        "rank": own("Robust networks have small norms", -1, -0.5),
        "rank_kappa": own("or small condition numbers", -1, -0.7),
    }


@finding("Learned federated layers store the task: level with one stored classifier, lost where none can be stored.")
def surf() -> Mapping[str, Number]:
    def at(series: str, exchanges: int, low: float, high: float) -> Number:
        return Number(drawn("surf", "same labels", series, exchanges), low, high, digits=0)

    asleep = drawn("surf", "asleep", "DGD", 0) - drawn("surf", "asleep", "DGD")
    return {
        "final": at("descending", 20, 79, 85),
        "descent": at("long", 20, 77, 83),
        "early": at("long", 4, 70, 79),
        "two": at("descending", 4, 20, 45),
        "free": at("unconstrained", 16, 5, 30),
        "rises": measured("Others need not", 4, 6, digits=0),
        "worst": measured("Constrained ones descend", 0, 0.2, digits=2),
        "ratio": measured("Ten layers do what takes DGD many rounds", 3, 11, digits=0),
        "server": measured("and what takes a server as many", -1.2, 2.3),
        "cost": measured("at equal accuracy", 0.8, 2, scale=-1),
        "asleep": measured("They lose less when agents sleep", 10, 18),
        "kept": Number(asleep, 0, 4, digits=1),
        "lost": Number(
            drawn("surf", "asleep", "descending", 0) - drawn("surf", "asleep", "descending"), 8, 18, digits=0
        ),
        "noise": measured("and when messages are noisy", -2, 0.5, digits=1),
        "stored": measured("They know more than one stored classifier", -0.6, 0.8, digits=1),
        "new": Number(drawn("surf", "new labels", "new labels"), 15, 35, digits=0),
        "behind": measured("and learn where none can be stored", 45, 65, scale=-1),
    }
