"""Low-rank networks with and without a bound on κ, on top of adversarial training: LeNet5 on MNIST, radius 0.1."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from study.findings.finding import Number, clear, committed, finding, gap, unclear
from study.results.store import Results
from study.statistics import frames, threat_model
from study.statistics.comparison import Gap

CONDLR, PLAIN, DENSE = "CondLR, τ = 0.1, ratio 0.8", "U Vᵀ, ratio 0.8", "dense SGD"
MADRY, TRADES = ", PGD-AT, ε = 0.1", ", TRADES 6, ε = 0.1"
KINDS = (MADRY, ", 50 % PGD-AT, ε = 0.1", TRADES)


def _study() -> Results:
    return committed("mnist_adversarial_training")


@functools.cache
def _rates(eps: float) -> pd.DataFrame:
    return frames.by_seed(_study(), "pgd_linf" if eps else "clean", eps)


def _difference(eps: float, first: str, second: str) -> Gap:
    return frames.difference(_rates(eps), first, second)


def _withstood(eps: float, name: str, low: float, high: float) -> Number:
    return Number(float(_rates(eps)[name].mean()), low, high, digits=0)


@finding("Without an adversary the bound is worth points; with one it changes nothing at the radius of the training.")
def inside() -> Mapping[str, Number]:
    largest = max((_difference(0.1, CONDLR + kind, PLAIN + kind) for kind in KINDS), key=lambda g: abs(g.difference))
    return {
        "plain": clear(_difference(0.1, CONDLR, PLAIN)),
        "madry": replace(unclear(_difference(0.1, CONDLR + MADRY, PLAIN + MADRY)), digits=1),
        "largest": Number(abs(largest.difference), 0, 1, digits=1),
        "dense": replace(unclear(_difference(0.1, CONDLR + MADRY, DENSE + MADRY)), digits=1),
    }


@finding("Beyond the radius of the training the bound is worth points again, more than U Vᵀ and less than dense.")
def outside() -> Mapping[str, Number]:
    return {
        "madry": clear(_difference(0.2, CONDLR + MADRY, PLAIN + MADRY)),
        "trades": clear(_difference(0.2, CONDLR + TRADES, PLAIN + TRADES)),
        "condlr": _withstood(0.2, CONDLR + MADRY, 55, 66),
        "plain": _withstood(0.2, PLAIN + MADRY, 50, 60),
        "dense": _withstood(0.2, DENSE + MADRY, 60, 72),
        "dense_gap": unclear(_difference(0.2, CONDLR + MADRY, DENSE + MADRY)),
        "far": _withstood(0.3, CONDLR + TRADES, 4, 10),
    }


@finding("Adversarial training does far more than the bound, and makes all networks alike at its radius.")
def training() -> Mapping[str, Number]:
    names = (CONDLR, PLAIN, DENSE, "DLRT, ratio 0.8")
    gains = [_difference(0.1, name + MADRY, name).difference for name in names]
    rates = [float(_rates(0.1)[name + kind].mean()) for name in names for kind in KINDS]
    return {
        "least": Number(min(gains), 12, 20, digits=0),
        "most": Number(max(gains), 25, 35, digits=0),
        "lowest": Number(min(rates), 92, 94, digits=0),
        "highest": Number(max(rates), 94.5, 96, digits=0),
    }


@finding("Low-rank networks pay half a point of accuracy under either training.")
def accuracy() -> Mapping[str, Number]:
    return {
        "plain": gap(_difference(0, CONDLR, DENSE), high=-_difference(0, CONDLR, DENSE).margin),
        "madry": gap(_difference(0, CONDLR + MADRY, DENSE + MADRY), low=-0.9, high=-0.2),
        "same": unclear(_difference(0, CONDLR + MADRY, PLAIN + MADRY)),
    }


@finding("AutoAttack on one seed of each method finds no difference between them either.")
def suite() -> Mapping[str, Number]:
    every = threat_model.Threat("all", ("pgd_linf", "autoattack_linf"), 0.1, 200)
    rates = threat_model.by_seed(_study(), every)
    assert len(rates) == 1  # the text speaks of one seed
    lowest, highest = float(rates.min().min()), float(rates.max().max())
    return {
        "lowest": Number(lowest, 93, 97, digits=1),
        "spread": Number(highest - lowest, 0, 1.5, digits=1),
        "methods": Number(float(rates.shape[1]), 4, 4, digits=0),
    }
