"""Fill in the missing cells of an experiment: train, evaluate, attack, record.

A cell is claimed by a lock, so several runners share the work; it is recorded only when complete, so an interrupted
run is finished by running it again. Trained weights are kept in results/local/weights by the hash of their
specification. Cells that differ only in their seeds may be trained together, as one batched network; or several
processes train one network (`distributed`): the first of them is then the runner, the others only train with it.
"""

from __future__ import annotations

import fnmatch
import functools
import math
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from torch import nn
from tqdm import tqdm

from wellcond import data, distributed, evaluate, models, paths, results
from wellcond.conditioning import condition_rows
from wellcond.convert import count_flops, count_parameters, densify
from wellcond.deployment import deploy
from wellcond.ensemble import fit_together
from wellcond.errors import invalid, unknown
from wellcond.experiments import Cell, Experiment
from wellcond.layers import low_rank_layers
from wellcond.methods import find
from wellcond.provenance import environment, now
from wellcond.results import Results, Row
from wellcond.settings import SETTINGS
from wellcond.train import Diverged

CURVE_IMAGES = 5000  # validation images behind the accuracy recorded after each epoch


class OutOfTime(Exception):
    """The deadline passed inside a cell; the cell is dropped."""


@functools.lru_cache(maxsize=2)
def _data(name: str, seed: int, validation: float, n_train: int | None, n_test: int | None, device: str) -> data.Data:
    return data.load(name, seed=seed, validation=validation, n_train=n_train, n_test=n_test, device=device)


def cell_data(cell: Cell, device: str) -> data.Data:
    """The data of a cell, its split of training and validation images included."""
    return _data(cell.dataset, cell.seed, cell.train.validation, cell.n_train, cell.n_test, device)


