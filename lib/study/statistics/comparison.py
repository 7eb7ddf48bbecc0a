"""Rates and their differences, with intervals.

Two methods trained from the same seeds are paired seed by seed: the spread over seeds is what speaks of the methods,
however many images each network has classified.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

Z = float(ndtri(0.975))


def wilson(n_correct: float, n: float) -> tuple[float, float]:
    """The 95 % Wilson score interval of the rate n_correct/n, as fractions; (nan, nan) for n = 0.

    (k + z²/2 ± z √(k (n - k)/n + z²/4)) / (n + z²) with k = n_correct and z the 0.975 quantile of the normal
    distribution. Source: Wilson, JASA 22 (1927).
    """
    if not n > 0:
        return math.nan, math.nan
    half = Z * math.sqrt(n_correct * (n - n_correct) / n + Z * Z / 4)
    low, high = ((n_correct + Z * Z / 2 + end) / (n + Z * Z) for end in (-half, half))
    return max(0.0, low), min(1.0, high)


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


def mean_std(values: Iterable[float], digits: int = 2) -> str:
    """ "98.93 ± 0.05": mean and sample standard deviation; the mean alone of one value; "–" of none."""
    known = pd.Series(list(values), dtype=float).dropna()
    if known.empty:
        return "–"
    return f"{known.mean():.{digits}f}" + (f" ± {known.std():.{digits}f}" if len(known) > 1 else "")
