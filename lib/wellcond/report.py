"""Tables and figures of the book, made from the tables of results, in one style. Never imports torch.

A configuration is a method with its settings (ratio, max_cond). Rates are computed here, from counts: a single count
has a Wilson interval, several seeds have a mean and a sample standard deviation, and two configurations are compared
seed by seed. A cell that is missing is "waiting", one that diverged is "diverged", never a number.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from pandas.io.formats.style import Styler

from wellcond.comparison import Gap, student, wilson
from wellcond.results import AFTERWARDS, COLUMNS, Results
from wellcond.settings import SETTINGS, label_suffix, name_suffix, parsed

ATTACKS = {"clean": "clean", "fgsm": "FGSM", "pgd_linf": "PGD ℓ∞", "pgd_l2": "PGD ℓ₂"}
WIDTH = 7.5  # inches, the width of a page of the book
STYLE: Any = {
    "figure.dpi": 160, "figure.facecolor": "white", "figure.figsize": (WIDTH, 3.6), "font.size": 10.5,
    "figure.constrained_layout.use": True, "figure.constrained_layout.wspace": 0.04, "legend.fontsize": 10,
    "axes.titlesize": 10.5, "axes.labelsize": 10.5,
    "xtick.labelsize": 9.5, "ytick.labelsize": 9.5, "xtick.color": "#444444", "ytick.color": "#444444",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#444444", "axes.titlelocation": "left",
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E4E4E4", "legend.frameon": False,
    "axes.linewidth": 0.8, "grid.linewidth": 0.8, "lines.linewidth": 1.8, "lines.markersize": 5.5,
    "axes.prop_cycle": cycler(color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]),
}  # fmt: skip


class Look(NamedTuple):
    """How a method is named and drawn, everywhere."""

    label: str
    color: str
    marker: str
    dash: str = "-"
    fill: Literal["full", "none"] = "full"


# Okabe and Ito's colours, which colour-blind readers can tell apart; one colour a family, marker and dash within it.
# The labels are those of wellcond.methods, for cells that have not been computed (a test keeps them equal).
LOOKS = {
    "dense": Look("dense SGD", "#000000", "o"),
    "uv": Look("U Vᵀ", "#E69F00", "s"),
    "svd": Look("SVD of dense", "#CC79A7", "v", ":"),
    "svd_finetuned": Look("SVD of dense, fine-tuned", "#CC79A7", "^", "--"),
    "usv": Look("projected U S Vᵀ", "#009E73", "D"),
    "condlr": Look("CondLR", "#0072B2", "o"),
    "condlr_published": Look("CondLR as published", "#56B4E9", "P"),
    "projected_sgd": Look("projected SGD", "#D55E00", "p"),
    "cayley_sgd": Look("Cayley SGD", "#D55E00", "X", "--"),
    "dlrt": Look("DLRT", "#7A5195", "d"),
    "dlrt_adaptive": Look("rank-adaptive DLRT", "#7A5195", "*", "--"),
    "robust_dlrt": Look("RobustDLRT", "#A00000", "h"),
    "robust_dlrt_tucker": Look("RobustDLRT, Tucker", "#A00000", "D", "--"),
    "soft_orthogonal_uv": Look("U Vᵀ, soft orthogonality", "#E69F00", "8", "--"),
    "soft_orthogonal": Look("dense, soft orthogonality", "#666666", "s", "--"),
    "spectral_norm": Look("dense, spectral norm 1", "#666666", "v", ":"),
    "dense_clipped": Look("dense, κ clipped", "#666666", "^", "-."),
}


def look(
    method: str, max_cond: float = math.nan, tolerance: float = math.nan, beta: float = math.nan, **_: object
) -> Look:
    """The look of a configuration: of τ and ϑ the middle ones look as the method does, the smallest and the largest
    have their own marker and dash; without its penalty (β = 0) a marker is open. An unknown method is grey. Other
    settings change nothing."""
    base = LOOKS.get(method, Look(method, "#888888", "h"))
    if beta == 0:
        base = base._replace(fill="none")
    if max_cond == 1:
        return base._replace(marker="<", dash=":")
    if max_cond > 1.25:
        return base._replace(marker=">", dash="--")
    if tolerance == 0:
        return base._replace(marker="s")
    return base._replace(marker="v", dash="-.") if tolerance > 0.15 else base


def style() -> None:
    """Draw every figure from now on in the style of the book; the functions plot_* call it themselves."""
    sns.set_theme(style="whitegrid", font="DejaVu Sans", rc=STYLE)


# --- numbers ---------------------------------------------------------------------------------------------------------


def mean_std(values: Iterable[float], digits: int = 2) -> str:
    """ "98.93 ± 0.05": mean and sample standard deviation; the mean alone of one value; "–" of none."""
    known = pd.Series(list(values), dtype=float).dropna()
    if known.empty:
        return "–"
    return f"{known.mean():.{digits}f}" + (f" ± {known.std():.{digits}f}" if len(known) > 1 else "")


def number(value: float) -> str:
    """As one reads it: 1.10, 43.57, 12,300, 3.4e7, ∞; – for nan."""
    if math.isnan(value) or math.isinf(value):
        return "–" if math.isnan(value) else "∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.{0 if abs(value) >= 1000 else 2}f}"


def percent(fraction: float) -> str:
    """ "32.8 %"; – for nan."""
    return "–" if math.isnan(fraction) else f"{100 * fraction:.1f} %"


# --- frames ----------------------------------------------------------------------------------------------------------

_TEXT = [
    "run_id",
    "dataset",
    "model",
    "method",
    "label",
    "device",
    "status",
    "spec_hash",
    "layer",
    "quantity",
    "attack",
    "norm",
    "options",
    "outcomes",
    "distances",
    "target",
    "commit",
]
_DENSE = {"n_params_trained": "n_params_dense", "n_params_deployed": "n_params_dense", "flops_deployed": "flops_dense"}


def ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """With a full name for each configuration, by method, then ratio and bound; numbers as floats."""
    frame = frame.astype({column: float for column in frame if column not in _TEXT})
    place = frame["method"].map({method: i for i, method in enumerate(LOOKS)}).fillna(len(LOOKS))
    rows = frame[["label", *SETTINGS]].to_dict("records")
    names = [f"{row['label']}{name_suffix(_numbers(row))}" for row in rows]
    frame = frame.assign(name=pd.Series(names, frame.index, dtype=object), place=place)
    by = ["place", "method", *SETTINGS]
    return frame.sort_values(by, kind="stable", na_position="first", ignore_index=True).drop(columns="place")


def _numbers(row: Mapping[Any, Any]) -> dict[str, float | None]:
    return {key: row[key] for key in SETTINGS}


def _settings(run_ids: Sequence[str]) -> pd.DataFrame:
    """What a run_id spells out (condlr-r0.8-c1.1-s0), for a cell that has no row yet."""
    rows = [parsed(run_id) for run_id in run_ids]
    labels = [f"{look(str(row['method'])).label}{label_suffix(_numbers(row))}" for row in rows]
    frame = pd.DataFrame(rows, columns=["method", *SETTINGS, "seed"], dtype=object)
    return frame.assign(run_id=run_ids, label=pd.Series(labels, frame.index, dtype=object), status="waiting")


ADVERSARIAL = ("mix", "trades", "radius")
"""The settings of adversarial training."""


def training(row: Mapping[Any, Any]) -> str:
    """ "PGD-AT, ε = 0.1": how the network of a row was trained; "plain" without an adversary."""
    return name_suffix({key: row[key] for key in ADVERSARIAL}).removeprefix(", ") or "plain"


def trainings(results: Results) -> dict[str, Results]:
    """The parts with plain training and with each adversarial one."""
    absent = _settings(results.missing)
    about = pd.concat([results.runs[["run_id", *ADVERSARIAL]], absent[["run_id", *ADVERSARIAL]]])
    kinds = {row["run_id"]: training(row) for row in about.astype(dict.fromkeys(ADVERSARIAL, float)).to_dict("records")}
    order = dict.fromkeys(kinds[run_id] for run_id in sorted(kinds, key=lambda run_id: kinds[run_id] != "plain"))
    return {kind: restricted(results, {run_id for run_id, own in kinds.items() if own == kind}) for kind in order}


def pick(
    results: Results,
    methods: Sequence[str] = (),
    ratios: Sequence[float] = (),
    bounds: Sequence[float] = (),
    decays: Sequence[float] = (),
) -> Results:
    """The part with these methods, ratios, bounds on κ and decays α; what has no such setting stays."""

    def chosen(frame: pd.DataFrame) -> list[str]:
        keep = frame["method"].isin(methods or list(frame["method"]))
        for column, allowed in (("ratio", ratios), ("max_cond", bounds), ("decay", decays)):
            values = frame[column].astype(float)
            keep &= values.isna() | values.isin(allowed or list(values))
        return list(frame.loc[keep, "run_id"])

    return restricted(results, {*chosen(results.runs), *chosen(_settings(results.missing))})


def restricted(results: Results, run_ids: Collection[str]) -> Results:
    """The part of these runs, done and missing."""
    tables = {name: getattr(results, name) for name in (*COLUMNS, *AFTERWARDS)}
    kept = {name: frame[frame["run_id"].isin(run_ids)] for name, frame in tables.items()}
    return replace(results, missing=tuple(run_id for run_id in results.missing if run_id in run_ids), **kept)


def attacked(results: Results) -> Results:
    """The part that the attack suite has measured."""
    return restricted(results, set(results.attacks["run_id"]))


def rates(results: Results) -> pd.DataFrame:
    """One row per (run, attack, eps), attack "clean" included: counts, rate in %, and its Wilson interval."""
    runs = results.runs[results.runs["status"] == "done"]
    clean = runs.assign(attack="clean", eps=0.0, n_examples=runs["n_test"])
    attacked = results.select("robustness")
    frame = ordered(pd.concat([part[attacked.columns.intersection(part.columns)] for part in (clean, attacked)]))
    bounds = [wilson(k, n) for k, n in zip(frame["n_correct"], frame["n_examples"], strict=True)]
    low, high = ([100 * bound[end] for bound in bounds] for end in (0, 1))
    return frame.assign(rate=100 * frame["n_correct"] / frame["n_examples"], low=low, high=high)


def by_seed(results: Results, attack: str = "clean", eps: float = 0.0) -> pd.DataFrame:
    """Rates in %: one row a seed, one column a configuration, by its full name; nan where there is none."""
    frame = rates(results)
    frame = frame[(frame["attack"] == attack) & np.isclose(frame["eps"], eps)]
    names = list(dict.fromkeys(frame["name"]))
    return frame.pivot_table(index="seed", columns="name", values="rate").reindex(columns=names)


def compare(results: Results, first: str, second: str, attack: str = "clean", eps: float = 0.0) -> Gap:
    """Two configurations, by full name. They share split and initial draw of a seed, so the differences are paired."""
    found = by_seed(results, attack, eps)
    pairs = (found.reindex(columns=[first])[first] - found.reindex(columns=[second])[second]).dropna()
    return student(pairs.tolist())


def _kappas(results: Results) -> pd.DataFrame:
    return ordered(results.select("curves").query("quantity == 'kappa'"))


def final(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last epoch of each run."""
    return frame[frame["epoch"] == frame.groupby("run_id")["epoch"].transform("max")]


