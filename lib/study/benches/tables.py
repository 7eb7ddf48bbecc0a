"""What training and inference cost: every number is a ratio of medians over interleaved repetitions in one process.

One thread, and the dense network, in the faster of its two memory layouts, as the reference. Nothing here is compared
across runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch

from study import paths
from study.benches.adaptation import adaptation_rows
from study.benches.architectures import architecture_rows
from study.benches.budgets import budget_rows
from study.benches.integrator import ablation_rows, clip_rows, growth_rows, retraction_rows
from study.benches.linear_minimization import lmo_growth_rows, lmo_rows
from study.benches.peers import peer_rows
from study.benches.results_folder import results_folder_rows
from study.benches.training import INTEGRATORS, Row, training_rows
from wellcond.errors import invalid, unknown

BY_NET: dict[str, Callable[..., list[Row]]] = {
    "training": training_rows,
    "integrators": lambda net, ratios, **how: training_rows(net, ratios, methods=INTEGRATORS, **how),
    "budgets": budget_rows,
    "peers": peer_rows,
    "lmo": lambda net, ratios, **how: lmo_rows(net, **how),
}
"""Tables of one network, from net, ratios, batch, repeats and device."""
TABLES: dict[str, Callable[..., list[Row]]] = {
    "growth": growth_rows,
    "retractions": retraction_rows,
    "clip": clip_rows,
    "ablation": ablation_rows,
    "lmo_growth": lmo_growth_rows,
    "results_folder": results_folder_rows,
    "architectures": architecture_rows,
    "adaptation": lambda repeats, device: adaptation_rows(),  # on one thread of a CPU, each seed once
}
"""Tables of no network, from repeats and device."""


def measure(
    table: str,
    *,
    net: str = "lenet5",
    ratios: Sequence[float] = (0.5, 0.8, 0.9),
    batch: int = 128,
    repeats: int = 15,
    device: str = "cpu",
) -> list[Row]:
    """The rows of a table, a key of BY_NET or TABLES; only the first read net and batch, and some ratios.

    Of the rank of each layer, ratios are the shares removed, in [0, 1).

    Raises ValueError, naming the field, for a value out of range.
    """
    if repeats < 2:
        raise invalid("repeats", repeats, ">= 2")
    if table not in {**BY_NET, **TABLES}:
        raise unknown("table", table, {**BY_NET, **TABLES})
    if not ratios:
        raise invalid("ratios", ratios, "at least one ratio")
    if table in BY_NET:
        return BY_NET[table](net, ratios, batch=batch, repeats=repeats, device=device)
    return TABLES[table](repeats=repeats, device=device)


def load_or_measure(table: str, *, run: bool = False, device: str = "cpu", **options: Any) -> pd.DataFrame:
    """What a chapter shows: the saved table (run=False; empty if there is none yet), or one measured now, see measure.

    Saved tables are results/bench/<device>/<table>.csv, written by ``python -m study bench --save``.
    """
    if run:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return pd.DataFrame(measure(table, device=device, **options))
        finally:
            torch.set_num_threads(threads)
    path = paths.results() / "bench" / device / f"{table}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame()
