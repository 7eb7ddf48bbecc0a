"""Accuracy against robustness over the strength of a bound or a penalty: a curve for each method."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from study.presentation.curves import tick_logarithms
from study.presentation.style import ATTACKS, look, panels
from study.results.store import Results
from study.statistics.frames import by_seed, summary


def strengths(results: Results, attack: str, eps: float) -> pd.DataFrame:
    """By configuration: method; strength, of a penalty its β, of a bound κ ≤ 1 + τ its τ, nan of neither;
    clean and robust, means over seeds in %, clean_std and robust_std; kappa, the largest κ of any layer and seed."""
    clean, robust = by_seed(results), by_seed(results, attack, eps)
    found = summary(results).set_index("name")[["method", "beta", "max_cond", "kappa"]]
    return found.assign(
        strength=found["beta"].fillna(found["max_cond"] - 1),
        clean=clean.mean(),
        clean_std=clean.std(),
        robust=robust.mean(),
        robust_std=robust.std(),
    )


def plot_trade_off(results: Results, attack: str, eps: float) -> Figure:
    """What is withstood over accuracy on clean images, and over κ: a curve for each method, in the order of its
    strengths, of which the least and the largest are written beside their points; bars: one standard deviation."""
    found = strengths(results, attack, eps).dropna(subset=["clean", "robust"])
    fig, (left, right) = panels(["over clean accuracy", "over condition numbers"], 2, 3.3, "row")
    for method, rows in found.sort_values("strength").groupby("method", sort=False):
        label, color, marker, *_ = look(str(method))
        style: Any = {"color": color, "marker": marker, "elinewidth": 0.8}
        left.errorbar(rows["clean"], rows["robust"], rows["robust_std"], rows["clean_std"], label=label, **style)
        right.errorbar(rows["kappa"], rows["robust"], rows["robust_std"], **style)
        symbol = "β" if rows["beta"].notna().any() else "τ"
        for k in {0, len(rows) - 1} if len(rows) > 1 else ():
            x, y, strength = rows[["clean", "robust", "strength"]].iloc[k]
            note = f"{symbol} = {strength:g}"
            left.annotate(note, (x, y), (6, -3), textcoords="offset points", color=color, fontsize=8.5)
    left.set(xlabel="accuracy, %", ylabel=f"withstood, %\n{ATTACKS.get(attack, attack)}, ε = {eps:g}")
    right.set(xlabel="largest κ(W) of a layer", xscale="log")
    tick_logarithms(right)
    if len(found):
        fig.legend(loc="outside lower center", ncols=4)
    return fig
