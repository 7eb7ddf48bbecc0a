"""Figures of what a chapter computes while it is read: a panel a title, its curves named where they end."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from study.presentation.style import panels, tick

Curve = tuple[Any, Any] | tuple[Any, Any, str]
"""x, y, and how it is drawn, "o-" where nothing is said: markers without a line are not named."""
GREY = "#767676"


def _apart(heights: list[float], least: float) -> list[float]:
    """Ascending heights moved so that they are at least so far apart, each cluster about its centre."""
    clusters: list[tuple[float, int]] = []  # centre, members
    for height in heights:
        clusters.append((height, 1))
        while len(clusters) > 1:
            (lower, k), (upper, n) = clusters[-2:]
            if upper - lower >= least * (k + n) / 2:
                break
            clusters[-2:] = [((k * lower + n * upper) / (k + n), k + n)]
    return [centre + least * (i - (n - 1) / 2) for centre, n in clusters for i in range(n)]


def name_ends(ax: Axes, ends: Mapping[str, tuple[float, float]], colors: Mapping[str, str]) -> None:
    """Write each label to the right of the end of its curve, none over another, in a figure whose layout is settled."""
    down = sorted(ends, key=lambda label: ax.transData.transform(ends[label])[1])
    points = 72 / ax.figure.dpi
    heights = [float(ax.transData.transform(ends[label])[1]) * points for label in down]
    edge = max((ends[label][0] for label in down), default=0)
    for label, old, new in zip(down, heights, _apart(heights, 11.5), strict=True):
        at, offset = (edge, ends[label][1]), (8, new - old)
        look: Any = {"color": colors[label], "fontsize": 9, "va": "center", "annotation_clip": False}
        ax.annotate(label, at, offset, textcoords="offset points", **look)


def tick_logarithms(ax: Axes) -> None:
    """Ticks on the logarithmic axes, as numbers are written in the book."""
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            subs = (1, 2, 5) if high < 300 * low else (1,)
            axis.set_major_locator(LogLocator(subs=subs, numticks=7))
            axis.set_major_formatter(lambda x, _: tick(x))
            axis.set_minor_formatter(NullFormatter())


def curves(
    shown: Mapping[str, Mapping[str, Curve]],
    x: str,
    y: str = "",
    *,
    log: str = "xy",
    grey: Collection[str] = (),
    height: float = 3.4,
    ylim: tuple[float | None, float | None] = (None, None),
) -> Figure:
    """{title: {label: (x, y) or (x, y, look)}}, side by side: a label has one colour, and is written once, in the last
    panel that has it.

    log: which axes are logarithmic; grey: labels of what is there for comparison.
    """
    fig, axes = panels(list(shown), len(shown), height)
    labels = list(dict.fromkeys(label for panel in shown.values() for label in panel))
    cycle: list[str] = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    coloured = [label for label in labels if label not in grey]
    colors = dict.fromkeys(grey, GREY) | {label: cycle[k % len(cycle)] for k, label in enumerate(coloured)}
    last = {label: title for title, panel in shown.items() for label in panel}
    ends: list[dict[str, tuple[float, float]]] = []
    for ax, (title, panel) in zip(axes, shown.items(), strict=True):
        marks: dict[str, tuple[float, float]] = {}
        for label, (xs, ys, *look) in panel.items():
            form = look[0] if look else "o-"
            ax.plot(xs, ys, form, color=colors[label], markersize=4)
            if last[label] == title and "-" in form:
                right = max(range(len(xs)), key=lambda k: float(xs[k]))
                marks[label] = float(xs[right]), float(ys[right])
        ax.set(xlabel=x, xscale="log" if "x" in log else "linear", yscale="log" if "y" in log else "linear")
        if ylim != (None, None):
            ax.set_ylim(*ylim)
        tick_logarithms(ax)
        bottom, top = ax.get_ylim()
        ends.append({label: (at, min(max(end, bottom), top)) for label, (at, end) in marks.items()})
    axes[0].set(ylabel=y)
    fig.draw_without_rendering()
    for ax, named in zip(axes, ends, strict=True):
        name_ends(ax, named, colors)
    return fig
