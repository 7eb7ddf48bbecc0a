"""The bound on the relative condition number, and whether it predicts accuracy under attack.

From the rows of `conditioning`, joined with those of the other tables of results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pandas.io.formats.style import Styler
from scipy.stats import rankdata

from study.presentation import style as report
from study.presentation.style import LOOKS, finish, panels
from study.results.store import Results
from study.settings import SETTINGS, name_suffix
from study.statistics import frames as analysis

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

    frame: run_id, method, label, the settings, layer, quantity, value. One row a configuration, in the order
    of the methods and indexed by its name; one column a quantity; 0 where a network has no such factor. Runs with a
    number that is not finite and positive are left out.
    """
    frame = frame[frame["quantity"].isin([*FACTORS, *MARKERS])]
    frame = frame.reindex(columns=list(dict.fromkeys([*frame.columns, *SETTINGS])))
    settings = list(SETTINGS)
    about = ["place", "method", *settings, "label"]
    place = frame["method"].map({method: i for i, method in enumerate(LOOKS)}).fillna(len(LOOKS))
    frame = frame.assign(place=place, log=np.log10(frame["value"]))
    undefined = frame.loc[~np.isfinite(frame["log"]), "run_id"]
    frame = frame[~frame["run_id"].isin(undefined)]
    products = frame.groupby([*about, "run_id", "quantity"], dropna=False, as_index=False)["log"].sum()
    means = products.groupby([*about, "quantity"], dropna=False, as_index=False)["log"].mean()
    means = means.sort_values(about, kind="stable", na_position="first")
    rows = means[["label", *settings]].to_dict("records")
    suffixes = [name_suffix({key: row[key] for key in settings}).removeprefix(", ") for row in rows]
    names = [f"{row['label']}\n{suffix}".strip() for row, suffix in zip(rows, suffixes, strict=True)]
    means = means.assign(name=pd.Series(names, means.index, dtype=object))
    table: pd.DataFrame = means.pivot_table("log", "name", "quantity", sort=False)
    return table.reindex(columns=[*FACTORS, *MARKERS]).fillna(0.0)


def plot_factors(frame: pd.DataFrame) -> Figure:
    """Bars: what each factor adds to the bound on κ_rel, one configuration a row; frame as for `log_factors`.

    Factors below 1 are the thin bars: they lead from 1 to the left, where the others start, and those end at the bound.
    """
    logs = log_factors(frame)
    fig, (ax,) = panels([""], 1, 0.5 * max(1, len(logs)) + 0.7)
    rows = np.arange(len(logs))
    right = logs[list(FACTORS)].clip(upper=0).sum(axis=1).to_numpy()
    left = np.zeros(len(logs))
    for quantity, (label, color) in FACTORS.items():
        width = logs[quantity].to_numpy()
        if not (np.abs(width) > 1e-6).any():
            continue
        shown = label if (np.abs(width) > 0.02).any() else f"_{label}"  # too thin to be seen: not in the legend
        ax.barh(rows, np.maximum(width, 0), left=right, color=color, height=0.5, linewidth=0, label=shown)
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


PREDICTORS = {
    "kappa": "largest κ(W) of a layer",
    "kappas": "product of all κ(W)",
    "gain": "product of all ‖W‖₂",
    "bound": "bound on κ_rel, all factors",
    "gain_bound": "bound on κ_rel, actual gains",
    "kappa_rel": "κ_rel, exact",
}
"""What might predict accuracy under attack; geometric means over the images where it depends on them."""


def learned(results: Results, attack: str, least: float) -> pd.DataFrame:
    """`frames.sensitivity` of the networks with `least` % of clean accuracy: one that has not learned has nothing to
    lose."""
    clean = analysis.rates(results).query("attack == 'clean'").set_index("run_id")["rate"]
    found = analysis.sensitivity(results, attack)
    return found[found["run_id"].map(clean) >= least]