def spectral(results: Results) -> pd.DataFrame:
    """By run_id, after training: kappa, the largest κ of any layer, and gain, the product of all ‖W‖₂."""
    values = final(results.spectra).astype({"singular_value": float}).groupby(["run_id", "layer"])["singular_value"]
    kappa = (values.max() / values.min()).groupby("run_id").max()
    return pd.DataFrame({"kappa": kappa, "gain": values.max().groupby("run_id").prod()})


def sensitivity(results: Results, attack: str) -> pd.DataFrame:
    """The rates under an attack at its largest radius, joined with `spectral`: one row a network."""
    frame = rates(results)
    frame = frame[frame["attack"] == attack]
    largest = frame[frame["eps"] == frame["eps"].max()]
    measured = spectral(results)
    joined: pd.DataFrame = largest[largest["run_id"].isin(measured.index)].join(measured, on="run_id")
    return joined


def summary(results: Results) -> pd.DataFrame:
    """One row a configuration: cells done, diverged, waiting; accuracy (%); counts, and their ratios to dense.

    kappa_max, orth_error_max: the largest κ(S) and orthogonality error of any constrained layer, epoch and seed;
    kappa, kappa_start: the largest κ of any layer and seed after training and before it. Counts, and the rank kept, are
    means over the seeds: those of a rank-adaptive method differ.
    """
    absent = _settings(results.missing).reindex(columns=results.runs.columns)
    cells = ordered(pd.concat([part for part in (results.runs, absent) if len(part)] or [absent]))
    start = _kappas(results).query("epoch == 0").groupby("run_id")["value"].max()
    cells = cells.assign(
        accuracy=100 * cells["n_correct"] / cells["n_test"],
        kappa=cells["run_id"].map(spectral(results)["kappa"]).astype(float),
        kappa_start=cells["run_id"].map(start).astype(float),
    )
    groups = cells.groupby(cells["run_id"].astype(str).str.replace(r"-s\d+$", "", regex=True), sort=False)
    frame = groups[["name", "method", "label", *SETTINGS]].first()
    frame["rank_fraction"] = groups["rank_fraction"].mean()
    for state in ("done", "diverged", "waiting"):
        seeds = cells["seed"].map("{:.0f}".format).where(cells["status"] == state, "")
        frame[state] = [[seed for seed in seeds.iloc[rows] if seed] for rows in groups.indices.values()]
    frame["accuracy"], frame["accuracy_std"] = groups["accuracy"].mean(), groups["accuracy"].std()
    for count, dense in _DENSE.items():
        frame[count], frame[f"{count}_ratio"] = groups[count].mean(), groups[count].mean() / groups[dense].first()
    extremes = groups[["kappa_start", "kappa", "kappa_max", "orth_error_max"]].max()
    return pd.concat([frame, extremes, groups["wall_s"].mean()], axis=1).reset_index(drop=True)


