"""The figure of the convex landscape: objectives over their optimum."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from study.presentation.related.lines import Look, lines
from study.presentation.style import finish, panels

WIDTHS = {"β = 0.1 β₀": Look("#0072B2"), "β = 0.01 β₀": Look("#D55E00", "s")}
FLOOR = 1e-7  # of what is drawn: the tolerance of the certificates


def plot_landscape(rows: pd.DataFrame) -> Figure:
    """Excess of the objective: over the optimum of the network's own patterns along training; over the global optimum
    against the width; and that of low-rank training."""
    fig, (left, middle, right) = panels(["its own patterns", "all patterns", "100 neurons"], 3, 2.4, "none")
    shown = rows.assign(y=rows["y"].clip(lower=FLOOR))
    lines(left, shown[shown["panel"] == "training"], {"30 neurons": Look("#D55E00", "s", label="β = 0.01 β₀")})
    left.set(xlabel="steps, 30 neurons", yscale="log", ylabel="relative excess")
    widths = shown[shown["panel"] == "width"]
    lines(middle, widths, WIDTHS)
    middle.set(xlabel="neurons", xscale="log", yscale="log")
    rivals = shown[shown["panel"] == "rivals"]
    names = list(rivals.sort_values("x")["series"].unique())
    for k, name in enumerate(names):
        values = rivals.loc[rivals["series"] == name, "y"]
        right.plot(values, np.full(len(values), k), "o", color=WIDTHS["β = 0.1 β₀"].color, alpha=0.6)
    right.set(xscale="log", xlabel="relative excess", ylim=(max(len(names), 1) - 0.5, -0.5), xlim=(FLOOR, 10))
    right.set_yticks(range(len(names)), names, fontsize=8.5)
    finish(fig)
    middle.set_xticks(ticks := sorted(widths["x"].unique()), [f"{x:g}" for x in ticks])
    right.set_xticks([1e-6, 1e-3, 1], ["10⁻⁶", "0.001", "1"])
    return fig
