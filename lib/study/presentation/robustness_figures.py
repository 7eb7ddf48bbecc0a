"""The figures of the attack suite: what survives against radius, size, severity and spectra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.presentation.figures import against_spectra, draw
from study.presentation.style import ATTACKS, finish, look, panels
from study.results.outcomes import unpack_distances
from study.results.store import Results
from study.settings import SETTINGS
from study.statistics.frames import ordered, suite_rates
from study.statistics.threat_model import Threat, exposed, strongest


def _from_clean(results: Results, attack: str) -> pd.DataFrame:
    """The rows of an attack, and those of the same networks without one."""
    frame = suite_rates(results)
    rows = frame[frame["attack"] == attack]
    clean = frame[(frame["attack"] == "clean") & frame["run_id"].isin(rows["run_id"])].drop_duplicates("run_id")
    return pd.concat([clean, rows])


def plot_radii(results: Results, attacks: Sequence[str], largest: Mapping[str, float]) -> Figure:
    """Accuracy under each attack against the radius, up to `largest` of its norm, where all configurations have it."""
    fig, axes = panels([ATTACKS[attack] for attack in attacks], 3, 2.5, "row")
    for i, (ax, attack) in enumerate(zip(axes, attacks, strict=True)):
        rows = _from_clean(results, attack)
        rows = rows[rows["eps"] <= rows["norm"].map(largest).fillna(math.inf)]
        shared = rows.groupby("eps")["name"].transform("nunique") == rows["name"].nunique()
        draw(ax, rows[shared], "eps", "rate")
        ax.set(xlabel="radius ε", ylabel="" if i % 3 else "accuracy, %")
        ax.locator_params(axis="x", nbins=4)
    return finish(fig)


def plot_corruptions(results: Results, corruptions: Sequence[str]) -> Figure:
    """Error on corrupted images against the severity, each corruption on a logarithmic scale of its own."""
    fig, axes = panels([ATTACKS[corruption] for corruption in corruptions], 3, 2.8, "none")
    for i, (ax, corruption) in enumerate(zip(axes, corruptions, strict=True)):
        rows = _from_clean(results, corruption)
        draw(ax, rows.assign(error=100 - rows["rate"]), "eps", "error", log=True)
        ax.set(xlabel="severity", ylabel="" if i % 3 else "error, %", xticks=range(6))
    return finish(fig)


def _title(threat: Threat) -> str:
    return f"{threat.label}, ε = {threat.eps:g}"


def _over_seeds(results: Results, threat: Threat) -> pd.DataFrame:
    """One row a configuration under a threat: name, label and settings; size, its deployed parameters in % of the dense
    network; mean, min and max of the accuracy in % over its seeds."""
    frame = strongest(results, threat)
    frame = frame.assign(size=100 * frame["n_params_deployed"] / frame["n_params_dense"])
    rates = {end: ("rate", end) for end in ("mean", "min", "max")}
    about = {column: (column, "first") for column in ("label", "method", *SETTINGS)}
    return frame.groupby("name", sort=False).agg(**about, size=("size", "mean"), **rates).reset_index()


def _mark(ax: Axes, row: Mapping[Any, Any], at: float, across: bool, label: str = "") -> None:
    """The mean of a configuration and a line from its worst to its best seed, `at` a place on the other axis."""
    _, color, marker, _, fill = look(**row)
    (ax.hlines if across else ax.vlines)(at, row["min"], row["max"], color=color, linewidth=0.9)
    x, y = (row["mean"], at) if across else (at, row["mean"])
    ax.plot(x, y, color=color, marker=marker, fillstyle=fill, linestyle="", label=label)


def plot_ranking(results: Results, threats: Sequence[Threat]) -> Figure:
    """All configurations, from the one that keeps most under the first threat down: under each threat the mean accuracy
    and a line from the worst to the best seed; at the right, what is deployed, in % of the dense network."""
    frames = [_over_seeds(results, threat) for threat in threats]
    names = [name for frame in frames[:1] for name in frame.sort_values("mean", kind="stable")["name"]]
    fig, axes = panels([threat.label for threat in threats], len(threats), 0.2 * len(names) + 0.6)
    if not names:
        return finish(fig)
    sizes = frames[0].set_index("name")["size"]
    for ax, threat, frame in zip(axes, threats, frames, strict=True):
        for row in frame[frame["name"].isin(names)].to_dict("records"):
            _mark(ax, row, names.index(row["name"]), across=True)
        ax.set(xlabel=f"accuracy at ε = {threat.eps:g}, %")
    axes[0].set(ylim=(-0.7, len(names) - 0.3), yticks=range(len(names)), yticklabels=names)
    right = axes[-1].secondary_yaxis("right")
    right.set_yticks(range(len(names)), [f"{sizes[name]:.0f} %" for name in names])
    right.spines["right"].set_visible(False)
    for side in (axes[0], right):
        side.tick_params(axis="y", length=0, labelsize=8.5)
    return fig


def plot_pareto(results: Results, threats: Sequence[Threat]) -> Figure:
    """Accuracy under each threat against deployed parameters: the mean of each configuration, and a line from its worst
    to its best seed. Those of one size stand side by side, so that none hides another."""
    fig, axes = panels([_title(threat) for threat in threats], 2, 3.0, "none")
    for i, (ax, threat) in enumerate(zip(axes, threats, strict=True)):
        frame = _over_seeds(results, threat)
        alike = frame.groupby(frame["size"].round(1), sort=False)
        place = alike.cumcount() - (alike["mean"].transform("size") - 1) / 2
        for row, x in zip(frame.to_dict("records"), frame["size"] * 1.03**place, strict=True):
            _mark(ax, row, x, across=False, label=row["label"])
        ax.set(xscale="log", xlabel="deployed parameters, %", ylabel="" if i else "accuracy, %")
    return finish(fig)


def plot_causes(results: Results, threat: Threat) -> Figure:
    """Accuracy under a threat against κ and against the norms, one point a network."""
    return against_spectra(exposed(results, threat), _title(threat))


def plot_transfer(results: Results) -> Figure:
    """Accuracy of each network (column) on images crafted against each network (row); the diagonal is white-box."""
    names = ordered(results.runs).set_index("run_id")["name"]
    frame = results.transfer[results.transfer["target"].isin(names.index)]
    frame = frame.assign(rate=100 * frame["n_correct"] / frame["n_examples"])
    order = [run_id for run_id in names.index if run_id in set(frame["run_id"])]
    matrix = frame.pivot_table("rate", "run_id", "target").reindex(index=order, columns=order)
    fig, (ax,) = panels([""], 1, 0.45 * max(4, len(order)) + 1.2)
    if not order:
        return finish(fig)
    labels = [names[run_id] for run_id in order]
    values = matrix.to_numpy(dtype=float)
    lowest = 10 * math.floor(np.nanmin(values) / 10)
    sns.heatmap(
        matrix, annot=True, fmt=".1f", cmap="cividis", vmin=lowest, vmax=100, ax=ax, linewidths=0.5,
        xticklabels=labels, yticklabels=labels, cbar_kws={"label": "accuracy, %"},
    )  # fmt: skip
    ax.set(xlabel="attacked network", ylabel="images crafted on")
    shades = np.asarray(ax.collections[0].get_facecolor())[np.isfinite(values).ravel()]
    for text, shade in zip(ax.texts, shades, strict=True):
        text.set_color("black" if sns.utils.relative_luminance(shade) > 0.18 else "white")  # of equal contrast at 0.18
    ax.tick_params(axis="x", rotation=30)
    for text in ax.get_xticklabels():
        text.set_horizontalalignment("right")
    return fig


def distances(results: Results) -> pd.DataFrame:
    """One row an image and network: name and settings of the run, distance (l2; 0 if misclassified as it is)."""
    frame = ordered(results.select("distortions"))
    parts = [
        pd.DataFrame({**{key: row[key] for key in ("run_id", "name", "label", "method", *SETTINGS, "seed")},
                      "distance": unpack_distances(row["distances"], int(row["n_examples"]))})
        for row in frame.to_dict("records")
    ]  # fmt: skip
    columns = ["run_id", "name", "label", "method", *SETTINGS, "seed", "distance"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def plot_distances(results: Results) -> Figure:
    """The fraction of images whose smallest adversarial perturbation is longer than a distance; seeds pooled."""
    frame = distances(results)
    fig, (ax,) = panels([""], 1, 3.2)
    for name, rows in frame.groupby("name", sort=False):
        _, color, _, dash, _ = look(**rows.iloc[0][["method", *SETTINGS]])
        ordered_distances = np.sort(rows["distance"].to_numpy(dtype=float))
        above = 100 * (1 - np.arange(1, len(ordered_distances) + 1) / len(ordered_distances))
        median = f", median {np.median(ordered_distances):.2f}"
        ax.step(ordered_distances, above, where="post", color=color, linestyle=dash, label=f"{name}{median}")
    ax.set(xlabel="ℓ₂ distance", ylabel="images farther away, %", ylim=(0, 101))
    finite = frame["distance"][np.isfinite(frame["distance"].astype(float))]
    if len(finite):
        ax.set_xlim(0, float(np.quantile(finite.astype(float), 0.999)))
    return finish(fig)
