"""What it costs to keep the results of many cells: to claim one, to save it, to see how far all are, to load them."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from study.benches.clocks import clock
from study.results import claims
from study.results import store as results
from study.results.store import Measurement
from study.results.tables import Row

SIZES = (125, 250, 500, 1000, 2000)
EPOCHS, LAYERS = 100, 5
"""A cell has as many rows of curves as their product."""
ATTACKS = [Measurement("fgsm", eps / 10) for eps in range(6)]


def _cell(run_id: str) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """Tables and provenance as a cell has them."""
    about = {
        "spec": {"method": "condlr", "seed": 0},
        "spec_hash": f"hash of {run_id}",
        "versions": {"torch": 100 * "2"},
    }
    run = {"run_id": run_id, "method": "condlr", "status": "done", "n_test": 1000, "n_correct": 900}
    tables: dict[str, list[Row]] = {
        "runs": [{**run, "spec_hash": about["spec_hash"]}],
        "robustness": [
            {**attack._asdict(), "run_id": run_id, "n_examples": 1000, "n_correct": 500} for attack in ATTACKS
        ],
        "curves": [
            {"run_id": run_id, "epoch": epoch, "layer": f"layer{k}", "quantity": "kappa", "value": 1 + epoch / 7}
            for epoch in range(EPOCHS)
            for k in range(LAYERS)
        ],
        "spectra": [
            {"run_id": run_id, "epoch": EPOCHS, "layer": "fc", "index": k, "singular_value": 1} for k in range(50)
        ],
    }
    return tables, {**about, "training": {"device": 500 * "x"}}


def results_folder_rows(*, repeats: int = 15, device: str = "cpu") -> list[dict[str, Any]]:
    """For each of SIZES, processor seconds (medians) of each operation on a folder with so many cells, and of merging
    all of them into the tables."""
    rows = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            hashes = {f"condlr-s{k}": f"hash of condlr-s{k}" for k in range(size + repeats)}
            specs = {run_id: {"method": "condlr", "seed": 0} for run_id in hashes}
            for run_id in [*hashes][:size]:
                results.save(folder, run_id, *_cell(run_id))
            start = clock("cpu")
            results.fold(folder)
            merge_s = clock("cpu") - start
            waiting = iter([*hashes][size:])

            def claim(folder: Path = folder, hashes: dict[str, str] = hashes) -> None:
                results.done(folder, hashes, ATTACKS)
                with claims.claimed(claims.key("cell", folder, "one")):
                    results.done(folder, hashes, ATTACKS)

            def save(folder: Path = folder, waiting: Any = waiting) -> None:
                run_id = next(waiting)
                results.save(folder, run_id, *_cell(run_id))

            def status(folder: Path = folder, hashes: dict[str, str] = hashes) -> None:
                results.done(folder, hashes, ATTACKS)
                claims.holders(folder)

            def load(folder: Path = folder, specs: Any = specs, hashes: dict[str, str] = hashes) -> None:
                results.load(folder, specs, hashes, ATTACKS)

            tasks: dict[str, Callable[[], None]] = {
                "claim_s": claim,
                "save_s": save,
                "status_s": status,
                "load_s": load,
            }
            seconds: dict[str, list[float]] = {key: [] for key in tasks}
            for _ in range(repeats):
                for key, task in tasks.items():
                    start = clock("cpu")
                    task()
                    seconds[key].append(clock("cpu") - start)
            medians = {key: statistics.median(values) for key, values in seconds.items()}
            rows.append({"cells": size, "curve_rows": EPOCHS * LAYERS, **medians, "merge_s": merge_s})
    return rows
