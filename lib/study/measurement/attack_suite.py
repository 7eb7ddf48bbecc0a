"""The attack suite on one network: which images survive each attack at each radius.

Outcomes are kept image by image. An attack is spared the images that a cheaper one has felled, and those that have
withstood it in a larger ball: each radius decides only about the images between its neighbours, and a curve over many
radii costs little more than one of them. An interrupted suite is continued where it was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from study.attacks.attack import ATTACKS, AttackKind, options_text
from study.data import Images
from study.measurement.accuracy import AttackGrid, Once, at_once, predictions, survivors
from study.measurement.measurement import Cell, Given, MeasurementKind, Selective, Task, register
from study.results.outcomes import pack, unpack
from study.results.store import Measurement, measurement
from study.results.tables import ATTACKED, Row, Table

CLEAN = "clean"


class Trial(NamedTuple):
    """One attack at one radius on the first n_examples images (all if None)."""

    attack: str
    eps: float
    n_examples: int | None
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def measurement(self) -> Measurement:
        """What its row measures."""
        options = options_text(ATTACKS[self.attack], dict(self.options))
        return Measurement(self.attack, self.eps, self.n_examples, options)


def outcome_row(kind: str, norm: str, eps: float, options: str, attacked: int, alive: Tensor) -> dict[str, Any]:
    return {
        "attack": kind,
        "norm": norm,
        "eps": eps,
        "options": options,
        "n_examples": len(alive),
        "n_attacked": attacked,
        "n_correct": int(alive.sum()),
        "outcomes": pack(alive.tolist()),
    }


def _known(row: Row, n: int, device: torch.device) -> Tensor:
    outcomes = unpack(str(row["outcomes"]), int(row["n_examples"]))
    return torch.from_numpy(outcomes[:n].copy()).to(device)


def _felled(kind: AttackKind, trial: Trial, row: Row) -> bool:
    """Whether an image that falls in the row has fallen in the trial: clean, in a smaller ball, or to an attack that
    this one follows."""
    smaller = kind.nested and _same(kind, trial, row) and row["eps"] < trial.eps
    return row["attack"] == CLEAN or smaller or (row["attack"] in kind.follows and row["eps"] <= trial.eps)


def _withstood(kind: AttackKind, trial: Trial, row: Row) -> bool:
    """Whether an image that stands in the row stands in the trial: the same attack has failed in a larger ball."""
    return kind.nested and _same(kind, trial, row) and row["eps"] > trial.eps


def _same(kind: AttackKind, trial: Trial, row: Row) -> bool:
    return row["attack"] == kind.name and measurement(row).options == trial.measurement.options


def clean_row(model: nn.Module, images: Images) -> dict[str, Any]:
    """The row of the images as they are."""
    alive, _ = predictions(model, images)
    return outcome_row(CLEAN, "", 0.0, "", 0, alive)


def attack_row(
    model: nn.Module, images: Images, trial: Trial, rows: Sequence[Row], *, seed: int = 0, once: Once = at_once
) -> dict[str, Any]:
    """The outcome of one trial: image i survives if it is classified correctly as it is and stands in the rows of what
    the attack follows and of smaller balls, and if it withstands the attack, now or in the row of a larger ball.
    rows: what is known of this network, the clean row included.

    Columns: attack, norm, eps, options, n_examples, n_attacked (now), n_correct, wall_s, and outcomes
    (`study.results.outcomes.pack`).
    """
    kind, started = ATTACKS[trial.attack], time.perf_counter()
    images = images.first(trial.n_examples)
    standing = torch.ones(len(images), dtype=torch.bool, device=images.labels.device)
    withstood = torch.zeros_like(standing)
    for row in rows:
        if row["n_examples"] >= len(images):
            alive = _known(row, len(images), standing.device)
            if _felled(kind, trial, row):
                standing &= alive
            elif _withstood(kind, trial, row):
                withstood |= alive
    attacked = standing & ~withstood
    after = survivors(kind, model, images, attacked, trial.eps, seed=seed, once=once, **dict(trial.options))
    after |= standing & withstood
    row = outcome_row(kind.name, kind.norm, trial.eps, trial.measurement.options, int(attacked.sum()), after)
    return {**row, "wall_s": time.perf_counter() - started}


# ------------------------------------------------------------------------ what an experiment declares of it


class SuiteGrid(AttackGrid, Selective):
    """An attack of the suite that is run on trained networks."""

    def trials(self) -> list[Trial]:
        """One for each eps, the largest first: what withstands a ball is not attacked in the smaller ones."""
        options = tuple(sorted(self.options.items()))
        return [Trial(self.name, eps, self.n_examples, options) for eps in sorted(self.eps, reverse=True)]


def _task(cell: Cell, trial: Trial, n_test: int) -> Task:
    wanted = trial.measurement.among(n_test)

    def measure(given: Given) -> list[dict[str, Any]]:
        model, test = given.network(cell), given.data.test
        images = test.first(trial.n_examples)
        clean = [row for row in given.rows if row["attack"] == CLEAN and int(row["n_examples"]) >= len(images)]
        new = [] if clean else [clean_row(model, images)]
        return [*new, attack_row(model, test, trial, [*given.rows, *new], seed=cell.seed, once=given.once)]

    def known(rows: Sequence[Row]) -> bool:
        return any(measurement(row) == wanted for row in rows)

    return Task(cell, "attacks", str(trial), measure, known)


def tasks(cell: Cell, grid: SuiteGrid, n_test: int, cells: Sequence[Cell]) -> list[Task]:
    """One for each radius."""
    return [_task(cell, trial, n_test) for trial in grid.trials()]


OUTCOMES: dict[str, type] = {
    **ATTACKED,
    "n_attacked": int,
    "n_correct": int,
    "outcomes": str,
}
"""The columns of a row: which of the first n_examples test images survive an attack at a radius."""

ATTACKED = Table(
    {"run_id": str, **OUTCOMES, "wall_s": float, "device": str, "commit": str},
    key=("run_id", "attack", "eps", "options", "n_examples"),
)

register(MeasurementKind("suite", SuiteGrid, {"attacks": ATTACKED}, tasks, cost=2))