def waiting(results: Results) -> pd.DataFrame:
    """The configurations with missing cells, and the seeds that are missing."""
    frame = summary(results)
    frame = frame[frame["waiting"].map(len) > 0]
    return pd.DataFrame({"configuration": frame["name"], "seeds waiting": frame["waiting"].map(", ".join)})


def progress(results: Results) -> str:
    """Sentences: how many cells are done, waiting and diverged."""
    diverged = list(results.runs.loc[results.runs["status"] == "diverged", "run_id"])
    total = len(results.runs) + len(results.missing)
    parts = [f"{len(results.runs) - len(diverged)} of {total} cells are computed"]
    parts += [f"{len(results.missing)} are waiting"] if results.missing else []
    parts += [f"{len(diverged)} diverged ({', '.join(diverged)})"] if diverged else []
    note = " The loss of a diverged run stopped being finite; it has no numbers and enters no mean." if diverged else ""
    return "; ".join(parts) + "." + note


# --- tables ----------------------------------------------------------------------------------------------------------


def table(frame: pd.DataFrame) -> Styler:
    """A frame of text as a table: first column left, the others right."""
    cell = "text-align: right; padding: 0.2em 0.4em; vertical-align"
    styles: Any = [
        {"selector": "", "props": "font-size: 0.85em"},
        {"selector": "th", "props": f"{cell}: bottom"},
        {"selector": "td", "props": f"{cell}: top; white-space: nowrap"},
        {"selector": "th.col0, td.col0", "props": "text-align: left; white-space: normal; min-width: 7em"},
    ]
    return frame.style.hide(axis="index").set_table_styles(styles)


