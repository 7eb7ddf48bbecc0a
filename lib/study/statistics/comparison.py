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


def decimals(margin: float) -> int:
    """Those of one significant digit of a margin; two of a margin that is zero or unknown."""
    return max(0, -math.floor(math.log10(margin))) if 0 < margin < math.inf else 2


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
    def ahead(self) -> bool:
        """Whether the first is clearly the larger."""
        return self.clear and self.difference > 0

    def __str__(self) -> str:
        """ "+18 ± 6*", "−0.7 ± 0.9": the decimals that the margin bears out, and a star where it excludes zero."""
        if not self.seeds:
            return "–"
        digits = decimals(self.margin)
        margin = f" ± {self.margin:.{digits}f}{'*' * self.clear}" if self.seeds > 1 else ""
        return f"{self.difference:+.{digits}f}".replace("-", "−") + margin


def student(differences: Sequence[float]) -> Gap:
    """Of n paired differences d (points), one a seed: mean(d), and the margin t(0.975; n - 1) std(d)/√n."""
    d = np.asarray(differences, dtype=float)
    n = len(d)
    margin = float(stdtrit(n - 1, 0.975)) * float(d.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Gap(float(d.mean()) if n else math.nan, margin, n)


def mean_std(values: Iterable[float], digits: int = 2) -> str:
    """ "98.93 ± 0.05": mean and sample standard deviation; the mean alone of one value; "–" of none."""
    known = pd.Series(list(values), dtype=float).dropna()
    if known.empty:
        return "–"
    return f"{known.mean():.{digits}f}" + (f" ± {known.std():.{digits}f}" if len(known) > 1 else "")
