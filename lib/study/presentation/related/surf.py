"""The figure of federated training by learned layers."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from study.presentation.curves import name_ends
from study.presentation.related.lines import Look, lines
from study.presentation.style import finish, panels

UNROLLED_FEDERATED = {
    "descending": Look("#0072B2", label="SURF"),
    "new labels": Look("#0072B2", label="SURF"),
    "unconstrained": Look("#D55E00", "s", label="no constraints"),
    "long": Look("#000000", "", label="DGD"),
    "DGD": Look("#000000", "", label="DGD"),
    "FedAvg": Look("#009E73", "", label="FedAvg"),
    "stored": Look("#767676", "", "--"),
}


def plot_surf(rows: pd.DataFrame) -> Figure:
    """Accuracy against the exchanges with neighbours, if classes keep their labels and if each problem has its own; and
    at the end, if agents sleep."""
    titles = {
        "same labels": "same classes: accuracy, %",
        "new labels": "new labels: accuracy, %",
        "asleep": "same classes, agents asleep",
    }
    fig, axes = panels([*titles.values()], 3, 2.4, "all")
    if rows.empty:
        return finish(fig)
    ends: list[dict[str, tuple[float, float]]] = []
    shown = rows[(rows["panel"] == "asleep") | (rows["x"] <= 40)]
    for ax, panel in zip(axes, titles, strict=True):
        own = shown[shown["panel"] == panel]
        last: Any = own.groupby(["series", "x"])["y"].mean().groupby("series").tail(1).reset_index("x")
        lines(ax, own[own["series"] != "stored"], UNROLLED_FEDERATED)
        ends.append(
            {
                look.label or name: tuple(last.loc[name])
                for name, look in UNROLLED_FEDERATED.items()
                if name in last.index
            }
        )
        if "stored" in last.index:
            ax.axhline(float(last.loc["stored", "y"]), color="#767676", linestyle="--", linewidth=1)
        ax.set(xlabel="exchanges with neighbours" if panel != "asleep" else "probability to sleep", ylim=(0, 100))
    fig.draw_without_rendering()
    for ax, named in zip(axes, ends, strict=True):
        name_ends(ax, named, {look.label or name: look.color for name, look in UNROLLED_FEDERATED.items()})
    return fig
