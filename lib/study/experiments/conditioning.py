"""Measure how the trained networks of an experiment are conditioned; a network is not trained for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from study.experiments.cells import load, selected
from study.experiments.published import trained_already
from study.experiments.specification import Experiment
from study.experiments.weights import cell_data
from study.measurement.conditioning import condition_rows
from study.results import store as results
from study.results.provenance import environment, now
from wellcond.errors import invalid


def measure_conditioning(
    experiment: Experiment, folder: Path | None = None, *, n_images: int = 500, only: Sequence[str] = ()
) -> dict[str, str]:
    """Fill in conditioning.csv: κ_rel at the first n_images test images, and the factors of its bound.

    For the completed cells (matching a pattern of `only`) that have not been measured and whose weights are kept or
    published; a network is not trained for it.
    Returns {run_id: "measured", "known", "no weights" or why it was refused}.
    Raises ValueError for a pattern that matches no cell, or n_images < 1.
    """
    if n_images < 1:
        raise invalid("n_images", n_images, ">= 1")
    folder = folder or experiment.folder()
    found = load(experiment, folder)
    known, done = set(found.conditioning["run_id"]), set(found.runs.loc[found.runs["status"] == "done", "run_id"])
    outcome = {}
    for cell in tqdm(selected(experiment, only), unit="cell", disable=not sys.stderr.isatty()):
        if cell.run_id in known or cell.run_id not in done:
            outcome[cell.run_id] = "known" if cell.run_id in known else "no weights"
            continue
        started = now()
        try:
            if (model := trained_already(cell)) is None:
                outcome[cell.run_id] = "no weights"
                continue
            rows = condition_rows(model, cell_data(cell, "cpu").test, n_images)
        except ValueError as error:
            outcome[cell.run_id] = str(error)
            continue
        command = f"python -m study conditioning {experiment.name} --preset {experiment.preset} --images {n_images}"
        provenance = {"command": command, "started": started, "finished": now(), **environment("cpu")}
        results.add(folder, cell.run_id, "conditioning", [{**row, "run_id": cell.run_id} for row in rows], provenance)
        outcome[cell.run_id] = "measured"
    results.fold(folder)
    return outcome
