"""Accuracy against robustness over the strength of a bound or a penalty: a curve for each method."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.presentation.curves import tick_logarithms
from study.presentation.style import ATTACKS, look, panels
from study.results.store import Results
from study.statistics.frames import by_seed, ordered, summary, with_spectra

Point = tuple[float, float]


def strengths(results: Results, attack: str, eps: float) -> pd.DataFrame:
    """By configuration: method; strength, of a penalty its β, of a bound κ ≤ 1 + τ its τ, nan of neither;
    clean and robust, means over seeds in %, clean_std and robust_std; kappa, the largest κ of any layer and seed; gain,
    the product of all ‖W‖₂, geometric mean over seeds."""
    clean, robust = by_seed(results), by_seed(results, attack, eps)
    gains = with_spectra(results, ordered(results.runs)).groupby("name")["gain"]
    found = summary(results).set_index("name")[["method", "beta", "max_cond", "kappa"]]
    return found.assign(
        gain=gains.agg(lambda gain: np.exp(np.log(gain).mean())),
        strength=found["beta"].fillna(found["max_cond"] - 1),
        clean=clean.mean(),
        clean_std=clean.std(),
        robust=robust.mean(),
        robust_std=robust.std(),
    )


def _name_end(ax: Axes, end: Point, inside: Point, name: str, color: str) -> None:
    """Write beyond the end of a curve, in the direction that it has from its last point but one."""
    (x, y), (before_x, before_y) = ax.transData.transform([end, inside])
    length = math.hypot(x - before_x, y - before_y)
    across, up = (x - before_x) / length, (y - before_y) / length
    side = "left" if across > 0.5 else "right" if across < -0.5 else "center"
    edge = "bottom" if up > 0.5 else "top" if up < -0.5 else "center"
    style: Any = {"color": color, "fontsize": 8.5, "ha": side, "va": edge}
    ax.annotate(name, end, (7 * across, 7 * up), textcoords="offset points", **style)


def plot_trade_off(results: Results, attack: str, eps: float, least: float = 50.0) -> Figure:
    """What is withstood over accuracy on clean images, over κ and over the product of norms: a curve for each method,
    in the order of its strengths, whose strongest is written at its end; bars: one standard deviation. Left out: what
    is right on at most `least` percent of the clean images."""
    found = strengths(results, attack, eps).dropna(subset=["clean", "robust"])
    curves = found[found["clean"] > least].sort_values("strength").groupby("method", sort=False)
    fig, (left, *others) = panels(["over accuracy", "over condition numbers", "over norms"], 3, 2.6, "row")
    for method, rows in curves:
        label, color, marker, *_ = look(str(method))
        style: Any = {"color": color, "marker": marker, "elinewidth": 0.8}
        left.errorbar(rows["clean"], rows["robust"], rows["robust_std"], rows["clean_std"], label=label, **style)
        for ax, quantity in zip(others, ("kappa", "gain"), strict=True):
            ax.errorbar(rows[quantity], rows["robust"], rows["robust_std"], **style)
    left.set(xlabel="clean images, %", ylabel=f"withstood, %\n{ATTACKS.get(attack, attack)}, ε = {eps:g}")
    left.margins(x=0.42, y=0.1)
    for ax, name in zip(others, ("largest κ(W) of a layer", "product of all ‖W‖₂"), strict=True):
        ax.set(xlabel=name, xscale="log")
        tick_logarithms(ax)
    if len(curves):
        fig.legend(loc="outside lower center", ncols=4)
    fig.draw_without_rendering()
    for method, rows in curves:
        points = [(float(x), float(y)) for x, y in rows[["clean", "robust"]].to_numpy()]
        symbol, end, inside = ("β", -1, -2) if rows["beta"].notna().any() else ("τ", 0, 1)
        if len(points) > 1:
            name = f"{symbol} = {rows['strength'].iloc[end]:g}"
            _name_end(left, points[end], points[inside], name, look(str(method)).color)
    return fig