def pick_device(device: str) -> str:
    """ "auto" is cuda where there is one. Raises ValueError for a device that torch does not have."""
    if device not in ("auto", "cpu", "cuda"):
        raise invalid("device", device, "auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise invalid("device", device, "auto or cpu: torch sees no CUDA device")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # Linux: restart the count of the peak resident size


def _peak_bytes(device: str) -> int:
    """Peak memory since _reset_peak: allocated on the GPU, or the resident size of the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@dataclass
class Trained:
    """A trained network, its curves, its singular values after each epoch, what the training cost and where it ran;
    `diverged`: why there is no network.

    Of networks trained together, each has its share of the time, and the memory of all; its environment says how many.
    """

    model: nn.Module
    curves: list[dict[str, Any]]
    spectra: list[dict[str, Any]]
    wall_s: float
    peak_bytes: int
    environment: dict[str, Any]
    diverged: str = ""


def _initial(cell: Cell, device: str, deadline: float) -> nn.Module:
    dataset = cell_data(cell, device)
    if cell.base is not None:
        base = trained(cell.base, device, deadline)
        if base.diverged:
            raise Diverged(f"{cell.base.run_id}, where it starts from: {base.diverged}")
        model = base.model
    else:
        torch.manual_seed(cell.seed)  # the same draw for every method of a seed
        model = models.build(cell.model, num_classes=dataset.num_classes, in_channels=dataset.shape[0]).to(device)
    return _placed(find(cell.method).prepare(model, cell.settings), device)


def _placed(model: nn.Module, device: str) -> nn.Module:
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _spectra_rows(model: nn.Module, epoch: int) -> list[dict[str, Any]]:
    return [
        {"epoch": epoch, "layer": name, "index": index, "singular_value": value}
        for name, report in evaluate.layer_reports(model).items()
        for index, value in enumerate(report.spectrum.tolist())
    ]


def _epoch_rows(model: nn.Module, epoch: int, images: data.Images) -> list[dict[str, Any]]:
    score = evaluate.count_correct(model, images)
    values: list[tuple[str, str, float]] = []
    if score.n:
        values = [("", "validation_n", score.n), ("", "validation_n_correct", score.n_correct)]
        values.append(("", "validation_loss", score.loss_sum / score.n))
    values.append(("", "n_params_deployed", count_parameters(model).deployed))
    for name, report in evaluate.layer_reports(model).items():
        values.append((name, "rank", len(report.spectrum)))
        values.append((name, "kappa", report.kappa))
        values.append((name, "sigma_max", report.spectrum[0].item()))
        values.append((name, "sigma_min", report.spectrum[-1].item()))
        if not math.isnan(report.orthogonality):
            values.append((name, "orth_error", report.orthogonality))
    return [{"epoch": epoch, "layer": layer, "quantity": q, "value": v} for layer, q, v in values]


def _train(cells: Sequence[Cell], device: str, deadline: float) -> list[Trained]:
    """Train cells that differ only in their seeds, with the other processes if there are any; see `_follow`."""
    try:
        networks = [_initial(cell, device, deadline) for cell in cells]
    except Diverged as error:
        return [Trained(nn.Module(), [], [], math.nan, 0, environment(device), str(error)) for _ in cells]
    datasets = [cell_data(cell, device) for cell in cells]
    images = [dataset.validation.first(CURVE_IMAGES) for dataset in datasets]
    method = find(cells[0].method)
    processes = distributed.current()
    _reset_peak(device)
    started = time.perf_counter()
    curves = [_epoch_rows(model, 0, part) for model, part in zip(networks, images, strict=True)]
    spectra = [_spectra_rows(model, 0) for model in networks]
    diverged: list[Diverged | None] = [None for _ in cells]

    def on_epoch(k: int, epoch: int, loss: float) -> None:
        curves[k].append({"epoch": epoch, "layer": "", "quantity": "train_loss", "value": loss})
        curves[k].extend(_epoch_rows(networks[k], epoch, images[k]))
        spectra[k].extend(_spectra_rows(networks[k], epoch))
        if processes.first(time.monotonic() > deadline):
            raise OutOfTime

    if method.trains:
        processes.first(cells)
        diverged = _fit(cells, networks, device, on_epoch)
    if device == "cuda":
        torch.cuda.synchronize()
    wall_s = (time.perf_counter() - started) / len(cells)
    shared = {"together": len(cells), "processes": processes.size if method.trains else 1}
    where = {**environment(device), **{key: n for key, n in shared.items() if n > 1}}
    peak_bytes = _peak_bytes(device)
    return [
        Trained(method.finish(model.eval()), rows, sigmas, wall_s, peak_bytes, where, str(reason or ""))
        for model, rows, sigmas, reason in zip(networks, curves, spectra, diverged, strict=True)
    ]


def _fit(
    cells: Sequence[Cell], networks: Sequence[nn.Module], device: str, on_epoch: Callable[[int, int, float], None]
) -> list[Diverged | None]:
    """`fit_together` as these cells want it; every process of a group calls it."""
    method, protocol, settings = find(cells[0].method), cells[0].train, cells[0].settings
    processes, k = distributed.current(), protocol.batch_factor or 1
    torch.manual_seed(cells[0].seed + 1_000_003 * processes.rank)  # dropout
    return fit_together(
        networks,
        method.optimizer(
            method.groups(networks[0], settings),
            lr=k * protocol.lr,
            momentum=protocol.momentum,
            weight_decay=protocol.weight_decay,
        ),
        [cell_data(cell, device).train for cell in cells],
        seeds=[cell.seed for cell in cells],
        epochs=protocol.epochs,
        batch_size=k * protocol.batch_size,
        milestones=protocol.milestones,
        gamma=protocol.gamma,
        warmup=protocol.warmup or 0,
        warmup_start=1 / k,
        augment=protocol.augment,
        penalty=method.penalty(settings),
        adversary=settings.adversary(),
        processes=processes,
        on_epoch=on_epoch,
    )


def _follow(device: str) -> None:
    """What every process but the first does: join each training that the first one starts, until it has no more."""
    processes = distributed.current()

    def on_epoch(k: int, epoch: int, loss: float) -> None:
        if processes.first(None):
            raise OutOfTime

    while cells := processes.first(None):
        with suppress(OutOfTime):
            _fit(cells, [_placed(_skeleton(cell, device, finished=False), device) for cell in cells], device, on_epoch)


def weights_file(cell: Cell) -> Path:
    """Where the trained weights of a cell are kept."""
    return paths.local() / "weights" / f"{cell.spec_hash}.pt"


def trained(cell: Cell, device: str = "cpu", deadline: float = math.inf) -> Trained:
    """The trained network of a cell: read from results/local/weights, else trained now and kept there.

    Waits if another process is training the same cell. Raises OutOfTime when the deadline (time.monotonic()) passes.
    """
    return trained_together([cell], device, deadline)[0]


def trained_together(cells: Sequence[Cell], device: str, deadline: float) -> list[Trained]:
    """`trained` for cells that differ only in their seeds: those without weights are trained at once."""
    paths.local().joinpath("weights").mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        for key in sorted(cell.spec_hash for cell in cells):  # sorted: two processes cannot wait for each other
            locks.enter_context(results.lock(f"weights-{key}"))
        new = [cell for cell in cells if not weights_file(cell).exists()]
        fresh = _train(new, device, deadline) if new else []
        found = {cell.spec_hash: network for cell, network in zip(new, fresh, strict=True)}
        for cell in new:
            _keep(cell, found[cell.spec_hash])
    return [found.get(cell.spec_hash) or _kept(cell, device) for cell in cells]


def _keep(cell: Cell, network: Trained) -> None:
    if network.diverged:
        return
    record = {field.name: getattr(network, field.name) for field in fields(Trained) if field.name != "diverged"}
    with results.replacing(weights_file(cell)) as part:
        torch.save({**record, "model": network.model.state_dict()}, part)


def _kept(cell: Cell, device: str) -> Trained:
    saved = torch.load(weights_file(cell), map_location=device, weights_only=True)
    model = _skeleton(cell, device)
    model.load_state_dict(saved["model"], strict=True)
    return Trained(**{**saved, "model": model.eval()})


def _skeleton(cell: Cell, device: str, *, finished: bool = True) -> nn.Module:
    """A network of the cell's architecture and ranks, as it is trained or finished, with arbitrary weights."""
    dataset = cell_data(cell, device)
    with torch.random.fork_rng([]):
        model = models.build(cell.model, num_classes=dataset.num_classes, in_channels=dataset.shape[0])
    method = find(cell.method)
    model = method.prepare(model, cell.settings)
    return (method.finish(model) if finished else model).to(device)


def _trained_parameters(cell: Cell, model: nn.Module, device: str) -> int:
    """Of the network as it is trained: a product of factors has more than what becomes of it."""
    unfinished = _skeleton(cell, device, finished=False) if find(cell.method).finishes else model
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
    deadline: float = math.inf,
    measured: Sequence[Row] = (),
) -> dict[str, list[Row]]:
    """Evaluate the trained network of one cell; returns the rows of every table.

    A diverged cell has a row without counts. measured: rows of robustness.csv that the cell already has; an attack
    with all its radii among them is not repeated.
    """
    dataset = cell_data(cell, device)
    about = {
        "run_id": cell.run_id,
        "dataset": cell.dataset,
        "model": cell.model,
        "method": cell.method,
        "label": cell.label,
        **{key: getattr(cell, key) for key in SETTINGS},
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
            network.model, images, attack.name, attack.eps, seed=cell.seed, **attack.options
        )
        tables["robustness"] += curve
        if time.monotonic() > deadline:
            raise OutOfTime
    tables["curves"] = curves
    wanted_epochs = {*experiment.spectra_epochs, about["epochs"]}
    tables["spectra"] = [row for row in network.spectra if row["epoch"] in wanted_epochs]
    tables["runs"] = [{**about, **_run_row(cell, network, dataset, device)}]
    return {table: [{**row, "run_id": cell.run_id} for row in rows] for table, rows in tables.items()}


