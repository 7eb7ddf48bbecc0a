"""Figures and tables of the checks of the approximation theorem."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterMathtext, LogLocator, NullFormatter
from pandas.io.formats.style import Styler

from study.presentation.style import look, number, panels, table
from study.statistics.verdicts import Check, Guide, Panel, Reading, median_by_x

EXACT, PUBLISHED = look("condlr").color, look("condlr_published").color
LOOKS = {  # colour, marker, dash: the same in every figure
    "CondLR-exact": (EXACT, "o", "-"),
    "CondLR as published": (PUBLISHED, "P", "--"),
    "K-L-S": ("#009E73", "s", "-"),
    "augmented basis": ("#CC79A7", "^", "-"),
    "USV-Euler, QR": ("#D55E00", "D", "-"),
    "USV-Euler, polar": ("#E69F00", "v", "-"),
    "c₁, sum": ("#0072B2", "o", "-"),
    "c₁, squares": ("#0072B2", "s", "--"),
    "c₂, sum": ("#D55E00", "o", "-"),
    "c₂, squares": ("#D55E00", "s", "--"),
    "measured": ("#0072B2", "o", ""),
    "√(1 + x²)": ("#000000", "", "-"),
    "1 + x": ("#D55E00", "", "--"),
    "bound of Theorem A": ("#666666", "", "--"),
}
OTHERS = [
    ("#0072B2", "o", "-"), ("#D55E00", "s", "-"), ("#009E73", "D", "-"), ("#CC79A7", "^", "-"), ("#E69F00", "v", "-"),
    ("#56B4E9", "P", "-"), ("#000000", "X", "-"),
]  # fmt: skip


def _text(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−") if abs(value) < 1000 else number(value)


def value_text(measurement: Reading) -> str:
    """ "−1.91 ± 0.02": enough digits for the standard error; "0.48" without one."""
    value, error = measurement.value, measurement.error
    if math.isnan(error):
        return f"{value:.2g}" if 0 < abs(value) < 0.01 else _text(value, 3 if abs(value) < 2 else 2)
    if error < 5e-5:
        return f"{_text(value, 4)} ± <0.0001"
    digits = 2 if error >= 0.01 else min(4, 1 - math.floor(math.log10(error)) - 1)
    return f"{_text(value, digits)} ± {error:.{digits}f}"


def band_text(measurement: Reading) -> str:
    """The interval in which the value has to be."""
    low, high = measurement.low, measurement.high
    if high == math.inf or low == -math.inf:
        return f"≥ {_text(low)}" if high == math.inf else f"≤ {_text(high)}"
    if low == 0:
        return f"≤ {number(high)}"
    digits = 3 if high - low < 0.1 else 2
    return f"{_text(low, digits)} to {_text(high, digits)}"


def measurements_table(checks: Iterable[Check]) -> Styler:
    """One row for each measurement of the checks: what theory expects, the band, the value, and the verdict."""
    rows = [
        {
            "measured": measurement.what,
            "theory": measurement.expected.replace("-", "−"),
            "accepted": band_text(measurement),
            "value": value_text(measurement),
            "verdict": "holds" if measurement.holds else "fails",
        }
        for check in checks
        for measurement in check.measurements
    ]
    return table(pd.DataFrame(rows))


def _guide(ax: Axes, line: pd.Series, guide: Guide, dash: str) -> None:
    """A line of the exponent of the theory, a little below its series and through the end where that is smallest."""
    x, y = line.index.to_numpy(float), line.to_numpy(float)
    near = (x >= guide.low) & (x <= guide.high)
    x, y = x[near], y[near]
    shifted = 0.75 * np.min(y / x**guide.exponent) * x**guide.exponent
    label = f"theory: slope {guide.exponent:g}".replace("-", "−").replace("0.5", "1/2")
    ax.plot(x, shifted, color="#666666", linewidth=1.1, linestyle=dash, label=label)


def _plain_ticks(ax: Axes) -> None:
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            decades = math.log10(high / low)
            subs: tuple[float, ...] = (1, 1.5, 2, 3, 5, 7) if decades < 1 else (1, 2, 5) if decades < 2.2 else (1,)
            axis.set_major_locator(LogLocator(subs=subs, numticks=8 if decades >= 2.2 else 20))
            axis.set_major_formatter("{x:g}" if low >= 1e-3 and high <= 2e3 else LogFormatterMathtext())
            axis.set_minor_formatter(NullFormatter())


def _draw(ax: Axes, panel: Panel, rows: pd.DataFrame) -> None:
    for k, series in enumerate(rows["series"].unique()):
        own = rows[rows["series"] == series]
        color, marker, dash = LOOKS.get(series, OTHERS[k % len(OTHERS)])
        if not panel.lines and marker:
            ax.plot(own["x"], own["y"], color=color, marker=marker, linestyle="", label=series, markersize=3.5)
            continue
        middle = median_by_x(own)
        spread = own.groupby("x")["y"].agg(["min", "max"])
        marked = marker if len(middle) < 20 else ""
        ax.plot(middle.index, middle, color=color, marker=marked, linestyle=dash, label=series, markersize=4.5)
        ax.fill_between(spread.index, spread["min"], spread["max"], color=color, alpha=0.15, linewidth=0)
    for guide, dash in zip(panel.guides, ("--", ":"), strict=False):
        _guide(ax, median_by_x(rows[rows["series"] == guide.series]), guide, dash)
    ax.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
    ax.set_xscale("log" if "x" in panel.log else "linear")
    ax.set_yscale("log" if "y" in panel.log else "linear")
    if "y" not in panel.log and rows["y"].min() < 0.5 * rows["y"].max():
        ax.set_ylim(bottom=0)
    _plain_ticks(ax)


def plot(check: Check, *names: str) -> Figure:
    """The panels of a check, two a row: median over the seeds (markers), their range (shade), slopes of the theory.

    names: of some panels only.
    """
    shown = [panel for panel in check.panels if not names or panel.name in names]
    fig, axes = panels([""] * len(shown), 2, 3.6, share="none")
    for ax, panel in zip(axes, shown, strict=True):
        _draw(ax, panel, check.rows[check.rows["panel"] == panel.name])
        entries = len(ax.get_legend_handles_labels()[1])
        if entries > 1:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=9)
    return fig
