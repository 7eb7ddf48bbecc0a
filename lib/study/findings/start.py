"""The start page: what the study found, in four sentences (LeNet5 on MNIST, PGD l∞ with 100 steps and 5 restarts)."""

from __future__ import annotations

from collections.abc import Mapping

from study.findings.finding import Number, clear, committed, finding, share, size
from study.findings.robustness import difference, withstood
from study.statistics import frames
from study.statistics.threat_model import Threat

PGD = Threat("PGD l∞", ("pgd_linf",), 0.1, 1000)
CONDLR, DENSE = "CondLR, τ = 0.1, ratio 0.8", "dense SGD"
PENALTY = "RobustDLRT, ϑ = 0.2, β = 0.03, ratio 0.5"
TINY = "CondLR, τ = 0.1, ratio 0.97"


@finding("With a third of the parameters CondLR is nearly as accurate as the dense network.")
def accuracy() -> Mapping[str, Number]:
    return {
        "loss": size(frames.compare(committed("mnist_lenet5"), DENSE, CONDLR), low=0, high=0.3),
    }


@finding("A penalty and ranks found in training withstand more than dense, at a fifteenth of its size.")
def penalty() -> Mapping[str, Number]:
    results = committed("mnist_lenet5")
    return {
        "share": share("mnist_lenet5", PENALTY, 5, 9),
        "withstood": withstood(PENALTY, 78, 86, PGD),
        "loss": size(frames.compare(results, DENSE, PENALTY), low=0.6, high=1.5),
        "ahead": clear(difference(PENALTY, DENSE, PGD)),
        "condlr": withstood(TINY, 20, 45, PGD),
    }
