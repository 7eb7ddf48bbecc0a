"""Trained once and compressed to any size, against trained at the size: LeNet5 on MNIST.

The control is the part of mnist_compression_sweeps in which every method has the momentum of Frank-Wolfe, 0.9;
mnist_compression_aware has the methods as they are used. Sizes are deployed parameters, and those of CondLR: a third of
dense (ratio 0.8), a sixth (0.9), a tenth (0.95).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import pandas as pd

from study.findings.finding import Number, committed, finding, size, unclear
from study.presentation import compression
from study.results.store import Results
from study.statistics import frames
from study.statistics.comparison import Gap

DENSE, CONDLR, DECAY = "dense SGD", "CondLR, τ = 0.1", "LoRITa, β = 0.005, N = 1"
SPECTRAL, VECTOR = "FW, spectral k-support, k = 10 %, w = 10", "FW, k-support, k = 10 %, w = 10"
SAME = ("dense-*", "lorita-*", "condlr-*", "uv-*", "fw_spectral_k_support-f0.1-w10-*")
"""The runs of the control."""


@functools.cache
def control() -> Results:
    """All methods with momentum 0.9."""
    return frames.matching(committed("mnist_compression_sweeps"), *SAME)


def as_used() -> Results:
    """Frank-Wolfe with momentum 0.9, all others with 0.3."""
    return committed("mnist_compression_aware")


def third_sixth_tenth(results: Results) -> list[float]:
    """The sizes of CondLR, in percent of dense."""
    return compression.reference_sizes(results)


def measured(results: Results, attack: str = "clean", compressor: str = "svd_global") -> pd.DataFrame:
    """Compressed networks and, as far as they were trained at their size, references."""
    once = compression.compressed(results, compressor, attack)
    return pd.concat([once, compression.references(results, attack)])


def rate(results: Results, name: str, size: int, attack: str = "clean", compressor: str = "svd_global") -> float:
    """The mean over seeds of a rate at the size of this number."""
    found = compression.at_size(measured(results, attack, compressor), name, third_sixth_tenth(results)[size])
    return float(found.mean())


def between(
    results: Results, first: str, second: str, size: int, attack: str = "clean", compressor: str = "svd_global"
) -> Gap:
    """first - second at the size of this number, seed by seed."""
    frame = measured(results, attack, compressor)
    return compression.compare_at_size(frame, first, frame, second, third_sixth_tenth(results)[size])


def lead(results: Results) -> Gap:
    """Spectral Frank-Wolfe minus dense SGD in the mean over the logarithm of the size, compressed by one threshold."""
    return compression.compare_areas(compression.compressed(results, "svd_global"), SPECTRAL, DENSE)


@finding("With the same momentum, compressed dense SGD is as accurate as CondLR, and Frank-Wolfe adds nothing.")
def same() -> Mapping[str, Number]:
    results = control()
    return {
        "dense": Number(rate(results, DENSE, 1), 99.0, 99.3, digits=2),
        "condlr": Number(rate(results, CONDLR, 1), 99.0, 99.3, digits=2),
        "gap": size(between(results, DENSE, CONDLR, 1), -0.2, 0.2),
        "third": size(between(results, CONDLR, DENSE, 0), 0, 0.2),
        "lead": size(lead(results), -0.3, 0.3),
    }


@finding("As the methods are used, Frank-Wolfe leads dense SGD, and its compressed networks lead CondLR.")
def used() -> Mapping[str, Number]:
    results = as_used()
    return {
        "dense": Number(rate(results, DENSE, 1), 97.5, 98.5, digits=2),
        "best": Number(rate(results, VECTOR, 1), 99.1, 99.4, digits=2),
        "condlr": Number(rate(results, CONDLR, 1), 98.5, 98.9, digits=2),
        "gap": size(between(results, VECTOR, CONDLR, 1), 0.3, 0.8),
        "lead": size(lead(results), 0.3, 1.3),
    }


@finding("Plain factors do not train with this momentum and learning rate.")
def factors() -> Mapping[str, Number]:
    runs = control().runs
    status = runs.loc[runs["method"] == "uv", "status"]
    return {
        "diverged": Number(float((status == "diverged").sum()), 4, 6, digits=0),
        "runs": Number(float(len(status)), 6, 6, digits=0),
    }


@finding("Compression without retraining needs ranks by layer; with one ratio, training at the size is better.")
def ranks() -> Mapping[str, Number]:
    best = "LoRITa, β = 0.003, N = 2"
    return {
        "uniform": Number(rate(control(), DENSE, 1, compressor="svd"), 30, 85, digits=0),
        "threshold": Number(rate(control(), DENSE, 1), 99.0, 99.3, digits=1),
        "gap": size(between(as_used(), CONDLR, best, 1, compressor="svd"), 0.1, 3),
    }


@finding("At the smallest size dense SGD depends on the seed; weight decay and Frank-Wolfe keep the accuracy.")
def smallest() -> Mapping[str, Number]:
    frame = compression.compressed(control(), "svd_global")
    cut = frame[frame["amount"] == frame["amount"].max()]
    rates = cut.groupby("name")["rate"]
    return {
        "share": Number(float(cut["share"].mean()), 5, 9, digits=0),
        "worst": Number(float(rates.min()[DENSE]), 80, 95, digits=0),
        "decay": Number(float(rates.min()[DECAY]), 97, 99, digits=0),
        "spectral": Number(float(rates.min()[SPECTRAL]), 97, 99, digits=0),
    }


@finding("With weight decay the compressed network resists PGD better than CondLR trained at its size.")
def robust() -> Mapping[str, Number]:
    results, attack = control(), "pgd_linf"
    return {
        "decay": Number(rate(results, DECAY, 1, attack), 82, 90, digits=0),
        "condlr": Number(rate(results, CONDLR, 1, attack), 60, 72, digits=0),
        "dense": Number(rate(results, DENSE, 1, attack), 65, 82, digits=0),
        "gap": size(between(results, DECAY, CONDLR, 1, attack), 10, 30),
        "apart": unclear(between(results, DECAY, DENSE, 1, attack)),
        "third": size(between(results, DECAY, CONDLR, 0, attack), 2, 10),
        "clean": size(between(results, CONDLR, DECAY, 1), 0, 0.3),
    }


@finding("AutoAttack finds little that PGD has not found.")
def strong() -> Mapping[str, Number]:
    frame = compression.compressed(as_used(), "svd_global", "autoattack_linf").set_index("name")["rate"]
    trained = compression.references(as_used(), "autoattack_linf").set_index("name")["rate"]
    return {
        "decay": Number(float(frame[DECAY]), 75, 87, digits=1),
        "condlr": Number(float(trained[CONDLR]), 67, 79, digits=1),
    }