def _failure(folder: Path, cell: Cell) -> Path:
    return paths.local() / "failed" / folder.name / f"{cell.run_id}.txt"


def _done(experiment: Experiment, folder: Path) -> set[str]:
    return results.done(folder, experiment.hashes(), experiment.attacks())


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


@contextmanager
def _failures_noted(folder: Path, cells: Iterable[Cell]) -> Iterator[None]:
    """Write the traceback of an exception where `status` finds it."""
    try:
        yield
    except OutOfTime:
        raise
    except Exception:
        for failure in (_failure(folder, cell) for cell in cells):
            failure.parent.mkdir(parents=True, exist_ok=True)
            failure.write_text(traceback.format_exc(), encoding="utf-8")
        raise


def _alike(cell: Cell, other: Cell) -> bool:
    """Whether two cells differ only in their seeds, and can be trained as one batched network."""
    alone = cell.settings.adversary() is not None or not find(cell.method).stackable
    return not alone and cell.model_copy(update={"seed": other.seed}) == other


def _claim(
    locks: ExitStack, experiment: Experiment, folder: Path, cell: Cell, cells: Sequence[Cell], together: int
) -> list[Cell]:
    """`cell` and up to together - 1 others like it, missing and now locked; empty if it is done or somebody else's."""

    def lock(candidate: Cell) -> bool:
        try:
            locks.enter_context(results.lock(f"cell-{results.folder_key(folder)}-{candidate.run_id}", timeout=0))
        except Timeout:
            return False
        return True

    done = _done(experiment, folder)
    if cell.run_id in done or not lock(cell):
        return []
    others = (other for other in cells if other != cell and _alike(cell, other) and other.run_id not in done)
    claimed = [cell, *islice(filter(lock, others), together - 1)]
    done = _done(experiment, folder)  # somebody else may have finished one before its lock was ours
    return [candidate for candidate in claimed if candidate.run_id not in done]


