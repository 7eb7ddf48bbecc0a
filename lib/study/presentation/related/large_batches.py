"""The figure of large adversarial batches."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from study.presentation.curves import name_ends, tick_logarithms
from study.presentation.related.lines import of
from study.presentation.style import finish, panels

BATCHED = {"linear scaling": "#888888", "SGD": "#D55E00", "one ratio": "#E69F00", "LARS": "#0072B2"}
SENT = {"dense": ("#000000", 0), "U Vᵀ": ("#E69F00", -9), "κ ≤ 1.1": ("#009E73", 8)}
"""Colour, and how far above its point a form is named, in points of type."""


def plot_batches(rows: pd.DataFrame) -> Figure:
    """Images kept under PGD: against the batch, dense and under the bound on κ, mean and range over the seeds; and at
    the largest batch, with LARS, against what a machine sends in a step, in 32 bits (circles) and in 8 (squares)."""
    titles = ["dense: kept under PGD, %", "κ ≤ 1.1", "largest batch, LARS"]
    fig, axes = panels(titles, 3, 2.4, "all")
    if rows.empty:
        return finish(fig)
    ends: list[dict[str, tuple[float, float]]] = []
    for ax, form in zip(axes, ("dense", "κ ≤ 1.1"), strict=False):
        means = {name: of(rows, "robust", f"{form}, {name}").groupby("x")["y"] for name in BATCHED}
        ends.append({})
        smallest = means["SGD"].mean().iloc[:1]  # from which linear scaling starts
        for name, by_x in means.items():
            line = by_x.mean() if name != "linear scaling" else pd.concat([smallest, by_x.mean()])
            ax.plot(line, color=BATCHED[name], marker="o" if name != "one ratio" else "D")
            ax.fill_between(by_x.min().index, by_x.min(), by_x.max(), color=BATCHED[name], alpha=0.15, linewidth=0)
            if len(line):
                ends[-1][name] = float(line.index[-1]), float(line.iloc[-1])
        ax.set(xlabel="images in a batch", xscale="log", ylim=(0, None))
        ax.set_xticks(batches := sorted(rows.loc[rows["panel"] == "robust", "x"].unique()), [f"{x:g}" for x in batches])
        ax.minorticks_off()
    for form, (color, up) in SENT.items():
        points = [of(rows, "sent", f"{form}, {name}")[["x", "y"]].mean() for name in ("LARS", "LARS, 8 bits")]
        axes[2].plot(*zip(*points, strict=True), color=color)
        for (x, y), marker in zip(points, "os", strict=True):
            axes[2].plot(x, y, marker, color=color)
        axes[2].annotate(form, tuple(points[0]), (5, up), textcoords="offset points", color=color, va="center")
    axes[2].set(xlabel="kilobytes a machine and step", xscale="log")
    tick_logarithms(axes[2])
    fig.draw_without_rendering()
    for ax, named in zip(axes, ends, strict=False):
        name_ends(ax, named, BATCHED)
    return fig
