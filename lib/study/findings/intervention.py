"""Norm and condition number set apart: LeNet5 on MNIST, singular values in a band. Predictions P1 to P7, written down
before the numbers that they are about, are in book/experiments/mnist_norm_or_condition.toml."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from study.findings.finding import Number, committed, finding
from study.presentation.intervention import by_bounds, far_by_bounds
from study.statistics import frames
from study.statistics.comparison import Gap, student

SMALL, MIDDLE, LARGE = 1.0, 1.5, 2.0  # bounds on the norm of a layer


Means = Mapping[tuple[float, float], float]
"""Rates in percent by the bounds L and c."""


def averaged(rates: Mapping[tuple[float, float], Sequence[float]]) -> Means:
    """The mean over seeds."""
    return {bounds: fmean(values) for bounds, values in rates.items()}


@functools.cache
def means(attack: str) -> Means:
    """What stands under an attack."""
    return averaged(by_bounds(committed("mnist_norm_or_condition"), attack))


def of_condition(found: Means, c: float = 2.0) -> float:
    """The most that c = 1 is apart from a larger c, in points, at one L."""
    return max(abs(found[norm, 1.0] - found[norm, c]) for norm in (SMALL, MIDDLE, LARGE))


def of_norm(found: Means, small: float = SMALL, large: float = LARGE) -> Gap:
    """What the small norm is above the large one, in points: over the bounds c, which are the units."""
    conds = sorted({cond for _, cond in found})
    return student([found[small, c] - found[large, c] for c in conds if {(small, c), (large, c)} <= found.keys()])


def at_norm(found: Means, norm: float) -> float:
    """The mean over the bounds c."""
    return fmean(rate for (other, _), rate in found.items() if other == norm)


@finding("At equal norm the condition number makes no difference under either attack (P1).")
def condition() -> Mapping[str, Number]:
    return {
        "linf": Number(of_condition(means("pgd_linf")), 0, 2, digits=1),
        "l2": Number(of_condition(means("pgd_l2")), 0, 2, digits=1),
    }


@finding("At equal condition number the l-infinity robustness falls with the norm, step by step (P2, P3).")
def norm() -> Mapping[str, Number]:
    found = means("pgd_linf")
    effect = of_norm(found)
    first, second = (of_norm(found, *pair) for pair in ((SMALL, MIDDLE), (MIDDLE, LARGE)))
    return {
        "small": Number(at_norm(found, SMALL), 79, 84, digits=0),
        "middle": Number(at_norm(found, MIDDLE), 75, 79, digits=0),
        "large": Number(at_norm(found, LARGE), 70, 75, digits=0),
        "effect": Number(effect.difference, max(3, effect.margin), math.inf, effect.margin),
        "least_step": Number(min(first.difference, second.difference), 1, 10, digits=1),
    }


@finding("Under the l2 attack it falls with the norm too (P2), by less than three times what κ does (not P3).")
def norm_l2() -> Mapping[str, Number]:
    found = means("pgd_l2")
    effect, free = of_norm(found), of_condition(found, math.inf)
    steps = [
        found[small, c] - found[large, c]
        for small, large in ((SMALL, MIDDLE), (MIDDLE, LARGE))
        for c in {cond for _, cond in found}
    ]
    return {
        "small": Number(at_norm(found, SMALL), 84, 87, digits=0),
        "middle": Number(at_norm(found, MIDDLE), 84, 87, digits=0),
        "large": Number(at_norm(found, LARGE), 82, 84, digits=0),
        "effect": Number(effect.difference, 1, 5, effect.margin),
        "least_step": Number(min(steps), 0.1, 2, digits=1),
        "free": Number(free, 0, 2, digits=1),
        "times": Number(effect.difference / free, 1, 3, digits=1),
    }


@finding("The smallest norm costs clean accuracy (P4).")
def accuracy() -> Mapping[str, Number]:
    effect = of_norm(means("clean"), LARGE, SMALL)
    return {"loss": Number(effect.difference, 0.5, 2, effect.margin)}


@finding("Under a bound on the norm alone condition numbers stay small by themselves.")
def by_itself() -> Mapping[str, Number]:
    results = committed("mnist_norm_or_condition")
    free = results.runs.loc[results.runs["max_cond"] == math.inf, "run_id"]
    return {"kappa": Number(float(frames.spectral(results).loc[free, "kappa"].max()), 1.5, 5, digits=1)}


@finding(
    "What is certified without an attack falls to nothing with the norm, and hardly moves with κ (P5, P6; not P7)."
)
def certified() -> Mapping[str, Number]:
    radius, results = 0.1, committed("mnist_norm_or_condition")
    sure, stands = (averaged(far_by_bounds(results, table, radius)) for table in ("certified", "distortions"))
    small, middle, large = (at_norm(sure, norm) for norm in (SMALL, MIDDLE, LARGE))
    factors = results.select("certified").groupby("max_norm")["lipschitz"].mean()
    return {
        "small": Number(small, 60, 95, digits=0),
        "middle": Number(middle, 0, 20, digits=0),
        "large": Number(large, 0, middle, digits=0),
        "condition": Number(of_condition(sure), 0, (small - large) / 2, digits=0),
        "stands": Number(min(stands.values()), 90, 100, digits=0),
        "stretch_small": Number(float(factors[SMALL]), 15, 40, digits=0),
        "stretch_large": Number(float(factors[LARGE]), 60, 200, digits=0),
    }
