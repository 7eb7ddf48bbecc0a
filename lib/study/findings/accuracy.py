"""Accuracy against compression: LeNet5 on MNIST."""

from __future__ import annotations

from collections.abc import Mapping

from study.findings.finding import Number, committed, finding, gap
from study.statistics import frames

CONDLR, DENSE = "CondLR, τ = 0.1, ratio 0.8", "dense SGD"


@finding("With four fifths of the rank removed CondLR is as accurate as dense SGD to a fifth of a point.")
def cost() -> Mapping[str, Number]:
    results = committed("mnist_lenet5")
    share = frames.summary(results).set_index("name")["n_params_deployed_ratio"][CONDLR]
    return {
        "gap": gap(frames.compare(results, CONDLR, DENSE), low=-0.2, high=0),
        "share": Number(100 * share, low=32, high=34, digits=0),
    }
