"""How the book writes numbers, tables and figures: one style for all of them."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
import seaborn as sns
from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from pandas.api.types import is_numeric_dtype
from pandas.io.formats.style import Styler

from study.attacks.attack import TITLES
from study.statistics.comparison import mean_std as mean_std
from study.statistics.looks import LOOKS as LOOKS
from study.statistics.looks import Look as Look
from study.statistics.looks import look as look

ATTACKS = TITLES
"""What an attack or corruption is called in the book."""
WIDTH = 7.5  # inches, the width of a page of the book
PROSE = 32  # characters: a cell of a table whose line is longer is broken into several
STYLE: Any = {
    "figure.dpi": 160, "figure.facecolor": "white", "figure.figsize": (WIDTH, 3.6), "font.size": 10.5,
    "figure.constrained_layout.use": True, "figure.constrained_layout.wspace": 0.04, "legend.fontsize": 10,
    "axes.titlesize": 10.5, "axes.labelsize": 10.5,
    "xtick.labelsize": 9.5, "ytick.labelsize": 9.5, "xtick.color": "#444444", "ytick.color": "#444444",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#444444", "axes.titlelocation": "left",
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E4E4E4", "legend.frameon": False,
    "axes.linewidth": 0.8, "grid.linewidth": 0.8, "lines.linewidth": 1.8, "lines.markersize": 5.5,
    "axes.prop_cycle": cycler(color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]),
}  # fmt: skip


def style() -> None:
    """Draw every figure from now on in the style of the book; the functions plot_* call it themselves."""
    sns.set_theme(style="whitegrid", font="DejaVu Sans", rc=STYLE)


# --- text ------------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """As one reads it: 1.10, 43.57, 12,300, 3.4e7, ∞; – for nan."""
    if math.isnan(value) or math.isinf(value):
        return "–" if math.isnan(value) else "∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.{0 if abs(value) >= 1000 else 2}f}"


def percent(fraction: float) -> str:
    """ "32.8 %"; – for nan."""
    return "–" if math.isnan(fraction) else f"{100 * fraction:.1f} %"


def signed(value: float, digits: int = 2) -> str:
    """ "+0.33", "−0.92", with a minus sign as long as the plus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def unbroken(text: object) -> str:
    """With formulas that no line break tears apart: τ = 0.1, U S Vᵀ, ratio 0.8, 50 %."""
    return re.sub(r"(?<==) | (?==)|(?<=\bU) (?=[SV])|(?<=\bS) (?=V)|(?<=\bratio) |(?<=\d) (?=%)", "\u00a0", str(text))


def _safe(text: object) -> str:
    """A label is not markup, wherever it comes from; the line breaks of our own cells are."""
    return html.escape(unbroken(text), quote=False).replace("&lt;br&gt;", "<br>")


def table(frame: pd.DataFrame) -> Styler:
    """A frame of text as a table: first column and prose left, in lines, the others right; of many columns, in smaller
    type."""
    size, padding = ("0.8em", "0.25em") if len(frame.columns) > 7 else ("0.85em", "0.4em")
    cell = f"text-align: right; padding: 0.2em {padding}; vertical-align"
    styles: Any = [
        {"selector": "", "props": f"font-size: {size}"},
        {"selector": "th", "props": f"{cell}: bottom"},
        {"selector": "td", "props": f"{cell}: top; white-space: nowrap"},
        *(
            {"selector": f"th.col{k}, td.col{k}", "props": "text-align: left; white-space: normal; min-width: 11em"}
            for k, column in enumerate(frame)
            if k == 0 or any(len(line) > PROSE for text in frame[column] for line in str(text).split("<br>"))
        ),
    ]
    text: dict[Any, Any] = {column: _safe for column in frame if not is_numeric_dtype(frame[column])}
    shown = frame.style.hide(axis="index").set_table_styles(styles)
    return shown.format(text).format_index(axis=1, escape="html")


# --- figures ---------------------------------------------------------------------------------------------------------


def panels(
    titles: Sequence[str], columns: int, height: float, share: Literal["all", "row", "none"] = "all"
) -> tuple[Figure, list[Axes]]:
    """A figure of the book's width, and its titled axes in rows of `columns`."""
    style()
    columns = max(1, min(len(titles), columns))
    rows = max(1, math.ceil(len(titles) / columns))
    size = (WIDTH, height * rows + 0.3)
    fig, grid = plt.subplots(rows, columns, squeeze=False, sharey=share, figsize=size)
    axes: list[Axes] = list(grid.flat)
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title)
    for spare in axes[max(1, len(titles)) :]:
        spare.set_visible(False)
    return fig, axes[: len(titles)]


def tick(value: float) -> str:
    """A number at a logarithmic axis: 0.001, 50, 10000, and powers of ten beyond, 10⁻⁷, 2·10¹²."""
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{power}" if mantissa == "1" else f"{mantissa}·10{power}"


def finish(fig: Figure, x_ticks: bool = True) -> Figure:
    """One legend below the panels, or the remark that nothing has been computed; plain numbers on logarithmic axes
    (with x_ticks=False, on the vertical ones only)."""
    entries: dict[str, Any] = {}
    for ax in fig.axes:
        entries |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        for axis in (ax.xaxis, ax.yaxis) if x_ticks else (ax.yaxis,):
            if axis.get_scale() == "log":
                low, high = axis.get_view_interval()
                decades = math.log10(high / low)
                fine = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9) if decades < 0.5 else (1, 1.5, 2, 3, 5, 7)
                subs = fine if decades < 1 else (1, 2, 5) if decades < 2.5 else (1,)
                axis.set_major_locator(LogLocator(subs=subs, numticks=6 if decades > 6 else None))
                axis.set_major_formatter(lambda x, _: tick(x))
                axis.set_minor_formatter(NullFormatter())
    if entries:
        short = len(entries) == 4 and len("".join(entries)) < 60
        columns = 4 if short else 3 if max(map(len, entries)) < 31 else 2
        fig.set_figheight(fig.get_figheight() + 0.21 * math.ceil(len(entries) / columns))
        fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)
    else:
        fig.clear()
        fig.set_figheight(0.8)
        fig.add_subplot(frame_on=False, xticks=[], yticks=[]).text(
            0.5, 0.5, "waiting: nothing is computed", ha="center"
        )
    return fig
