"""Tables and figures of what training and inference cost, from the tables of `study.benches.tables`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from study.presentation.style import finish, look, number, panels, percent, table

NETS = {
    "lenet5": "LeNet5",
    "vgg16": "VGG16",
    "wrn16_4": "WRN16-4",
    "resnet20": "ResNet-20",
    "resnet18": "ResNet-18",
    "vit": "ViT",
}
PARTS = {"forward": "#56B4E9", "backward": "#0072B2", "optimizer": "#D55E00"}
RECOMPUTED = "condlr_recomputed"
SWEEPS = {  # what grows: name of the axis, title, exponent in theory
    "rank": ("r", "Rank, n = m = {n}", 2),
    "size": ("n", "Size n = m, r = {rank}", 1),
    "layers": ("layers", "Layers, n = m = {n}, r = {rank}", 1),
}
LINES = {
    "plain_s": ("plain step (QR, two solves)", "#D55E00", "--", "s"),
    "step_s": ("fast step", "#0072B2", "-", "o"),
    "products_s": ("its ten tall products alone", "#444444", ":", "."),
}


def _times(value: Any) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"


def _rows(frame: pd.DataFrame, method: str) -> list[dict[Any, Any]]:
    """The rows of a method; none of a table that was not measured."""
    return frame[frame["method"] == method].to_dict("records") if len(frame) else []


def fastest_dense(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `frame` without the slower layout of each dense network, and without recomputation."""
    return frame[((frame["method"] != "dense") | (frame["step_ratio"] == 1)) & (frame["method"] != RECOMPUTED)]


def training_table(frame: pd.DataFrame) -> Styler:
    """Ratios to the dense network, one row a network and ratio; memory and latency are those of CondLR."""
    rows = [
        {
            "network": NETS[row["net"]],
            "rank removed": f"{100 * row['ratio']:g} %",
            "FLOPs": _times(row["flop_ratio"]),
            "step, U Vᵀ": _times(entry(frame, row["net"], row["ratio"], "uv")),
            "step, CondLR": _times(row["step_ratio"]),
            "memory": _times(row["memory_ratio"]),
            "latency": _times(row["latency_ratio"] * row["flop_ratio"]),
        }
        for row in _rows(frame, "condlr")
    ]
    return table(pd.DataFrame(rows))


def recompute_table(frame: pd.DataFrame) -> Styler:
    """Memory and time of a CondLR step to dense, as it is and with `wc.recompute`, one row a network and ratio."""
    rows = []
    for row in _rows(frame, "condlr"):
        where = {"network": NETS[row["net"]], "rank removed": f"{100 * row['ratio']:g} %"}
        for how, method in (("", "condlr"), (", recomputed", RECOMPUTED)):
            for what in ("memory", "step"):
                value = entry(frame, row["net"], row["ratio"], method, f"{what}_ratio")
                where[f"{what}{how}"] = _times(value)
        rows.append(where)
    return table(pd.DataFrame(rows))


def integrators_table(frame: pd.DataFrame) -> Styler:
    """Passes over a batch and step time to the dense network, one row an integrator, one column a rank ratio."""
    if frame.empty:
        return table(frame)
    rows = []
    for method, group in frame[frame["method"] != "dense"].groupby("method", sort=False):
        steps = {
            f"step, {100 * ratio:g} % removed": f"{_times(step)} ({100 * share:.0f} %)"
            for ratio, step, share in zip(group["ratio"], group["step_ratio"], group["optimizer_share"], strict=True)
        }
        rows.append({"method": look(str(method)).label, "passes": _times(group["passes"].iloc[0]), **steps})
    return table(pd.DataFrame(rows))


FORMS = {
    "dense": "dense",
    "uv": "U Vᵀ, two layers",
    "wellcond": "wellcond, κ(S) ≤ 1.1",
    "qr": "U, V by differentiated QR",
    "geotorch": "geotorch",
    "tensorly_torch": "tensorly-torch",
}
"""What the bench of other libraries compares."""


