"""Whether condition numbers or norms go with robustness: ill-conditioned starts, and the usual ones of the study."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from study.findings.finding import Number, clear, committed, finding, unclear
from study.findings.robustness import difference, study
from study.presentation import conditioning
from study.statistics import frames

PENALIZED = "U Vᵀ, soft orthogonality, β = 0.01, ratio 0.8"
ROBUST_DLRT = "RobustDLRT, β = 0.03, ratio 0.8"
SOFT, CLIPPED, SCALED = "dense, soft orthogonality, β = 0.01", "dense, κ clipped, τ = 0.1", "dense, spectral norm 1"
CONDLR = "CondLR, τ = 0.1, ratio 0.8"


@functools.cache
def networks(experiment: str) -> pd.DataFrame:
    """One row a network that has learned: its predictors and what it withstands under PGD, ε = 0.1."""
    return conditioning.predictors(committed(experiment), "pgd_linf", least=90)


@functools.cache
def _correlations(experiment: str) -> pd.DataFrame:
    return conditioning.rank_correlations(networks(experiment)).set_index("predictor")


def _rho(experiment: str, predictor: str, low: float, high: float) -> Number:
    return Number(float(_correlations(experiment)["rho"][predictor]), low, high, digits=2)


@finding("Over starts of every condition number κ_rel orders the networks best, the norms next, κ last.")
def bad_starts() -> Mapping[str, Number]:
    name = "mnist_condition_growth"
    found = _correlations(name)
    gain, kappa = (abs(float(found["rho"][key])) for key in ("gain", "kappa"))
    return {
        "kappa_rel": _rho(name, "kappa_rel", -1, -gain - 0.02),
        "gain": _rho(name, "gain", -1, -kappa - 0.02),
        "kappa": _rho(name, "kappa", -0.8, -0.4),
        "configurations": Number(float(found["configurations"].iloc[0]), 15, 18, digits=0),
        "left_out": Number(float(len(committed(name).runs) - found["networks"].iloc[0]), 1, 8, digits=0),
    }


@finding("Without ill-conditioned starts the norms and κ_rel still order the networks, and κ does not.")
def usual_starts() -> Mapping[str, Number]:
    found = _correlations("mnist_lenet5").loc["kappa"]
    assert found["low"] < 0 < found["high"]  # the interval of κ has zero in it
    return {
        "kappa_rel": _rho("mnist_lenet5", "kappa_rel", -1, -0.75),
        "gain": _rho("mnist_lenet5", "gain", -1, -0.85),
        "kappa": _rho("mnist_lenet5", "kappa", -0.5, 0.2),
        "configurations": Number(float(_correlations("mnist_lenet5")["configurations"].iloc[0]), 12, 40, digits=0),
    }


@finding("Over all networks of chapter 7, kept or not, κ goes with robustness, more loosely than the norms.")
def every_network() -> Mapping[str, Number]:
    rows = conditioning.learned(study(), "pgd_linf", least=90)
    found = conditioning.rank_correlations(rows, predictors=("kappa", "gain")).set_index("predictor")
    return {
        "gain": Number(float(found["rho"]["gain"]), -1, -0.85, digits=2),
        "kappa": Number(float(found["rho"]["kappa"]), -0.6, -0.2, digits=2),
        "kappa_low": Number(float(found["low"]["kappa"]), -1, -0.5, digits=2),
        "kappa_high": Number(float(found["high"]["kappa"]), -0.3, 0, digits=2),
        "configurations": Number(float(found["configurations"].iloc[0]), 30, 40, digits=0),
    }


@finding("The exact κ_rel hardly differs between methods; its bound differs by orders of magnitude.")
def bound_and_number() -> Mapping[str, Number]:
    rows = committed("mnist_condition_growth").select("conditioning")
    logs = conditioning.log_factors(rows[rows["decay"].isna() | (rows["decay"] == 1)])
    exact, loose = 10 ** logs["kappa_rel"], 10 ** (logs["bound"] - logs["kappa_rel"])
    return {
        "least": Number(float(exact.min()), 2.5, 3.2, digits=1),
        "most": Number(float(exact.max()), 3.5, 4.5, digits=1),
        "tightest": Number(float(loose.min()), 10, 40, digits=0),
        "loosest": Number(float(loose.max()) / 1e6, 1, 20, digits=0),  # in millions
        "spectrum": Number(100 * float((logs["kappa"] / logs["bound"]).max()), 60, 80, digits=0),
    }


def _numbers(experiment: str, key: str, name: str, bands: Mapping[str, tuple[float, float, int]]) -> dict[str, Number]:
    """Of a configuration, over its networks that have learned: geometric means of κ and norms, mean rate."""
    rows = networks(experiment)
    rows = rows[rows["name"] == name]
    values = {column: float(np.exp(np.log(rows[column]).mean())) for column in ("kappa", "gain", "kappa_rel")}
    values["rate"] = float(rows["rate"].mean())
    return {
        f"{key}_{column}": Number(values[column], low, high, digits=digits)
        for column, (low, high, digits) in bands.items()
    }


@finding("Small norms go with robustness whatever κ is, and κ near one does not save a network of large norms.")
def parted() -> Mapping[str, Number]:
    bad, usual = "mnist_condition_growth", "mnist_lenet5"
    small, large = {"gain": (1, 2.5, 1), "rate": (75, 90, 0)}, {"gain": (40, 120, 0), "rate": (10, 40, 0)}
    rel, high_rel = {"kappa_rel": (2.5, 3.2, 1)}, {"kappa_rel": (5, 9, 1)}
    return {
        **_numbers(usual, "scaled", SCALED, {"kappa": (8, 16, 0), **small, **rel}),
        **_numbers(bad, "penalty", "RobustDLRT, β = 0.03, rank 20, α = 10", {"kappa": (1e4, 1e5, 0), **small, **rel}),
        **_numbers(usual, "clipped", CLIPPED, {"kappa": (1, 1.11, 1), "gain": (3, 6, 1), "rate": (75, 90, 0), **rel}),
        **_numbers(usual, "condlr", "CondLR, τ = 0.1, ratio 0.97", {"kappa": (1, 1.11, 1), **large, **high_rel}),
        **_numbers(usual, "plain", "U Vᵀ, ratio 0.97", {"kappa": (3, 5, 1), "gain": (150, 400, 0), **high_rel}),
        **_numbers(usual, "plain", "U Vᵀ, ratio 0.97", {"rate": (10, 30, 0)}),
    }


@finding("Norms of one make the dense network more robust than κ near one does, and cost more accuracy.")
def controls() -> Mapping[str, Number]:
    return {
        "scaled": clear(difference(SCALED, "dense SGD")),
        "clipped": clear(difference(CLIPPED, "dense SGD")),
        "between": clear(difference(SCALED, CLIPPED)),
        "accuracy": clear(frames.compare(study(), CLIPPED, SCALED)),
    }


@finding("A penalty is at least as robust as the bound, and costs accuracy that the bound does not.")
def penalty() -> Mapping[str, Number]:
    return {
        "soft": unclear(difference(CONDLR, PENALIZED)),
        "robust_dlrt": unclear(difference(CONDLR, ROBUST_DLRT)),
        "dense": clear(difference(SOFT, CLIPPED)),
        "soft_accuracy": clear(frames.compare(study(), CONDLR, PENALIZED)),
        "robust_dlrt_accuracy": clear(frames.compare(study(), CONDLR, ROBUST_DLRT)),
    }