def predictors(results: Results, attack: str, least: float = 0.0) -> pd.DataFrame:
    """One row a network that has `learned` and whose conditioning was measured: name, run_id, PREDICTORS, and the rate
    (%) under an attack at its largest radius."""
    rows = results.conditioning
    kappas = rows[rows["quantity"] == "kappa"].groupby("run_id")["value"].prod().rename("kappas")
    whole = rows[rows["layer"].isna() | (rows["layer"] == "")].pivot_table("value", "run_id", "quantity")
    measured = whole.reindex(columns=["bound", "gain_bound", "kappa_rel"]).join(kappas)
    about = ["run_id", "name", "method", "label", *SETTINGS, "rate", "kappa", "gain"]
    found = learned(results, attack, least)[about]
    return found[found["run_id"].isin(measured.index)].join(measured, on="run_id").reset_index(drop=True)


def rank_correlations(
    frame: pd.DataFrame, resamples: int = 2000, predictors: Sequence[str] = tuple(PREDICTORS)
) -> pd.DataFrame:
    """Spearman's ρ of each predictor with the rate, and its 95 % percentile interval; frame as of `predictors`.

    The bootstrap resamples configurations with all their seeds, since seeds of one configuration are not independent
    evidence on what makes configurations differ. Columns: predictor, rho, low, high, networks, configurations.
    """
    values = frame[[*predictors, "rate"]].to_numpy(dtype=float)
    groups = list(frame.groupby("name", sort=False).indices.values())
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(groups), size=len(groups)) for _ in range(resamples)] if len(groups) > 2 else []
    resampled = [_spearman(values[np.concatenate([groups[i] for i in draw])]) for draw in draws]
    blank = np.full(len(predictors), math.nan)
    rho = _spearman(values) if draws else blank
    low, high = np.nanquantile(resampled, [0.025, 0.975], axis=0) if draws else (blank, blank)
    found = pd.DataFrame({"predictor": list(predictors), "rho": rho, "low": low, "high": high})
    return found.assign(networks=len(frame), configurations=len(groups))


def _spearman(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank correlations of all columns but the last with the last."""
    ranks = rankdata(values, axis=0)
    ranks -= ranks.mean(axis=0)
    with np.errstate(invalid="ignore"):  # of a constant
        rho: NDArray[np.float64] = ranks[:, :-1].T @ ranks[:, -1] / np.linalg.norm(ranks[:, :-1], axis=0)
        return rho / np.linalg.norm(ranks[:, -1])


def correlation_table(sets: Mapping[str, pd.DataFrame]) -> Styler:
    """What `rank_correlations` returns for sets of networks, by their titles: a column a set, a row a predictor,
    ρ and its interval."""

    def text(value: float) -> str:
        return "–" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")

    columns = {
        title: [
            f"{text(rho)} [{text(low)}, {text(high)}]"
            for rho, low, high in found[["rho", "low", "high"]].to_numpy(float)
        ]
        for title, found in sets.items()
    }
    return report.table(pd.DataFrame({"predictor": list(PREDICTORS.values()), **columns}))


def plot_predictors(frame: pd.DataFrame) -> Figure:
    """The rate under attack against three predictors, one point a network; frame as of `predictors`."""
    keys = ("kappa", "gain", "kappa_rel")
    fig, axes = panels([PREDICTORS[key].replace("κ_rel", r"$κ_\mathrm{rel}$") for key in keys], 3, 2.6)
    for i, (ax, key) in enumerate(zip(axes, keys, strict=True)):
        for label, rows in frame.groupby("label", sort=False):
            _, color, marker, _, fill = report.look(**rows[["method", *SETTINGS]].iloc[0])
            drawn: Any = {"color": color, "marker": marker, "fillstyle": fill, "linestyle": "", "alpha": 0.8}
            ax.plot(rows[key], rows["rate"], **drawn, label=label)
        ax.set(xscale="log" if len(frame) else "linear", ylabel="" if i else "accuracy under attack, %")
    return finish(fig)
