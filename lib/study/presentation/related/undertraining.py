"""The figure of under-training: what longer training gains."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from study.presentation.curves import name_ends
from study.presentation.related.lines import Look, lines
from study.presentation.style import finish, panels

UNDERTRAINED = {
    "dense 0": Look("#000000", label="dense"),
    "CondLR 0.9": Look("#0072B2", "s", label="CondLR, ratio 0.9"),
    "U Vᵀ 0.9": Look("#E69F00", "^", label="U Vᵀ, ratio 0.9"),
    "gradual 0.98": Look("#009E73", "v", label="gradual, 98 % zeros"),
    "AC/DC 0.98": Look("#D55E00", "D", label="AC/DC, 98 % zeros"),
}
GAINS = {"CondLR": (1, (2, 7)), "U Vᵀ": (2, (-30, -16)), "gradual": (1, (4, 7)), "AC/DC": (1, (2, 7))}
"""By series, beside which of its points it is named, and how far right and up, in points of type."""


def plot_undertraining(rows: pd.DataFrame) -> Figure:
    """Test error against epochs, each network at its best learning rate; and how much more than dense networks others
    gain by longer training at a rate of their own, against the share of the parameters that they keep."""
    fig, (left, right) = panels(["test error, %", "gain over that of dense, points"], 2, 2.6, "none")
    if rows.empty:
        return finish(fig)
    errors, gains = (rows[rows["panel"] == panel] for panel in ("error", "gain"))
    lines(left, errors, UNDERTRAINED)
    left.set(xlabel="epochs", xscale="log", yscale="log")
    left.set_xticks(epochs := sorted(errors["x"].unique()), [f"{x:g}" for x in epochs], minor=False)
    left.set_yticks(ticks := [7, 10, 20, 30, 50], [f"{y}" for y in ticks])
    looks = {name: look for key, look in UNDERTRAINED.items() for name in GAINS if key.startswith(name)}
    lines(right, gains, looks)
    right.axhline(0, color="#888888", linewidth=0.8)
    right.set(xlabel="parameters kept, % of dense", xscale="log", yscale="symlog", ylim=(-1, 45))
    right.set_xticks(ticks := [3, 10, 30, 70], [f"{x}" for x in ticks])
    right.set_yticks(ticks := [0, 1, 3, 10, 30], [f"{y}" for y in ticks])
    for ax in (left, right):
        ax.minorticks_off()
    for name, (k, offset) in GAINS.items():
        means = gains[gains["series"] == name].groupby("x")["y"].mean()
        at = (float(means.index[k]), float(means.iloc[k]))
        right.annotate(name, at, offset, textcoords="offset points", color=looks[name].color, fontsize=9)
    fig.draw_without_rendering()
    last = errors[errors["x"] == errors["x"].max()].groupby("series")["y"].mean()
    named = {look.label: (epochs[-1], float(last[key])) for key, look in UNDERTRAINED.items()}
    name_ends(left, named, {look.label: look.color for look in UNDERTRAINED.values()})
    return fig
