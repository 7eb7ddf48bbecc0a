"""Publish trained weights beside the tables, where they are those that the results are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import save_file
from torch import nn

from study.experiments.cells import load, selected
from study.experiments.specification import Cell, Experiment
from study.experiments.weights import cell_data, digest, kept, weights_file
from study.measurement.accuracy import count_correct, robustness_curve
from study.results import files
from study.results import store as results
from study.results.provenance import environment, now
from study.results.tables import records


def _differs(
    cell: Cell, model: nn.Module, recorded: Mapping[str, Any], row: Mapping[str, Any], fgsm: pd.DataFrame
) -> str:
    """Why these are not the weights of the recorded results; empty if they are.

    By their hash; of older records, which have none, by what is counted on all test images: clean, and under FGSM.
    """
    if "weights" in recorded:
        return "" if digest(model) == recorded["weights"] else "other weights than those of the results"
    test = cell_data(cell, "cpu").test
    right = count_correct(model, test).n_correct
    if right != row["n_correct"]:
        return f"{right} of {len(test)} images right, where the results have {row['n_correct']:.0f}"
    measured = robustness_curve(model, test, "fgsm", [float(eps) for eps in fgsm["eps"]], seed=cell.seed)
    if [found["n_correct"] for found in measured] != fgsm["n_correct"].tolist():
        return "other counts under FGSM than the results"
    return ""


def publish(experiment: Experiment, folder: Path | None = None, *, only: Sequence[str] = ()) -> dict[str, str]:
    """Write the weights that are kept of completed cells (matching a pattern of `only`) beside their tables.

    Only where they are those of the results, whose provenance then has their hash. Trains nothing.
    Returns {run_id: "published", "no weights" or what differs}. Raises ValueError for a pattern that matches no cell.
    """
    folder = folder or experiment.folder()
    results.fold(folder)
    found = load(experiment, folder)
    runs = {row["run_id"]: row for row in records(found.runs)}
    fgsm = found.robustness[found.robustness["attack"] == "fgsm"]
    outcome = {}
    for cell in selected(experiment, only):
        if cell.run_id not in runs or not weights_file(cell).exists():
            outcome[cell.run_id] = "no weights"
            continue
        started, model = now(), kept(cell, "cpu").model
        recorded = found.provenance.get(cell.run_id, {})
        of_run = fgsm[(fgsm["run_id"] == cell.run_id) & (fgsm["n_examples"] == runs[cell.run_id]["n_test"])]
        outcome[cell.run_id] = _differs(cell, model, recorded, runs[cell.run_id], of_run) or "published"
        if outcome[cell.run_id] != "published":
            continue
        path = folder / "weights" / f"{cell.run_id}.safetensors"
        path.parent.mkdir(exist_ok=True)
        about = {"run_id": cell.run_id, "spec_hash": cell.spec_hash, "digest": digest(model)}
        with files.replacing(path) as part:
            save_file({name: t.contiguous() for name, t in model.state_dict().items()}, part, metadata=about)
        command = f"python -m study publish {experiment.name} --preset {experiment.preset}"
        source = {"command": command, "started": started, "finished": now(), **environment("cpu")}
        results.note(folder, cell.run_id, {"weights": about["digest"], "published": source})
    return outcome
