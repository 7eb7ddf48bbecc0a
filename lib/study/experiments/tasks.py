"""Fill in what is measured on the trained networks of an experiment: the attack suite, transfer, confidence, and how
far they can be compressed.

The work is cut into tasks, each one measurement on one network, in the order of the experiment file: a task is
recorded when it is complete, so an interrupted assessment is continued by running it again, and several processes
share it by locks. A network whose weights are not kept is trained again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from filelock import Timeout
from torch import nn
from tqdm import tqdm

from study.experiments import failures
from study.experiments.cells import load, selected
from study.experiments.engines.local import carry_out, deadline_of, pick_device
from study.experiments.failures import noted
from study.experiments.grids import AttackGrid, CompressionGrid, SuiteGrid
from study.experiments.published import network as network_of
from study.experiments.specification import Cell, Experiment
from study.experiments.weights import cell_data, digest
from study.measurement import attack_suite as suite
from study.measurement.accuracy import Once, at_once, count_correct
from study.measurement.attack_suite import Trial
from study.measurement.calibration import confidence_rows
from study.measurement.compressibility import Plan, compression_rows, filter_rows
from study.results import claims
from study.results import store as results
from study.results.checkpoints import Journal, OutOfTime
from study.results.provenance import environment, now
from study.results.store import Measurement, Results
from study.results.tables import Row, records
from wellcond.convert import matching
from wellcond.errors import invalid

ROBUSTNESS = ("attacks", "distortions", "confidence", "transfer")
COMPRESSION = ("compressions", "filters")
TABLES = (*ROBUSTNESS, *COMPRESSION)
AGAIN = "without its row of runs.csv, it is recorded anew with these"


class Chosen(NamedTuple):
    """Which measurements: of the cells and of the attacks of the suite that match a pattern (all if there is none, and
    then the rest too), for these tables."""

    only: Sequence[str] = ()
    attacks: Sequence[str] = ()
    tables: Sequence[str] = TABLES


Networks = Callable[[Cell], nn.Module]
"""The trained network of a cell."""


class Task(NamedTuple):
    """One measurement of one network: `measure` returns the new rows of `table`, given those of the run so far, the
    networks, the device, and the journal of what an interrupted process has done of it; key: what is measured, if that
    takes so long that there is a journal. against: other networks that it needs."""

    cell: Cell
    table: str
    known: Callable[[Sequence[Row]], bool]
    measure: Callable[[Sequence[Row], Networks, str, Once], list[dict[str, Any]]]
    key: str = ""
    against: Sequence[Cell] = ()

    @property
    def run_id(self) -> str:
        return self.cell.run_id

    @property
    def name(self) -> str:
        """Of the note of a failure."""
        return f"{self.run_id}.{self.table}"


def _attack(cell: Cell, trial: Trial, n_images: int) -> Task:
    wanted = trial.measurement.among(n_images)

    def measure(rows: Sequence[Row], networks: Networks, device: str, once: Once) -> list[dict[str, Any]]:
        model, test = networks(cell), cell_data(cell, device).test
        images = test.first(trial.n_examples)
        clean = [row for row in rows if row["attack"] == suite.CLEAN and int(row["n_examples"]) >= len(images)]
        new = [] if clean else [suite.clean_row(model, images)]
        return [*new, suite.attack_row(model, test, trial, [*rows, *new], seed=cell.seed, once=once)]

    def known(rows: Sequence[Row]) -> bool:
        return any(results.measurement(row) == wanted for row in rows)

    return Task(cell, "attacks", known, measure, str(trial))


def _confidence(cell: Cell, n_examples: int | None) -> Task:
    def measure(rows: Sequence[Row], networks: Networks, device: str, once: Once) -> list[dict[str, Any]]:
        model, images = networks(cell), cell_data(cell, device).test.first(n_examples)
        n_correct = {
            "quantity": "n_correct",
            "value": count_correct(model, images).n_correct,
            "n_examples": len(images),
        }
        return [n_correct, *confidence_rows(model, images)]

    return Task(cell, "confidence", bool, measure)


def _distortion(cell: Cell, steps: int, n_examples: int | None) -> Task:
    def measure(rows: Sequence[Row], networks: Networks, device: str, once: Once) -> list[dict[str, Any]]:
        images = cell_data(cell, device).test.first(n_examples)
        return [suite.distortion_row(networks(cell), images, steps, seed=cell.seed, once=once)]

    return Task(cell, "distortions", bool, measure, f"ddn {steps} {n_examples}")


def _transfer(cell: Cell, trial: Trial, targets: Sequence[Cell]) -> Task:
    def measure(rows: Sequence[Row], networks: Networks, device: str, once: Once) -> list[dict[str, Any]]:
        others = {target.run_id: networks(target) for target in targets}
        images = cell_data(cell, device).test.first(trial.n_examples)
        return suite.transfer_rows(networks(cell), others, images, trial, seed=cell.seed, once=once)

    def known(rows: Sequence[Row]) -> bool:
        return {row["target"] for row in rows} >= {target.run_id for target in targets}

    return Task(cell, "transfer", known, measure, f"transfer {trial}", targets)


def _trials(grid: SuiteGrid) -> Iterator[Trial]:
    for eps in sorted(grid.eps, reverse=True):  # what withstands a ball is not attacked in the smaller ones
        yield Trial(grid.name, eps, grid.n_examples, tuple(sorted(grid.options.items())))


def _compression(cell: Cell, plan: Plan, attacks: Sequence[AttackGrid], n_test: int) -> Task:
    clean = Measurement(suite.CLEAN, 0.0)
    under = [clean, *(measurement for attack in attacks for measurement in attack.measurements())]
    wanted = {(Plan.named(plan.key()), measurement.among(n_test)) for measurement in under}

    def key(row: Row) -> tuple[tuple[str, ...], Measurement]:
        return Plan.named(row), results.measurement(row)

    def known(rows: Sequence[Row]) -> bool:
        return wanted <= {key(row) for row in rows}

    def measure(rows: Sequence[Row], networks: Networks, device: str, once: Once) -> list[dict[str, Any]]:
        model, images = networks(cell), cell_data(cell, device)
        old = {key(row) for row in rows}
        new = compression_rows(model, images, plan, [attack.model_dump() for attack in attacks], seed=cell.seed)
        return [row for row in new if key(row) not in old]

    return Task(cell, "compressions", known, measure)


def _filters(cell: Cell) -> Task:
    def measure(rows: Sequence[Row], networks: Networks, device: str, once: Once) -> list[dict[str, Any]]:
        return filter_rows(networks(cell))

    return Task(cell, "filters", bool, measure)


def _plans(cell: Cell, grid: CompressionGrid) -> Iterator[Plan]:
    how = {key: getattr(grid, key) for key in ("phases", "epochs", "lr", "momentum", "reestimated")}
    for amount in sorted(grid.amount):
        yield Plan(grid.compressor, amount, batch_size=cell.train.batch_size, **how)


def tasks(experiment: Experiment, completed: Mapping[str, int], only: Sequence[str] = ()) -> list[Task]:
    """All measurements that the experiment declares on its completed networks ({run_id: number of test images}): the
    cheap ones, then compression and the suite in the order of the file, each on all networks before the next."""
    cells = [cell for cell in selected(experiment, only) if cell.run_id in completed]
    found: list[Task] = []
    if (sure := experiment.confidence) is not None:
        found += [_confidence(cell, sure.n_examples) for cell in cells if sure.applies(cell.run_id)]
    if (nearest := experiment.distortion) is not None:
        found += [_distortion(c, nearest.steps, nearest.n_examples) for c in cells if nearest.applies(c.run_id)]
    if (grid := experiment.transfer) is not None:
        targets = [cell for cell in experiment.cells() if cell.run_id in completed and grid.applies(cell.run_id)]
        sources = [cell for cell in cells if grid.applies(cell.run_id)]
        found += [_transfer(cell, trial, targets) for cell in sources for trial in _trials(grid)]
    if experiment.compression:
        found += [_filters(cell) for cell in cells]
    found += [
        _compression(cell, plan, squeeze.attack, completed[cell.run_id])
        for squeeze in experiment.compression
        for cell in cells
        if squeeze.applies(cell.run_id)
        for plan in _plans(cell, squeeze)
    ]
    found += [
        _attack(cell, trial, completed[cell.run_id])
        for grid in experiment.suite
        for cell in cells
        if grid.applies(cell.run_id)
        for trial in _trials(grid)
    ]
    return found


def _open(experiment: Experiment, folder: Path, chosen: Chosen) -> list[Task]:
    runs = load(experiment, folder).runs
    runs = runs[runs["status"] == "done"]
    if chosen.attacks:
        names = matching(chosen.attacks, [grid.name for grid in experiment.suite], "attacks")
        suite_only = {"suite": tuple(grid for grid in experiment.suite if grid.name in names)}
        chosen = chosen._replace(tables=["attacks"])
        experiment = experiment.model_copy(update=suite_only)
    every = tasks(experiment, dict(zip(runs["run_id"], runs["n_test"].astype(int), strict=True)), chosen.only)
    return [task for task in every if task.table in chosen.tables]


def _missing(wanted: Sequence[Task], folder: Path, chosen: Chosen) -> list[Task]:
    rows = {
        (table, run_id): records(part)
        for table in chosen.tables
        for run_id, part in results.read_table(folder, table).groupby("run_id")
    }
    return [task for task in wanted if not task.known(rows.get((task.table, task.run_id), []))]


def _progress(experiment: Experiment, folder: Path, chosen: Chosen) -> tuple[int, int]:
    wanted = _open(experiment, folder, chosen)
    return len(wanted) - len(_missing(wanted, folder, chosen)), len(wanted)


def progress(
    experiment: Experiment,
    folder: Path | None = None,
    *,
    only: Sequence[str] = (),
    attacks: Sequence[str] = (),
    tables: Sequence[str] = TABLES,
) -> tuple[int, int]:
    """(measured, all) tasks of the completed cells; only, attacks, tables: as of `assess`."""
    return _progress(experiment, folder or experiment.folder(), Chosen(only, attacks, tables))


def _do(task: Task, rows: Sequence[Row], experiment: Experiment, folder: Path, device: str, deadline: float) -> None:
    """Measure and record; rows: what the table has of the run."""
    started, where = now(), environment(device)
    recorded = results.read_provenance(folder)

    def weights(cell: Cell) -> str:
        return str(recorded.get(cell.run_id, {}).get("weights", ""))  # older records have none

    def network(cell: Cell) -> nn.Module:
        model = network_of(cell, device, deadline)
        if weights(cell) not in ("", found := digest(model)):
            raise invalid(
                f"weights of {cell.run_id}", found, f"those that its results are of, {weights(cell)}; {AGAIN}"
            )
        return model

    used = [f"{cell.spec_hash} {weights(cell)}" for cell in (task.cell, *task.against)]
    journal = Journal(f"{folder.name} {task.key} {used}", deadline) if task.key else None
    new = task.measure(rows, network, device, journal.once if journal else at_once)
    about = {"run_id": task.run_id, "device": where["device"], "commit": where["commit"]}
    command = "compress" if task.table in COMPRESSION else "attack"
    command = f"python -m study {command} {experiment.name} --preset {experiment.preset}"
    provenance = {"command": command, "started": started, "finished": now(), **where}
    results.add(folder, task.run_id, task.table, [*rows, *({**row, **about} for row in new)], provenance)
    if journal:
        journal.close()
    results.fold(folder, unless=results.FEW)


def _work(experiment: Experiment, folder: Path, device: str, deadline: float, chosen: Chosen) -> Iterator[str]:
    """Do the tasks that are missing and that nobody else is doing, yielding the run_id of each; then those that others
    were doing and have left."""
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
                        _do(task, rows, experiment, folder, device, deadline)
                except Exception:  # noted; the other measurements go on
                    mine.add(id(task))
                    continue
                yield task.run_id
                mine.add(id(task))
        again = bool(mine)
        missing = _missing([task for task in missing if id(task) not in mine], folder, chosen)


def assess(
    experiment: Experiment,
    folder: Path | None = None,
    *,
    device: str = "auto",
    max_minutes: float | None = None,
    jobs: int = 1,
    only: Sequence[str] = (),
    attacks: Sequence[str] = (),
    tables: Sequence[str] = TABLES,
    bar: bool = True,
) -> Results:
    """Fill in what an experiment declares to be measured on trained networks, for its completed cells in `folder`
    (default: its own), and load what is there.

    attacks: names or glob patterns of attacks of the suite, and then nothing else is measured. tables: only these of
    TABLES; ROBUSTNESS and COMPRESSION are the two halves. device, max_minutes, jobs, only: as of `run_experiment`; what
    is unfinished when the time is up goes on in the next run.
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
    failures.check(folder, dict.fromkeys(task.name for task in _open(experiment, folder, chosen)))
    return load(experiment, folder)
