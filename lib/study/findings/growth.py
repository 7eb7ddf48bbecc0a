"""LeNet5 on MNIST: starts with bad spectra (mnist_condition_growth), methods that find their ranks (mnist_lenet5)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from study.findings.finding import Number, committed, finding, size, summarized
from study.presentation.dynamics import history, sizes
from study.results.store import Results
from study.statistics import frames
from study.statistics.comparison import Gap

PLAIN, PROJECTED, DLRT, CONDLR = (
    "U Vᵀ, rank 20",
    "projected U S Vᵀ, rank 20",
    "DLRT, rank 20",
    "CondLR, τ = 0.1, rank 20",
)
SMALL, SMALL_CONDLR, SMALL_PLAIN = (
    "rank-adaptive DLRT, ϑ = 0.2, ratio 0.5",
    "CondLR, τ = 0.1, ratio 0.97",
    "U Vᵀ, ratio 0.97",
)
ROBUST, UNPENALIZED = "RobustDLRT, ϑ = 0.1, β = 0.03, ratio 0.5", "RobustDLRT, ϑ = 0.1, β = 0, ratio 0.5"
PGD = ("pgd_linf", 0.1)


def starts() -> Results:
    """Six methods from three starts."""
    return committed("mnist_condition_growth")


def adaptive() -> Results:
    """All methods of chapter 6, rank-adaptive ones among them."""
    return committed("mnist_lenet5")


def lost(method: str, decay: int, attack: tuple[str, float] = ("clean", 0.0)) -> Gap:
    """What a method loses by a start with this α, in points, against α = 1."""
    return frames.compare(starts(), f"{method}, α = 1", f"{method}, α = {decay}", *attack)


def final_kappa(experiment: str, name: str) -> float:
    """The largest κ of any layer and seed after training."""
    return float(summarized(experiment)["kappa"][name])


@finding("From the worst start DLRT loses next to nothing, the projected integrator a point, plain factors a seed.")
def worst_start() -> Mapping[str, Number]:
    plain = frames.by_seed(starts())[f"{PLAIN}, α = 10"].sort_values()
    return {
        "dlrt": size(lost(DLRT, 10), 0, 0.5),
        "projected": size(lost(PROJECTED, 10), 0.5, 2.5, digits=1),
        "failed": Number(float(plain.iloc[0]), 15, 60, digits=0),
        "second": Number(float(plain.iloc[1]), 92, 96, digits=0),
        "best": Number(float(plain.iloc[2]), 94, 97, digits=0),
    }


@finding("Under PGD plain factors lose most from a bad start.")
def attacked() -> Mapping[str, Number]:
    rates = frames.by_seed(starts(), *PGD).mean()
    return {
        "plain": Number(float(rates[f"{PLAIN}, α = 1"]), 65, 73, digits=0),
        "plain_bad": Number(float(rates[f"{PLAIN}, α = 10"]), 5, 30, digits=0),
        "dlrt": Number(float(rates[f"{DLRT}, α = 1"]), 60, 75, digits=0),
        "dlrt_bad": Number(float(rates[f"{DLRT}, α = 10"]), 45, 70, digits=0),
        "gap": size(frames.compare(starts(), f"{DLRT}, α = 2", f"{PLAIN}, α = 2", *PGD), 15, 45),
    }


@finding("Plain factors keep the condition number of their start, and make a good one worse.")
def kappa() -> Mapping[str, Number]:
    start = history(starts(), "kappa").query("epoch == 0").groupby("name")["value"].max()
    return {
        "start": Number(float(start[f"{PLAIN}, α = 1"]), 10, 20, digits=0),
        "grown": Number(final_kappa("mnist_condition_growth", f"{PLAIN}, α = 1"), 40, 90, digits=0),
        "powers": Number(math.log10(final_kappa("mnist_condition_growth", f"{PLAIN}, α = 10")), 19.5, 22, digits=0),
        "dlrt": Number(math.log10(final_kappa("mnist_condition_growth", f"{DLRT}, α = 10")), 4, 6.5, digits=0),
    }


@finding("Projected onto its bound, the worst start of CondLR is well conditioned and too small to learn.")
def projection() -> Mapping[str, Number]:
    norms = starts().select("curves").query("quantity == 'sigma_max' and epoch == 0").groupby("run_id")["value"].prod()
    methods = starts().runs.set_index("run_id").query("decay == 10")["method"]
    means = norms[methods.index].groupby(methods).mean()
    return {
        "shrunk": Number(round(float(means["uv"] / means["condlr"]), -2), 1000, 10000, digits=0),
        "accuracy": Number(float(frames.by_seed(starts())[f"{CONDLR}, α = 10"].mean()), 9, 13, digits=0),
        "mild": size(frames.compare(starts(), f"{CONDLR}, α = 2", f"{PROJECTED}, α = 2", *PGD), 10, 60),
    }


@finding("With the ranks that training finds, a network of a twentieth of the size beats CondLR of one ratio.")
def found() -> Mapping[str, Number]:
    share = sizes(adaptive()).groupby("name")["share"].mean()
    last = frames.final(frames.ordered(adaptive().select("curves")).query("quantity == 'rank'"))
    ranks = last[last["name"] == SMALL].groupby("layer")["value"].mean()
    return {
        "share": Number(float(share[SMALL]), 4, 6, digits=0),
        "condlr_share": Number(float(share[SMALL_CONDLR]), 6, 6.5, digits=0),
        "condlr": size(frames.compare(adaptive(), SMALL, SMALL_CONDLR), 0.2, 1.2),
        "plain": size(frames.compare(adaptive(), SMALL, SMALL_PLAIN), 0.2, 1.4),
        "attacked": size(frames.compare(adaptive(), SMALL, SMALL_CONDLR, *PGD), 5, 60),
        "first": Number(float(ranks["conv1"]), 5, 7, digits=0),
        "large": Number(float(ranks["fc1"]), 7, 12, digits=0),
    }


@finding("At a sixth of the size the found ranks are no better than one ratio.")
def larger() -> Mapping[str, Number]:
    first, second = "rank-adaptive DLRT, ϑ = 0.1, ratio 0.5", "CondLR, τ = 0.1, ratio 0.9"
    return {"condlr": size(frames.compare(adaptive(), first, second), -0.1, 0.4)}


@finding("The penalty of RobustDLRT buys robustness with accuracy.")
def penalty() -> Mapping[str, Number]:
    return {
        "attacked": size(frames.compare(adaptive(), ROBUST, UNPENALIZED, *PGD), 8, 25),
        "clean": size(frames.compare(adaptive(), UNPENALIZED, ROBUST), 0.2, 0.7),
        "kappa": Number(final_kappa("mnist_lenet5", ROBUST), 1.8, 3, digits=1),
        "free": Number(final_kappa("mnist_lenet5", UNPENALIZED), 4, 6, digits=1),
    }
