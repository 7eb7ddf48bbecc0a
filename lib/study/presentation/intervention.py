"""Norm and condition number set apart: accuracy, clean and under attack, over the norm bound L, a line for each bound c
on the condition number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from study.presentation.curves import name_ends
from study.presentation.style import ATTACKS, panels, percent, table
from study.results.store import Results
from study.statistics.frames import beyond, rates

SPAN = 12.0  # points: of every panel, so that effects can be compared


def by_bounds(results: Results, attack: str) -> dict[tuple[float, float], list[float]]:
    """The rates (%) over the seeds under an attack, or "clean", by L and c."""
    frame = rates(results)
    return _gathered(frame[frame["attack"] == attack])


def far_by_bounds(results: Results, table: str, radius: float) -> dict[tuple[float, float], list[float]]:
    """The rates (%) over the seeds of images at least `radius` from another decision, in l2, by L and c; table:
    certified or distortions."""
    return _gathered(beyond(results, table, radius))


def _gathered(frame: pd.DataFrame) -> dict[tuple[float, float], list[float]]:
    rows = frame.sort_values("seed", kind="stable")[["max_norm", "max_cond", "rate"]]
    found: dict[tuple[float, float], list[float]] = {}
    for norm, cond, rate in rows.to_numpy(float):
        found.setdefault((float(norm), float(cond)), []).append(float(rate))
    return found


def _bound(c: float) -> str:
    return "κ free" if math.isinf(c) else f"κ = {c:g}" if c == 1 else f"κ ≤ {c:g}"


def certified_table(results: Results, radii: Sequence[float] = (0.1, 0.2)) -> Styler:
    """A row for each L and c: images (%) that are certified at the radii, and that stand there under DDN."""
    kinds = {"certified": "certified", "distortions": "under DDN"}
    found = {(told, radius): far_by_bounds(results, kind, radius) for kind, told in kinds.items() for radius in radii}
    bounds = sorted(by_bounds(results, "clean"))
    rows = [
        {
            "bound L on ‖W‖₂": f"{norm:g}",
            "bound c": _bound(cond),
            **{f"{told} at {radius:g}": _mean(rates.get((norm, cond))) for (told, radius), rates in found.items()},
        }
        for norm, cond in bounds
    ]
    return table(pd.DataFrame(rows))


def _mean(rates: Sequence[float] | None) -> str:
    return "waiting" if not rates else percent(fmean(rates) / 100)


def plot_intervention(results: Results, attacks: Sequence[str] = ("clean", "pgd_linf", "pgd_l2")) -> Figure:
    """Accuracy over L, a panel for each attack, all of one span, and a line for each c, named at its end."""
    fig, axes = panels([ATTACKS.get(attack, attack) for attack in attacks], 3, 2.3, "none")
    for ax, attack in zip(axes, attacks, strict=True):
        means = {key: fmean(values) for key, values in by_bounds(results, attack).items()}
        conds = sorted({cond for _, cond in means})
        looks = {_bound(cond): color for cond, color in zip(conds, colors(len(conds)), strict=True)}
        ends = {}
        for cond in conds:
            norms = sorted(norm for norm, other in means if other == cond)
            ax.plot(norms, [means[norm, cond] for norm in norms], "o-", color=looks[_bound(cond)])
            ends[_bound(cond)] = norms[-1], means[norms[-1], cond]
        ax.set(xlabel="bound L on ‖W‖₂", xticks=sorted({norm for norm, _ in means}))
        if means:
            high = min(100.0, (min(means.values()) + max(means.values()) + SPAN) / 2)
            ax.set_ylim(high - SPAN, high)
    axes[0].set_ylabel("accuracy, %")
    fig.draw_without_rendering()
    name_ends(axes[-1], ends, looks)
    return fig


def colors(n: int) -> list[str]:
    """n colours from dark to light, for an ordered quantity."""
    return [to_hex(color) for color in plt.colormaps["viridis"](np.linspace(0, 0.65, n))]
