"""The trained network of a cell: trained once, and kept in results/local/weights by the hash of its specification.

An interrupted training goes on from its last epoch (`checkpoints`). Cells that differ only in their seeds may be
trained together, as one batched network; or several processes train one network (`distributed`): the first of them is
then the runner, the others only train with it.
"""

from __future__ import annotations

import functools
import hashlib
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from study import data, paths
from study import networks as models
from study.experiments.specification import Cell
from study.measurement import accuracy as evaluate
from study.results import files
from study.results.checkpoints import Header, OutOfTime, anew, checkpoint_file, read_checkpoint, write_checkpoint
from study.results.provenance import environment
from study.training import distributed
from study.training.ensemble import fit_together
from study.training.loop import Diverged, Keeper
from wellcond.counts import count_parameters
from wellcond.diagnostics import layer_reports
from wellcond.errors import invalid
from wellcond.methods.registry import find

CURVE_IMAGES = 5000  # validation images behind the accuracy recorded after each epoch


@functools.lru_cache(maxsize=2)
def _data(name: str, seed: int, validation: float, n_train: int | None, n_test: int | None, device: str) -> data.Data:
    return data.load(name, seed=seed, validation=validation, n_train=n_train, n_test=n_test, device=device)


def cell_data(cell: Cell, device: str) -> data.Data:
    """The data of a cell, its split of training and validation images included."""
    return _data(cell.dataset, cell.seed, cell.train.validation, cell.n_train, cell.n_test, device)


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


class _Kept:
    """The Keeper of the training of some cells: the state of the training with the rows and the time so far."""

    def __init__(self, cells: Sequence[Cell], device: str, deadline: float, networks: Sequence[nn.Module]) -> None:
        self.key = [cell.spec_hash for cell in cells]
        self.device, self.deadline, self.epochs = device, deadline, cells[0].train.epochs
        images = [cell_data(cell, device).validation.first(CURVE_IMAGES) for cell in cells]
        self.networks, self.images = networks, images
        self.curves = [_epoch_rows(model, 0, part) for model, part in zip(networks, images, strict=True)]
        self.spectra = [_spectra_rows(model, 0) for model in networks]
        self.started, self.peak_bytes, self.interruptions = time.perf_counter(), 0, 0
        title = cells[0].run_id + (f" and {len(cells) - 1} more" if len(cells) > 1 else "")
        shown = sys.stderr.isatty() and parent_process() is None
        self.bar = tqdm(total=self.epochs, unit="epoch", desc=title, leave=False, disable=not shown)

    def restore(self) -> dict[str, Any] | None:
        state = read_checkpoint(self.key, self.device)
        if state is not None:
            self.curves, self.spectra = state["curves"], state["spectra"]
            self.started -= state["wall_s"]
            self.peak_bytes, self.interruptions = state["peak_bytes"], state["interruptions"] + 1
            self.bar.update(state["epoch"])
        return state

    def on_epoch(self, k: int, epoch: int, loss: float) -> None:
        self.curves[k].append({"epoch": epoch, "layer": "", "quantity": "train_loss", "value": loss})
        self.curves[k].extend(_epoch_rows(self.networks[k], epoch, self.images[k]))
        self.spectra[k].extend(_spectra_rows(self.networks[k], epoch))

    def keep(self, epoch: int, state: Mapping[str, Any]) -> None:
        rows = {"curves": self.curves, "spectra": self.spectra, "interruptions": self.interruptions}
        costs = {"wall_s": self.wall_s(), "peak_bytes": self.peak()}
        write_checkpoint(Header(tuple(self.key), epoch, self.epochs), {**state, **rows, **costs})
        self.bar.update()
        if distributed.current().first(time.monotonic() > self.deadline):
            raise OutOfTime

    def wall_s(self) -> float:
        return time.perf_counter() - self.started

    def peak(self) -> int:
        return max(self.peak_bytes, _peak_bytes(self.device))


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
    return placed(find(cell.method).prepare(model, cell.of_method), cell, device)


def placed(model: nn.Module, cell: Cell, device: str) -> nn.Module:
    """On the device, in the layout that the network has chosen."""
    return model.to(device=device, memory_format=models.layout(cell.model))  # type: ignore[call-overload]


def _spectra_rows(model: nn.Module, epoch: int) -> list[dict[str, Any]]:
    return [
        {"epoch": epoch, "layer": name, "index": index, "singular_value": value}
        for name, report in layer_reports(model).items()
        for index, value in enumerate(report.spectrum.tolist())
    ]


def _epoch_rows(model: nn.Module, epoch: int, images: data.Images) -> list[dict[str, Any]]:
    score = evaluate.count_correct(model, images)
    values: list[tuple[str, str, float]] = []
    if score.n:
        values = [("", "validation_n", score.n), ("", "validation_n_correct", score.n_correct)]
        values.append(("", "validation_loss", score.loss_sum / score.n))
    values.append(("", "n_params_deployed", count_parameters(model).deployed))
    for name, report in layer_reports(model).items():
        values.append((name, "rank", len(report.spectrum)))
        values.append((name, "kappa", report.kappa))
        values.append((name, "sigma_max", report.spectrum[0].item()))
        values.append((name, "sigma_min", report.spectrum[-1].item()))
        if not math.isnan(report.orthogonality):
            values.append((name, "orth_error", report.orthogonality))
    return [{"epoch": epoch, "layer": layer, "quantity": q, "value": v} for layer, q, v in values]


