"""What a chapter starts with: its parameters, checked, and the results it shows, committed or computed now."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study.experiments.cells import load, run_experiment
from study.experiments.conditioning import measure_conditioning
from study.experiments.specification import Experiment
from study.experiments.tasks import assess
from study.results.store import Results
from wellcond.errors import invalid, unknown

NOTICE = (
    "> **Not the committed study.** Tables and figures on this page show *{title}* (preset {preset}), as computed "
    "here. The text describes the committed results of *{committed}*, and holds for those alone."
)
"""What an adapted chapter says first."""


def load_or_run(
    experiment: str,
    *,
    preset: str = "paper",
    run: bool = False,
    condition_images: int = 0,
    suite: bool = False,
    out: str = "",
    **overrides: Any,
) -> Results:
    """What a chapter shows: the committed results (run=False), or results computed now (run=True).

    experiment: a file in book/experiments; preset: "paper" or "smoke"; overrides: model="package.module:factory",
    dataset, seeds, epochs, ratios, ... (`Experiment.load`); empty ones are ignored. When running, condition_images is
    the number of test images at which κ_rel of the trained networks is measured too, and with suite=True the attack
    suite is run on them. Computed results go to the folder `out`, or to results/local, and never touch the committed
    ones; rerunning resumes them.
    Raises ValueError if nothing has been computed for these parameters and run is False.
    """
    given: dict[str, tuple[object, type]] = {"experiment": (experiment, str), "preset": (preset, str)}
    given |= {"out": (out, str), "run": (run, bool), "suite": (suite, bool)}
    for field, (value, kind) in given.items():
        if not isinstance(value, kind):
            accepted = "True or False" if kind is bool else "text"
            raise invalid(field, value, f"{accepted} (papermill reads {field} {value} as {type(value).__name__})")
    if not isinstance(condition_images, int) or isinstance(condition_images, bool) or condition_images < 0:
        raise invalid("condition_images", condition_images, "a whole number >= 0")
    spec = Experiment.load(experiment, preset, **overrides)
    if spec.modified():
        from IPython.display import Markdown, display  # a kernel has it; a command does not wait for it

        committed = Experiment.load(experiment).title
        notice = NOTICE.format(title=spec.title, preset=spec.preset, committed=committed)
        display(Markdown(notice))  # type: ignore[no-untyped-call]
    folder = spec.local_folder(Path(out).expanduser().resolve() if out else None)
    if not run:
        found = load(spec, folder if out else None)
        if (spec.modified() or out) and found.runs.empty:
            raise invalid("run", run, f"True: there are no results for preset {preset!r} with these parameters yet")
        return found
    run_experiment(spec, folder, progress=sys.stderr.isatty())
    if condition_images:
        measure_conditioning(spec, folder, n_images=condition_images)
    if suite:
        assess(spec, folder, bar=sys.stderr.isatty())
    return load(spec, folder)


def _assigned(source: str) -> list[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a cell with IPython magics assigns no parameters
        return []
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def check_parameters(cells: Sequence[str]) -> None:
    """Raise ValueError if papermill, which injects any name, passed a parameter that the chapter does not declare.

    cells: the sources of the executed cells, IPython's ``In``. The first one that assigns a name declares the
    parameters; papermill puts those it passes into a cell of its own that begins with "# Parameters".
    """
    declared: list[str] = []
    for source in cells:
        names = _assigned(source)
        if not declared:
            declared = names
        elif source.lstrip().startswith("# Parameters"):
            for name in names:
                if name not in declared:
                    raise unknown("parameter", name, declared)
