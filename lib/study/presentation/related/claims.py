"""What related systems claim, and what became of it: a table."""

from __future__ import annotations

import math

import pandas as pd
from pandas.io.formats.style import Styler

from study.presentation.style import table

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


def claims_table(claims: pd.DataFrame, *systems: str) -> Styler:
    """One row a claim of these systems, or of all: number, 95 % interval over the seeds, what it wants, verdict."""
    shown = claims[claims["system"].isin(systems)] if systems else claims
    rows = [
        {
            **({} if len(systems) == 1 else {"system": SYSTEMS[row["system"]]}),
            "claim": row["claim"],
            "measured": row["measured"],
            "claimed": _band(row["low"], row["high"]),
            "value": value_text(row["value"], row["margin"]),
            "verdict": row["verdict"],
        }
        for row in shown.to_dict("records")
    ]
    return table(pd.DataFrame(rows))
