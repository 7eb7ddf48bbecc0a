"""Figures of what a linear minimization costs, from the tables lmo and lmo_growth of `study.benches.tables`.

Never imports torch.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from study.presentation.costs import NETS
from study.presentation.style import finish, panels

METHODS = {
    "sgd": "momentum SGD",
    "l2": "ℓ₂ ball",
    "linf": "ℓ∞ ball",
    "k_sparse": "k-sparse polytope",
    "k_support": "k-support ball",
    "group_k_support": "group k-support ball",
    "nuclear": "nuclear ball",
    "spectral_k_sparse": "spectral k-sparse",
    "spectral_k_support": "spectral k-support",
    "nuclear_penalty": "nuclear-norm penalty",
    "singular_value_threshold": "singular value threshold",
    "group_lasso": "group lasso penalty",
    "lorita_2": "LoRITa, N = 2",
    "lorita_3": "LoRITa, N = 3",
}


class Line(NamedTuple):
    """How an engine is named and drawn."""

    label: str
    color: str
    marker: str
    dash: str


ENGINES = {
    "closed_form": Line("no singular values", "#444444", "o", "-"),
    "power_warm": Line("power, 1 iteration, warm", "#0072B2", "D", "-"),
    "power_cold": Line("power, 10 iterations, cold", "#56B4E9", "s", "--"),
    "svd": Line("exact SVD", "#D55E00", "^", "-."),
}
GROWTH = {  # a column of seconds, and how it is drawn
    "svd_s": ENGINES["svd"],
    "single_svd_s": Line("SVD alone, float32", "#E69F00", "v", ":"),
    "power_cold_s": ENGINES["power_cold"],
    "power_warm_s": ENGINES["power_warm"],
    "products_s": Line("two products of an iteration", "#444444", ".", ":"),
}
SWEEPS = {"k": ("k", "Rank k, n = m = {n}"), "size": ("n", "Size n = m, k = {k}")}  # the column that grows, title


def entry(frame: pd.DataFrame, net: str, method: str, engine: str, column: str) -> float:
    """One number of the table lmo; nan if it was not measured."""
    rows = frame[(frame["net"] == net) & (frame["method"] == method) & (frame["engine"] == engine)]
    return float(rows[column].iloc[0]) if len(rows) else float("nan")


def plot_lmo(frame: pd.DataFrame) -> Figure:
    """The time of each step over that of a whole training step with SGD, a panel a network; beyond the line a step
    takes longer than everything else in training."""
    nets = list(frame["net"].unique()) if len(frame) else []
    fig, axes = panels([NETS[net] for net in nets], 3, 3.6)
    if not nets:
        return finish(fig)
    for ax, net in zip(axes, nets, strict=True):
        rows = frame[frame["net"] == net]
        sgd = rows[rows["method"] == "sgd"].iloc[0]
        share = rows["step_s"] / (sgd["passes_s"] + sgd["step_s"])
        place = rows["method"].map(list(METHODS).index)
        for engine, (label, color, marker, _) in ENGINES.items():
            own = rows["engine"] == engine
            ax.plot(share[own], place[own], color=color, marker=marker, linestyle="", label=label)
        ax.axvline(1, color="#888888", linewidth=0.8)
        ax.set(xscale="log", xlabel="time / training step")
        ax.set_yticks(range(len(METHODS)), list(METHODS.values()))
        for boundary in (0.5, 5.5, 8.5):  # SGD; sets of entries or rows; sets of singular values; rivals
            ax.axhline(boundary, color="#BBBBBB", linewidth=0.8)
    axes[0].set_ylim(len(METHODS) - 0.5, -0.5)  # the panels share it
    return finish(fig)


def plot_lmo_growth(frame: pd.DataFrame) -> Figure:
    """Time of one linear minimization over a spectral k-support ball against k, and against the size of the matrix."""
    sweeps = list(frame["sweep"].unique()) if len(frame) else []
    titles = [SWEEPS[sweep][1].format_map(frame[frame["sweep"] == sweep].iloc[-1]) for sweep in sweeps]
    fig, axes = panels(titles, 2, 2.9)
    if not sweeps:
        return finish(fig)
    for ax, sweep in zip(axes, sweeps, strict=True):
        rows, name = frame[frame["sweep"] == sweep], SWEEPS[sweep][0]
        for quantity, (label, color, marker, dash) in GROWTH.items():
            ax.plot(rows[name], 1e3 * rows[quantity], label=label, color=color, marker=marker, linestyle=dash)
        ax.set(xscale="log", yscale="log", xlabel=name)
        ax.set_xticks(rows[name], [f"{value:g}" for value in rows[name]])
        ax.minorticks_off()
    axes[0].set_ylabel("processor time, ms")
    return finish(fig, x_ticks=False)
