"""Tables and figures of what happens during training, and of networks of the same size.

The curves have a value per epoch, the spectra the singular values of some epochs, 0 (before training) and the last
among them; the deployed size of a rank-adaptive method is a result of its training, not a setting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas.io.formats.style import Styler

from study.presentation.figures import draw
from study.presentation.style import ATTACKS, finish, look, mean_std, number, panels, table
from study.presentation.tables import accuracy_text, attack_name
from study.results.store import Results
from study.settings import SETTINGS
from study.statistics.frames import by_seed, ordered, rates, summary, with_rates


class Quantity(NamedTuple):
    """What is drawn over the epochs: its axis, and whether that is logarithmic."""

    axis: str
    log: bool = True


QUANTITIES = {
    "kappa": Quantity("κ"),
    "sigma_max": Quantity("largest singular value"),
    "train_loss": Quantity("training loss"),
    "error": Quantity("validation error, %"),
    "accuracy": Quantity("validation accuracy, %", log=False),
    "rank": Quantity("rank"),
    "deployed": Quantity("deployed, % of dense"),
}


# --- frames ----------------------------------------------------------------------------------------------------------


def _validation(curves: pd.DataFrame, error: bool) -> pd.DataFrame:
    """Rates in % on the validation images, with their Wilson intervals."""
    at = ["run_id", "epoch"]
    counts = curves[curves["quantity"] == "validation_n"][[*at, "value"]].rename(columns={"value": "n"})
    frame = curves[curves["quantity"] == "validation_n_correct"].merge(counts, on=at)
    hits = frame["n"] - frame["value"] if error else frame["value"]
    return with_rates(frame.assign(hits=hits), "hits", "n").assign(value=lambda f: f["rate"])


def history(results: Results, quantity: str, layer: str = "") -> pd.DataFrame:
    """One row per (run, epoch): value, low, high of a key of QUANTITIES; of one layer, or the largest of all layers."""
    curves = results.select("curves")
    if quantity in ("accuracy", "error"):
        return ordered(_validation(curves, quantity == "error"))
    frame = curves[curves["quantity"] == {"deployed": "n_params_deployed"}.get(quantity, quantity)]
    if quantity == "deployed":
        dense = results.runs.set_index("run_id")["n_params_dense"]
        frame = frame.assign(value=100 * frame["value"] / frame["run_id"].map(dense))
    if layer:
        frame = frame[frame["layer"] == layer]
    frame = frame.sort_values("value", na_position="first").drop_duplicates(["run_id", "epoch"], keep="last")
    return ordered(frame.sort_values(["run_id", "epoch"]).assign(low=frame["value"], high=frame["value"]))


# --- over the epochs -------------------------------------------------------------------------------------------------


def _draw(ax: Axes, frame: pd.DataFrame, quantity: str) -> None:
    last = frame["epoch"].max() if len(frame) else 1
    draw(ax, frame, "epoch", "value", log=QUANTITIES[quantity].log, mark=max(1, int(last) // 5))
    ax.set(xlabel="epoch", xlim=(-0.04 * last, 1.04 * last))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def plot_training(
    results: Results, quantities: Sequence[str], layer: str = "", share: Literal["row", "none"] = "row"
) -> Figure:
    """Keys of QUANTITIES over the epochs: a row of panels each, and a column for each decay α of the start."""
    frames = [history(results, quantity, layer) for quantity in quantities]
    decays = sorted(results.runs["decay"].dropna().unique()) or [math.nan]
    titles = ["" if math.isnan(decay) else f"α = {decay:g}" for decay in decays]
    titles += [""] * len(decays) * (len(quantities) - 1)
    fig, axes = panels(titles, len(decays), 2.6 if len(quantities) == 1 else 2.1, share)
    for i, ax in enumerate(axes):
        (row, column), frame = divmod(i, len(decays)), frames[i // len(decays)]
        alone = math.isnan(decays[column])
        _draw(ax, frame if alone else frame[frame["decay"] == decays[column]], quantities[row])
        ax.set_ylabel("" if column else QUANTITIES[quantities[row]].axis)
        ax.set_xlabel("epoch" if row == len(quantities) - 1 else "")
    return finish(fig)


# --- tables ----------------------------------------------------------------------------------------------------------


def decay_table(results: Results, attack: str = "pgd_linf") -> Styler:
    """For each decay α and method: the largest κ of any layer and seed before training, during and after it; the test
    accuracy, and that under an attack at its largest radius, mean ± standard deviation over seeds."""
    largest = history(results, "kappa").groupby("name")["value"].max()
    frame = summary(results).sort_values("decay", kind="stable", na_position="first")
    radius = largest_radius(results, attack)
    attacked = by_seed(results, attack, radius).T
    texts = {
        "method": frame["label"],
        "α": frame["decay"].map(lambda decay: "–" if math.isnan(decay) else f"{decay:g}"),
        "κ before training": frame["kappa_start"].map(number),
        "largest κ": frame["name"].map(largest).map(number),
        "κ after": frame["kappa"].map(number),
        "test accuracy, % (seeds)": [accuracy_text(row) for row in frame.itertuples()],
    }
    if len(attacked):
        found = {name: mean_std(row) for name, row in attacked.iterrows()}
        texts[attack_name(attack, radius)] = frame["name"].map(found).fillna("–")
    return table(pd.DataFrame(texts).astype(object))


# --- the same size ---------------------------------------------------------------------------------------------------


def largest_radius(results: Results, attack: str) -> float:
    """The largest radius of an attack; nan if no network was attacked by it."""
    measured = rates(results)
    return float(measured.loc[measured["attack"] == attack, "eps"].max())


def sizes(results: Results) -> pd.DataFrame:
    """One row a trained network, with share, its deployed parameters in % of dense, and adaptive, whether training
    chose them."""
    runs = ordered(results.runs[results.runs["status"] == "done"])
    return runs.assign(share=100 * runs["n_params_deployed"] / runs["n_params_dense"], adaptive=runs["tolerance"] > 0)


def plot_accuracy_size(results: Results, attack: str = "pgd_linf") -> Figure:
    """Accuracy, clean and under an attack at its largest radius, against deployed parameters: a point a configuration,
    the mean over its seeds, with bars of one standard deviation and of the range of its sizes."""
    share = sizes(results).set_index("run_id")["share"]
    radius = largest_radius(results, attack)
    measured = rates(results).assign(share=lambda frame: frame["run_id"].map(share))
    fig, axes = panels(["Test accuracy", ATTACKS[attack] + (f", ε = {radius:g}" if radius > 0 else "")], 2, 3.2, "none")
    for ax, (name, eps) in zip(axes, (("clean", 0.0), (attack, radius)), strict=True):
        frame = measured[(measured["attack"] == name) & (measured["eps"] == eps)]
        for label, rows in frame.groupby("label", sort=False):
            seeds = rows.sort_values("share").groupby("name", sort=False)
            at, std = seeds[["share", "rate"]].mean(), seeds["rate"].std().fillna(0)
            _, color, marker, dash, fill = look(**rows.iloc[0][["method", *SETTINGS]])
            drawn: Any = {"color": color, "marker": marker, "fillstyle": fill, "linestyle": dash}
            ax.plot(at["share"], at["rate"], **drawn, linewidth=0.9, label=label)
            ax.vlines(at["share"], at["rate"] - std, at["rate"] + std, color=color, linewidth=0.9)
            ax.hlines(at["rate"], seeds["share"].min(), seeds["share"].max(), color=color, linewidth=0.9)
        ax.set(xscale="log", xlabel="deployed parameters, % of dense")
    axes[0].set_ylabel("accuracy, %")
    return finish(fig)
