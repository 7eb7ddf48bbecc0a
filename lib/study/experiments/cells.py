"""Fill in the missing cells of an experiment: train, evaluate, attack, record.

A cell is claimed by a lock, so several runners share the work; it is recorded only when complete, so an interrupted
run is finished by running it again.
"""

from __future__ import annotations

import fnmatch
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import Timeout
from torch import nn
from tqdm import tqdm

from study import data
from study.experiments import failures
from study.experiments.engines.local import carry_out, deadline_of, pick_device
from study.experiments.failures import noted
from study.experiments.specification import Cell, Experiment, canonical_hash
from study.experiments.weights import (
    Trained,
    cell_data,
    digest,
    skeleton,
    train_along,
    trained_together,
)
from study.measurement import accuracy as evaluate
from study.results import claims, files
from study.results import store as results
from study.results.checkpoints import Journal, OutOfTime
from study.results.provenance import environment, now
from study.results.store import Results
from study.results.tables import Row
from study.settings import SETTINGS
from study.training import distributed
from wellcond.convert import densify
from wellcond.counts import count_flops, count_parameters
from wellcond.deployment import deploy
from wellcond.errors import invalid, unknown
from wellcond.layers import low_rank_layers
from wellcond.methods.registry import find


def _trained_parameters(cell: Cell, model: nn.Module, device: str) -> int:
    """Of the network as it is trained: a product of factors has more than what becomes of it."""
    unfinished = skeleton(cell, device, finished=False) if find(cell.method).finishes else model
    return count_parameters(unfinished).trained


def _run_row(cell: Cell, network: Trained, dataset: data.Data, device: str) -> dict[str, Any]:
    model = network.model
    counts = count_parameters(model)
    score = evaluate.count_correct(model, dataset.test)
    constrained = {name for name, layer in low_rank_layers(model).items() if layer.S is not None}
    extremes = {
        quantity: max(
            (row["value"] for row in network.curves if row["layer"] in constrained and row["quantity"] == quantity),
            default=math.nan,
        )
        for quantity in ("kappa", "orth_error")
    }
    return {
        "rank_fraction": counts.rank_fraction,
        "n_params_dense": counts.dense,
        "n_params_trained": _trained_parameters(cell, model, device),
        "n_params_deployed": counts.deployed,
        "flops_dense": count_flops(densify(model), dataset.shape),
        "flops_deployed": count_flops(deploy(model), dataset.shape),
        "n_test": score.n,
        "n_correct": score.n_correct,
        "kappa_max": extremes["kappa"],
        "orth_error_max": extremes["orth_error"],
        "wall_s": network.wall_s,
        "peak_bytes": network.peak_bytes,
        "status": "done",
    }


def run_cell(
    cell: Cell,
    network: Trained,
    experiment: Experiment,
    device: str,
    journal: Journal,
    measured: Sequence[Row] = (),
) -> dict[str, list[Row]]:
    """Evaluate the trained network of one cell; returns the rows of every table.

    A diverged cell has a row without counts. journal: of the parts of its attacks. measured: rows of robustness.csv
    that the cell already has; an attack with all its radii among them is not repeated.
    """
    dataset = cell_data(cell, device)
    about = {
        "run_id": cell.run_id,
        "dataset": cell.dataset,
        "model": cell.model,
        "method": cell.method,
        "label": cell.label,
        **{key: cell.settings.get(key) for key in SETTINGS},
        "seed": cell.seed,
        "epochs": cell.train.epochs if find(cell.method).trains else 0,
        "device": device,
        "spec_hash": cell.spec_hash,
    }
    curves: list[Row] = [{**row, "run_id": cell.run_id} for row in network.curves]
    if network.diverged:
        tqdm.write(f"{cell.run_id}: diverged ({network.diverged})", file=sys.stderr)
        return {"runs": [{**about, "status": "diverged"}], "curves": curves}
    tables: dict[str, list[Row]] = {"robustness": []}
    for attack in experiment.attack:
        images = dataset.test.first(attack.n_examples)
        wanted = {measurement.among(len(images)) for measurement in attack.measurements()}
        known = {results.measurement(row): row for row in measured}
        if wanted <= known.keys():
            tables["robustness"] += [known[m] for m in sorted(wanted)]
            continue
        curve = evaluate.robustness_curve(
            network.model, images, attack.name, attack.eps, seed=cell.seed, once=journal.once, **attack.options
        )
        tables["robustness"] += curve
        if time.monotonic() > journal.deadline:
            raise OutOfTime
    tables["curves"] = curves
    wanted_epochs = {*experiment.spectra_epochs, about["epochs"]}
    tables["spectra"] = [row for row in network.spectra if row["epoch"] in wanted_epochs]
    tables["runs"] = [{**about, **_run_row(cell, network, dataset, device)}]
    return {table: [{**row, "run_id": cell.run_id} for row in rows] for table, rows in tables.items()}