def _rate(rows: pd.DataFrame) -> str:
    """Over seeds, mean ± standard deviation; of one seed, the rate with its Wilson interval."""
    if len(rows) > 1:
        return mean_std(rows["rate"], 1)
    return "{rate:.1f} [{low:.1f}, {high:.1f}]".format(**rows.iloc[0])


def attack_name(attack: str, radius: float) -> str:
    return f"{ATTACKS[attack]} ε\u00a0=\u00a0{radius:g}"


def accuracy_text(row: Any) -> str:
    if not row.done:
        return "diverged" if row.diverged else "waiting"
    spread = f" ± {row.accuracy_std:.2f}" if len(row.done) > 1 else ""
    return f"{row.accuracy:.2f}{spread} ({len(row.done)}{f'; {len(row.diverged)} diverged' if row.diverged else ''})"


def _table(results: Results, columns: Sequence[str], radii: int = 0) -> Styler:
    """Some columns of the summary as text, and the rates under each attack at so many radii at most."""
    frame = summary(results)
    texts: dict[str, Any] = {
        "method": frame["label"].str.replace(" = ", "\u00a0=\u00a0").str.replace("U S V", "U\u00a0S\u00a0V"),
        "training": pd.Series([training(row) for row in frame.to_dict("records")], dtype=object),
        "rank removed": frame["ratio"].map(lambda r: "–" if math.isnan(r) else f"{100 * r:g} %"),
        "test accuracy, % (seeds)": pd.Series([accuracy_text(row) for row in frame.itertuples()], dtype=object),
        "rank kept": frame["rank_fraction"].map(percent),
        "κ before training": frame["kappa_start"].map(number),
        "κ after": frame["kappa"].map(number),
        "largest κ(S)": frame["kappa_max"].map(number),
        "bound": frame["max_cond"].map(number),
        "relative excess": (frame["kappa_max"] / frame["max_cond"] - 1).map(number),
        "orthogonality error": frame["orth_error_max"].map(number),
        "deployed": frame["n_params_deployed_ratio"].map(percent),
        "FLOPs": frame["flops_deployed_ratio"].map(percent),
    }
    for count in ("trained", "deployed"):
        shares = zip(frame[f"n_params_{count}"], frame[f"n_params_{count}_ratio"], strict=True)
        texts[f"{count} parameters"] = [f"{n:,.0f} ({percent(share)})" if n > 0 else "–" for n, share in shares]
    text = pd.DataFrame({column: texts[column] for column in columns})
    measured = rates(results).query("eps > 0")
    for attack in ATTACKS if radii else ():
        rows = measured[measured["attack"] == attack]
        eps = sorted(rows["eps"].unique())
        for radius in eps[:: -math.ceil(len(eps) / radii)][::-1] if eps else ():  # evenly, down from the largest
            found = {name: _rate(group) for name, group in rows[rows["eps"] == radius].groupby("name")}
            text[attack_name(attack, radius)] = frame["name"].map(found).fillna("–")
    return table(text)


