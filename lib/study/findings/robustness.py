"""Whether low-rank networks with bounded κ are harder to fool: LeNet5 on MNIST, the strongest attack of each norm."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import pandas as pd

from study.findings.finding import Number, clear, committed, finding, share, unclear
from study.presentation import robustness_tables as robustness
from study.results.store import Results
from study.statistics import frames, threat_model
from study.statistics.comparison import Gap
from study.statistics.threat_model import Threat

GRADIENT = Threat("gradient attacks ℓ∞", ("fgsm", "pgd_linf", "mim_linf", "pgd_linf_scaled"), 0.1, 1000)
GRADIENT_2 = Threat("gradient attacks ℓ₂", ("pgd_l2", "pgd_l2_scaled"), 1.0, 1000)
EVERY = Threat("all ℓ∞ attacks", ("pgd_linf", "autoattack_linf"), 0.1, 200)
DENSE = "dense SGD"


def condlr(ratio: float, tau: float = 0.1) -> str:
    """The full name of a configuration of CondLR; and of its rivals of equal size, below."""
    return f"CondLR, τ = {tau:g}, ratio {ratio:g}"


def plain(ratio: float) -> str:
    return f"U Vᵀ, ratio {ratio:g}"


def free(ratio: float) -> str:
    return f"projected U S Vᵀ, ratio {ratio:g}"


def cut(ratio: float) -> str:
    return f"SVD of dense, fine-tuned, ratio {ratio:g}"


def study() -> Results:
    return committed("mnist_lenet5")


@functools.cache
def difference(first: str, second: str, threat: Threat = GRADIENT) -> Gap:
    """first - second under a threat."""
    return frames.difference(_rates(threat), first, second)


@functools.cache
def _rates(threat: Threat) -> pd.DataFrame:
    return threat_model.by_seed(study(), threat)


def withstood(name: str, low: float, high: float, threat: Threat = GRADIENT) -> Number:
    """The percentage of images that a configuration withstands, mean over its seeds."""
    return Number(float(_rates(threat)[name].mean()), low, high, digits=0)


@finding("At a third of the parameters the bound withstands more than no bound and than U Vᵀ, under every attack.")
def equal_size() -> Mapping[str, Number]:
    return {
        "condlr": withstood(condlr(0.8), 70, 80),
        "plain": withstood(plain(0.8), 50, 63),
        "dense": withstood(DENSE, 76, 79.5),
        "over_plain": clear(difference(condlr(0.8), plain(0.8))),
        "over_free": clear(difference(condlr(0.8), free(0.8))),
        "over_plain_l2": clear(difference(condlr(0.8), plain(0.8), GRADIENT_2)),
        "over_free_l2": clear(difference(condlr(0.8), free(0.8), GRADIENT_2)),
        "over_plain_every": clear(difference(condlr(0.8), plain(0.8), EVERY)),
        "over_free_every": clear(difference(condlr(0.8), free(0.8), EVERY)),
    }


@finding("At a third of the parameters it is no clear difference to the dense network, cut by SVD or whole.")
def no_clear() -> Mapping[str, Number]:
    return {
        "dense": unclear(difference(condlr(0.8), DENSE)),
        "cut": unclear(difference(condlr(0.8), cut(0.8))),
    }


@finding("At half the rank the bound withstands more than the dense network and than that network cut by SVD.")
def half_rank() -> Mapping[str, Number]:
    return {
        "share": share("mnist_lenet5", condlr(0.5), 75, 85),
        "dense": clear(difference(condlr(0.5), DENSE)),
        "cut": clear(difference(condlr(0.5), cut(0.5))),
        "plain": clear(difference(condlr(0.5), plain(0.5))),
        "free": clear(difference(condlr(0.5), free(0.5))),
    }


@finding("The released step withstands no less than ours of the same size: clearly more in two of four comparisons.")
def published() -> Mapping[str, Number]:
    name = "CondLR as published, τ = {:g}, ratio 0.8".format
    return {
        "bound": withstood(name(0.1), 75, 83),
        "equal": withstood(name(0), 75, 85),
        "bound_ahead": unclear(difference(name(0.1), condlr(0.8))),
        "equal_ahead": clear(difference(name(0), condlr(0.8, 0))),
        "bound_ahead_l2": clear(difference(name(0.1), condlr(0.8), GRADIENT_2)),
        "equal_ahead_l2": unclear(difference(name(0), condlr(0.8, 0), GRADIENT_2)),
        "dense": unclear(difference(name(0), DENSE)),
    }


@finding("At a sixteenth of the parameters the bound withstands more than U Vᵀ, and both lose most of it.")
def smallest() -> Mapping[str, Number]:
    return {
        "share": share("mnist_lenet5", condlr(0.97), 5, 7),
        "condlr": withstood(condlr(0.97), 20, 40),
        "plain": withstood(plain(0.97), 8, 24),
        "gap": clear(difference(condlr(0.97), plain(0.97))),
        "gap_tenth": unclear(difference(condlr(0.9), plain(0.9))),
    }


@finding("The attacks work: stronger and different ones fell hardly an image more, large balls everything.")
def attacks_work() -> Mapping[str, Number]:
    results = frames.attacked(study())
    rates = frames.suite_rates(results)
    far = rates[(rates["attack"] == "pgd_linf") & (rates["eps"] > 0.25)]
    square = [robustness.additions(results, attack)["felled"].sum() for attack in ("square_linf", "square_l2")]
    auto = [robustness.additions(results, attack)["felled"].max() for attack in ("autoattack_linf", "autoattack_l2")]
    own, least = transfer(results)
    return {
        "far": Number(float(far["rate"].max()), 0, 0.5, digits=1),
        "longer": Number(float(robustness.effort(results, "pgd_linf")["more"].max()), 0, 2, digits=0),
        "square": Number(float(sum(square)), 0, 3, digits=0),
        "auto": Number(float(max(auto)), 0, 20, digits=0),
        "auto_linf": Number(float(auto[0]), 0, 12, digits=0),
        "scaled": Number(float(robustness.scale_control(results)["more"].max()), 0, 5, digits=1),
        "own": Number(own, 65, 85, digits=0),
        "foreign": Number(least, 0.5, math.inf, digits=1),
        "flags": Number(float(len(robustness.flags(results))), 0, 6, digits=0),
    }


def transfer(results: Results) -> tuple[float, float]:
    """The accuracy in % on own adversarial images, mean over networks; and by how much the most harmful images of
    another network do less harm than its own, the least over networks."""
    rates = results.transfer.assign(rate=lambda f: 100 * f["n_correct"] / f["n_examples"])
    same = rates["run_id"] == rates["target"]
    own, foreign = rates[same].set_index("target")["rate"], rates[~same].groupby("target")["rate"].min()
    return float(own.mean()), float((foreign - own).min())


@finding("Contrast is another matter: there the bound is no advantage at a third of the parameters.")
def contrast() -> Mapping[str, Number]:
    faded = Threat("contrast", ("contrast",), 5, 10000)
    blurred = Threat("blur", ("blur",), 5, 10000)
    return {
        "condlr": withstood(condlr(0.8), 75, 93, faded),
        "plain": withstood(plain(0.8), 93, 98, faded),
        "blur": Number(abs(difference(condlr(0.8), plain(0.8), blurred).difference), 0, 0.6, digits=1),
    }
