"""Images crafted on one network against the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from study.attacks.logits import correct
from study.attacks.registry import ATTACKS, perturb
from study.data import Images
from study.measurement.accuracy import Once, at_once, attacked_together, part_key
from study.measurement.attack_suite import OUTCOMES, SuiteGrid, Trial, outcome_row
from study.measurement.measurement import Cell, Given, MeasurementKind, Task, register
from study.results.store import measurement
from study.results.tables import Row, Table


def transfer_rows(
    source: nn.Module,
    targets: Mapping[str, nn.Module],
    images: Images,
    trial: Trial,
    *,
    seed: int = 0,
    once: Once = at_once,
) -> list[dict[str, Any]]:
    """Images crafted on `source`, all of them, against each target; the source itself is the white-box attack.

    Columns: target (its key), and those of `attack_row`.
    """
    kind = ATTACKS[trial.attack]
    images = images.first(trial.n_examples)
    alive = {name: torch.zeros(len(images), dtype=torch.bool, device=images.labels.device) for name in targets}
    for index in attacked_together(torch.arange(len(images), device=images.labels.device)):

        def outcomes(index: Tensor = index) -> dict[str, list[int]]:
            x, y = images.pixels(index), images.labels[index]
            crafted = perturb(kind, source, x, y, trial.eps, index=index, seed=seed, **dict(trial.options))
            with torch.no_grad():
                stands = {name: correct(f, crafted, y) & correct(f, x, y) for name, f in targets.items()}
            return {name: [int(value) for value in bits] for name, bits in stands.items()}

        about = f"transfer {','.join(targets)} {trial.measurement} seed={seed} images={part_key(index)}"
        for name, bits in once(about, outcomes).items():
            alive[name][index] = torch.tensor(bits, dtype=torch.bool, device=index.device)
    options = trial.measurement.options
    return [
        {"target": name, **outcome_row(kind.name, kind.norm, trial.eps, options, len(images), alive[name])}
        for name in targets
    ]


def _task(cell: Cell, trial: Trial, n_test: int, targets: Sequence[Cell]) -> Task:
    wanted = trial.measurement.among(n_test)

    def missing(rows: Sequence[Row]) -> list[Cell]:
        """Of the targets, which are more with every network that is trained, those that have no row yet."""
        there = {row["target"] for row in rows if measurement(row) == wanted}
        return [target for target in targets if target.run_id not in there]

    def measure(given: Given) -> list[dict[str, Any]]:
        others = {target.run_id: given.network(target) for target in missing(given.rows)}
        images = given.data.test.first(trial.n_examples)
        return transfer_rows(given.network(cell), others, images, trial, seed=cell.seed, once=given.once)

    def known(rows: Sequence[Row]) -> bool:
        return not missing(rows)

    return Task(cell, "transfer", f"transfer {trial}", measure, known, targets)


def tasks(cell: Cell, grid: SuiteGrid, n_test: int, cells: Sequence[Cell]) -> list[Task]:
    """From each network to all of them, at each radius."""
    return [_task(cell, trial, n_test, cells) for trial in grid.trials()]


TABLE = Table(
    {"run_id": str, "target": str, **OUTCOMES}, key=("run_id", "target", "attack", "eps", "options", "n_examples")
)

register(MeasurementKind("transfer", SuiteGrid, {"transfer": TABLE}, tasks))
