"""Accuracy against compression, and condition numbers over training: LeNet5 on MNIST."""

from __future__ import annotations

from collections.abc import Mapping

from study.findings.finding import Number, committed, finding, gap, share, size, summarized, unclear
from study.results.store import Results
from study.statistics import frames

CONDLR, DENSE = "CondLR, τ = 0.1, ratio 0.8", "dense SGD"


def _study() -> Results:
    return committed("mnist_lenet5")


def _accuracy(name: str, low: float, high: float = 100, digits: int = 2) -> Number:
    return Number(float(summarized("mnist_lenet5")["accuracy"][name]), low, high, digits=digits)


@finding("With four fifths of the rank removed CondLR is as accurate as dense SGD to a fifth of a point.")
def cost() -> Mapping[str, Number]:
    return {
        "gap": gap(frames.compare(_study(), CONDLR, DENSE), low=-0.2, high=0),
        "share": share("mnist_lenet5", CONDLR, 32, 34),
        "condlr": _accuracy(CONDLR, 99.0, 99.2, digits=1),
        "dense": _accuracy(DENSE, 99.1, 99.3, digits=1),
    }


@finding("The accuracies that had been expected before the experiment was run are reached.")
def expected() -> Mapping[str, Number]:
    return {"dense": _accuracy(DENSE, 99.1), "condlr": _accuracy(CONDLR, 98.9)}


@finding("At equal size the methods differ by tenths of a point, but for an SVD without fine-tuning.")
def equal_size() -> Mapping[str, Number]:
    compare = frames.compare
    return {
        "free": gap(compare(_study(), CONDLR, "projected U S Vᵀ, ratio 0.8"), low=0, high=0.2),
        "plain": unclear(compare(_study(), CONDLR, "U Vᵀ, ratio 0.8"), 0.3),
        "cut": unclear(compare(_study(), CONDLR, "SVD of dense, fine-tuned, ratio 0.8"), 0.3),
        "truncated": _accuracy("SVD of dense, ratio 0.8", 96, 98.3, digits=1),
    }


@finding("At half the rank CondLR is a tenth more accurate than dense SGD; at 3 % of it, a point less.")
def sizes() -> Mapping[str, Number]:
    found = frames.compare(_study(), "CondLR, τ = 0.1, ratio 0.5", DENSE)
    small = "CondLR, τ = 0.1, ratio 0.97"
    return {
        "half": size(found, low=found.margin),
        "small": size(frames.compare(_study(), DENSE, small), low=0.7, high=1.5),
        "small_share": share("mnist_lenet5", small, 5, 7),
    }


@finding("Without a bound condition numbers grow in training; with one they stay, in every epoch and layer.")
def growth() -> Mapping[str, Number]:
    table = summarized("mnist_lenet5")
    start, end, bound = table["kappa_start"], table["kappa"], table["max_cond"]
    excess = (table["kappa_max"] / bound - 1).max()
    return {
        "dense_start": Number(float(start[DENSE]), 10, 20, digits=0),
        "dense": Number(float(end[DENSE]), 30, 60, digits=0),
        "plain_start": Number(float(start["U Vᵀ, ratio 0.8"]), 1.2, 1.5, digits=1),
        "plain": Number(float(end["U Vᵀ, ratio 0.8"]), 4, 8, digits=1),
        "free": Number(float(end["projected U S Vᵀ, ratio 0.8"]), 3, 6, digits=1),
        "dlrt": Number(float(end["DLRT, ratio 0.8"]), 200, 2000, digits=0),
        "excess": Number(1e6 * float(excess), 0, 100, digits=0),  # in millionths
        "orthogonality": Number(1e6 * float(table["orth_error_max"].max()), 0, 10, digits=0),
        "bounded": Number(float((bound * table["kappa_max"]).notna().sum()), 8, 20, digits=0),
    }