def _run_batch(
    cells: Sequence[Cell], experiment: Experiment, folder: Path, device: str, deadline: float
) -> Iterator[str]:
    """Train cells that differ only in their seeds, measure and record one after the other, yielding its run_id."""
    started = now()
    with _failures_noted(folder, cells):
        networks = trained_together(cells, device, deadline)
    for cell, network in zip(cells, networks, strict=True):
        with _failures_noted(folder, [cell]):
            measured = results.measured_rows(folder, cell.run_id, cell.spec_hash)
            tables = run_cell(cell, network, experiment, device, deadline, measured)
        provenance = {
            "spec": cell.spec(),
            "spec_hash": cell.spec_hash,
            "data_sha256": cell_data(cell, device).sha256,
            "started": started,
            "finished": now(),
            "command": f"python -m wellcond run {experiment.name} --preset {experiment.preset}",
            "training": network.environment,  # of the weights, which may be older than their measurement
            **environment(device),
        }
        results.save(folder, cell.run_id, tables, provenance)
        _failure(folder, cell).unlink(missing_ok=True)
        yield cell.run_id


def _work(
    experiment: Experiment, folder: Path, device: str, deadline: float, only: Sequence[str] = (), together: int = 1
) -> Iterator[str]:
    """Run the missing cells that nobody else is running, yielding each run_id as it is recorded."""
    cells = selected(experiment, only)
    for cell in cells:
        if time.monotonic() > deadline:
            return
        with ExitStack() as locks, suppress(OutOfTime):
            batch = _claim(locks, experiment, folder, cell, cells, together)
            if batch:
                yield from _run_batch(batch, experiment, folder, device, deadline)


def _end_with_parent() -> None:
    """Wait for the parent process to end, then end this one: for a thread of a worker."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # nothing is half-written: a cell is recorded by atomic replacement


Work = Callable[..., Iterator[str]]
"""(experiment, folder, device, ...) -> the run_id of each piece of work as it is recorded."""


def _drain(work: Work, experiment: Experiment, folder: Path, device: str, *given: Any) -> int:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    environment(device)  # as in the parent: the code that this process has loaded
    return sum(1 for _ in work(experiment, folder, device, *given))


def carry_out(work: Work, *given: Any, jobs: int, bar: tqdm[Any], count: Callable[[], int]) -> None:
    """Exhaust work(*given), here or, for jobs > 1, in so many spawned processes, which share the work by locks; the bar
    follows what it yields, or count()."""
    if jobs == 1:
        for run_id in work(*given):
            bar.update()
            bar.set_postfix_str(run_id)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        workers = [pool.submit(_drain, work, *given) for _ in range(jobs)]
        while not all(worker.done() for worker in workers):
            started = time.monotonic()
            bar.update(count() - bar.n)
            # counting reads the tables: it may take a twentieth of one processor
            wait(workers, timeout=max(1.0, 20 * (time.monotonic() - started)))
        for worker in workers:
            worker.result()
        bar.update(count() - bar.n)


def deadline_of(jobs: int, max_minutes: float | None) -> float:
    """time.monotonic() in max_minutes from now, inf for None. Raises ValueError for jobs < 1 or max_minutes <= 0."""
    if jobs < 1:
        raise invalid("jobs", jobs, ">= 1")
    if max_minutes is not None and not max_minutes > 0:
        raise invalid("max_minutes", max_minutes, "> 0")
    return math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes


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
    that differ only in their seeds are trained so many at a time, which fills a GPU. An exception in a cell ends the
    run; the finished cells stay. Where torch.distributed has a default group, all its processes call this and train
    one network after the other, and the first one alone measures and records.
    Raises ValueError for a device or folder that cannot be used, jobs < 1, together not an integer >= 1, more than
    one of either for several processes, max_minutes <= 0, or a pattern that matches no cell.
    """
    device = pick_device(device)
    processes = distributed.current()
    deadline = deadline_of(jobs, max_minutes)
    if not isinstance(together, int) or together < 1:
        raise invalid("together", together, "an integer >= 1")
    for field, value in (("jobs", jobs), ("together", together)):
        if processes.size > 1 and value > 1:
            raise invalid(field, value, f"1 for {processes.size} processes that train one network")
    folder = folder or experiment.folder()
    results.check_writable(folder)
    environment(device)  # the commit now, not after somebody has edited the code under a long run
    chosen = {cell.run_id for cell in selected(experiment, only)}
    if processes.rank > 0:
        _follow(device)
        return load(experiment, folder)
    finished = len(_done(experiment, folder) & chosen)
    with tqdm(total=len(chosen), initial=finished, unit="cell", desc=experiment.name, disable=not progress) as bar:
        count = lambda: len(_done(experiment, folder) & chosen)  # noqa: E731
        given = (experiment, folder, device, deadline, only, together)
        carry_out(_work, *given, jobs=jobs, bar=bar, count=count)
    processes.first([])  # the others may go
    return load(experiment, folder)


