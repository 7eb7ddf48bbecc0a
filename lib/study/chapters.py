"""What a chapter shows: the committed results, or results computed now."""

from __future__ import annotations

import sys
from typing import Any

from study.experiments.cells import load, measure_conditioning, run_experiment
from study.experiments.specification import Experiment
from study.experiments.tasks import assess
from study.results.store import Results
from wellcond.errors import invalid


def load_or_run(
    experiment: str,
    *,
    preset: str = "paper",
    run: bool = False,
    condition_images: int = 0,
    suite: bool = False,
    **overrides: Any,
) -> Results:
    """What a chapter shows: the committed results (run=False), or results computed now (run=True).

    experiment: a file in book/experiments; preset: "paper" or "smoke"; overrides: model="package.module:factory",
    dataset, seeds, ...; empty ones are ignored. When running, condition_images is the number of test images at which
    κ_rel of the trained networks is measured too, and with suite=True the attack suite is run on them. Computed results
    go to results/local and never touch the committed ones; rerunning resumes them.
    Raises ValueError if nothing has been computed for these parameters and run is False.
    """
    spec = Experiment.load(experiment, preset, **overrides)
    if not run:
        found = load(spec)
        if spec.modified() and found.runs.empty:
            raise invalid("run", run, f"True: there are no results for preset {preset!r} with these parameters yet")
        return found
    folder = spec.local_folder()
    run_experiment(spec, folder, progress=sys.stderr.isatty())
    if condition_images:
        measure_conditioning(spec, folder, n_images=condition_images)
    if suite:
        assess(spec, folder, bar=sys.stderr.isatty())
    return load(spec, folder)
