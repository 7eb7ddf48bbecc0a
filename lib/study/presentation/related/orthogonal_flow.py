"""The figure of flows on O(d): gradients against depth."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from study.presentation.related.lines import Look, lines
from study.presentation.style import finish, panels

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
    lines(left, rows[rows["panel"] == "depth"].assign(y=lambda frame: frame["y"].clip(-6, 6)), FLOWS)
    left.axhspan(
        -1 / math.log(10), 1 / math.log(10), color="#888888", alpha=0.18, linewidth=0, label="the bound of the theorem"
    )
    left.set(xscale="log", xlabel="layers or steps, N", ylim=(-6, 6))
    left.set_yticks(
        range(-6, 7, 2), [f"10{str(k).translate(str.maketrans('-0123456', '⁻⁰¹²³⁴⁵⁶'))}" for k in range(-6, 7, 2)]
    )
    lines(right, rows[rows["panel"] == "strength"], FLOWS)
    right.axhspan(0, 1, color="#888888", alpha=0.18, linewidth=0)
    right.set(xscale="log", xlabel="strength of the parameter flow", ylim=(0, None))
    return finish(fig)