def _completed(experiment: Experiment, folder: Path) -> Callable[[], set[str]]:
    """Asks for the run_ids that are completed by now."""
    return partial(results.done, folder, experiment.hashes(), experiment.attacks())


def selected(experiment: Experiment, only: Sequence[str]) -> list[Cell]:
    """The cells whose run_id matches a pattern of `only`, in the order of the patterns; all if there is none."""
    cells = {cell.run_id: cell for cell in experiment.cells()}
    chosen: dict[str, Cell] = {} if only else cells
    for pattern in only:
        hits = fnmatch.filter(cells, pattern)
        if not hits:
            raise unknown("only", pattern, cells)
        chosen.update({run_id: cells[run_id] for run_id in hits})
    return list(chosen.values())


def check_together(together: int) -> None:
    """Raise ValueError unless it is a number of cells."""
    if not isinstance(together, int) or together < 1:
        raise invalid("together", together, "an integer >= 1")


def _alike(cell: Cell, other: Cell) -> bool:
    """Whether two cells differ only in their seeds, and can be trained as one batched network."""
    alone = cell.adversary is not None or not find(cell.method).stackable
    return not alone and cell.model_copy(update={"seed": other.seed}) == other


def _claim(
    locks: ExitStack,
    completed: Callable[[], set[str]],
    folder: Path,
    cell: Cell,
    waiting: Sequence[Cell],
    together: int,
) -> list[Cell]:
    """`cell` and up to together - 1 of those waiting that are like it, missing and now locked; empty if it is done or
    somebody else's."""

    def lock(candidate: Cell) -> bool:
        try:
            locks.enter_context(claims.claimed(claims.key("cell", folder, candidate.run_id)))
        except Timeout:
            return False
        return True

    done = completed()
    if cell.run_id in done or not lock(cell):
        return []
    others = (other for other in waiting if _alike(cell, other) and other.run_id not in done)
    claimed = [cell, *islice(filter(lock, others), together - 1)]
    done = completed()  # somebody else may have finished one before its lock was ours
    return [candidate for candidate in claimed if candidate.run_id not in done]


def _journal(weights: str, deadline: float = math.inf) -> Journal:
    """Of what is measured when a cell is trained."""
    return Journal(f"grid {weights}", deadline)


def _run_batch(
    cells: Sequence[Cell], experiment: Experiment, folder: Path, device: str, deadline: float
) -> Iterator[str]:
    """Train cells that differ only in their seeds, measure and record one after the other, yielding its run_id."""
    started = now()
    with noted(folder, [cell.run_id for cell in cells]):
        networks = trained_together(cells, device, deadline)
    for cell, network in zip(cells, networks, strict=True):
        with noted(folder, [cell.run_id]):
            weights = "" if network.diverged else digest(network.model)
            journal = _journal(weights, deadline)
            measured = results.measured_rows(folder, cell.run_id, cell.spec_hash)
            tables = run_cell(cell, network, experiment, device, journal, measured)
            provenance = {
                "spec": cell.spec(),
                "spec_hash": cell.spec_hash,
                "data_sha256": cell_data(cell, device).sha256,
                "started": started,
                "finished": now(),
                "command": f"python -m study run {experiment.name} --preset {experiment.preset}",
                "training": network.environment,  # of the weights, which may be older than their measurement
                **({"weights": weights} if weights else {}),
                **environment(device),
            }
            results.save(folder, cell.run_id, tables, provenance)
            journal.close()
            results.fold(folder, unless=results.FEW)
        yield cell.run_id