def accuracy_table(results: Results) -> Styler:
    """Accuracy against compression, with all three counts and FLOPs, in percent of the dense network."""
    counts = ("rank kept", "trained parameters", "deployed parameters", "FLOPs")
    return _table(results, ("method", "rank removed", "test accuracy, % (seeds)", *counts))


def conditioning_table(results: Results) -> Styler:
    """Condition numbers and orthogonality errors, the largest of all layers and seeds, beside their bounds."""
    kappas = ("κ before training", "κ after", "largest κ(S)", "bound", "relative excess", "orthogonality error")
    return _table(results, ("method", "rank removed", *kappas))


def robustness_table(results: Results, radii: int = 3) -> Styler:
    """Clean accuracy, and the percentage of images that are classified correctly before and after each attack."""
    return _table(results, ("method", "rank removed", "test accuracy, % (seeds)"), radii)


def training_table(results: Results, radii: int = 3) -> Styler:
    """Each method under each training, plain or adversarial: size, accuracy, condition number, and accuracy under each
    attack."""
    columns = ("method", "training", "deployed", "test accuracy, % (seeds)", "κ after")
    return _table(results, columns, radii)


def headline_table(results: Results) -> Styler:
    """Size, accuracy, condition number, and accuracy under each attack at its largest radius."""
    return _table(results, ("method", "rank removed", "deployed", "test accuracy, % (seeds)", "κ after"), 1)


def tally(gaps: Iterable[Gap]) -> tuple[int, int, int]:
    """How many gaps are clearly positive, clearly negative, and neither; those of a single seed are left out."""
    known = [gap for gap in gaps if gap.seeds > 1]
    better, worse = (sum(gap.clear and sign * gap.difference > 0 for gap in known) for sign in (1, -1))
    return better, worse, len(known) - better - worse


def verdict(gaps: Iterable[Gap]) -> str:
    """Whether first is better than second: "is supported" if more than half of the gaps are clearly positive and none
    clearly negative, "is contradicted" in the reverse case, else "is not supported"; with the tally."""
    better, worse, open_ = tally(gaps)
    half = (better + worse + open_) / 2
    if not half:
        return "cannot be judged yet (it takes two seeds)"
    outcome = "is supported" if better > half and not worse else "is not supported"
    outcome = "is contradicted" if worse > half and not better else outcome
    return f"{outcome} ({better} clearly better, {worse} clearly worse, {open_} without a clear difference)"


def _minus(first: str, second: str) -> str:
    (a, _, ratio), (b, _, other) = first.partition(", ratio "), second.partition(", ratio ")
    return f"{a} − {b}, ratio {ratio}" if ratio and ratio == other else f"{first} − {second}"


