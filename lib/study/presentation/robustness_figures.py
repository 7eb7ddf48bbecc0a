"""What survives an attack against its radius."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from study.presentation.figures import draw
from study.presentation.style import ATTACKS, finish, panels
from study.results.store import Results
from study.statistics.frames import suite_rates


def _from_clean(results: Results, attack: str) -> pd.DataFrame:
    """The rows of an attack, and those of the same networks without one."""
    frame = suite_rates(results)
    rows = frame[frame["attack"] == attack]
    clean = frame[(frame["attack"] == "clean") & frame["run_id"].isin(rows["run_id"])].drop_duplicates("run_id")
    return pd.concat([clean, rows])


def plot_radii(results: Results, attacks: Sequence[str], largest: Mapping[str, float]) -> Figure:
    """Accuracy under each attack against the radius, up to `largest` of its norm, where all configurations have it."""
    fig, axes = panels([ATTACKS[attack] for attack in attacks], 3, 2.5, "row")
    for i, (ax, attack) in enumerate(zip(axes, attacks, strict=True)):
        rows = _from_clean(results, attack)
        rows = rows[rows["eps"] <= rows["norm"].map(largest).fillna(math.inf)]
        shared = rows.groupby("eps")["name"].transform("nunique") == rows["name"].nunique()
        draw(ax, rows[shared], "eps", "rate")
        ax.set(xlabel="radius ε", ylabel="" if i % 3 else "accuracy, %")
        ax.locator_params(axis="x", nbins=4)
    return finish(fig)
