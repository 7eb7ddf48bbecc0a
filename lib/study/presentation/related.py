"""Claims of related systems and what became of them: the table of verdicts, and a figure a system. Never imports torch.

Frames are those of `study.theory.related.load`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from study.presentation.curves import name_ends, tick_logarithms
from study.presentation.style import finish, panels, table

SYSTEMS = {
    "orthogonal_flow": "ODEtoODE",
    "convex_landscape": "Convex landscape",
    "unrolled": "Descending unrolled networks",
    "undertraining": "Under-trained sparse networks",
    "undertraining_cifar": "Under-trained sparse networks, CIFAR-10",
    "federated": "Federated at fixed rank, digits",
    "federated_mnist": "Federated at fixed rank, MNIST",
    "surf": "Unrolled federated descent",
    "kernel_pooling": "Kernel average pooling",
    "kernel_pooling_cifar": "Kernel average pooling, CIFAR-10",
    "large_batches": "Distributed adversarial training",
    "rewiring": "Dynamic network rewiring",
    "rewiring_cifar": "Dynamic network rewiring, CIFAR-10",
}


def value_text(value: float, margin: float = math.nan) -> str:
    """ "0.44 ± 0.07", "3.4e−05 ± 1.1e−05": two digits of the margin, or of the value where there is none."""
    margin = 0.0 if margin < 1e-9 * abs(value) else margin  # seeds that agree but for rounding
    size = value if math.isnan(margin) or margin == 0 else margin
    if size != 0 and abs(size) < 1e-3:
        text = f"{value:.1e}" + ("" if math.isnan(margin) else f" ± {margin:.1e}")
    else:
        digits = 0 if size == 0 else max(0, 1 - math.floor(math.log10(abs(size))))
        text = f"{value:.{digits}f}" + ("" if math.isnan(margin) else f" ± {margin:.{digits}f}")
    return text.replace("-", "−")


def _band(low: float, high: float) -> str:
    text = f"{low:g} to {high:g}"
    if math.isinf(high) or math.isinf(low):
        text = f"≥ {low:g}" if math.isinf(high) else f"≤ {high:g}"
    return text.replace("-", "−")


def claims_table(claims: pd.DataFrame, system: str = "") -> Styler:
    """One row a claim: number, 95 % interval over the seeds, what the claim wants, verdict; of one system or of all."""
    shown = claims[claims["system"] == system] if system else claims
    rows = [
        {
            **({} if system else {"system": SYSTEMS[row["system"]]}),
            "claim": row["claim"],
            "measured": row["measured"],
            "claimed": _band(row["low"], row["high"]),
            "value": value_text(row["value"], row["margin"]),
            "verdict": row["verdict"],
        }
        for row in shown.to_dict("records")
    ]
    styled = table(pd.DataFrame(rows))
    wrap: Any = [
        {"selector": f".col{k}", "props": "text-align: left; white-space: normal"} for k in range(4 - bool(system))
    ]
    return styled.set_table_styles(wrap, overwrite=False)


class Look(NamedTuple):
    """How a line is drawn and named."""

    color: str
    marker: str = "o"
    dash: str = "-"
    label: str = ""


def _of(rows: pd.DataFrame, panel: str, series: str) -> pd.DataFrame:
    return rows[(rows["panel"] == panel) & (rows["series"] == series)]


def _lines(ax: Axes, rows: pd.DataFrame, looks: Mapping[str, Look]) -> None:
    """The mean over the seeds, and their range as a shade."""
    for name, look in looks.items():
        own = rows[rows["series"] == name]
        if own.empty:
            continue
        by_x = own.groupby("x")["y"]
        ax.plot(by_x.mean(), color=look.color, marker=look.marker, linestyle=look.dash, label=look.label or name)
        ax.fill_between(by_x.min().index, by_x.min(), by_x.max(), color=look.color, alpha=0.15, linewidth=0)


FLOWS = {
    "flow on O(d)": Look("#0072B2"),
    "unconstrained flow": Look("#D55E00", "s"),
    "residual, step 1/N": Look("#009E73", "^"),
    "residual, step 1": Look("#E69F00", "D", "--"),
    "no skip connection": Look("#CC79A7", "v", "--"),
}


def plot_gradients(rows: pd.DataFrame) -> Figure:
    """Gradient norms of random networks: against depth, and the largest excursion against the strength of the flow."""
    fig, (left, right) = panels(
        ["gradient at the input / at the output", "largest |log| of the ratio, N = 100"], 2, 2.5, "none"
    )
    _lines(left, rows[rows["panel"] == "depth"].assign(y=lambda frame: frame["y"].clip(-6, 6)), FLOWS)
    left.axhspan(
        -1 / math.log(10), 1 / math.log(10), color="#888888", alpha=0.18, linewidth=0, label="the bound of the theorem"
    )
    left.set(xscale="log", xlabel="layers or steps, N", ylim=(-6, 6))
    left.set_yticks(
        range(-6, 7, 2), [f"10{str(k).translate(str.maketrans('-0123456', '⁻⁰¹²³⁴⁵⁶'))}" for k in range(-6, 7, 2)]
    )
    _lines(right, rows[rows["panel"] == "strength"], FLOWS)
    right.axhspan(0, 1, color="#888888", alpha=0.18, linewidth=0)
    right.set(xscale="log", xlabel="strength of the parameter flow", ylim=(0, None))
    return finish(fig)


WIDTHS = {"β = 0.1 β₀": Look("#0072B2"), "β = 0.01 β₀": Look("#D55E00", "s")}
FLOOR = 1e-7  # of what is drawn: the tolerance of the certificates


def plot_landscape(rows: pd.DataFrame) -> Figure:
    """Excess of the objective: over the optimum of the network's own patterns along training; over the global optimum
    against the width; and that of low-rank training."""
    fig, (left, middle, right) = panels(["its own patterns", "all patterns", "100 neurons"], 3, 2.4, "none")
    shown = rows.assign(y=rows["y"].clip(lower=FLOOR))
    _lines(left, shown[shown["panel"] == "training"], {"30 neurons": Look("#D55E00", "s", label="β = 0.01 β₀")})
    left.set(xlabel="steps, 30 neurons", yscale="log", ylabel="relative excess")
    widths = shown[shown["panel"] == "width"]
    _lines(middle, widths, WIDTHS)
    middle.set(xlabel="neurons", xscale="log", yscale="log")
    rivals = shown[shown["panel"] == "rivals"]
    names = list(rivals.sort_values("x")["series"].unique())
    for k, name in enumerate(names):
        values = rivals.loc[rivals["series"] == name, "y"]
        right.plot(values, np.full(len(values), k), "o", color=WIDTHS["β = 0.1 β₀"].color, alpha=0.6)
    right.set(xscale="log", xlabel="relative excess", ylim=(max(len(names), 1) - 0.5, -0.5), xlim=(FLOOR, 10))
    right.set_yticks(range(len(names)), names, fontsize=8.5)
    finish(fig)
    middle.set_xticks(ticks := sorted(widths["x"].unique()), [f"{x:g}" for x in ticks])
    right.set_xticks([1e-6, 1e-3, 1], ["10⁻⁶", "0.001", "1"])
    return fig


UNROLLED = {
    "LISTA": Look("#D55E00", "s", label="LISTA, random start"),
    "descending": Look("#0072B2", label="descending, random start"),
    "bounded": Look("#009E73", "^", label="κ(W₂) ≤ 10, random start"),
    "LISTA, started as ISTA": Look("#E69F00", "D", "--"),
    "ISTA": Look("#888888", ".", ":", "ISTA, 10 steps"),
    "ISTA, 100 steps": Look("#000000", ".", ":"),
}


def plot_unrolled(rows: pd.DataFrame) -> Figure:
    """Loss and gradient norm layer by layer; final loss under noise."""
    titles = {
        "layers": ("loss by layer", "layer"),
        "gradients": ("gradient norm, relative", "layer"),
        "noise": ("final loss under noise", "noise at test, σ"),
    }
    fig, axes = panels([title for title, _ in titles.values()], 3, 2.3, "none")
    for ax, (panel, (_, xlabel)) in zip(axes, titles.items(), strict=True):
        _lines(ax, rows[rows["panel"] == panel], UNROLLED)
        ax.set(xlabel=xlabel, yscale="log")
    return finish(fig, x_ticks=False)


UNDERTRAINED = {
    "dense 0": Look("#000000", label="dense"),
    "CondLR 0.9": Look("#0072B2", "s", label="CondLR, ratio 0.9"),
    "U Vᵀ 0.9": Look("#E69F00", "^", label="U Vᵀ, ratio 0.9"),
    "gradual 0.98": Look("#009E73", "v", label="gradual, 98 % zeros"),
    "AC/DC 0.98": Look("#D55E00", "D", label="AC/DC, 98 % zeros"),
}
GAINS = {"CondLR": (1, (2, 7)), "U Vᵀ": (2, (-30, -16)), "gradual": (1, (4, 7)), "AC/DC": (1, (2, 7))}
"""By series, beside which of its points it is named, and how far right and up, in points of type."""


def plot_undertraining(rows: pd.DataFrame) -> Figure:
    """Test error against epochs, each network at its best learning rate; and how much more than dense networks others
    gain by longer training at a rate of their own, against the share of the parameters that they keep."""
    fig, (left, right) = panels(["test error, %", "gain over that of dense, points"], 2, 2.6, "none")
    if rows.empty:
        return finish(fig)
    errors, gains = (rows[rows["panel"] == panel] for panel in ("error", "gain"))
    _lines(left, errors, UNDERTRAINED)
    left.set(xlabel="epochs", xscale="log", yscale="log")
    left.set_xticks(epochs := sorted(errors["x"].unique()), [f"{x:g}" for x in epochs], minor=False)
    left.set_yticks(ticks := [7, 10, 20, 30, 50], [f"{y}" for y in ticks])
    looks = {name: look for key, look in UNDERTRAINED.items() for name in GAINS if key.startswith(name)}
    _lines(right, gains, looks)
    right.axhline(0, color="#888888", linewidth=0.8)
    right.set(xlabel="parameters kept, % of dense", xscale="log", yscale="symlog", ylim=(-1, 45))
    right.set_xticks(ticks := [3, 10, 30, 70], [f"{x}" for x in ticks])
    right.set_yticks(ticks := [0, 1, 3, 10, 30], [f"{y}" for y in ticks])
    for ax in (left, right):
        ax.minorticks_off()
    for name, (k, offset) in GAINS.items():
        means = gains[gains["series"] == name].groupby("x")["y"].mean()
        at = (float(means.index[k]), float(means.iloc[k]))
        right.annotate(name, at, offset, textcoords="offset points", color=looks[name].color, fontsize=9)
    fig.draw_without_rendering()
    last = errors[errors["x"] == errors["x"].max()].groupby("series")["y"].mean()
    named = {look.label: (epochs[-1], float(last[key])) for key, look in UNDERTRAINED.items()}
    name_ends(left, named, {look.label: look.color for look in UNDERTRAINED.values()})
    return fig


FEDERATED = {
    "dense": "#767676",
    "tangent": "#0072B2",
    "tangent, κ ≤ 1.1": "#009E73",
    "products": "#E69F00",
    "factors": "#CC79A7",
    "own SVD": "#D55E00",
}


def plot_federated(rows: pd.DataFrame) -> Figure:
    """Accuracy on clients with two classes each against what is sent; what one merge loses against the drift."""
    fig, (left, right) = panels(
        ["two classes a client: test accuracy, %", "relative error of one merge"], 2, 2.9, "none"
    )
    if rows.empty:
        return finish(fig)
    ends: tuple[dict[str, tuple[float, float]], ...] = ({}, {})
    for name in ("dense", "tangent", "tangent, κ ≤ 1.1", "products", "own SVD"):
        by_x = rows[(rows["panel"] == "skewed") & (rows["series"] == name)].groupby("x")["y"]
        left.plot(by_x.mean(), color=FEDERATED[name])
        left.fill_between(by_x.min().index, by_x.min(), by_x.max(), color=FEDERATED[name], alpha=0.15, linewidth=0)
        ends[0][name] = float(by_x.mean().index[-1]), float(by_x.mean().iloc[-1])
    left.set(xlabel="megabytes on the channel, up and down", xscale="log", ylim=(0, 100))
    for name in ("tangent", "tangent, κ ≤ 1.1", "factors", "own SVD"):
        own = rows[(rows["panel"] == "error") & (rows["series"] == name)].sort_values("x")
        for _, line in own.groupby("seed"):
            right.plot(line["x"], line["y"], "o-", color=FEDERATED[name], markersize=3)
        ends[1][name] = float(own["x"].iloc[-1]), float(own["y"].iloc[-1])
    right.set(xlabel="drift of the clients, ‖W − Z‖ / ‖Z‖", xscale="log", yscale="log")
    for ax in (left, right):
        tick_logarithms(ax)
    fig.draw_without_rendering()
    for ax, named in zip((left, right), ends, strict=True):
        name_ends(ax, named, FEDERATED)
    return fig


POOLING = {
    "noise": Look("#D55E00", "s", label="noise alone"),
    "pooling, K = 3": Look("#0072B2", label="K = 3"),
    "pooling, K = 5": Look("#56B4E9", "D", label="K = 5"),
    "κ ≤ 1.1": Look("#009E73", "^"),
    "spectral norm 1": Look("#888888", "v", label="norm 1"),
}


def plot_pooling(rows: pd.DataFrame) -> Figure:
    """Images kept under PGD ℓ₂, against the clean accuracy along σ (means), and against κ and the norms (networks)."""
    fig, axes = panels(["kept under PGD ℓ₂, %", "", ""], 3, 2.5, "all")
    if rows.empty:
        return finish(fig)
    wide = rows.pivot_table(index=["series", "x", "seed"], columns="panel", values="y")
    for name, look in POOLING.items():
        own = wide.loc[name]
        means = own.groupby("x").mean()
        axes[0].plot(means["clean"], means["l2"], color=look.color, marker=look.marker)
        x, y = means.iloc[-1][["clean", "l2"]]
        right = name == "spectral norm 1"
        below = name in ("noise", "pooling, K = 5")
        where: Any = {
            "xytext": (7 if right else -7, 0),
            "textcoords": "offset points",
            "va": "top" if below else "bottom",
        }
        axes[0].annotate(look.label or name, (x, y), ha="left" if right else "right", color=look.color, **where)
        for ax, quantity in zip(axes[1:], ("kappa", "norms"), strict=True):
            ax.plot(own[quantity], own["l2"], look.marker, color=look.color, alpha=0.6)
    axes[0].set(xlabel="clean accuracy, %, along σ")
    for ax, xlabel in zip(axes[1:], ("κ of the convolutions", "product of spectral norms"), strict=True):
        ax.set(xlabel=xlabel, xscale="log")
        tick_logarithms(ax)
    return fig


BATCHED = {"linear scaling": "#888888", "SGD": "#D55E00", "one ratio": "#E69F00", "LARS": "#0072B2"}
SENT = {"dense": ("#000000", 0), "U Vᵀ": ("#E69F00", -9), "κ ≤ 1.1": ("#009E73", 8)}
"""Colour, and how far above its point a form is named, in points of type."""


def plot_batches(rows: pd.DataFrame) -> Figure:
    """Images kept under PGD: against the batch, dense and under the bound on κ, mean and range over the seeds; and at
    the largest batch, with LARS, against what a machine sends in a step, in 32 bits (circles) and in 8 (squares)."""
    titles = ["dense: kept under PGD, %", "κ ≤ 1.1", "largest batch, LARS"]
    fig, axes = panels(titles, 3, 2.4, "all")
    if rows.empty:
        return finish(fig)
    ends: list[dict[str, tuple[float, float]]] = []
    for ax, form in zip(axes, ("dense", "κ ≤ 1.1"), strict=False):
        means = {name: _of(rows, "robust", f"{form}, {name}").groupby("x")["y"] for name in BATCHED}
        ends.append({})
        smallest = means["SGD"].mean().iloc[:1]  # from which linear scaling starts
        for name, by_x in means.items():
            line = by_x.mean() if name != "linear scaling" else pd.concat([smallest, by_x.mean()])
            ax.plot(line, color=BATCHED[name], marker="o" if name != "one ratio" else "D")
            ax.fill_between(by_x.min().index, by_x.min(), by_x.max(), color=BATCHED[name], alpha=0.15, linewidth=0)
            if len(line):
                ends[-1][name] = float(line.index[-1]), float(line.iloc[-1])
        ax.set(xlabel="images in a batch", xscale="log", ylim=(0, None))
        ax.set_xticks(batches := sorted(rows.loc[rows["panel"] == "robust", "x"].unique()), [f"{x:g}" for x in batches])
        ax.minorticks_off()
    for form, (color, up) in SENT.items():
        points = [_of(rows, "sent", f"{form}, {name}")[["x", "y"]].mean() for name in ("LARS", "LARS, 8 bits")]
        axes[2].plot(*zip(*points, strict=True), color=color)
        for (x, y), marker in zip(points, "os", strict=True):
            axes[2].plot(x, y, marker, color=color)
        axes[2].annotate(form, tuple(points[0]), (5, up), textcoords="offset points", color=color, va="center")
    axes[2].set(xlabel="kilobytes a machine and step", xscale="log")
    tick_logarithms(axes[2])
    fig.draw_without_rendering()
    for ax, named in zip(axes, ends, strict=False):
        name_ends(ax, named, BATCHED)
    return fig


REWIRED = {
    "rewiring": Look("#0072B2", label="rewired"),
    "magnitude": Look("#E69F00", "s", label="pruned"),
    "U Vᵀ": Look("#CC79A7", "^"),
    "U S Vᵀ, κ ≤ 1.1": Look("#009E73", "v", label="κ ≤ 1.1"),
}
BESIDE = {
    "rewiring": (0, (-4, -15)),
    "magnitude": (0, (-4, 7)),
    "U Vᵀ": (1, (-36, -10)),
    "U S Vᵀ, κ ≤ 1.1": (1, (7, -8)),
}
"""By series, beside which of its points it is named, and how far right and up, in points of type."""


def plot_rewiring(rows: pd.DataFrame) -> Figure:
    """Clean and robust accuracy against the numbers stored, means and ranges; a thin line starts at the non-zeros, and
    its length is what their indices cost."""
    fig, axes = panels(["test accuracy, %", "kept under PGD ℓ∞, %"], 2, 2.5, "none")
    if rows.empty:
        return finish(fig)
    means: Any = rows.pivot_table(index=["series", "x"], columns="panel", values="y")
    for ax, panel in zip(axes, ("clean", "robust"), strict=True):
        by_point = rows[rows["panel"] == panel].groupby(["series", "x"])["y"]
        for name, look in REWIRED.items():
            own, low, high = means.loc[name], by_point.min()[name], by_point.max()[name]
            ax.plot(own["stored"], own[panel], color=look.color, marker=look.marker)
            ax.fill_between(own["stored"], low, high, color=look.color, alpha=0.15, linewidth=0)
            ax.hlines(own[panel], own["non-zeros"], own["stored"], color=look.color, linewidth=0.8)
        ax.axhline(float(means.loc["dense", panel].iloc[0]), color="#444444", linestyle="--", linewidth=1)
        ax.set(xlabel="numbers stored, % of dense", xscale="log", ylim=(0, 100))
        ax.set_xticks(ticks := [5, 10, 20], [f"{x}" for x in ticks])
        ax.minorticks_off()
    offset: Any = {"textcoords": "offset points", "fontsize": 9}
    for name, (k, by) in BESIDE.items():
        look, at = REWIRED[name], means.loc[name].iloc[k][["stored", "robust"]]
        axes[1].annotate(look.label or name, tuple(at), by, color=look.color, **offset)
    axes[1].annotate("dense", (5, float(means.loc["dense", "robust"].iloc[0])), (0, 4), color="#444444", **offset)
    return fig


UNROLLED_FEDERATED = {
    "descending": Look("#0072B2", label="SURF"),
    "new labels": Look("#0072B2", label="SURF"),
    "unconstrained": Look("#D55E00", "s", label="no constraints"),
    "long": Look("#000000", "", label="DGD"),
    "DGD": Look("#000000", "", label="DGD"),
    "FedAvg": Look("#009E73", "", label="FedAvg"),
    "stored": Look("#767676", "", "--"),
}


def plot_surf(rows: pd.DataFrame) -> Figure:
    """Accuracy against the exchanges with neighbours, if classes keep their labels and if each problem has its own; and
    at the end, if agents sleep."""
    titles = {
        "same labels": "same classes: accuracy, %",
        "new labels": "new labels: accuracy, %",
        "asleep": "same classes, agents asleep",
    }
    fig, axes = panels([*titles.values()], 3, 2.4, "all")
    if rows.empty:
        return finish(fig)
    ends: list[dict[str, tuple[float, float]]] = []
    shown = rows[(rows["panel"] == "asleep") | (rows["x"] <= 40)]
    for ax, panel in zip(axes, titles, strict=True):
        own = shown[shown["panel"] == panel]
        last: Any = own.groupby(["series", "x"])["y"].mean().groupby("series").tail(1).reset_index("x")
        _lines(ax, own[own["series"] != "stored"], UNROLLED_FEDERATED)
        ends.append(
            {
                look.label or name: tuple(last.loc[name])
                for name, look in UNROLLED_FEDERATED.items()
                if name in last.index
            }
        )
        if "stored" in last.index:
            ax.axhline(float(last.loc["stored", "y"]), color="#767676", linestyle="--", linewidth=1)
        ax.set(xlabel="exchanges with neighbours" if panel != "asleep" else "probability to sleep", ylim=(0, 100))
    fig.draw_without_rendering()
    for ax, named in zip(axes, ends, strict=True):
        name_ends(ax, named, {look.label or name: look.color for name, look in UNROLLED_FEDERATED.items()})
    return fig
