"""The figure of kernel average pooling."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from study.presentation.curves import tick_logarithms
from study.presentation.related.lines import Look
from study.presentation.style import finish, panels

POOLING = {
    "noise": Look("#D55E00", "s", label="noise alone"),
    "pooling, K = 3": Look("#0072B2", label="K = 3"),
    "pooling, K = 5": Look("#56B4E9", "D", label="K = 5"),
    "κ ≤ 1.1": Look("#009E73", "^"),
    "spectral norm 1": Look("#888888", "v", label="norm 1"),
}


def plot_pooling(rows: pd.DataFrame) -> Figure:
    """Images kept under PGD ℓ₂, against the clean accuracy along σ (means), and against κ and the norms (networks)."""
    fig, axes = panels(["kept under PGD ℓ₂, %", "", ""], 3, 2.5, "all")
    if rows.empty:
        return finish(fig)
    wide = rows.pivot_table(index=["series", "x", "seed"], columns="panel", values="y")
    for name, look in POOLING.items():
        own = wide.loc[name]
        means = own.groupby("x").mean()
        axes[0].plot(means["clean"], means["l2"], color=look.color, marker=look.marker)
        x, y = means.iloc[-1][["clean", "l2"]]
        right = name == "spectral norm 1"
        below = name in ("noise", "pooling, K = 5")
        where: Any = {
            "xytext": (7 if right else -7, 0),
            "textcoords": "offset points",
            "va": "top" if below else "bottom",
        }
        axes[0].annotate(look.label or name, (x, y), ha="left" if right else "right", color=look.color, **where)
        for ax, quantity in zip(axes[1:], ("kappa", "norms"), strict=True):
            ax.plot(own[quantity], own["l2"], look.marker, color=look.color, alpha=0.6)
    axes[0].set(xlabel="clean accuracy, %, along σ")
    for ax, xlabel in zip(axes[1:], ("κ of the convolutions", "product of spectral norms"), strict=True):
        ax.set(xlabel=xlabel, xscale="log")
        tick_logarithms(ax)
    return fig