def _train(cells: Sequence[Cell], device: str, deadline: float) -> list[Trained]:
    """Train cells that differ only in their seeds, with the other processes if there are any; see `train_along`."""
    try:
        networks = [_initial(cell, device, deadline) for cell in cells]
    except Diverged as error:
        return [Trained(nn.Module(), [], [], math.nan, 0, environment(device), str(error)) for _ in cells]
    method = find(cells[0].method)
    processes = distributed.current()
    _reset_peak(device)
    kept = _Kept(cells, device, deadline, networks)
    diverged: list[Diverged | None] = [None for _ in cells]
    if method.trains:
        processes.first(cells)
        with kept.bar:
            diverged = _fit(cells, networks, device, kept.on_epoch, kept)
    if device == "cuda":
        torch.cuda.synchronize()
    wall_s = kept.wall_s() / len(cells)
    shared = {"together": len(cells), "processes": processes.size if method.trains else 1}
    where = {**environment(device), **{key: n for key, n in shared.items() if n > 1}}
    if kept.interruptions:
        where["interruptions"] = kept.interruptions
    return [
        Trained(method.finish(model.eval()), rows, sigmas, wall_s, kept.peak(), where, str(reason or ""))
        for model, rows, sigmas, reason in zip(networks, kept.curves, kept.spectra, diverged, strict=True)
    ]


def _fit(
    cells: Sequence[Cell],
    networks: Sequence[nn.Module],
    device: str,
    on_epoch: Callable[[int, int, float], None],
    keeper: Keeper | None = None,
) -> list[Diverged | None]:
    """`fit_together` as these cells want it; every process of a group calls it."""
    method, protocol, settings = find(cells[0].method), cells[0].train, cells[0].of_method
    return fit_together(
        networks,
        method.optimizer(
            method.groups(networks[0], settings),
            lr=protocol.factor * protocol.lr,
            momentum=protocol.momentum,
            weight_decay=protocol.weight_decay,
        ),
        [cell_data(cell, device).train for cell in cells],
        protocol.recipe,
        seeds=[cell.seed for cell in cells],
        penalty=method.penalty(settings),
        adversary=cells[0].adversary,
        processes=distributed.current(),
        on_epoch=on_epoch,
        keeper=keeper,
    )


def train_along(device: str) -> None:
    """What every process but the first does: join each training that the first one starts, until it has no more."""
    processes = distributed.current()

    def on_epoch(k: int, epoch: int, loss: float) -> None:
        if processes.first(None):
            raise OutOfTime

    while cells := processes.first(None):
        with suppress(OutOfTime):
            _fit(cells, [skeleton(cell, device, finished=False) for cell in cells], device, on_epoch)


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
            locks.enter_context(files.lock(f"weights-{key}"))
        new = [cell for cell in cells if not weights_file(cell).exists()]
        if new and checkpoint_file([cell.spec_hash for cell in cells]).exists():
            new = list(cells)  # interrupted between its last epoch and the last of the weights
        fresh = _train(new, device, deadline) if new else []
        found = {cell.spec_hash: network for cell, network in zip(new, fresh, strict=True)}
        for cell in new:
            _keep(cell, found[cell.spec_hash])
        checkpoint_file([cell.spec_hash for cell in cells]).unlink(missing_ok=True)
        if new:
            checkpoint_file([cell.spec_hash for cell in new]).unlink(missing_ok=True)
    return [found.get(cell.spec_hash) or kept(cell, device) for cell in cells]


def _keep(cell: Cell, network: Trained) -> None:
    if network.diverged:
        return
    record = {field.name: getattr(network, field.name) for field in fields(Trained) if field.name != "diverged"}
    about = {"spec_hash": cell.spec_hash, "digest": digest(network.model)}
    with files.replacing(weights_file(cell)) as part:
        torch.save({**record, **about, "model": network.model.state_dict()}, part)


def kept(cell: Cell, device: str) -> Trained:
    """The network that `trained` has kept.

    Raises FileNotFoundError if there is none, ValueError if the file is damaged, of another cell, or not what it was.
    """
    path = weights_file(cell)
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        model = skeleton(cell, device)
        # with the strides that they were trained in: products of other strides differ in their last bits
        model.load_state_dict(anew(saved["model"]), strict=True, assign=True)
        about = {key: saved.pop(key, None) for key in ("spec_hash", "digest")}
        network = Trained(**{**saved, "model": model.eval()})
    except FileNotFoundError:
        raise
    except Exception as error:  # torch.load raises almost anything on a damaged file
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise invalid(
            "weights", path.name, f"a whole file of {cell.run_id}; delete it to train again ({reason})"
        ) from error
    if about["spec_hash"] not in (None, cell.spec_hash) or about["digest"] not in (None, digest(model)):
        raise invalid("weights", path.name, f"those of {cell.run_id}; delete the file to train again")
    if not all(p.isfinite().all() for p in model.parameters()):
        raise invalid("weights", path.name, "finite; delete the file to train again")
    return network


def digest(model: nn.Module) -> str:
    """The first 16 hex digits of the SHA-256 of the names and values of parameters and buffers."""
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def skeleton(cell: Cell, device: str, *, finished: bool = True) -> nn.Module:
    """A network of the cell's architecture and ranks, as it is trained or finished, with arbitrary weights."""
    source = data.source(cell.dataset)
    with torch.random.fork_rng([]):
        model = models.build(cell.model, num_classes=source.num_classes, in_channels=source.channels)
    method = find(cell.method)
    model = method.prepare(model, cell.of_method)
    return placed(method.finish(model) if finished else model, cell, device)
