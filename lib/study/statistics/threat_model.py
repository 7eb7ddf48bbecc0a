"""What survives the strongest of several attacks: rates, and two methods compared seed by seed.

An image counts as robust if it survives every attack of a list, at a radius and at smaller ones; only networks that
were measured under all of them are counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from study.results.outcomes import unpack
from study.results.store import Results
from study.statistics.comparison import Gap
from study.statistics.frames import difference, ordered, with_rates

Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class Threat:
    """The strongest of several attacks at a radius, on the first n images."""

    label: str
    attacks: tuple[str, ...]
    eps: float
    n: int


def threat(results: Results, label: str, *attacks: str, at_most: float = math.inf) -> Threat:
    """The threat of these attacks at the largest radius up to at_most, and on the most images, that the results have of
    each."""
    rows = results.attacks[results.attacks["attack"].isin(attacks)]
    rows = rows[rows["eps"] <= at_most]
    common = rows.groupby("eps")["attack"].nunique().loc[lambda kinds: kinds == len(attacks)]
    if common.empty:
        return Threat(label, attacks, math.nan, 0)
    eps = float(common.index.max())
    n = rows[rows["eps"] == eps].groupby("attack")["n_examples"].max().min()
    return Threat(label, attacks, eps, int(n))


def alive(row: Mapping[Any, Any], n: int) -> Bits:
    """Which of the first n images survive, in a row of the table of attacks."""
    return unpack(row["outcomes"], int(row["n_examples"]))[:n]


def standing(rows: pd.DataFrame, n: int) -> Bits:
    """Which of the first n images survive in all of these rows of the table of attacks."""
    return np.logical_and.reduce([alive(row, n) for row in rows[["outcomes", "n_examples"]].to_dict("records")])


def survivors(results: Results, threat: Threat) -> dict[str, Bits]:
    """{run_id: which of the first n images survive all attacks of the threat}, for runs measured under each of them."""
    frame = results.attacks[results.attacks["n_examples"] >= threat.n]
    counted = frame["attack"].isin(threat.attacks)
    attacks = frame[counted & np.isclose(frame["eps"], threat.eps)].groupby("run_id")["attack"].nunique()
    complete = attacks.index[attacks == len({*threat.attacks})]
    # FGSM at a smaller radius counts too: its images lie in the ball
    inside = frame[(frame["attack"] == "clean") | (counted & (frame["eps"] <= threat.eps))]
    inside = inside[inside["run_id"].isin(complete)]
    return {str(run_id): standing(rows, threat.n) for run_id, rows in inside.groupby("run_id", sort=False)}


def strongest(results: Results, threat: Threat) -> pd.DataFrame:
    """One row a network: the settings and full name of its run, rate, low and high in % under a threat."""
    found = survivors(results, threat)
    runs = ordered(results.runs[results.runs["run_id"].isin(found)])
    kept = [int(found[run_id].sum()) for run_id in runs["run_id"]]
    return with_rates(runs.assign(n_robust=kept, n_examples=threat.n), "n_robust")


def by_seed(results: Results, threat: Threat) -> pd.DataFrame:
    """Rates in % under a threat: one row a seed, one column a configuration, by its full name; nan for none."""
    frame = strongest(results, threat)
    return frame.pivot_table(index="seed", columns="name", values="rate")


def compare(results: Results, first: str, second: str, threat: Threat) -> Gap:
    """Two configurations, by full name, under a threat: the difference in points, paired seed by seed."""
    return difference(by_seed(results, threat), first, second)
