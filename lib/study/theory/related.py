"""Related systems, each in its textbook form: their claims, put to the test by the smallest experiment that can tell.

A system is a function of the number of seeds; it gives findings and the rows (panel, series, x, y, seed) of its figure.
``python -m study related SYSTEM --save`` writes them to results/related: claims.csv, and a table for each figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd

from study import paths
from study.results.provenance import environment, now
from study.results.store import save_table
from study.statistics.verdicts import Finding
from study.theory.convex_landscape import convex_landscape
from study.theory.federated import federated, federated_mnist
from study.theory.kernel_pooling import CIFAR10 as POOLING_CIFAR
from study.theory.kernel_pooling import kernel_pooling
from study.theory.large_batches import large_batches
from study.theory.orthogonal_flow import orthogonal_flow
from study.theory.rewiring import CIFAR10 as REWIRING_CIFAR
from study.theory.rewiring import rewiring
from study.theory.surf import surf
from study.theory.undertraining import CIFAR10 as UNDERTRAINING_CIFAR
from study.theory.undertraining import undertraining
from study.theory.unrolled import unrolled
from wellcond.errors import invalid, unknown

SYSTEMS: dict[str, Callable[[int], tuple[list[Finding], pd.DataFrame]]] = {
    "orthogonal_flow": orthogonal_flow,
    "convex_landscape": convex_landscape,
    "unrolled": unrolled,
    "undertraining": undertraining,
    "undertraining_cifar": partial(undertraining, p=UNDERTRAINING_CIFAR),
    "federated": federated,
    "federated_mnist": federated_mnist,
    "surf": surf,
    "kernel_pooling": kernel_pooling,
    "kernel_pooling_cifar": partial(kernel_pooling, p=POOLING_CIFAR),
    "large_batches": large_batches,
    "rewiring": rewiring,
    "rewiring_cifar": partial(rewiring, p=REWIRING_CIFAR),
}
"""The systems by name."""


def measure(system: str, *, seeds: int = 3) -> tuple[list[Finding], pd.DataFrame]:
    """Findings and rows of a system. Raises ValueError for an unknown one, and for fewer than two seeds."""
    if system not in SYSTEMS:
        raise unknown("system", system, SYSTEMS)
    if seeds < 2:
        raise invalid("seeds", seeds, ">= 2, as an interval takes two")
    environment("cpu")  # which remembers the code that the numbers come from
    return SYSTEMS[system](seeds)


_started = now()


def save(system: str, findings: Sequence[Finding], rows: pd.DataFrame, *, seeds: int) -> None:
    """Write results/related/claims.csv, keeping what other systems have in it, and <system>.csv, with provenance."""
    folder = paths.results() / "related"
    command = f"python -m study related {system} --seeds {seeds} --save"
    provenance = {"command": command, "started": _started, "finished": now(), **environment("cpu")}
    save_table(folder, "claims", [finding.row() for finding in findings], provenance, key="system")
    figure: list[Any] = rows.to_dict("records")
    save_table(folder, system, figure, provenance)


def load(table: str) -> pd.DataFrame:
    """claims, in the order of SYSTEMS, or the rows of a system's figure, as committed; empty if there is none."""
    path = paths.results() / "related" / f"{table}.csv"
    if path.exists():
        rows = pd.read_csv(path)
        place = {system: k for k, system in enumerate(SYSTEMS)}
        return rows.sort_values("system", key=lambda own: own.map(place), kind="stable") if "system" in rows else rows
    columns = () if table == "claims" else ("panel", "series", "x", "y", "seed")
    return pd.DataFrame(columns=[*columns], dtype=float)
