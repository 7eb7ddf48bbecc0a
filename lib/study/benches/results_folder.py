"""What it costs to keep the results of many cells: to claim one, to save it, to see how far all are, to load them."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from study.benches.clocks import clock, interleaved
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


def _row(size: int, repeats: int, folder: Path) -> dict[str, Any]:
    hashes = {f"condlr-s{k}": f"hash of condlr-s{k}" for k in range(size + repeats + 1)}
    specs = {run_id: {"method": "condlr", "seed": 0} for run_id in hashes}
    run_ids = iter(hashes)

    def save() -> None:
        run_id = next(run_ids)
        results.save(folder, run_id, *_cell(run_id))

    def claim() -> None:
        results.done(folder, hashes, ATTACKS)
        with claims.claimed(claims.key("cell", folder, "one")):
            results.done(folder, hashes, ATTACKS)

    def status() -> None:
        results.done(folder, hashes, ATTACKS)
        claims.holders(folder)

    def load() -> None:
        results.load(folder, specs, hashes, ATTACKS)

    for _ in range(size):
        save()
    start = clock("cpu")
    results.fold(folder)
    merge_s = clock("cpu") - start
    seconds = interleaved({"claim_s": claim, "save_s": save, "status_s": status, "load_s": load}, repeats)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    return {"cells": size, "curve_rows": EPOCHS * LAYERS, **medians, "merge_s": merge_s}


def results_folder_rows(*, repeats: int = 15, device: str = "cpu") -> list[dict[str, Any]]:
    """For each of SIZES, processor seconds (medians) of each operation on a folder with so many cells, and of merging
    all of them into the tables."""
    rows = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(_row(size, repeats, Path(folder)))
    return rows
