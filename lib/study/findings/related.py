"""Claims of related systems, from the small experiments of results/related. Not the published claims themselves, which
are `study.statistics.verdicts.Finding`, but what the book says became of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from study.findings.finding import Number, finding
from study.theory import related


def measured(claim: str, low: float, high: float, scale: float = 1, digits: int | None = None) -> Number:
    """scale times the mean over three seeds of what was measured for a claim of results/related/claims.csv."""
    claims = related.load("claims")
    row: Any = claims[claims["claim"] == claim].iloc[0]
    return Number(scale * float(row["value"]), low, high, abs(scale) * float(row["margin"]), digits)


def drawn(system: str, panel: str, series: str, x: float | None = None) -> float:
    """The mean of all values of a line of a system's figure at x, its largest one by default."""
    rows = related.load(system)
    own = rows[(rows["panel"] == panel) & (rows["series"] == series)]
    return float(own.loc[own["x"] == (own["x"].max() if x is None else x), "y"].mean())


@finding("Flows on O(d) keep their gradients, and a residual network with steps 1/N keeps them as well.")
def gradients() -> Mapping[str, Number]:
    return {
        "flow": measured("Gradients neither vanish nor explode", 0, 1, digits=2),
        "residual": measured("and in a residual network", 0, 0.4, digits=1),
        "strong": measured("whatever the parameter flow", 0, 1, digits=1),
        "free": measured("Without the constraint they do explode or vanish", 1.5, 8, digits=0),
    }


@finding("The flow on O(d) is less accurate than a residual network of equal size, and not more robust to corruption.")
def price() -> Mapping[str, Number]:
    return {
        "clean": measured("As accurate as a residual network of equal size", 1, 3, scale=-1),
        "corrupted": measured("more accurate on corrupted images", 0.5, 6, scale=-1),
    }


@finding("SGD ends within a percent of certified optima, and a bound on κ far from them.")
def landscape() -> Mapping[str, Number]:
    return {
        "own": measured("A stationary point is the optimum over its own patterns", 0.1, 1, scale=100),
        "wide": measured("A wide network reaches the global optimum", 0.1, 1, scale=100),
        "half": measured("U S Vᵀ of half the rank reaches it too", 0, 0.1, scale=100),
        "bounded": measured("A bound on κ keeps away from it", 20, 70, scale=100),
    }


@finding("Whether layers that are made to descend are more robust stays open; a good start does more.")
def unrolled() -> Mapping[str, Number]:
    start, free = "LISTA, started as ISTA", "LISTA"
    return {
        "rises": measured("Layers of plain LISTA need not descend", 8, 9, digits=0),
        "constraint": measured("Constrained layers do", 0.02, 6),
        "noise": measured("and degrade less under noise", 0.4, 1.1),
        "bounded": measured("A bound on κ(W2) and its norm does the same", 0.5, 1, digits=1),
        "start": Number(drawn("unrolled", "layers", start) / drawn("unrolled", "layers", free), 0.1, 0.4, digits=2),
    }


@finding("Noise makes robust; kernel pooling adds little to it, and that only where the noise is strong.")
def pooling() -> Mapping[str, Number]:
    def kept(series: str, sigma: float) -> float:
        return drawn("kernel_pooling", "l2", series, sigma)

    pooled = "pooling, K = 3"
    return {
        "bare": Number(kept("noise", 0), 30, 42, digits=0),
        "noise": Number(kept("noise", 0.45), 54, 65, digits=0),
        "weak": Number(kept("noise", 0.1) - kept(pooled, 0.1), 1, 9, digits=0),
        "l2": measured("Pooling adds to noise, ℓ₂", 1, 6),
        "linf": measured("and in ℓ∞", -5.4, 8.9),
        "clean": measured("at no cost", -1.4, 1.5, digits=1),
        "alone": measured("Pooling alone makes robust", -18, 17),
        "neighbours": measured("Kernels of similar function emerge", 3, 8, digits=1),
        "kappa": measured("Pooling makes kernels ill-conditioned", 2, 6),
        "bounded": measured("and is more robust than a bound on κ", -3, 6),
        "rank": measured("Robust networks have small norms", -0.5, 0.5, digits=1),
    }
