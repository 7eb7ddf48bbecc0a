"""Ranks from a budget against one ratio for all layers, from the table budgets of `study.benches.tables`.

Never imports torch.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.presentation.style import finish, panels
from study.statistics.comparison import Gap, student

NETS = {"lenet5": "LeNet5, digits", "lenet5_mnist": "LeNet5, MNIST", "resnet8": "ResNet-8, digits"}
STAGES = {"truncated": "truncated", "fine_tuned": "truncated, fine-tuned", "condlr": "CondLR from the start"}
REFERENCE = "one ratio"
CURVES = {"energy": ("budget", "#0072B2", "D"), REFERENCE: (REFERENCE, "#D55E00", "o")}
"""What is drawn of the ways to choose ranks: label, color, marker."""


def accuracy(frame: pd.DataFrame, net: str, ranks: str, stage: str) -> pd.DataFrame:
    """Accuracy (%) at a stage, a column a ratio in falling size, a row a seed; empty where nothing was measured."""
    rows = frame[(frame["net"] == net) & (frame["ranks"] == ranks)].dropna(subset=[stage])
    rates = rows.assign(rate=100 * rows[stage] / rows["n_test"])
    return rates.pivot_table(index="seed", columns="ratio", values="rate")


def gap(frame: pd.DataFrame, net: str, ranks: str, stage: str, ratio: float) -> Gap:
    """A way to choose ranks minus one ratio, at the parameters of that ratio, seed by seed."""
    first, second = (accuracy(frame, net, way, stage).get(ratio) for way in (ranks, REFERENCE))
    return student([] if first is None or second is None else (first - second).dropna().tolist())


def plot_budgets(frame: pd.DataFrame) -> Figure:
    """Accuracy against deployed parameters, a row a network, a column a stage: mean and range over the seeds; grey:
    the dense network."""
    nets = [str(net) for net in frame["net"].unique()] if len(frame) else []
    cells = [(net, stage) for net in nets for stage in STAGES]
    fig, axes = panels([f"{NETS[net]}\n{STAGES[stage]}" for net, stage in cells], len(STAGES), 2.2, "none")
    if not cells:
        return finish(fig)
    for i, (ax, (net, stage)) in enumerate(zip(axes, cells, strict=True)):
        rows = frame[frame["net"] == net]
        dense = 100 * (rows["dense"] / rows["n_test"]).mean()
        ax.axhline(dense, color="#888888", linewidth=0.8)
        if i % len(STAGES) == 0:
            ax.annotate(
                "dense", (0.03, dense), (0, 2), ax.get_yaxis_transform(), "offset points", color="#666666", fontsize=9
            )
        share = 100 * rows[rows["ranks"] == REFERENCE].groupby("ratio")["share"].mean()
        curves = {way: accuracy(rows, net, way, stage) for way in CURVES}
        upper = max(curves, key=lambda way: curves[way].mean().mean())
        for way, (label, color, marker) in CURVES.items():
            rates = curves[way]
            x, y = share[rates.columns], rates.mean()
            ax.plot(x, y, color=color, marker=marker)
            ax.fill_between(x, rates.min(), rates.max(), color=color, alpha=0.18, linewidth=0)
            _name(ax, label, (x.iloc[len(x) // 2], y.iloc[len(x) // 2]), color, above=way == upper)
        ax.set(xscale="log", ylabel="" if i % len(STAGES) else "accuracy, %")
        ax.set_xticks(share, [f"{value:.0f}" for value in share])
        ax.minorticks_off()
        ax.margins(x=0.08, y=0.12)
    fig.supxlabel("deployed parameters, % of the dense network", fontsize=10.5)
    return fig


def _name(ax: Axes, label: str, point: tuple[float, float], color: str, *, above: bool) -> None:
    """The name of a curve on its outer side: to the left above it, or to the right below it."""
    side, offset = ("right", (-5, 4)) if above else ("left", (5, -4))
    vertical = "bottom" if above else "top"
    ax.annotate(
        label, point, offset, textcoords="offset points", color=color, ha=side, va=vertical, fontsize=9
    )  # fmt: skip
