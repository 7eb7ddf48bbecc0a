"""Tables and figures of networks that are compressed after training.

A network is compressed at several amounts, each of which has a size: its deployed parameters, in percent of the dense
network. References are networks that were trained at their size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from study.presentation.figures import spread
from study.presentation.style import ATTACKS, Look, finish, mean_std, panels, table
from study.results.store import Results
from study.settings import SETTINGS
from study.statistics.comparison import Gap, student
from study.statistics.frames import ordered, rates, suite_rates, with_rates
from wellcond.compression import units as registry

COMPRESSORS = {
    "svd": "truncated SVD, the same share of every rank",
    "svd_global": "truncated SVD, one threshold on σᵢ/σ₁",
    "svd_global_norm": "truncated SVD, one threshold on σᵢ/‖σ‖₂",
    "filters_l1": "filters of least ℓ₁ norm",
    "filters_l2": "filters of least ℓ₂ norm",
    "filters_l1_global": "filters of least ℓ₁ norm, over all layers",
    "filters_l2_global": "filters of least ℓ₂ norm, over all layers",
    "magnitude": "single weights of least modulus",
}
"""What a compressor does; of another one, the first line of its docstring says it."""


def compressor_title(compressor: str) -> str:
    """What it does."""
    return COMPRESSORS.get(compressor) or str(registry.COMPRESSORS[compressor].__doc__).partition("\n")[0]


REFERENCES = ("condlr", "uv")
_SIZED = ["amount", "share", "flops", "eps", "n_examples", "rate", "low", "high", "kappa"]


# --- frames ----------------------------------------------------------------------------------------------------------


def compressed(
    results: Results,
    compressor: str,
    attack: str = "clean",
    *,
    epochs: int = 0,
    phases: int = 1,
    reestimated: bool = False,
) -> pd.DataFrame:
    """One row per (run, amount), at the largest radius of the attack: share (deployed parameters, % of dense), flops
    (% of dense), eps, n_examples, rate in %, low, high (its Wilson interval), kappa.

    reestimated: of the networks whose statistics of batch normalization were computed again after compression; else of
    those that kept them.
    """
    frame = results.select("compressions")
    how = {"compressor": compressor, "attack": attack, "epochs": epochs, "phases": phases, "reestimated": reestimated}
    frame = frame[np.logical_and.reduce([frame[column] == value for column, value in how.items()])]
    frame = frame[frame["eps"] == frame["eps"].max()]
    runs = results.runs.set_index("run_id")
    whole = {key: frame["run_id"].map(runs[f"{key}_dense"]) for key in ("n_params", "flops")}
    return _sized(
        with_rates(frame).assign(
            share=100 * frame["n_params_deployed"] / whole["n_params"],
            flops=100 * frame["flops_deployed"] / whole["flops"],
        )
    )


def as_trained(results: Results, attack: str = "clean") -> pd.DataFrame:
    """The same columns of all networks that are used as they were trained; amount is their ratio."""
    frame = pd.concat([rates(results), suite_rates(results)])
    frame = frame[frame["attack"] == attack].drop_duplicates(["run_id", "eps"])
    frame = frame[frame["eps"] == frame["eps"].max()]
    about = results.runs.set_index("run_id").loc[frame["run_id"]].reset_index()
    return _sized(
        frame.reset_index(drop=True).assign(
            amount=lambda f: f["ratio"],
            share=100 * about["n_params_deployed"] / about["n_params_dense"],
            flops=100 * about["flops_deployed"] / about["flops_dense"],
            kappa=math.nan,
        )
    )


def references(results: Results, attack: str = "clean", methods: Sequence[str] = REFERENCES) -> pd.DataFrame:
    """`as_trained` of the networks that were trained at their size, of these methods."""
    frame = as_trained(results, attack)
    return frame[frame["method"].isin(methods) & frame["amount"].notna()]


def _sized(frame: pd.DataFrame) -> pd.DataFrame:
    """With full names, of which the ratio is no part: all sizes of a method are one curve. error: 100 - rate."""
    frame = frame[["run_id", "method", "label", *SETTINGS, "seed", *_SIZED]].assign(ratio=math.nan)
    named = ordered(frame) if len(frame) else frame.assign(name="", place=0)
    return named.assign(error=100 - named["rate"])


def areas(frame: pd.DataFrame) -> pd.DataFrame:
    """The mean rate of each run over the logarithm of its size, between the sizes that all runs have: one row a run,
    with name, seed, area. A curve is linear between its points; nan where the runs share no interval of sizes."""
    spans = frame.groupby("run_id")["share"].agg(["min", "max"])
    low, high = (spans["min"].max(), spans["max"].min()) if len(spans) else (math.nan, math.nan)
    rows = []
    for _, curve in frame.groupby("run_id", sort=False):
        line = curve.sort_values("share")
        x, y = np.log(line["share"].to_numpy(float)), line["rate"].to_numpy(float)
        inside = (x > math.log(low)) & (x < math.log(high))
        at = np.concatenate([[math.log(low)], x[inside], [math.log(high)]])
        area = float(np.trapezoid(np.interp(at, x, y), at)) / math.log(high / low) if low < high else math.nan
        rows.append({**line.iloc[0][["run_id", "method", "name", "seed"]], "area": area})
    return pd.DataFrame(rows, columns=["run_id", "method", "name", "seed", "area"])


def compare_areas(frame: pd.DataFrame, first: str, second: str) -> Gap:
    """The difference of two configurations in area, seed by seed."""
    found = areas(frame).pivot_table(index="seed", columns="name", values="area")
    pairs = (found.reindex(columns=[first])[first] - found.reindex(columns=[second])[second]).dropna()
    return student(pairs.tolist())


def at_size(frame: pd.DataFrame, name: str, share: float) -> pd.Series[float]:
    """The rates of a configuration at one size, by seed: linear in the logarithm of the size between the amounts that
    were measured, nan beyond them."""
    found = {}
    for seed, curve in frame[frame["name"] == name].groupby("seed"):
        line = curve.sort_values("share")
        x, y = np.log(line["share"].to_numpy(float)), line["rate"].to_numpy(float)
        inside = x[0] - ROUNDING <= math.log(share) <= x[-1] + ROUNDING
        found[seed] = float(np.interp(math.log(share), x, y)) if inside else math.nan
    return pd.Series(found, dtype=float)


ROUNDING = 1e-9  # of the logarithm of a size that is a mean over seeds


def compare_at_size(frame: pd.DataFrame, first: str, other: pd.DataFrame, second: str, share: float) -> Gap:
    """A configuration of one frame minus one of another at the same size, seed by seed."""
    return student((at_size(frame, first, share) - at_size(other, second, share)).dropna().tolist())


def reference_sizes(results: Results) -> list[float]:
    """The sizes (share) that CondLR was trained at, largest first."""
    frame = references(results, methods=REFERENCES[:1])
    return sorted(frame.groupby("amount")["share"].mean(), reverse=True)


# --- figures ---------------------------------------------------------------------------------------------------------


SHOWN = {
    "dense": Look("dense SGD", "#000000", "o"),
    "lorita 1": Look("weight decay", "#7A5195", "s"),
    "fw_spectral_k_support": Look("Frank-Wolfe, spectral k-support", "#009E73", "D"),
    "fw_k_support": Look("Frank-Wolfe, k-support", "#E69F00", "^"),
}
"""The trainings in colour, a method or a method with its depth; all others are grey."""
OTHERS = Look("other trainings", "#B8B8B8", "")
AT_SIZE = {
    "condlr": Look("CondLR, trained at its size", "#0072B2", "o"),
    "uv": Look("U Vᵀ, trained at its size", "#D55E00", "s"),
}


def _shown(frame: pd.DataFrame) -> Look:
    """How the curve of a training is drawn."""
    method, depth = frame.iloc[0][["method", "depth"]]
    return SHOWN.get(f"{method} {depth:g}") or SHOWN.get(method, OTHERS)


def plot_compression(
    results: Results | Mapping[str, Results], compressor: str, attack: str = "clean", *, reestimated: bool = False
) -> Figure:
    """Error against size, one curve a training: geometric mean over the seeds, and their range where it is in colour;
    markers: networks that were trained at their size. A panel for each of several results, by its title."""
    parts = {"": results} if isinstance(results, Results) else results
    fig, axes = panels(list(parts), 2, 3.4)
    for ax, part in zip(axes, parts.values(), strict=True):
        frame = compressed(part, compressor, attack, reestimated=reestimated)
        # nominally equal sizes of two seeds may differ in a few parameters: one for each amount of a configuration
        frame = frame.assign(share=frame.groupby(["name", "amount"])["share"].transform("mean"))
        curves = [rows for _, rows in frame.groupby("name", sort=False)]
        for rows in sorted(curves, key=lambda rows: _shown(rows) is not OTHERS):
            line, (label, color, marker, *_) = spread(rows, "share", "error", log=True), _shown(rows)
            width = 1.0 if label == OTHERS.label else 1.8
            ax.plot(line["centre"], color=color, marker=marker, linewidth=width, label=label)
            if label != OTHERS.label:
                ax.fill_between(line.index, line["low"], line["high"], color=color, alpha=0.15, linewidth=0)
        trained = references(part, attack)
        for method, one in AT_SIZE.items():
            centre = trained[trained["method"] == method].groupby("amount")[["share", "error"]].mean()
            drawn: Any = {"marker": one.marker, "markersize": 9, "markeredgecolor": "white", "linestyle": ""}
            if len(centre):
                ax.plot(*centre.to_numpy().T, color=one.color, label=one.label, zorder=4, **drawn)
        ax.set(xscale="log", yscale="log", xlabel="deployed parameters, % of dense")
    axes[0].set_ylabel("test error, %" if attack == "clean" else f"error under {ATTACKS[attack]}, %")
    return finish(fig)


# --- tables ----------------------------------------------------------------------------------------------------------


NORMALIZATION = {False: "as trained", True: "computed again"}
"""What the statistics of batch normalization are after compression."""


def area_table(results: Results, compressors: Sequence[str], *, reestimated: Sequence[str] = ()) -> Styler:
    """The mean accuracy over the logarithm of the size (`areas`): mean ± standard deviation over seeds. A column for
    each of these compressors, then for each of those with the statistics of batch normalization computed again."""
    columns: dict[str, Any] = {}
    names: dict[str, None] = {}
    ways = [*((name, False) for name in compressors), *((name, True) for name in reestimated)]
    for compressor, again in ways:
        frame = compressed(results, compressor, reestimated=again)
        found = areas(frame)
        names |= dict.fromkeys(found.sort_values("area", ascending=False)["name"])
        span = frame.groupby("run_id")["share"].agg(["min", "max"])
        interval = f"{span['min'].max():.1f} to {span['max'].min():.0f} %" if len(span) else "–"
        title = compressor_title(compressor) + (f"; statistics {NORMALIZATION[True]}" if again else "")
        columns[f"{title} ({interval})"] = found.groupby("name")["area"].apply(mean_std)
    texts = pd.DataFrame(columns, index=pd.Index(list(names), name="training")).fillna("–").reset_index()
    return table(texts.astype(object))


def robustness_at_size(results: Results, compressor: str, attacks: Sequence[str] = ("clean",)) -> Styler:
    """Accuracy (%) under each attack at its largest radius, of the networks that were trained at their size and of the
    compressed ones at that size (`at_size`): mean ± standard deviation over seeds."""
    parts = {
        attack: pd.concat([references(results, attack), compressed(results, compressor, attack)]) for attack in attacks
    }
    measured = set.intersection(*(set(part["name"]) for part in parts.values()))
    shares = reference_sizes(results)
    rows = []
    for name in dict.fromkeys(name for part in parts.values() for name in part["name"] if name in measured):
        for attack, part in parts.items():
            cells = [mean_std(at_size(part, name, share), 1) for share in shares]
            rows.append([name if attack == attacks[0] else "", ATTACKS[attack], *cells])
    return table(pd.DataFrame(rows, columns=["training", "under", *(f"{share:.0f} % of the size" for share in shares)]))


def sweep_table(results: Results, compressor: str = "svd", *, reestimated: Sequence[bool] = (False,)) -> Styler:
    """Test accuracy (%) before compression and at each amount, a row for each configuration: over the seeds.

    reestimated: as of `compressed`; of both values, each configuration has a row of each.
    """
    whole = rates(results)
    clean = whole[whole["attack"] == "clean"].groupby("name", sort=False)["rate"]
    before = {name: mean_std(rate) for name, rate in clean}
    frames = {again: compressed(results, compressor, reestimated=again) for again in reestimated}
    rows = []
    for name in dict.fromkeys(name for frame in frames.values() for name in frame["name"]):
        for again, frame in frames.items():
            part = frame[frame["name"] == name]
            amounts = part.groupby(part["amount"].map(lambda amount: f"{100 * amount:g} %"), sort=True)["rate"]
            after = {str(amount): mean_std(rate) for amount, rate in amounts}
            how = {"batch normalization": NORMALIZATION[again]} if len(frames) > 1 else {}
            rows.append({"training": name, **how, "nothing removed": before.get(str(name), "–"), **after})
    return table(pd.DataFrame(rows).fillna("–"))