def comparison_table(results: Results, pairs: Sequence[tuple[str, str]], attacks: bool = True) -> Styler:
    """first - second in points for pairs of full names: clean, and under each attack at its largest radius."""
    measured = rates(results)
    tests = {"test accuracy": ("clean", 0.0)}
    for attack in ATTACKS if attacks else ():
        radius = measured.loc[(measured["attack"] == attack) & (measured["eps"] > 0), "eps"].max()
        tests |= {attack_name(attack, radius): (attack, radius)} if radius > 0 else {}
    rows = [[_minus(*pair), *(str(compare(results, *pair, *test)) for test in tests.values())] for pair in pairs]
    return table(pd.DataFrame(rows, columns=["difference in points", *tests]))


def status_table(rows: Iterable[Mapping[str, Any]]) -> Styler:
    """What `wc.status()` returns: cells done, missing, diverged and failed of each experiment."""
    counts = [{key: len(value) if isinstance(value, list) else value for key, value in row.items()} for row in rows]
    return table(pd.DataFrame(counts))


# --- figures ---------------------------------------------------------------------------------------------------------


def panels(
    titles: Sequence[str], columns: int, height: float, share: Literal["all", "row", "none"] = "all"
) -> tuple[Figure, list[Axes]]:
    """A figure of the book's width, and its titled axes in rows of `columns`."""
    style()
    columns = max(1, min(len(titles), columns))
    rows = max(1, math.ceil(len(titles) / columns))
    size = (WIDTH, height * rows + 0.3)
    fig, grid = plt.subplots(rows, columns, squeeze=False, sharey=share, figsize=size)
    axes: list[Axes] = list(grid.flat)
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title)
    for spare in axes[max(1, len(titles)) :]:
        spare.set_visible(False)
    return fig, axes[: len(titles)]


def tick(value: float) -> str:
    """A number at a logarithmic axis: 0.001, 50, 10000, and powers of ten beyond, 10⁻⁷, 2·10¹²."""
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{power}" if mantissa == "1" else f"{mantissa}·10{power}"


def finish(fig: Figure, x_ticks: bool = True) -> Figure:
    """One legend below the panels, or the remark that nothing has been computed; plain numbers on logarithmic axes
    (with x_ticks=False, on the vertical ones only)."""
    entries: dict[str, Any] = {}
    for ax in fig.axes:
        entries |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        for axis in (ax.xaxis, ax.yaxis) if x_ticks else (ax.yaxis,):
            if axis.get_scale() == "log":
                low, high = axis.get_view_interval()
                decades = math.log10(high / low)
                fine = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9) if decades < 0.5 else (1, 1.5, 2, 3, 5, 7)
                subs = fine if decades < 1 else (1, 2, 5) if decades < 2.5 else (1,)
                axis.set_major_locator(LogLocator(subs=subs, numticks=6 if decades > 6 else None))
                axis.set_major_formatter(lambda x, _: tick(x))
                axis.set_minor_formatter(NullFormatter())
    if entries:
        short = len(entries) == 4 and len("".join(entries)) < 60
        columns = 4 if short else 3 if max(map(len, entries)) < 31 else 2
        fig.set_figheight(fig.get_figheight() + 0.21 * math.ceil(len(entries) / columns))
        fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)
    else:
        fig.clear()
        fig.set_figheight(0.8)
        fig.add_subplot(frame_on=False, xticks=[], yticks=[]).text(
            0.5, 0.5, "waiting: nothing is computed", ha="center"
        )
    return fig


def spread(rows: pd.DataFrame, x: str, y: str, log: bool) -> pd.DataFrame:
    """centre, low, high over the seeds at each x: mean ± standard deviation, the interval of a single count; for log,
    geometric mean and range (what a logarithmic axis cannot show is left out)."""
    if log:
        finite = np.log(rows[y].where((rows[y] > 0) & (rows[y] < np.inf)))
        logs: pd.DataFrame = finite.groupby(rows[x]).agg(centre="mean", low="min", high="max")
        return logs.map(math.exp)
    groups = rows.groupby(x)
    centre, std = groups[y].mean(), groups[y].std()
    low, high = (centre - std).fillna(groups["low"].first()), (centre + std).fillna(groups["high"].first())
    return pd.DataFrame({"centre": centre, "low": low, "high": high})


