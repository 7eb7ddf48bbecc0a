"""The figures of an experiment: for each configuration a line and a band, or a point a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from study.presentation.style import Look, finish, look, panels
from study.results.store import Results
from study.settings import SETTINGS
from study.statistics.frames import final, kappas, ordered, rates, summary, trainings


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


def _shades(looks: Sequence[Look]) -> list[Look]:
    """Looks that are alike get shades of their colour, from a light one to the colour itself."""
    found = []
    for i, one in enumerate(looks):
        light = 0.65 * (1 - (looks[:i].count(one) + 1) / looks.count(one))
        red, green, blue = (c + light * (1 - c) for c in to_rgb(one.color))
        found.append(one._replace(color=to_hex((red, green, blue)).upper()))
    return found


def draw(ax: Axes, frame: pd.DataFrame, x: str, y: str, log: bool = False, mark: int | list[int] = 1) -> None:
    """A line and a band per configuration. Of several ratios the highest has full markers; a single one is unnamed;
    configurations that still look alike have shades of their colour, in their order."""
    ratios = sorted(frame["ratio"].dropna().unique())
    configurations = [rows for _, rows in frame.groupby("name", sort=False)]
    looks = []
    for rows in configurations:
        about = rows.iloc[0]
        one = look(**about[["method", *SETTINGS]])
        looks.append(one._replace(fill="none") if len(ratios) > 1 and about["ratio"] < ratios[-1] else one)
    for rows, (_, color, marker, dash, fill) in zip(configurations, _shades(looks), strict=True):
        line, label = spread(rows, x, y, log), rows.iloc[0]["name" if len(ratios) > 1 else "label"]
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
    frame = kappas(results)
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
