"""The figure of dynamic network rewiring."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from study.presentation.related.lines import Look
from study.presentation.style import finish, panels

REWIRED = {
    "rewiring": Look("#0072B2", label="rewired"),
    "magnitude": Look("#E69F00", "s", label="pruned"),
    "U Vᵀ": Look("#CC79A7", "^"),
    "U S Vᵀ, κ ≤ 1.1": Look("#009E73", "v", label="κ ≤ 1.1"),
}
BESIDE = {
    "rewiring": (0, (-4, -15)),
    "magnitude": (0, (-4, 7)),
    "U Vᵀ": (1, (-36, -10)),
    "U S Vᵀ, κ ≤ 1.1": (1, (7, -8)),
}
"""By series, beside which of its points it is named, and how far right and up, in points of type."""


def plot_rewiring(rows: pd.DataFrame) -> Figure:
    """Clean and robust accuracy against the numbers stored, means and ranges; a thin line starts at the non-zeros, and
    its length is what their indices cost."""
    fig, axes = panels(["test accuracy, %", "kept under PGD ℓ∞, %"], 2, 2.5, "none")
    if rows.empty:
        return finish(fig)
    means: Any = rows.pivot_table(index=["series", "x"], columns="panel", values="y")
    for ax, panel in zip(axes, ("clean", "robust"), strict=True):
        by_point = rows[rows["panel"] == panel].groupby(["series", "x"])["y"]
        for name, look in REWIRED.items():
            own, low, high = means.loc[name], by_point.min()[name], by_point.max()[name]
            ax.plot(own["stored"], own[panel], color=look.color, marker=look.marker)
            ax.fill_between(own["stored"], low, high, color=look.color, alpha=0.15, linewidth=0)
            ax.hlines(own[panel], own["non-zeros"], own["stored"], color=look.color, linewidth=0.8)
        ax.axhline(float(means.loc["dense", panel].iloc[0]), color="#444444", linestyle="--", linewidth=1)
        ax.set(xlabel="numbers stored, % of dense", xscale="log", ylim=(0, 100))
        ax.set_xticks(ticks := [5, 10, 20], [f"{x}" for x in ticks])
        ax.minorticks_off()
    offset: Any = {"textcoords": "offset points", "fontsize": 9}
    for name, (k, by) in BESIDE.items():
        look, at = REWIRED[name], means.loc[name].iloc[k][["stored", "robust"]]
        axes[1].annotate(look.label or name, tuple(at), by, color=look.color, **offset)
    axes[1].annotate("dense", (5, float(means.loc["dense", "robust"].iloc[0])), (0, 4), color="#444444", **offset)
    return fig