def peers_table(frame: pd.DataFrame) -> Styler:
    """Seconds of a training step in several libraries: one row a network and form, with a star where its bases are
    orthonormal, one column an optimizer and share removed."""
    if frame.empty:
        return table(frame)
    steps = frame.set_index(["net", "method", "optimizer", "ratio"])["step_s"]
    columns = [(o, r) for r in sorted(frame["ratio"].dropna().unique()) for o in ("SGD", "AdamW")]
    rows = []
    for net, form in ((net, form) for net in frame["net"].unique() for form in FORMS):
        own = frame[(frame["net"] == net) & (frame["method"] == form)]
        if own.empty:
            continue
        ratio = {r: r if form != "dense" else np.nan for _, r in columns}
        cells = {f"{o}, {100 * r:g} % removed": _times(steps.get((net, form, o, ratio[r]), np.nan)) for o, r in columns}
        star = " *" if own["orthonormal"].iloc[0] else ""
        rows.append({"network and form (*: orthonormal)": f"{NETS[net]}, {FORMS[form]}{star}", **cells})
    return table(pd.DataFrame(rows))


def _stack(
    ax: Axes,
    labels: Sequence[str],
    widths: Mapping[str, pd.Series],
    colors: Mapping[str, str],
    ticks: pd.Series,
    name: str,
) -> None:
    """Stacked horizontal bars in units of the dense time, one a label, and a black tick on each."""
    left = np.zeros(len(labels))
    for part, color in colors.items():
        ax.barh(labels, widths[part].to_numpy(), left=left, color=color, height=0.72, label=part)
        left += widths[part].to_numpy()
    ax.plot(ticks, labels, color="#000000", linestyle="", marker="|", markersize=11, markeredgewidth=1.8, label=name)
    ax.axvline(1, color="#888888", linewidth=0.8)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("time / dense")


def plot_split(frame: pd.DataFrame) -> Figure:
    """Forward, backward and optimizer time of a training step, in units of the dense step; a tick at the FLOP ratio."""
    nets = list(frame["net"].unique()) if len(frame) else []
    fig, axes = panels([NETS[net] for net in nets], 3, 3.1)
    if not nets:
        return finish(fig)
    for ax, net in zip(axes, nets, strict=True):
        rows = fastest_dense(frame[frame["net"] == net]).sort_values("ratio", na_position="first", kind="stable")
        dense = rows[rows["method"] == "dense"].iloc[0]
        unit = (dense["forward_s"] + dense["backward_s"] + dense["optimizer_s"]) / dense["step_ratio"]
        labels = [
            "dense" if method == "dense" else f"{look(method).label}, {100 * ratio:g} %"
            for method, ratio in zip(rows["method"], rows["ratio"], strict=True)
        ]
        widths = {part: rows[f"{part}_s"] / unit for part in PARTS}
        _stack(ax, labels, widths, PARTS, rows["train_flop_ratio"], "FLOPs of the step")
    axes[0].invert_yaxis()  # the panels share it
    return finish(fig)


def fitted_slope(x: Any, y: Any) -> tuple[float, float]:
    """Least-squares slope of log y against log x, at least two points, and its standard error."""
    x, y = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    slope, intercept = np.polyfit(x, y, 1)
    residual = float(np.sum((y - slope * x - intercept) ** 2))
    return float(slope), float(np.sqrt(residual / max(1, len(x) - 2) / np.sum((x - x.mean()) ** 2)))


def slopes(frame: pd.DataFrame, largest: int = 3) -> pd.DataFrame:
    """`fitted_slope` of time against size over the `largest` sizes of each sweep.

    Columns: sweep, quantity (a column of seconds), slope, error, theory.
    """
    rows = []
    for sweep, group in frame.groupby("sweep", sort=False):
        size = "n" if sweep == "size" else str(sweep)
        last = group.sort_values(size).tail(largest)
        for quantity in LINES:
            slope, error = fitted_slope(last[size], last[quantity])
            rows.append(
                {"sweep": sweep, "quantity": quantity, "slope": slope, "error": error, "theory": SWEEPS[str(sweep)][2]}
            )
    return pd.DataFrame(rows)


