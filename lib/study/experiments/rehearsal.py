"""A rehearsal: an experiment as it will be run, with everything in it, and only the numbers small.

Cut are the images, the epochs, the seeds and the steps of attacks; every method, setting, attack, option, measurement
and data shape stays. So an hour of training does not end in an attack that cannot run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from study import data
from study.attacks.registry import ATTACKS
from study.experiments.cells import run_experiment
from study.experiments.conditioning import measure_conditioning
from study.experiments.specification import Experiment
from study.experiments.tasks import assess, progress

IMAGES = 8  # two batches of four
FEW: dict[str, int] = {"steps": 2, "restarts": 2, "iterations": 1, "queries": 2}
CUT = {"n_examples": IMAGES // 2, "steps": FEW["steps"], "epochs": 1}


def _short(grid: Mapping[str, Any]) -> dict[str, Any]:
    """What is measured, on few images, in few steps and epochs, and the attacks in it likewise."""
    short = {key: min(grid[key], few) for key, few in CUT.items() if grid.get(key) is not None}
    if "options" in grid:
        names = {option.name for option in ATTACKS[grid["name"]].options}
        short["options"] = {**grid["options"], **{key: few for key, few in FEW.items() if key in names}}
    if "attack" in grid:
        short["attack"] = [_short(attack) for attack in grid["attack"]]
    return {**grid, **short}


def _protocol(train: Mapping[str, Any], n_train: int) -> dict[str, Any]:
    """Two epochs, in which there is a milestone where there was one, and a warm-up where there was one."""
    short = {"epochs": 2, "batch_size": IMAGES // 2, "validation": IMAGES / n_train}
    cut = {"milestones": (1,), "warmup": 1}
    return {**train, **{k: v for k, v in short.items() if k in train}, **{k: v for k, v in cut.items() if train.get(k)}}


def rehearsal(experiment: Experiment) -> Experiment:
    """The experiment cut to a rehearsal of itself."""
    whole = experiment.model_dump()
    held_out = data.load(experiment.dataset, validation=0.0)
    n_train = len(held_out.train)
    return Experiment.model_validate(
        {
            **whole,
            "preset": "rehearsal",
            "seeds": experiment.seeds[:1],
            "n_train": IMAGES,
            "n_test": IMAGES,
            "train": _protocol(whole["train"], n_train),
            "method": [{**m, "train": _protocol(m["train"], n_train)} for m in whole["method"]],
            "attack": [_short(attack) for attack in whole["attack"]],
            "measurements": {name: [_short(grid) for grid in grids] for name, grids in whole["measurements"].items()},
            "spectra_epochs": tuple(epoch for epoch in experiment.spectra_epochs if epoch <= 2),
        }
    )


@contextmanager
def _elsewhere() -> Iterator[None]:
    """Results go to a folder that is gone afterwards."""
    before = os.environ.get("WELLCOND_RESULTS")
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        os.environ["WELLCOND_RESULTS"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["WELLCOND_RESULTS"]
            else:
                os.environ["WELLCOND_RESULTS"] = before


def rehearse(
    experiment: Experiment,
    *,
    device: str = "auto",
    only: Sequence[str] = (),
    assessed: Sequence[str] = (),
    bar: bool = True,
) -> dict[str, int]:
    """Run the rehearsal of an experiment: train, attack, compress, measure everything it declares, leaving nothing.

    only: glob patterns of run_ids; all cells if empty. assessed: of those to measure afterwards; `only` if empty.
    Returns how many "cells", "diverged" among them, and "measurements" there were. Raises what would end the real run.
    """
    short = rehearsal(experiment)
    with _elsewhere():
        found = run_experiment(short, device=device, only=only, progress=bar)
        assess(short, device=device, only=assessed or only, bar=bar)
        done, total = progress(short, only=assessed or only)
        if done < total:
            raise RuntimeError(f"{experiment.name}: {total - done} of {total} measurements were not made")
        kept = measure_conditioning(short, n_images=2, only=only)
        measured = sum(outcome == "measured" for outcome in kept.values())
        diverged = int((found.runs["status"] == "diverged").sum())
    return {"cells": len(found.runs), "diverged": diverged, "measurements": done + measured}
