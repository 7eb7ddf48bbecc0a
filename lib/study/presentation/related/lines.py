"""Lines of several seeds in the figures of related systems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes


class Look(NamedTuple):
    """How a line is drawn and named."""

    color: str
    marker: str = "o"
    dash: str = "-"
    label: str = ""


def of(rows: pd.DataFrame, panel: str, series: str) -> pd.DataFrame:
    return rows[(rows["panel"] == panel) & (rows["series"] == series)]


def lines(ax: Axes, rows: pd.DataFrame, looks: Mapping[str, Look]) -> None:
    """The mean over the seeds, and their range as a shade."""
    for name, look in looks.items():
        own = rows[rows["series"] == name]
        if own.empty:
            continue
        by_x = own.groupby("x")["y"]
        ax.plot(by_x.mean(), color=look.color, marker=look.marker, linestyle=look.dash, label=look.label or name)
        ax.fill_between(by_x.min().index, by_x.min(), by_x.max(), color=look.color, alpha=0.15, linewidth=0)
