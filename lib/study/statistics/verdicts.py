"""A claim, the numbers that were measured for it, and whether they bear it out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from study.statistics.comparison import Gap, student


class Lines:
    """What a check measures, by line of its figure: rows of panel, series, x, y and seed."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def add(self, panel: str, series: str, x: float, values: Sequence[float], first_seed: int = 0) -> None:
        """The values of all seeds at one x."""
        at = {"panel": panel, "series": series, "x": x}
        self.rows += [{**at, "y": y, "seed": seed} for seed, y in enumerate(values, first_seed)]

    @property
    def frame(self) -> pd.DataFrame:
        """All rows."""
        return pd.DataFrame(self.rows)

    def line(self, panel: str, series: str) -> pd.DataFrame:
        """The rows of one line, or of several with the same name of the series."""
        frame = self.frame
        return frame[(frame["panel"] == panel) & (frame["series"] == series)]


@dataclass(frozen=True)
class Reading:
    """A measured number and the band in which the claim wants it; `error` is its standard error, nan if it has none."""

    what: str
    expected: str
    low: float
    high: float
    value: float
    error: float = math.nan

    @property
    def holds(self) -> bool:
        """Whether the value is in the band; nan never is."""
        return self.low <= self.value <= self.high


class Guide(NamedTuple):
    """A line with the exponent of the theory, beside the part low <= x <= high of a series."""

    series: str
    exponent: float
    low: float = 0.0
    high: float = math.inf


@dataclass(frozen=True)
class Panel:
    """How the rows of a panel are drawn; log: which axes are logarithmic; lines: whether points are connected."""

    name: str
    title: str
    x: str
    y: str
    guides: tuple[Guide, ...] = ()
    log: str = "xy"
    lines: bool = True


@dataclass(frozen=True)
class Check:
    """The measurements for a claim, and the rows (panel, series, x, y, seed) they come from."""

    id: str
    measurements: tuple[Reading, ...]
    panels: tuple[Panel, ...]
    rows: pd.DataFrame

    @property
    def holds(self) -> bool:
        """Whether every measurement is in its band."""
        return all(measurement.holds for measurement in self.measurements)

    @property
    def verdict(self) -> str:
        """ "holds", or "fails: " and the measurements outside their bands."""
        outside = [measurement.what for measurement in self.measurements if not measurement.holds]
        return f"fails: {'; '.join(outside)}" if outside else "holds"


def least_squares(A: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """c minimizing ||A c - y||, and its standard errors s diag((AᵀA)^-1)^(1/2), s² = ||A c - y||²/(rows - columns).

    The errors are nan if there are no more rows than columns.
    """
    c = np.linalg.lstsq(A, y, rcond=None)[0]
    spare = A.shape[0] - A.shape[1]
    variance = float(np.sum((A @ c - y) ** 2)) / spare if spare > 0 else math.nan
    return c, np.sqrt(variance * np.diag(np.linalg.inv(A.T @ A)))


def slope(line: pd.DataFrame) -> tuple[float, float]:
    """The exponent p of y = c xᵖ and its standard error: one p, and one c for each seed."""
    one_per_seed = pd.get_dummies(line["seed"]).to_numpy(float)
    A = np.column_stack([np.log(line["x"].to_numpy(float)), one_per_seed])
    c, error = least_squares(A, np.log(line["y"].to_numpy(float)))
    return float(c[0]), float(error[0])


def slope_between(what: str, line: pd.DataFrame, expected: float, tolerance: float) -> Reading:
    """The exponent of y against x, which should be expected ± tolerance."""
    return Reading(what, f"{expected:g}", expected - tolerance, expected + tolerance, *slope(line))


def median_by_x(line: pd.DataFrame) -> pd.Series:
    """The median over the seeds at each x, by x ascending."""
    return line.groupby("x")["y"].median()


def ratio(line: pd.DataFrame, x: float, x_0: float) -> float:
    """The median at x over that at x_0."""
    medians = median_by_x(line)
    return float(medians[x] / medians[x_0])


@dataclass(frozen=True)
class Finding:
    """A published claim put to the test: what was measured, one value a seed, and the band in which it wants the mean.

    system: who claims it, as a key of study.theory.related.SYSTEMS. The claim is reproduced if the 95 % Student
    interval over the seeds is inside the band, not reproduced if it is outside, and open if it is neither.
    """

    system: str
    claim: str
    measured: str
    by_seed: Sequence[float]
    low: float = -math.inf
    high: float = math.inf

    @property
    def interval(self) -> Gap:
        """The mean over the seeds and the half-width of its interval."""
        return student(self.by_seed)

    @property
    def verdict(self) -> str:
        """ "reproduced", "not reproduced" or "open"; nan, and a single seed, leave it open."""
        mean, margin = self.interval.difference, self.interval.margin
        if self.low <= mean - margin and mean + margin <= self.high:
            return "reproduced"
        return "not reproduced" if mean + margin < self.low or self.high < mean - margin else "open"

    def row(self) -> dict[str, object]:
        """As a row of a table: mean, margin and number of seeds in place of the values by seed."""
        gap = self.interval
        numbers = {"value": gap.difference, "margin": gap.margin, "seeds": gap.seeds}
        about = {"system": self.system, "claim": self.claim, "measured": self.measured}
        return {**about, "low": self.low, "high": self.high, **numbers, "verdict": self.verdict}
