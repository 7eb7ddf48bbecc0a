"""How the book writes numbers, tables and figures: one style for all of them. Never imports torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import pandas as pd
import seaborn as sns
from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from pandas.api.types import is_numeric_dtype
from pandas.io.formats.style import Styler

ATTACKS = {
    "clean": "clean",
    "fgsm": "FGSM",
    "pgd_linf": "PGD ℓ∞",
    "pgd_l2": "PGD ℓ₂",
    "mim_linf": "momentum PGD",
    "fgsm_scaled": "FGSM, scaled logits",
    "pgd_linf_scaled": "PGD ℓ∞, scaled logits",
    "pgd_l2_scaled": "PGD ℓ₂, scaled logits",
    "square_linf": "Square ℓ∞",
    "square_l2": "Square ℓ₂",
    "autoattack_linf": "AutoAttack ℓ∞",
    "autoattack_l2": "AutoAttack ℓ₂",
    "gaussian_noise": "Gaussian noise",
    "blur": "blur",
    "contrast": "contrast",
}
"""What an attack or corruption is called in the book, by its name in study.attacks.registry, which needs torch."""
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
# The labels are those of wellcond.methods.registry, for cells that have not been computed (a test keeps them equal).
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
    "fw_l2": Look("FW, l2", "#009E73", "v", ":"),
    "fw_k_sparse": Look("FW, k-sparse", "#E69F00", "p", "--"),
    "fw_k_support": Look("FW, k-support", "#E69F00", "^", "--"),
    "fw_group_k_support": Look("FW, k filters", "#CC79A7", "D", "-."),
    "fw_nuclear": Look("FW, nuclear", "#009E73", "s", "--"),
    "fw_spectral_k_sparse": Look("FW, spectral k-sparse", "#009E73", "d", "-."),
    "fw_spectral_k_support": Look("FW, spectral k-support", "#009E73", "P"),
    "fw_spectral_k_support_none": Look("FW, spectral k-support, rescaling none", "#009E73", "X", ":"),
    "fw_spectral_k_support_diameter": Look("FW, spectral k-support, rescaling diameter", "#009E73", "<", "--"),
    "fw_spectral_k_support_fast_gradient": Look(
        "FW, spectral k-support, rescaling fast gradient", "#009E73", ">", "-."
    ),
    "lorita": Look("LoRITa", "#7A5195", "o"),
    "nuclear_norm": Look("nuclear-norm penalty", "#D55E00", "h", "--"),
    "proximal_sgd": Look("proximal SGD", "#D55E00", "X"),
    "group_lasso": Look("group lasso on filters", "#CC79A7", "*", ":"),
}


def look(
    method: str,
    max_cond: float = math.nan,
    tolerance: float = math.nan,
    beta: float = math.nan,
    depth: float = math.nan,
    **_: object,
) -> Look:
    """The look of a configuration: of τ, ϑ and the depth N the middle ones look as the method does, the smallest and
    the largest have their own marker and dash; without its penalty (β = 0) a marker is open. An unknown method is grey.
    Other settings change nothing."""
    base = LOOKS.get(method, Look(method, "#888888", "h"))
    if beta == 0:
        base = base._replace(fill="none")
    if max_cond == 1:
        return base._replace(marker="<", dash=":")
    if max_cond > 1.25:
        return base._replace(marker=">", dash="--")
    if depth == 1 or depth > 2:
        return base._replace(marker="<", dash=":") if depth == 1 else base._replace(marker=">", dash="--")
    if tolerance == 0:
        return base._replace(marker="s")
    return base._replace(marker="v", dash="-.") if tolerance > 0.15 else base


def style() -> None:
    """Draw every figure from now on in the style of the book; the functions plot_* call it themselves."""
    sns.set_theme(style="whitegrid", font="DejaVu Sans", rc=STYLE)


# --- text ------------------------------------------------------------------------------------------------------------


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


def signed(value: float, digits: int = 2) -> str:
    """ "+0.33", "−0.92", with a minus sign as long as the plus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def unbroken(text: object) -> str:
    """With formulas that no line break tears apart: τ = 0.1, U S Vᵀ, ratio 0.8, 50 %."""
    return re.sub(r"(?<==) | (?==)|(?<=\bU) (?=[SV])|(?<=\bS) (?=V)|(?<=\bratio) |(?<=\d) (?=%)", "\u00a0", str(text))


def table(frame: pd.DataFrame) -> Styler:
    """A frame of text as a table: first column left, the others right; of many columns, in smaller type."""
    size, padding = ("0.8em", "0.25em") if len(frame.columns) > 7 else ("0.85em", "0.4em")
    cell = f"text-align: right; padding: 0.2em {padding}; vertical-align"
    styles: Any = [
        {"selector": "", "props": f"font-size: {size}"},
        {"selector": "th", "props": f"{cell}: bottom"},
        {"selector": "td", "props": f"{cell}: top; white-space: nowrap"},
        {"selector": "th.col0, td.col0", "props": "text-align: left; white-space: normal; min-width: 7em"},
    ]
    text: dict[Any, Any] = {column: unbroken for column in frame if not is_numeric_dtype(frame[column])}
    return frame.style.hide(axis="index").set_table_styles(styles).format(text)


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
