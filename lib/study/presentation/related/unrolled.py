"""The figure of unrolled networks that descend."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from study.presentation.related.lines import Look, lines
from study.presentation.style import finish, panels

UNROLLED = {
    "LISTA": Look("#D55E00", "s", label="LISTA, random start"),
    "descending": Look("#0072B2", label="descending, random start"),
    "bounded": Look("#009E73", "^", label="κ(W₂) ≤ 10, random start"),
    "LISTA, started as ISTA": Look("#E69F00", "D", "--"),
    "ISTA": Look("#888888", ".", ":", "ISTA, 10 steps"),
    "ISTA, 100 steps": Look("#000000", ".", ":"),
}


def plot_unrolled(rows: pd.DataFrame) -> Figure:
    """Loss and gradient norm layer by layer; final loss under noise."""
    titles = {
        "layers": ("loss by layer", "layer"),
        "gradients": ("gradient norm, relative", "layer"),
        "noise": ("final loss under noise", "noise at test, σ"),
    }
    fig, axes = panels([title for title, _ in titles.values()], 3, 2.3, "none")
    for ax, (panel, (_, xlabel)) in zip(axes, titles.items(), strict=True):
        lines(ax, rows[rows["panel"] == panel], UNROLLED)
        ax.set(xlabel=xlabel, yscale="log")
    return finish(fig, x_ticks=False)
