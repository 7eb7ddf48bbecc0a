"""Accuracy under attack against deployed size: a few methods in colour, their names on the curves, the rest in grey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from study.presentation.style import ATTACKS, look, panels
from study.results.store import Results
from study.statistics.frames import suite_rates, summary

GREY = "#9A9A9A"
SIZES = (5, 10, 20, 33, 50, 100)


class Curve(NamedTuple):
    """Configurations, by full name, that a line joins; words: its name; at: which of them it stands beside; offset:
    where, in points."""

    words: str
    names: Sequence[str]
    at: int = 0
    offset: tuple[float, float] = (8, -4)


def points(results: Results, attack: str, eps: float) -> pd.DataFrame:
    """By configuration: its name and method, size (deployed parameters in % of dense), and rate and std (%) over seeds
    under an attack of the suite."""
    frame = suite_rates(results)
    frame = frame[(frame["attack"] == attack) & (frame["eps"].sub(eps).abs() < 1e-9)]
    groups = frame.groupby("name", sort=False)["rate"]
    about = summary(results).set_index("name")[["method", "n_params_deployed_ratio"]]
    found = pd.DataFrame({"rate": groups.mean(), "std": groups.std().fillna(0.0)}).join(about)
    return found.assign(size=100 * found["n_params_deployed_ratio"])


def plot_frontier(results: Results, attack: str, eps: float, curves: Sequence[Curve]) -> Figure:
    """The curves in the colours of their methods, all other configurations as grey points; bars: one standard deviation
    over seeds. What has not been measured is left out."""
    frame = points(results, attack, eps)
    fig, (ax,) = panels([""], 1, 3.6)
    others = frame.drop(index=[name for curve in curves for name in curve.names], errors="ignore")
    ax.plot(others["size"], others["rate"], "o", color=GREY, markersize=4, alpha=0.6)
    for curve in curves:
        rows = frame.reindex(list(curve.names)).dropna()
        if rows.empty:
            continue
        _, color, marker, *_ = look(str(rows["method"].iloc[0]))
        ax.errorbar(rows["size"], rows["rate"], rows["std"], color=color, marker=marker, elinewidth=1)
        x, y = rows[["size", "rate"]].iloc[min(curve.at, len(rows) - 1)]
        side = "right" if curve.offset[0] < 0 else "left"
        ax.annotate(
            curve.words, (x, y), curve.offset, textcoords="offset points", color=color, ha=side, fontweight="bold"
        )
    ax.set(xscale="log", xlim=(4.5, 118), ylim=(0, 100), xlabel="deployed parameters, % of the dense network")
    ax.set_xticks(SIZES, [f"{size}" for size in SIZES])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylabel(f"images withstood, %\n{ATTACKS[attack]}, ε = {eps:g}")
    return fig


def by_radius(results: Results, attack: str, eps: float, curves: Sequence[Curve]) -> dict[str, Any]:
    """The data of plot_frontier at 0 and at each radius up to 3 eps that the attack has: book/_static/radii.js."""
    frame = suite_rates(results)
    measured = sorted(frame.loc[frame["attack"] == attack, "eps"].unique())
    radii = [0.0, *(radius for radius in measured if radius <= 3 * eps + 1e-9)]
    parts = [points(results, attack if radius else "clean", radius) for radius in radii]
    everywhere = [name for name in parts[0].index if all(name in part.index for part in parts)]
    about = parts[0].loc[everywhere]

    def of(names: list[str]) -> dict[str, Any]:
        values = {key: [part.loc[names, key].round(2).tolist() for part in parts] for key in ("rate", "std")}
        return {"sizes": about.loc[names, "size"].round(2).tolist(), "rates": values["rate"], "stds": values["std"]}

    there = [(curve.words, [name for name in curve.names if name in everywhere]) for curve in curves]
    named = [name for curve in curves for name in curve.names]
    return {
        "radii": radii,
        "start": min(range(len(radii)), key=lambda k: abs(radii[k] - eps)),
        "ticks": SIZES,
        "curves": [
            {"name": words, "color": look(str(about.loc[names[0], "method"])).color, **of(names)}
            for words, names in there
            if names
        ],
        "others": of([name for name in everywhere if name not in named]),
    }


MNIST = (
    Curve("CondLR, κ ≤ 1.1", [f"CondLR, τ = 0.1, ratio {ratio}" for ratio in (0.97, 0.9, 0.8, 0.5)], 1, (-8, 4)),
    Curve("U Vᵀ", [f"U Vᵀ, ratio {ratio}" for ratio in (0.97, 0.9, 0.8, 0.5)], 1, (8, -12)),
    Curve("dense", ["dense SGD"], 0, (2, -14)),
    Curve(
        "penalty (RobustDLRT)",
        [f"RobustDLRT, ϑ = {cut}, β = 0.03, ratio 0.5" for cut in (0.2, 0.1)] + ["RobustDLRT, β = 0.03, ratio 0.8"],
        0,
        (4, 8),
    ),
)
"""The curves of the start page."""

EQUAL_SIZE = (
    MNIST[0],
    Curve(
        "dense, cut by SVD, fine-tuned",
        [f"SVD of dense, fine-tuned, ratio {ratio}" for ratio in (0.8, 0.5)],
        0,
        (-8, 14),
    ),
    Curve("no bound", [f"projected U S Vᵀ, ratio {ratio}" for ratio in (0.8, 0.5)], 0, (-8, -4)),
    *MNIST[1:3],
)
"""CondLR and its rivals of equal size."""
