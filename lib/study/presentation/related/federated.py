"""The figure of federated training at fixed rank."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from study.presentation.curves import name_ends, tick_logarithms
from study.presentation.related.lines import Look, lines, of
from study.presentation.style import finish, panels

FEDERATED = {
    "dense": "#767676",
    "tangent": "#0072B2",
    "tangent, κ ≤ 1.1": "#009E73",
    "products": "#E69F00",
    "factors": "#CC79A7",
    "own SVD": "#D55E00",
}


def plot_federated(rows: pd.DataFrame) -> Figure:
    """Accuracy on clients with two classes each against what is sent; what one merge loses against the drift."""
    fig, (left, right) = panels(
        ["two classes a client: test accuracy, %", "relative error of one merge"], 2, 2.9, "none"
    )
    if rows.empty:
        return finish(fig)
    ends: tuple[dict[str, tuple[float, float]], ...] = ({}, {})
    for name in ("dense", "tangent", "tangent, κ ≤ 1.1", "products", "own SVD"):
        mean = of(rows, "skewed", name).groupby("x")["y"].mean()
        lines(left, of(rows, "skewed", name), {name: Look(FEDERATED[name], marker="")})
        ends[0][name] = float(mean.index[-1]), float(mean.iloc[-1])
    left.set(xlabel="megabytes on the channel, up and down", xscale="log", ylim=(0, 100))
    for name in ("tangent", "tangent, κ ≤ 1.1", "factors", "own SVD"):
        own = of(rows, "error", name).sort_values("x")
        for _, line in own.groupby("seed"):
            right.plot(line["x"], line["y"], "o-", color=FEDERATED[name], markersize=3)
        ends[1][name] = float(own["x"].iloc[-1]), float(own["y"].iloc[-1])
    right.set(xlabel="drift of the clients, ‖W − Z‖ / ‖Z‖", xscale="log", yscale="log")
    for ax in (left, right):
        tick_logarithms(ax)
    fig.draw_without_rendering()
    for ax, named in zip((left, right), ends, strict=True):
        name_ends(ax, named, FEDERATED)
    return fig