def draw(ax: Axes, frame: pd.DataFrame, x: str, y: str, log: bool = False, mark: int | list[int] = 1) -> None:
    """A line and a band per configuration. Of several ratios the highest has full markers; a single one is unnamed."""
    ratios = sorted(frame["ratio"].dropna().unique())
    for _, rows in frame.groupby("name", sort=False):
        about, line = rows.iloc[0], spread(rows, x, y, log)
        _, color, marker, dash, fill = look(**about[["method", *SETTINGS]])
        label = about["name" if len(ratios) > 1 else "label"]
        fill = "none" if len(ratios) > 1 and about["ratio"] < ratios[-1] else fill
        ax.plot(line["centre"], color=color, marker=marker, fillstyle=fill, linestyle=dash, markevery=mark, label=label)
        ax.fill_between(line.index, line["low"], line["high"], color=color, alpha=0.18, linewidth=0)
    if log and ((frame[y] > 0) & (frame[y] < np.inf)).any():  # else there is nothing that such an axis can show
        ax.set_yscale("log")


def layers_shown(frame: pd.DataFrame, layers: Sequence[str], most: int = 6) -> Sequence[str]:
    """The layers asked for, or all; of a deep network first and last and some evenly between."""
    names = [name for name in frame["layer"].dropna().unique() if name]
    return layers or [names[round(i)] for i in np.linspace(0, len(names) - 1, min(most, len(names)))]


def plot_condition_growth(results: Results, layers: Sequence[str] = ()) -> Figure:
    """κ of each layer over the epochs: of S, or of the dense or U Vᵀ weight where there is no S."""
    frame = _kappas(results)
    titles = layers_shown(frame, layers)
    fig, axes = panels(titles, 2, 2.3)
    for i, (ax, layer) in enumerate(zip(axes, titles, strict=True)):
        draw(ax, frame[frame["layer"] == layer], "epoch", "value", log=True, mark=4)
        ax.set(xlabel="epoch", ylabel="" if i % 2 else "κ")
    return finish(fig)


def plot_spectra(results: Results, layers: Sequence[str] = ()) -> Figure:
    """Singular values of each layer after training over the largest one: a curve ends at 1/κ."""
    frame = ordered(final(results.select("spectra")))
    largest = frame.groupby(["run_id", "layer"])["singular_value"].transform("max")
    frame = frame.assign(relative=frame["singular_value"] / largest, index=frame["index"] + 1)
    titles = layers_shown(frame, layers)
    fig, axes = panels(titles, 2, 2.3)
    for i, (ax, layer) in enumerate(zip(axes, titles, strict=True)):
        draw(ax, frame[frame["layer"] == layer], "index", "relative", log=True, mark=[-1])
        ax.set(xscale="log", xlabel="index i", ylabel="" if i % 2 else "σᵢ / σ₁")
    return finish(fig)


def plot_robustness(results: Results) -> Figure:
    """Accuracy under each attack against its radius; below it, the difference to the first method, seed by seed."""
    frame = rates(results)
    first = frame[frame["name"] == frame["name"].iloc[0]] if len(frame) else frame
    at = ["attack", "eps", "seed"]
    frame = frame.merge(first[[*at, "rate"]].rename(columns={"rate": "reference"}), "left", on=at)
    frame["gap"] = frame["rate"] - frame["reference"]
    attacks = [attack for attack in list(ATTACKS)[1:] if (frame["attack"] == attack).any()]
    fig, axes = panels([ATTACKS[attack] for attack in attacks] + [""] * len(attacks), max(1, len(attacks)), 2.5, "row")
    for i, attack in enumerate(attacks):
        rows, (above, below) = frame[frame["attack"] == attack], (axes[i], axes[i + len(attacks)])
        draw(above, rows, "eps", "rate")
        draw(below, rows.assign(low=math.nan, high=math.nan), "eps", "gap")
        eps = sorted(rows["eps"].unique())
        for ax in (above, below):
            ax.set_xticks(eps[:: math.ceil(len(eps) / 4)])
        above.set(ylabel="" if i else "accuracy, %")
        below.set(xlabel="radius ε", ylabel="" if i else f"minus {first['label'].iloc[0]}, points")
    return finish(fig)


