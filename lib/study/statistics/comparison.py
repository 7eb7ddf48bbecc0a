"""Rates and their differences: intervals, paired tests, several tests at once.

Two networks that classify the same images are paired image by image, and two methods trained from the same seeds are
paired seed by seed. The first comparison is about two networks: it says nothing about those of other seeds. Only the
second, over seeds, is about the methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit
from scipy.stats import binomtest

from wellcond.errors import invalid


def wilson(n_correct: float, n: float) -> tuple[float, float]:
    """The 95 % Wilson score interval of the rate n_correct/n, as fractions; (nan, nan) for n = 0."""
    if not n > 0:
        return math.nan, math.nan
    low, high = binomtest(int(n_correct), int(n)).proportion_ci(method="wilson")
    return float(low), float(high)


@dataclass(frozen=True)
class Gap:
    """first - second over their common seeds: mean difference in points, half-width of its 95 % Student interval."""

    difference: float
    margin: float
    seeds: int

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero; never with fewer than two seeds."""
        return abs(self.difference) > self.margin

    @property
    def words(self) -> str:
        """ "0.12 ± 0.20 points lower (no clear difference, 3 seeds)"."""
        if not self.seeds:
            return "not computed yet"
        margin = f" ± {self.margin:.2f}" if self.seeds > 1 else ""
        size = f"{abs(self.difference):.2f}{margin} points {'higher' if self.difference > 0 else 'lower'}"
        if self.seeds == 1:
            return f"{size} (one seed: spread unknown)"
        return f"{size} ({'a clear' if self.clear else 'no clear'} difference, {self.seeds} seeds)"

    def __str__(self) -> str:
        if not self.seeds:
            return "–"
        margin = f" ± {self.margin:.2f}{'*' * self.clear}" if self.seeds > 1 else ""
        return f"{self.difference:+.2f}".replace("-", "−") + margin


def student(differences: Sequence[float]) -> Gap:
    """Of n paired differences d (points), one a seed: mean(d), and the margin t(0.975; n - 1) std(d)/√n."""
    d = np.asarray(differences, dtype=float)
    n = len(d)
    margin = float(stdtrit(n - 1, 0.975)) * float(d.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Gap(float(d.mean()) if n else math.nan, margin, n)


def tally(gaps: Iterable[Gap]) -> tuple[int, int, int]:
    """How many gaps are clearly positive, clearly negative, and neither; those of a single seed are left out."""
    known = [gap for gap in gaps if gap.seeds > 1]
    better, worse = (sum(gap.clear and sign * gap.difference > 0 for gap in known) for sign in (1, -1))
    return better, worse, len(known) - better - worse


def verdict(gaps: Iterable[Gap]) -> str:
    """Whether first is better than second: "is supported" if more than half of the gaps are clearly positive and none
    clearly negative, "is contradicted" in the reverse case, else "is not supported"; with the tally."""
    better, worse, open_ = tally(gaps)
    half = (better + worse + open_) / 2
    if not half:
        return "cannot be judged yet (it takes two seeds)"
    outcome = "is supported" if better > half and not worse else "is not supported"
    outcome = "is contradicted" if worse > half and not better else outcome
    return f"{outcome} ({better} clearly better, {worse} clearly worse, {open_} without a clear difference)"


@dataclass(frozen=True)
class McNemar:
    """Two networks on the same images: both right (n11), only the first (n10), only the second (n01), both wrong (n00).

    Only the discordant images, n10 + n01, bear on which of the two is better.
    """

    n11: int
    n10: int
    n01: int
    n00: int

    @property
    def n(self) -> int:
        """All images."""
        return self.n11 + self.n10 + self.n01 + self.n00

    @property
    def difference(self) -> float:
        """Rate of the first - rate of the second = (n10 - n01)/n, in points; nan for n = 0."""
        return 100 * (self.n10 - self.n01) / self.n if self.n else math.nan

    @property
    def p_value(self) -> float:
        """Exact and two-sided: min(1, 2 P(X <= min(n10, n01))), X ~ Binomial(n10 + n01, 1/2).

        Source: McNemar, Psychometrika 12 (1947), in its exact form.
        """
        discordant = self.n10 + self.n01
        return float(binomtest(self.n10, discordant).pvalue) if discordant else 1.0


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """The paired counts of two vectors (n,), True where an image is classified correctly, of the same images.

    Raises ValueError if they differ in length.
    """
    if len(first) != len(second):
        raise invalid("second", f"{len(second)} images", f"the {len(first)} of the first")
    counts = (int(np.sum(mask)) for mask in (first & second, first & ~second, ~first & second, ~first & ~second))
    return McNemar(*counts)


@dataclass(frozen=True)
class SeedComparison:
    """Two methods on the same images: McNemar by seed, each about two networks, and the Gap over seeds, which alone
    says what to expect of another seed."""

    images: dict[int, McNemar]
    gap: Gap


def over_seeds(first: Mapping[int, NDArray[np.bool_]], second: Mapping[int, NDArray[np.bool_]]) -> SeedComparison:
    """Two methods by their outcomes {seed: (n,)}, over the seeds that both have."""
    images = {seed: mcnemar(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())}
    return SeedComparison(images, student([pair.difference for pair in images.values()]))


def holm(p_values: Iterable[float]) -> NDArray[np.float64]:
    """p-values adjusted for their number m: max over j <= i of min(1, (m - j + 1) p_(j)), p_(1) <= ... <= p_(m).

    Rejecting where the adjusted value is at most α makes a false rejection anywhere in the family at most α probable,
    whatever the dependence between the tests. In the order given; raises ValueError for a value outside [0, 1].
    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    p = np.array(list(p_values), dtype=float)
    if not ((p >= 0) & (p <= 1)).all():
        raise invalid("p_values", p.tolist(), "in [0, 1]")
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]))
    return adjusted


def mean_std(values: Iterable[float], digits: int = 2) -> str:
    """ "98.93 ± 0.05": mean and sample standard deviation; the mean alone of one value; "–" of none."""
    known = pd.Series(list(values), dtype=float).dropna()
    if known.empty:
        return "–"
    return f"{known.mean():.{digits}f}" + (f" ± {known.std():.{digits}f}" if len(known) > 1 else "")