def _work(
    experiment: Experiment, folder: Path, device: str, deadline: float, only: Sequence[str] = (), together: int = 1
) -> Iterator[str]:
    """Run the missing cells that nobody else is running, yielding each run_id as it is recorded.

    Then those that others were running and have left, as a worker of a cluster does that is cancelled; but not what
    has failed in the meantime.
    """
    cells, completed, again = selected(experiment, only), _completed(experiment, folder), True
    while again:
        mine: list[str] = []
        waiting = {cell.run_id: cell for cell in cells}
        for cell in cells:
            if time.monotonic() > deadline:
                return
            if waiting.pop(cell.run_id, None) is None:  # it was in the batch of an earlier one
                continue
            with ExitStack() as locks, suppress(OutOfTime):
                batch = _claim(locks, completed, folder, cell, list(waiting.values()), together)
                for other in batch:
                    waiting.pop(other.run_id, None)
                try:
                    if batch:
                        for run_id in _run_batch(batch, experiment, folder, device, deadline):
                            mine.append(run_id)
                            yield run_id
                except Exception:  # noted; the other cells go on, but for processes that wait for this one
                    if distributed.current().size > 1:
                        raise
        again = bool(mine)
        over = {*mine, *completed()}
        cells = [cell for cell in cells if cell.run_id not in over and not failures.note(folder, cell.run_id).exists()]


def run_experiment(
    experiment: Experiment,
    folder: Path | None = None,
    *,
    device: str = "auto",
    max_minutes: float | None = None,
    jobs: int = 1,
    only: Sequence[str] = (),
    together: int = 1,
    progress: bool = True,
) -> Results:
    """Fill in the missing cells of `experiment` in `folder` (default: its own), and load what is there.

    device: auto, cpu or cuda. max_minutes: start nothing after that time and drop what is unfinished. jobs: processes
    of one thread each. only: glob patterns of run_ids, the first pattern first; all cells if empty. together: cells
    that differ only in their seeds are trained so many at a time, which fills a GPU. A cell that raises an exception is
    noted, the others go on. Where torch.distributed has a default group, all its processes call this and train
    one network after the other, and the first one alone measures and records.
    Raises Failed at the end if cells have failed; ValueError for a device or folder that cannot be used, jobs < 1,
    together not an integer >= 1, more than one of either for several processes, max_minutes <= 0, or a pattern that
    matches no cell.
    """
    device = pick_device(device)
    processes = distributed.current()
    deadline = deadline_of(jobs, max_minutes)
    check_together(together)
    for field, value in (("jobs", jobs), ("together", together)):
        if processes.size > 1 and value > 1:
            raise invalid(field, value, f"1 for {processes.size} processes that train one network")
    folder = folder or experiment.folder()
    files.check_writable(folder)
    files.check_locks()
    environment(device)  # the commit now, not after somebody has edited the code under a long run
    chosen = [cell.run_id for cell in selected(experiment, only)]
    if processes.rank > 0:
        train_along(device)
        return load(experiment, folder)
    completed = _completed(experiment, folder)

    def count() -> int:
        return len(completed().intersection(chosen))

    with (
        results.folded(folder),
        tqdm(total=len(chosen), initial=count(), unit="cell", desc=experiment.name, disable=not progress) as bar,
    ):
        given = (experiment, folder, device, deadline, only, together)
        carry_out(_work, *given, device=device, jobs=jobs, bar=bar, count=count)
    processes.first([])  # the others may go
    recorded = results.read_provenance(folder)
    for run_id in completed().intersection(recorded):  # a process may have been killed between the record and this
        _journal(recorded[run_id].get("weights", "")).close()
    failures.check(folder, chosen)
    return load(experiment, folder)


def load(experiment: Experiment, folder: Path | None = None) -> Results:
    """The completed cells of an experiment. Raises ValueError if the folder holds another specification of one."""
    specs = {cell.run_id: cell.spec() for cell in experiment.cells()}
    hashes = {run_id: canonical_hash(spec) for run_id, spec in specs.items()}
    return results.load(folder or experiment.folder(), specs, hashes, experiment.attacks())
