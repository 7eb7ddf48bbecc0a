"""How far the experiments of the study are."""

from __future__ import annotations

from typing import Any

from study import paths
from study.experiments import failures
from study.experiments.specification import Experiment
from study.results import claims
from study.results import store as results
from study.results.checkpoints import in_progress


def status() -> list[dict[str, Any]]:
    """Per experiment of book/experiments: cells done, missing, diverged, failed, how far those are that have been
    begun, and who is at work on them."""
    rows, begun, works = [], in_progress(), {False: "cell", True: "assess"}
    for path in sorted(paths.experiments().glob("*.toml")):
        spec = Experiment.load(path.stem)
        folder = spec.folder()
        cells = spec.cells()
        hashes = {cell.run_id: cell.spec_hash for cell in cells}
        complete = results.done(folder, hashes, spec.attacks())
        runs = results.read_table(folder, "runs")
        diverged = set(runs.loc[runs["status"] == "diverged", "run_id"]) & complete
        noted_ones = failures.names(folder)
        missing = [cell.run_id for cell in cells if cell.run_id not in complete]
        rows.append(
            {
                "experiment": spec.name,
                "cells": len(cells),
                "done": len(complete) - len(diverged),
                "missing": missing,
                "diverged": sorted(diverged),
                "failed": [cell.run_id for cell in cells if cell.run_id in noted_ones],
                "progress": {
                    run_id: begun[spec_hash]
                    for run_id, spec_hash in hashes.items()
                    if spec_hash in begun and run_id not in complete
                },
                "workers": {
                    run_id: worker
                    for (work, run_id), worker in claims.holders(folder).items()
                    if run_id in hashes and work == works[run_id in complete]
                },
            }
        )
    return rows
