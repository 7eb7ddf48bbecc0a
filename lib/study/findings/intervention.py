"""Norm and condition number set apart: LeNet5 on MNIST, singular values in a band. Predictions P1 to P7, written down
before the numbers that they are about, are in book/experiments/mnist_norm_or_condition.toml."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from study.findings.finding import Number, clear, committed, finding, unclear
from study.presentation.intervention import by_bounds, far_by_bounds
from study.statistics import frames
from study.statistics.comparison import Gap, student

SMALL, MIDDLE, LARGE = 1.0, 1.5, 2.0  # bounds on the norm of a layer


Rates = Mapping[tuple[float, float], Sequence[float]]
"""Rates in percent, one a seed, by the bounds L and c."""


@functools.cache
def rates(attack: str) -> Rates:
    """What stands under an attack."""
    return by_bounds(committed("mnist_norm_or_condition"), attack)


def paired(found: Rates, first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]]) -> Gap:
    """What the first bounds are above the second, in points: their means in each seed, which is the unit."""
    pairs = zip(first, second, strict=True)
    differences = [[x - y for x, y in zip(found[a], found[b], strict=True)] for a, b in pairs]
    return student([fmean(of_seed) for of_seed in zip(*differences, strict=True)])


def of_condition(found: Rates, norms: Sequence[float] = (SMALL, MIDDLE, LARGE)) -> Gap:
    """What c = 1 is above c = 2, over these norms."""
    return paired(found, [(norm, 1.0) for norm in norms], [(norm, 2.0) for norm in norms])


def of_norm(found: Rates, small: float = SMALL, large: float = LARGE) -> Gap:
    """What the small norm is above the large one, over the bounds c."""
    conds = [c for c in sorted({cond for _, cond in found}) if {(small, c), (large, c)} <= found.keys()]
    return paired(found, [(small, c) for c in conds], [(large, c) for c in conds])


def most(found: Rates, c: float = 2.0) -> float:
    """The most that the means over seeds of c = 1 and a larger c are apart, in points, at one L."""
    return max(abs(paired(found, [(norm, 1.0)], [(norm, c)]).difference) for norm in (SMALL, MIDDLE, LARGE))


def at_norm(found: Rates, norm: float) -> float:
    """The mean over seeds and the bounds c."""
    return fmean(fmean(values) for (other, _), values in found.items() if other == norm)


@finding("At equal norm no difference between κ of 1 and 2 is found, over the norms together (P1).")
def condition() -> Mapping[str, Number]:
    linf, l2 = rates("pgd_linf"), rates("pgd_l2")
    return {
        "linf": unclear(of_condition(linf), 3),
        "l2": unclear(of_condition(l2), 3),
        "most": Number(most(linf), 0, 2, digits=1),
        "most_l2": Number(most(l2), 0, 2, digits=1),
        "at_large": unclear(of_condition(linf, (LARGE,)), 3),
    }


@finding("At equal condition number the l-infinity robustness falls with the norm, step by step (P2, P3).")
def norm() -> Mapping[str, Number]:
    found = rates("pgd_linf")
    first, second = (of_norm(found, *pair) for pair in ((SMALL, MIDDLE), (MIDDLE, LARGE)))
    return {
        "small": Number(at_norm(found, SMALL), 79, 84, digits=0),
        "middle": Number(at_norm(found, MIDDLE), 75, 79, digits=0),
        "large": Number(at_norm(found, LARGE), 70, 75, digits=0),
        "effect": clear(of_norm(found)),
        "least_step": Number(min(first.difference, second.difference), 1, 10, digits=1),
    }


@finding("Under the l2 attack the means fall with the norm too, not clearly, by less than three times what κ does.")
def norm_l2() -> Mapping[str, Number]:
    found = rates("pgd_l2")
    effect, free = of_norm(found), most(found, math.inf)
    conds = {cond for _, cond in found}
    steps = [
        paired(found, [(small, c)], [(large, c)]).difference
        for small, large in ((SMALL, MIDDLE), (MIDDLE, LARGE))
        for c in conds
    ]
    return {
        "small": Number(at_norm(found, SMALL), 84, 87, digits=0),
        "middle": Number(at_norm(found, MIDDLE), 84, 87, digits=0),
        "large": Number(at_norm(found, LARGE), 82, 84, digits=0),
        "effect": unclear(effect),
        "least_step": Number(min(steps), 0.1, 2, digits=1),
        "free": Number(free, 0, 2, digits=1),
        "times": Number(effect.difference / free, 1, 3, digits=1),
    }


@finding("The smallest norm costs clean accuracy (P4).")
def accuracy() -> Mapping[str, Number]:
    return {"loss": clear(of_norm(rates("clean"), LARGE, SMALL))}


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
    sure, stands = (far_by_bounds(results, table, radius) for table in ("certified", "distortions"))
    small, middle, large = (at_norm(sure, norm) for norm in (SMALL, MIDDLE, LARGE))
    factors = results.select("certified").groupby("max_norm")["lipschitz"].mean()
    return {
        "small": Number(small, 60, 95, digits=0),
        "middle": Number(middle, 0, 20, digits=0),
        "large": Number(large, 0, middle, digits=0),
        "condition": Number(most(sure), 0, (small - large) / 2, digits=0),
        "stands": Number(min(map(fmean, stands.values())), 90, 100, digits=0),
        "stretch_small": Number(float(factors[SMALL]), 15, 40, digits=0),
        "stretch_large": Number(float(factors[LARGE]), 60, 200, digits=0),
    }