def measure_conditioning(
    experiment: Experiment, folder: Path | None = None, *, n_images: int = 500, only: Sequence[str] = ()
) -> dict[str, str]:
    """Fill in conditioning.csv: κ_rel at the first n_images test images, and the factors of its bound.

    For the completed cells (matching a pattern of `only`) that have not been measured and whose weights are kept; a
    network is not trained for it. Returns {run_id: "measured", "known", "no weights" or why it was refused}.
    Raises ValueError for a pattern that matches no cell, or n_images < 1.
    """
    if n_images < 1:
        raise invalid("n_images", n_images, ">= 1")
    folder = folder or experiment.folder()
    found = load(experiment, folder)
    known, done = set(found.conditioning["run_id"]), set(found.runs.loc[found.runs["status"] == "done", "run_id"])
    outcome = {}
    for cell in tqdm(selected(experiment, only), unit="cell", disable=not sys.stderr.isatty()):
        if cell.run_id in known or cell.run_id not in done or not weights_file(cell).exists():
            outcome[cell.run_id] = "known" if cell.run_id in known else "no weights"
            continue
        started = now()
        try:
            rows = condition_rows(_kept(cell, "cpu").model, cell_data(cell, "cpu").test, n_images)
        except ValueError as error:
            outcome[cell.run_id] = str(error)
            continue
        command = f"python -m wellcond conditioning {experiment.name} --preset {experiment.preset} --images {n_images}"
        provenance = {"command": command, "started": started, "finished": now(), **environment("cpu")}
        results.add(folder, cell.run_id, "conditioning", [{**row, "run_id": cell.run_id} for row in rows], provenance)
        outcome[cell.run_id] = "measured"
    return outcome


def load(experiment: Experiment, folder: Path | None = None) -> Results:
    """The completed cells of an experiment. Raises ValueError if the folder holds another specification of one."""
    specs = {cell.run_id: cell.spec() for cell in experiment.cells()}
    return results.load(folder or experiment.folder(), specs, experiment.hashes(), experiment.attacks())


def status() -> list[dict[str, Any]]:
    """Per experiment of book/experiments: cells done, missing, diverged, failed."""
    rows = []
    for path in sorted(paths.experiments().glob("*.toml")):
        spec = Experiment.load(path.stem)
        folder = spec.folder()
        cells = spec.cells()
        complete = _done(spec, folder)
        runs = results.read_runs(folder)
        diverged = set(runs.loc[runs["status"] == "diverged", "run_id"]) & complete
        failed = [cell.run_id for cell in cells if _failure(folder, cell).exists()]
        missing = [cell.run_id for cell in cells if cell.run_id not in complete]
        rows.append(
            {
                "experiment": spec.name,
                "cells": len(cells),
                "done": len(complete) - len(diverged),
                "missing": missing,
                "diverged": sorted(diverged),
                "failed": failed,
            }
        )
    return rows
