"""A bound on the condition number or a penalty, over strengths: LeNet5 on MNIST. Predictions Q1 to Q5, written down
before the numbers that they are about, are in book/experiments/mnist_penalties.toml."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import pandas as pd

from study.findings.finding import Number, clear, committed, finding, gap, unclear
from study.presentation.trade_off import strengths
from study.statistics import frames
from study.statistics.comparison import Gap

EXPERIMENT, ATTACK, EPS = "mnist_penalties", "pgd_linf", 0.1
PLAIN = "U Vᵀ, ratio 0.8"
LOOSEST, WIDER, BOUND, TIGHTEST = (f"CondLR, τ = {tau}, ratio 0.8" for tau in ("4", "1", "0.1", "0"))
SOFT, ROBUST_DLRT = "soft_orthogonal_uv", "robust_dlrt"


@functools.cache
def found() -> pd.DataFrame:
    """`strengths` of the configurations that have learned, a weak penalty before a strong one."""
    rows = strengths(committed(EXPERIMENT), ATTACK, EPS)
    return rows[rows["clean"] > 50].sort_values("strength", kind="stable")


def of(method: str) -> pd.DataFrame:
    return found()[found()["method"] == method]


def strongest(method: str) -> str:
    return str(of(method).index[-1])


def lead(first: str, second: str, robust: bool = True) -> Gap:
    """first - second in points, under the attack or on clean images, over seeds."""
    return frames.compare(committed(EXPERIMENT), first, second, *((ATTACK, EPS) if robust else ("clean", 0.0)))


def as_accurate(method: str) -> str:
    """The strength whose clean accuracy is nearest to that of CondLR, τ = 0.1."""
    return str((of(method)["clean"] - found()["clean"][BOUND]).abs().idxmin())


@finding("A tighter bound makes the network more robust, for no accuracy, and by more than was expected (not Q5).")
def bound() -> Mapping[str, Number]:
    accuracy = lead(TIGHTEST, LOOSEST, robust=False)
    return {
        "robust": clear(lead(TIGHTEST, LOOSEST)),
        "accuracy": Number(accuracy.difference, 0, 0.5, accuracy.margin),
        "one": Number(lead(TIGHTEST, WIDER).difference, 5, 9, digits=0),
        "plain": clear(lead(TIGHTEST, PLAIN)),
    }


@finding("Strong penalties are clearly more robust than U Vᵀ (Q1), not so than the tightest bound, and cost accuracy.")
def strong() -> Mapping[str, Number]:
    soft, robust_dlrt = strongest(SOFT), strongest(ROBUST_DLRT)
    return {
        "soft": clear(lead(soft, PLAIN)),
        "robust_dlrt": clear(lead(robust_dlrt, PLAIN)),
        "beyond": unclear(lead(soft, TIGHTEST)),
        "soft_price": clear(lead(TIGHTEST, soft, robust=False)),
        "robust_dlrt_price": clear(lead(TIGHTEST, robust_dlrt, robust=False)),
    }


@finding("As accurate as CondLR soft orthogonality is as robust, RobustDLRT not (Q2); none is ahead in both (Q3).")
def equal() -> Mapping[str, Number]:
    penalties = pd.concat([of(SOFT), of(ROBUST_DLRT)]).index
    both = [name for name in penalties if all(lead(name, BOUND, robust).ahead for robust in (True, False))]
    return {
        "soft": gap(lead(as_accurate(SOFT), BOUND), -5, 5),
        "robust_dlrt": gap(lead(as_accurate(ROBUST_DLRT), BOUND), -math.inf, -5),
        "both": Number(len(both), 0, 0, digits=0),
        "strengths": Number(len(penalties), 9, 9, digits=0),
    }


@finding("RobustDLRT shrinks the weights, and its κ rises again (not Q4); norms order the configurations, κ less so.")
def norms() -> Mapping[str, Number]:
    soft, robust_dlrt, bounded = of(SOFT), of(ROBUST_DLRT), of("condlr")
    rank = found()[["robust", "kappa", "gain"]].corr("spearman")["robust"]
    return {
        "soft_kappa": Number(soft["kappa"].iloc[-1], 1, 1.1, digits=2),
        "robust_dlrt_least": Number(robust_dlrt["kappa"].min(), 1.5, 2.5, digits=1),
        "robust_dlrt_kappa": Number(robust_dlrt["kappa"].iloc[-1], robust_dlrt["kappa"].iloc[0], 4, digits=1),
        "robust_dlrt_weak": Number(robust_dlrt["gain"].iloc[0], 5, 20, digits=0),
        "robust_dlrt_strong": Number(robust_dlrt["gain"].iloc[-1], 0.5, 2, digits=0),
        "condlr_tight": Number(bounded["gain"].iloc[0], 5, 10, digits=0),
        "condlr_loose": Number(bounded["gain"].iloc[-1], 20, 30, digits=0),
        "gain": Number(float(rank["gain"]), -1, -0.7, digits=2),
        "kappa": Number(float(rank["kappa"]), -1, 0, digits=2),
        "configurations": Number(len(found()), 15, 15, digits=0),
    }
