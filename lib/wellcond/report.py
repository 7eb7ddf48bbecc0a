"""Tables and figures of the book, made from the tables of results, in one style. Never imports torch.

A configuration is a method with its settings (ratio, max_cond). Rates are computed here, from counts: a single count
has a Wilson interval, the seeds of a configuration a mean ± sample standard deviation, and two configurations are
compared seed by seed. What is missing is "waiting"; what diverged is "diverged", never a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from pandas.io.formats.style import Styler

from wellcond.results import Results

ABOUT = ["method", "label", "ratio", "max_cond"]
ATTACKS = {"clean": "clean", "fgsm": "FGSM", "pgd_linf": "PGD ℓ∞", "pgd_l2": "PGD ℓ2"}
WIDTH = 7.5  # inches, the width of a page of the book

STYLE: dict[str, Any] = {
    "figure.dpi": 160, "figure.facecolor": "white", "figure.figsize": (WIDTH, 3.6), "figure.constrained_layout.use": True,
    "font.size": 10.5, "axes.titlesize": 10.5, "axes.labelsize": 10.5, "legend.fontsize": 10,
    "xtick.labelsize": 9.5, "ytick.labelsize": 9.5, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#444444", "axes.axisbelow": True,
    "axes.grid": True, "grid.color": "#E4E4E4", "grid.linewidth": 0.8, "xtick.color": "#444444", "ytick.color": "#444444",
    "lines.linewidth": 1.8, "lines.markersize": 5.5, "errorbar.capsize": 2.5,
    "axes.prop_cycle": plt.cycler(color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]),
}  # fmt: skip


class Look(NamedTuple):
    """How a configuration is drawn, everywhere."""

    color: str
    marker: str
    line: str = "-"


# Okabe and Ito's colours, which colour-blind readers can tell apart; one colour a family, marker and dash within it
LOOKS = {
    "dense": Look("#000000", "o"),
    "uv": Look("#E69F00", "s"),
    "svd": Look("#CC79A7", "v", ":"),
    "svd_finetuned": Look("#CC79A7", "^", "--"),
    "usv": Look("#009E73", "D"),
    "condlr": Look("#0072B2", "o"),
    "condlr_published": Look("#56B4E9", "P"),
    "projected_sgd": Look("#D55E00", "p"),
    "cayley_sgd": Look("#D55E00", "X", "--"),
}


def look(method: str, max_cond: float = math.nan) -> Look:
    """The look of a method; τ = 0 is dotted and τ above a quarter dashed. An unknown method is grey."""
    base = LOOKS.get(method, Look("#888888", "h"))
    if max_cond == 1:
        return base._replace(marker="<", line=":")
    return base._replace(marker=">", line="--") if max_cond > 1.25 else base


def style() -> None:
    """Draw every figure from now on in the style of the book."""
    plt.rcParams.update(STYLE)


# --- numbers ---------------------------------------------------------------------------------------------------------


def wilson(n_correct: float, n: float) -> tuple[float, float]:
    """The 95 % Wilson score interval of the rate n_correct/n, as fractions; (nan, nan) for n = 0."""
    if not n > 0:
        return math.nan, math.nan
    z, p = 1.959964, n_correct / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


def mean_std(values: Iterable[float], digits: int = 2) -> str:
    """ "98.93 ± 0.05": mean and sample standard deviation; the mean alone of one value; "–" of none."""
    known = pd.Series(list(values), dtype=float).dropna()
    if known.empty:
        return "–"
    mean = f"{known.mean():.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {known.std():.{digits}f}"


def number(value: float) -> str:
    """Three significant digits, as they are read: 1.1, 43.6, 12,300, 3.4·10⁷, ∞, – for nan."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# 97.5 % quantiles of Student's distribution for 1, 2, ... degrees of freedom; the last one serves for more
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Gap:
    """first - second over their common seeds: mean difference, half-width of its 95 % Student interval, seeds."""

    difference: float
    margin: float
    seeds: int

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero; never with fewer than two seeds."""
        return abs(self.difference) > self.margin

    def __str__(self) -> str:
        if not self.seeds:
            return "not yet comparable with"
        side = f"{abs(self.difference):.2f} points {'above' if self.difference > 0 else 'below'}"
        if self.seeds == 1:
            return f"{side} (one seed, so the spread is unknown)"
        size = f"95 % interval ± {self.margin:.2f} over {self.seeds} seeds"
        return f"{side} ({size}: {'clear' if self.clear else 'no clear difference'})"


def gap(first: pd.Series[float], second: pd.Series[float]) -> Gap:
    """Compare two columns of `by_seed`. Seeds share split and initial draw, so the differences are paired."""
    pairs = (first - second).dropna()
    n = len(pairs)
    margin = STUDENT[min(n - 1, len(STUDENT)) - 1] * float(pairs.std()) / math.sqrt(n) if n > 1 else math.nan
    return Gap(float(pairs.mean()), margin, n)


# --- frames ----------------------------------------------------------------------------------------------------------


def _cells(run_ids: Sequence[str]) -> pd.DataFrame:
    """The settings that a run_id spells out (condlr-r0.8-c1.1-s0)."""
    found = [re.fullmatch(r"(.+?)(?:-r(\d.*?))?(?:-c(\d.*?|inf))?-s(\d+)", run_id) for run_id in run_ids]
    rows = [match.groups() if match else (run_id, None, None, -1) for match, run_id in zip(found, run_ids, strict=True)]
    frame = pd.DataFrame(rows, columns=["method", "ratio", "max_cond", "seed"])
    frame[["ratio", "max_cond"]] = frame[["ratio", "max_cond"]].astype(float)
    tau = frame["max_cond"].map(lambda c: "" if math.isnan(c) else f", τ = {c - 1:.3g}")
    return frame.assign(label=frame["method"].str.replace("_", " ") + tau, seed=frame["seed"].astype(int))


def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """By method in the order of LOOKS, then ratio and bound; with a full name for each configuration."""
    place = frame["method"].map({method: i for i, method in enumerate(LOOKS)}).astype(float).fillna(len(LOOKS))
    ratio = frame["ratio"].astype(float).map(lambda r: "" if math.isnan(r) else f", ratio {r:g}")
    frame = frame.assign(place=place, name=frame["label"].astype(str) + ratio)
    return frame.sort_values(["place", "method", "ratio", "max_cond"], kind="stable", na_position="first").drop(
        columns="place"
    )


def pick(
    results: Results, methods: Sequence[str] = (), ratios: Sequence[float] = (), bounds: Sequence[float] = ()
) -> Results:
    """The part of the results with these methods, ratios and bounds on κ; methods without a setting stay."""

    def chosen(frame: pd.DataFrame) -> pd.Series[bool]:
        keep = frame["method"].isin(methods) if methods else pd.Series(True, index=frame.index)
        for column, allowed in (("ratio", ratios), ("max_cond", bounds)):
            if allowed:
                keep &= frame[column].isna() | frame[column].isin(allowed)
        return keep

    runs = results.runs[chosen(results.runs)]
    tables = {t: f[f["run_id"].isin(runs["run_id"])] for t in ("robustness", "curves", "spectra") for f in [getattr(results, t)]}
    missing = pd.Series(results.missing, dtype=object)[chosen(_cells(results.missing))]
    return replace(results, runs=runs, missing=tuple(missing), **tables)


def rates(results: Results) -> pd.DataFrame:
    """One row per (run, attack, eps), attack "clean" included: counts, rate in %, and its Wilson interval."""
    runs = results.runs[results.runs["status"] == "done"]
    clean = runs[["run_id", *ABOUT, "seed", "n_correct"]].assign(attack="clean", eps=0.0, n_examples=runs["n_test"])
    attacked = results.select("robustness").astype({"eps": float})
    frame = pd.concat([part for part in (clean, attacked) if len(part)]) if len(clean) else clean
    bounds = [wilson(k, n) for k, n in zip(frame["n_correct"], frame["n_examples"], strict=True)]
    low, high = ([100 * bound[i] for bound in bounds] for i in (0, 1))
    share = 100 * frame["n_correct"].astype(float) / frame["n_examples"].astype(float)
    return _ordered(frame.assign(rate=share, low=low, high=high)).reset_index(drop=True)


def by_seed(results: Results, attack: str = "clean", eps: float = 0.0) -> pd.DataFrame:
    """Rates in %: one row a seed, one column a configuration, by its full name; nan where there is none."""
    frame = rates(results)
    frame = frame[(frame["attack"] == attack) & np.isclose(frame["eps"].astype(float), eps)]
    return frame.pivot(index="seed", columns="name", values="rate").reindex(columns=list(frame["name"].unique()))


def summary(results: Results) -> pd.DataFrame:
    """One row a configuration: seeds done, diverged and waiting; accuracy and its standard deviation in %; counts and
    their ratios to the dense network; the largest κ(S) and orthogonality error of any constrained layer and epoch, and
    `kappa`, the largest κ of any layer after training."""
    runs = results.runs.assign(rate=100 * results.runs["n_correct"].astype(float) / results.runs["n_test"].astype(float))
    spectra = results.spectra.astype({"singular_value": float}).groupby(["run_id", "layer"])["singular_value"]
    kappas = (spectra.max() / spectra.min()).groupby("run_id").max()
    runs = runs.assign(kappa=runs["run_id"].map(kappas).astype(float))
    waiting = _cells(results.missing)
    known = runs.drop_duplicates(ABOUT[:1] + ABOUT[2:])
    waiting = waiting.drop(columns="label").merge(known[ABOUT], "left").fillna({"label": waiting["label"]})
    every = pd.concat([part for part in (runs, waiting.assign(status="waiting")) if len(part)] or [runs])
    rows = []
    for key, group in every.groupby(ABOUT, dropna=False, sort=False):
        first = group.bfill().iloc[0]
        status = group["status"].value_counts()
        row = dict(zip(ABOUT, key, strict=True))
        row |= {name: int(status.get(name, 0)) for name in ("done", "diverged", "waiting")}
        row |= {"accuracy": group["rate"].mean(), "accuracy_std": group["rate"].std(), "rates": group["rate"].dropna()}
        row |= {"rank_fraction": first["rank_fraction"], "dense": first["n_params_dense"]}
        for count, dense in (("n_params_trained", "n_params_dense"), ("n_params_deployed", "n_params_dense"), ("flops_deployed", "flops_dense")):
            row[count], row[f"{count}_ratio"] = first[count], first[count] / first[dense]
        row |= {column: group[column].max() for column in ("kappa_max", "orth_error_max", "kappa", "wall_s")}
        rows.append(row)
    return _ordered(pd.DataFrame(rows)).reset_index(drop=True)
