"""Figure of the bound on the relative condition number, from the rows of `conditioning`. Never imports torch."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from wellcond.report import LOOKS, finish, panels

FACTORS = {  # quantity: label and colour, the linear layers first
    "kappa": ("κ(W)", "#0072B2"),
    "angle": ("angle, 1/cos θ", "#56B4E9"),
    "patch": ("patches", "#009E73"),
    "bias": ("bias", "#CC79A7"),
    "activation": ("activation", "#E69F00"),
    "pooling": ("pooling", "#D55E00"),
    "normalization": ("normalization", "#888888"),
}
MARKERS = {  # quantity: label, marker, its size and face colour
    "kappa_rel": (r"exact $κ_\mathrm{rel}$", "D", 7, "#000000"),
    "gain_bound": ("bound with actual gains of W", "o", 8, "#FFFFFF"),
    "bound": ("bound: all factors", "|", 16, "#000000"),
}


def log_factors(frame: pd.DataFrame) -> pd.DataFrame:
    """log10 of each factor multiplied over the layers, and of κ_rel and its bounds: means over images and seeds.

    frame: run_id, method, label, ratio, max_cond, seed, layer, quantity, value. One row a configuration, in the order
    of the methods and indexed by its name; one column a quantity; 0 where a network has no such factor. Runs with a
    number that is not finite and positive are left out.
    """
    frame = frame[frame["quantity"].isin([*FACTORS, *MARKERS])]
    about = ["place", "method", "ratio", "max_cond", "label"]
    place = frame["method"].map({method: i for i, method in enumerate(LOOKS)}).fillna(len(LOOKS))
    frame = frame.assign(place=place, log=np.log10(frame["value"].astype(float)))
    undefined = frame.loc[~np.isfinite(frame["log"]), "run_id"]
    frame = frame[~frame["run_id"].isin(undefined)]
    products = frame.groupby([*about, "run_id", "quantity"], dropna=False, as_index=False)["log"].sum()
    means = products.groupby([*about, "quantity"], dropna=False, as_index=False)["log"].mean()
    means = means.sort_values(about, kind="stable", na_position="first")
    ratio = means["ratio"].map(lambda r: "" if math.isnan(r) else f"\nratio {r:g}")
    means = means.assign(name=means["label"].astype(str) + ratio.astype(str))
    table: pd.DataFrame = means.pivot_table("log", "name", "quantity", sort=False)
    return table.reindex(columns=[*FACTORS, *MARKERS]).fillna(0.0)


def plot_factors(frame: pd.DataFrame) -> Figure:
    """Bars: what each factor adds to the bound on κ_rel, one configuration a row; frame as for `log_factors`.

    Factors below 1 are the thin bars: they lead from 1 to the left, where the others start, and those end at the bound.
    """
    logs = log_factors(frame)
    fig, (ax,) = panels([""], 1, 0.62 * max(1, len(logs)) + 0.7)
    rows = np.arange(len(logs))
    right = logs[list(FACTORS)].clip(upper=0).sum(axis=1).to_numpy()
    left = np.zeros(len(logs))
    for quantity, (label, color) in FACTORS.items():
        width = logs[quantity].to_numpy()
        if not (np.abs(width) > 1e-6).any():
            continue
        ax.barh(rows, np.maximum(width, 0), left=right, color=color, height=0.5, linewidth=0, label=label)
        ax.barh(rows + 0.33, np.minimum(width, 0), left=left, color=color, height=0.08, linewidth=0)
        right, left = right + np.maximum(width, 0), left + np.minimum(width, 0)
    for quantity, (label, marker, size, face) in MARKERS.items() if len(logs) else ():
        edge = "#FFFFFF" if marker == "D" else "#000000"
        ax.plot(
            logs[quantity], rows, linestyle="", marker=marker, markersize=size, markerfacecolor=face,
            markeredgecolor=edge, markeredgewidth=2 if marker == "|" else 1, label=label,
        )  # fmt: skip
    ax.axvline(0, color="#444444", linewidth=0.8)
    ax.set_yticks(rows, list(logs.index))
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_formatter(lambda power, _: f"$10^{{{power:g}}}$")
    ax.set_xlabel(r"factors of the bound on $κ_\mathrm{rel}$, geometric means over test images")
    return finish(fig)