def slopes_table(frame: pd.DataFrame) -> Styler:
    """The fitted slopes of the step, of its plain form and of its products, beside the exponent of (n + m) r²."""
    if frame.empty:
        return table(frame)
    fitted = slopes(frame)
    rows = []
    for sweep, group in fitted.groupby("sweep", sort=False):
        entries = {
            LINES[quantity][0]: f"{slope:.2f} ± {error:.2f}"
            for quantity, slope, error in zip(group["quantity"], group["slope"], group["error"], strict=True)
        }
        rows.append({"grows": SWEEPS[str(sweep)][0], "theory": str(group["theory"].iloc[0]), **entries})
    return table(pd.DataFrame(rows))


def plot_growth(frame: pd.DataFrame) -> Figure:
    """Time of one integrator step against rank, size and number of layers; dashed grey: the slope of the theory."""
    sweeps = list(frame["sweep"].unique()) if len(frame) else []
    titles = [SWEEPS[s][1].format_map(frame[frame["sweep"] == s].iloc[-1]) for s in sweeps]
    fig, axes = panels(titles, 3, 2.9, share="all")
    if not sweeps:
        return finish(fig)
    for ax, sweep in zip(axes, sweeps, strict=True):
        name, _, exponent = SWEEPS[sweep]
        rows = frame[frame["sweep"] == sweep]
        x = rows["n" if sweep == "size" else sweep].to_numpy(float)
        for quantity, (label, color, dash, marker) in LINES.items():
            ax.plot(x, 1e3 * rows[quantity], label=label, color=color, linestyle=dash, marker=marker)
        guide = 0.5e3 * rows["products_s"].iloc[-1] * (x / x[-1]) ** exponent
        ax.plot(x, guide, color="#999999", linewidth=1, label="slope of the theory, (n + m) r²")
        ax.set(xscale="log", yscale="log", xlabel=name)
        ax.set_xticks(x, [f"{value:g}" for value in x])
        ax.minorticks_off()
    axes[0].set_ylabel("processor time, ms")
    return finish(fig, x_ticks=False)


def retractions_table(frame: pd.DataFrame) -> Styler:
    """Cost relative to Householder's QR of the same size, and errors, of each way to compute a retraction."""
    if frame.empty:
        return table(frame)
    unit = frame.groupby("rank")["seconds"].transform("first")
    return table(
        pd.DataFrame(
            {
                "retraction": frame["retraction"],
                "n × r": frame["n"].astype(str) + " × " + frame["rank"].astype(str),
                "time / Householder": (frame["seconds"] / unit).map(_times),
                "orthogonality error": frame["orthogonality"].map(number),
                "largest error of an entry": frame["error"].map(number),
            }
        )
    )


def ablation_table(frame: pd.DataFrame) -> Styler:
    """The variants of one convolution layer, in units of the dense layer's training step."""
    if frame.empty:
        return table(frame)
    dense = frame[frame["variant"] == "dense"].iloc[0]
    unit = dense["forward_backward_s"] + dense["optimizer_s"]
    return table(
        pd.DataFrame(
            {
                "layer and step": frame["variant"],
                "forward and backward": (frame["forward_backward_s"] / unit).map(_times),
                "optimizer": (frame["optimizer_s"] / unit).map(_times),
                "together / dense": frame["step_ratio"].map(_times),
            }
        )
    )


def entry(frame: pd.DataFrame, net: str, rank_ratio: float, method: str, column: str = "step_ratio") -> float:
    """One number of the training table; nan if it was not measured."""
    rows = frame[(frame["net"] == net) & (frame["ratio"] == rank_ratio) & (frame["method"] == method)]
    return float(rows[column].iloc[0]) if len(rows) else float("nan")


def architectures_table(frame: pd.DataFrame) -> Styler:
    """The networks of other people: their matrices, what stays dense, and what is deployed of them."""
    return table(
        pd.DataFrame(
            {
                "network": row["architecture"],
                "matrices": row["matrices"],
                "weights left dense": percent(row["left_dense"]),
                "parameters": f"{row['dense_parameters']:,}",
                "deployed": percent(row["deployed_parameters"] / row["dense_parameters"]),
            }
            for row in frame.to_dict("records")
        )
    )
