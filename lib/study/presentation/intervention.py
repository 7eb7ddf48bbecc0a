"""Norm and condition number set apart: accuracy, clean and under attack, over the norm bound L, a line for each bound c
on the condition number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from study.presentation.style import ATTACKS, panels, table
from study.results.store import Results
from study.statistics.comparison import mean_std
from study.statistics.frames import rates

SPAN = 10.0  # points: of every panel, so that effects can be compared


def by_bounds(results: Results, attack: str) -> dict[tuple[float, float], list[float]]:
    """The rates (%) over the seeds under an attack, or "clean", by L and c."""
    frame = rates(results)
    rows = frame.loc[frame["attack"] == attack, ["max_norm", "max_cond", "rate"]]
    found: dict[tuple[float, float], list[float]] = {}
    for norm, cond, rate in rows.to_numpy(float):
        found.setdefault((float(norm), float(cond)), []).append(float(rate))
    return found


def _bound(c: float) -> str:
    return "κ free" if math.isinf(c) else f"κ = {c:g}" if c == 1 else f"κ ≤ {c:g}"


def plot_intervention(results: Results, attacks: Sequence[str] = ("clean", "pgd_linf", "pgd_l2")) -> Figure:
    """Accuracy over L, a panel for each attack, all of one span, and a line for each c, named at its end."""
    fig, axes = panels([ATTACKS.get(attack, attack) for attack in attacks], 3, 2.6, "none")
    for ax, attack in zip(axes, attacks, strict=True):
        means = {key: fmean(values) for key, values in by_bounds(results, attack).items()}
        conds = sorted({cond for _, cond in means})
        for place, (cond, color) in enumerate(zip(conds, colors(len(conds)), strict=True)):
            norms = sorted(norm for norm, other in means if other == cond)
            ax.plot(norms, [means[norm, cond] for norm in norms], "o-", color=color)
            if ax is axes[-1]:
                end = (norms[-1], fmean(rate for (norm, _), rate in means.items() if norm == norms[-1]))
                beside = (7, 12 * (place - 1))  # the lines end together
                ax.annotate(_bound(cond), end, beside, textcoords="offset points", color=color, va="center")
        ax.set(xlabel="bound L on ‖W‖₂", xticks=sorted({norm for norm, _ in means}))
        if means:
            high = min(100.0, (min(means.values()) + max(means.values()) + SPAN) / 2)
            ax.set_ylim(high - SPAN, high)
    axes[0].set_ylabel("accuracy, %")
    return fig


def colors(n: int) -> list[tuple[float, ...]]:
    """n colours from dark to light, for an ordered quantity."""
    return [tuple(color) for color in plt.colormaps["viridis"](np.linspace(0, 0.8, n))]


def intervention_table(results: Results, attack: str) -> Styler:
    """Accuracy under an attack, mean ± standard deviation over seeds: a row for each L, a column for each c."""
    cells = {key: mean_std(values, 1) for key, values in by_bounds(results, attack).items()}
    conds = sorted({cond for _, cond in cells})
    rows = [
        {"bound L": f"{norm:g}", **{_bound(cond): cells.get((norm, cond), "waiting") for cond in conds}}
        for norm in sorted({norm for norm, _ in cells})
    ]
    return table(pd.DataFrame(rows, columns=["bound L", *map(_bound, conds)]))
