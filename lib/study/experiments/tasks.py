"""Fill in what is measured on the trained networks of an experiment: the attack suite, transfer, confidence, and how
far they can be compressed.

The work is cut into tasks, each one measurement on one network, in the order of the experiment file: a task is
recorded when it is complete, so an interrupted assessment is continued by running it again, and several processes
share it by locks. A network whose weights are not kept is trained again.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from filelock import Timeout
from torch import nn
from tqdm import tqdm

from study.experiments import failures
from study.experiments.cells import load, selected
from study.experiments.engines.local import carry_out, deadline_of, pick_device
from study.experiments.failures import noted
from study.experiments.published import network as network_of
from study.experiments.specification import Cell, Experiment
from study.experiments.weights import cell_data, digest
from study.measurement.measurement import MEASUREMENTS, Given, Task
from study.results import claims
from study.results import store as results
from study.results.checkpoints import Journal, OutOfTime
from study.results.provenance import environment, now
from study.results.store import Results
from study.results.tables import Row, records
from wellcond.convert import matching
from wellcond.errors import invalid

AGAIN = "without its row of runs.csv, it is recorded anew with these"


class Chosen(NamedTuple):
    """Which measurements: of the cells and of the attacks of the suite that match a pattern (all if there is none, and
    then the rest too), for these tables, or all."""

    only: Sequence[str] = ()
    attacks: Sequence[str] = ()
    tables: Sequence[str] = ()


def tasks(experiment: Experiment, completed: Mapping[str, int], only: Sequence[str] = ()) -> list[Task]:
    """All measurements that the experiment declares on its completed networks ({run_id: number of test images}): the
    cheap ones first, and of each kind in the order of the file, each on all networks before the next."""
    every = [cell for cell in experiment.cells() if cell.run_id in completed]
    chosen = [cell for cell in selected(experiment, only) if cell.run_id in completed]
    found: dict[tuple[str, ...], Task] = {}
    for kind in sorted(MEASUREMENTS.values(), key=lambda kind: kind.cost):
        for grid in experiment.measurements.get(kind.name, ()):
            cells = [cell for cell in every if grid.applies(cell.run_id)]
            for cell in (cell for cell in chosen if grid.applies(cell.run_id)):
                here = kind.tasks(cell, grid, completed[cell.run_id], cells)
                found |= {(task.run_id, task.table, task.what): task for task in here}
    return list(found.values())


def _open(experiment: Experiment, folder: Path, chosen: Chosen) -> list[Task]:
    runs = load(experiment, folder).runs
    runs = runs[runs["status"] == "done"]
    if chosen.attacks:
        names = matching(chosen.attacks, [grid.name for grid in experiment.suite], "attacks")
        suite = tuple(grid for grid in experiment.suite if grid.name in names)
        experiment = experiment.model_copy(update={"measurements": {"suite": suite}})
        chosen = chosen._replace(tables=())
    every = tasks(experiment, dict(zip(runs["run_id"], runs["n_test"].astype(int), strict=True)), chosen.only)
    return [task for task in every if not chosen.tables or task.table in chosen.tables]


def _missing(wanted: Sequence[Task], folder: Path) -> list[Task]:
    rows = {
        (table, run_id): records(part)
        for table in {task.table for task in wanted}
        for run_id, part in results.read_table(folder, table).groupby("run_id")
    }
    return [task for task in wanted if not task.known(rows.get((task.table, task.run_id), []))]


def _progress(experiment: Experiment, folder: Path, chosen: Chosen) -> tuple[int, int]:
    wanted = _open(experiment, folder, chosen)
    return len(wanted) - len(_missing(wanted, folder)), len(wanted)


def progress(
    experiment: Experiment,
    folder: Path | None = None,
    *,
    only: Sequence[str] = (),
    attacks: Sequence[str] = (),
    tables: Sequence[str] = (),
) -> tuple[int, int]:
    """(measured, all) tasks of the completed cells; only, attacks, tables: as of `assess`."""
    return _progress(experiment, folder or experiment.folder(), Chosen(only, attacks, tables))


Networks = Callable[[str, str], nn.Module]
"""The network of a cell in this experiment, by the hash of its specification and the digest of the recorded weights."""


def _networks(experiment: Experiment, device: str, deadline: float) -> Networks:
    """Loads them, and keeps the last ones: each measurement is of all networks before the next."""
    cells = {cell.spec_hash: cell for cell in experiment.cells()}

    @lru_cache(maxsize=32)
    def network(spec_hash: str, recorded: str) -> nn.Module:  # weights that are recorded anew are read anew
        return network_of(cells[spec_hash], device, deadline)

    return network


def _weights(cell: Cell, recorded: Mapping[str, Mapping[str, Any]]) -> str:
    return str(recorded.get(cell.run_id, {}).get("weights", ""))  # older records have none


def _journal(
    task: Task, folder: Path, recorded: Mapping[str, Mapping[str, Any]], deadline: float = math.inf
) -> Journal:
    used = [f"{cell.spec_hash} {_weights(cell, recorded)}" for cell in (task.cell, *task.against)]
    return Journal(f"{folder.name} {task.what} {used}", deadline)


def _do(
    task: Task, rows: Sequence[Row], experiment: Experiment, folder: Path, device: str, deadline: float, read: Networks
) -> None:
    """Measure and record; rows: what the table has of the run."""
    started, where = now(), environment(device)
    recorded = results.read_provenance(folder)

    def network(cell: Cell) -> nn.Module:
        weights = _weights(cell, recorded)
        model = read(cell.spec_hash, weights)
        if weights not in ("", found := digest(model)):
            raise invalid(f"weights of {cell.run_id}", found, f"those that its results are of, {weights}; {AGAIN}")
        return model

    journal = _journal(task, folder, recorded, deadline)
    new = task.measure(Given(rows, network, cell_data(task.cell, device), journal.once))
    about = {"run_id": task.run_id, "device": where["device"], "commit": where["commit"]}
    command = next(kind.command for kind in MEASUREMENTS.values() if task.table in kind.tables)
    command = f"python -m study {command} {experiment.name} --preset {experiment.preset}"
    provenance = {"command": command, "started": started, "finished": now(), **where}
    results.add(folder, task.run_id, task.table, [*rows, *({**row, **about} for row in new)], provenance)
    journal.close()
    results.fold(folder, unless=results.FEW)


def _work(experiment: Experiment, folder: Path, device: str, deadline: float, chosen: Chosen) -> Iterator[str]:
    """Do the tasks that are missing and that nobody else is doing, yielding the run_id of each; then those that others
    were doing and have left."""
    read = _networks(experiment, device, deadline)
    missing, again = _open(experiment, folder, chosen), True
    while again:
        mine: set[int] = set()
        for task in missing:
            if time.monotonic() > deadline:
                return
            with ExitStack() as locks, suppress(OutOfTime, Timeout):
                locks.enter_context(claims.claimed(claims.key("assess", folder, task.run_id)))
                rows = results.rows_of(folder, task.table, task.run_id)
                if task.known(rows):
                    continue
                try:
                    with noted(folder, [task.name]):
                        _do(task, rows, experiment, folder, device, deadline, read)
                except Exception:  # noted; the other measurements go on
                    mine.add(id(task))
                    continue
                yield task.run_id
                mine.add(id(task))
        again = bool(mine)
        missing = _missing([task for task in missing if id(task) not in mine], folder)


def assess(
    experiment: Experiment,
    folder: Path | None = None,
    *,
    device: str = "auto",
    max_minutes: float | None = None,
    jobs: int = 1,
    only: Sequence[str] = (),
    attacks: Sequence[str] = (),
    tables: Sequence[str] = (),
    bar: bool = True,
) -> Results:
    """Fill in what an experiment declares to be measured on trained networks, for its completed cells in `folder`
    (default: its own), and load what is there.

    attacks: names or glob patterns of attacks of the suite, and then nothing else is measured. tables: only these, if
    there are any. device, max_minutes, jobs, only: as of `run_experiment`; what is unfinished when the time is up goes
    on in the next run.
    Raises Failed at the end if measurements have failed; ValueError for a device that cannot be used, jobs < 1,
    max_minutes <= 0, or a pattern that matches no cell, or no attack of the suite.
    """
    device = pick_device(device)
    deadline = deadline_of(jobs, max_minutes)
    folder = folder or experiment.folder()
    environment(device)  # the commit now, not after somebody has edited the code under a long run
    chosen = Chosen(only, attacks, tables)
    given = (experiment, folder, device, deadline, chosen)
    count = lambda: _progress(experiment, folder, chosen)[0]  # noqa: E731
    how = {"unit": "task", "desc": experiment.name, "disable": not bar, "file": sys.stderr}
    with results.folded(folder):
        done, total = _progress(experiment, folder, chosen)
        with tqdm(total=total, initial=done, **how) as shown:
            carry_out(_work, *given, device=device, jobs=jobs, bar=shown, count=count)
    wanted, recorded = _open(experiment, folder, chosen), results.read_provenance(folder)
    missing = {id(task) for task in _missing(wanted, folder)}
    for task in wanted:
        if id(task) not in missing:  # a process may have been killed between the record and this
            _journal(task, folder, recorded).close()
    failures.check(folder, dict.fromkeys(task.name for task in wanted))
    return load(experiment, folder)