def plot_trainings(results: Results, attack: str) -> Figure:
    """Accuracy under an attack against its radius, a panel for each training."""
    parts = trainings(results)
    fig, axes = panels([kind[0].upper() + kind[1:] for kind in parts], 2, 2.5)
    for i, (ax, part) in enumerate(zip(axes, parts.values(), strict=False)):
        frame = rates(part)
        measured = frame[frame["attack"] == attack]
        start = frame[(frame["attack"] == "clean") & frame["run_id"].isin(measured["run_id"])]
        draw(ax, pd.concat([start, measured]), "eps", "rate")
        ax.set(xlabel="radius ε", ylabel="" if i % 2 else "accuracy, %")
    return finish(fig)


def plot_sensitivity(results: Results, attack: str) -> Figure:
    """Accuracy under an attack at its largest radius against κ of the worst layer and against the product of all
    ‖W‖₂, one point a network."""
    frame = sensitivity(results, attack)
    fig, axes = panels(["Condition number, worst layer", "Product of all ‖W‖₂"], 2, 2.8)
    for ax, column in zip(axes, ("kappa", "gain"), strict=True):
        for label, rows in frame.groupby("label", sort=False):
            _, color, marker, _, fill = look(**rows.iloc[0][["method", *SETTINGS]])
            ax.plot(rows[column], rows["rate"], color=color, marker=marker, fillstyle=fill, linestyle="", label=label)
        ax.set(xscale="log", xlabel="κ" if column == "kappa" else "Π σ₁")
    radius = f", ε = {frame['eps'].max():g}" if len(frame) else ""
    axes[0].set_ylabel(f"accuracy, %, {ATTACKS.get(attack, attack)}{radius}")
    return finish(fig)


def plot_headline(results: Results) -> Figure:
    """The largest κ of any layer over training, and the accuracy under FGSM."""
    fig, (left, right) = panels(["Condition number, worst layer", "Accuracy under FGSM"], 2, 2.8, "none")
    frame = _kappas(results)
    worst = frame.sort_values("value", na_position="first").drop_duplicates(["run_id", "epoch"], keep="last")
    draw(left, worst.sort_index(), "epoch", "value", log=True, mark=4)
    left.set(xlabel="epoch", ylabel="κ")
    draw(right, rates(results).query("attack == 'fgsm'"), "eps", "rate")
    right.set(xlabel="radius ε", ylabel="accuracy, %")
    return finish(fig)


def plot_accuracy_compression(results: Results) -> Figure:
    """Test error against the fraction of the rank removed; below it, what that is in parameters and FLOPs.

    At each level the configurations stand side by side, so that none hides another.
    """
    frame = rates(results).query("attack == 'clean'")
    frame = frame.assign(level=frame["ratio"].fillna(0), rate=100 - frame["rate"], error=frame["low"])
    frame = frame.assign(low=100 - frame["high"], high=100 - frame["error"])
    sizes = summary(results).assign(level=lambda f: f["ratio"].fillna(0)).groupby("level")
    fig, (ax,) = panels([""], 1, 4)
    levels = sorted(frame["level"].unique())
    groups = {level: list(frame.loc[frame["level"] == level, "label"].unique()) for level in levels}
    for label, rows in frame.groupby("label", sort=False):
        error = spread(rows, "level", "rate", log=False)
        _, color, marker, dash, fill = look(**rows.iloc[0][["method", *SETTINGS]])
        place = {x: levels.index(x) + 0.08 * (groups[x].index(label) - (len(groups[x]) - 1) / 2) for x in error.index}
        x = list(place.values())
        drawn: Any = {"color": color, "marker": marker, "fillstyle": fill, "linestyle": dash, "linewidth": 0.9}
        ax.plot(x, error["centre"], **drawn, label=label)
        ax.vlines(x, error["low"], error["high"], color=color)
    lines = [[f"rank removed: {100 * level:g} %" for level in levels]]
    for title, count in (
        ("trained", "n_params_trained"),
        ("deployed", "n_params_deployed"),
        ("FLOPs", "flops_deployed"),
    ):
        ends = [
            {f"{100 * end:.0f}" for end in sizes[f"{count}_ratio"].get_group(level).agg(["min", "max"])}
            for level in levels
        ]
        lines.append([f"{title}: {'–'.join(sorted(pair, key=float))} %" for pair in ends])
    ax.set_xticks(range(len(levels)), ["\n".join(texts) for texts in zip(*lines, strict=True)])
    ax.set(yscale="log", ylabel="test error, %")
    ax.grid(visible=False, axis="x")
    return finish(fig)
