"""The MNIST study beside what was expected of it, and beside the published results on the same network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from study.findings.finding import Number, committed, finding, gap
from study.statistics.frames import compare, pick, summary


@finding("Neither the geometry nor the published step changes the accuracy by more than a fraction of a point.")
def differences() -> Mapping[str, Number]:
    def between(first: str, second: str) -> Number:
        return gap(compare(committed("mnist_lenet5"), f"{first}, ratio 0.8", f"{second}, ratio 0.8"), -0.3, 0.3)

    return {
        "geometry": between("projected U S Vᵀ", "U Vᵀ"),
        "published": between("CondLR as published, τ = 0.1", "CondLR, τ = 0.1"),
        "clamp": between("CondLR as published, τ = 0", "CondLR, τ = 0"),
    }


@finding("Our adaptive networks are more accurate than the published ones, at a size as large or smaller.")
def adaptive() -> Mapping[str, Number]:
    frame: Any = summary(pick(committed("mnist_lenet5"), ["dlrt_adaptive"])).set_index("tolerance")
    return {
        "accuracy_1": Number(frame.at[0.1, "accuracy"], 98.5, 100, frame.at[0.1, "accuracy_std"], digits=2),
        "size_1": Number(100 * frame.at[0.1, "n_params_deployed_ratio"], 14, 19, digits=1),
        "accuracy_2": Number(frame.at[0.2, "accuracy"], 98.3, 100, frame.at[0.2, "accuracy_std"], digits=2),
        "size_2": Number(100 * frame.at[0.2, "n_params_deployed_ratio"], 3, 7.5, digits=1),
    }
