"""How far a trained network can be compressed: its size, accuracy and robustness at one amount of one compressor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import nn

from study.data import Data
from study.measurement.accuracy import AttackGrid, count_correct, robustness_curve
from study.measurement.attack_suite import CLEAN
from study.measurement.measurement import Cell, Given, MeasurementKind, Selective, Task, register
from study.results.store import Measurement, measurement
from study.results.tables import ATTACKED, Row, Table
from study.strict import one_of
from study.training.fine_tuning import fine_tuned
from wellcond.compression.batch_norm import reestimate_batch_norm
from wellcond.compression.compressors import COMPRESSORS, iterated
from wellcond.counts import count_flops
from wellcond.deployment import deploy
from wellcond.diagnostics import effective_kappa
from wellcond.layers import matricize, weight_layers
from wellcond.methods.method import last_layer


class Plan(NamedTuple):
    """A compressor at one amount, in so many phases with `epochs` epochs of training after each, at the learning rate
    lr (see `compress.iterated`, `fine_tuning`); then the statistics of batch normalization of the training images
    again, if reestimated."""

    compressor: str
    amount: float
    phases: int = 1
    epochs: int = 0
    lr: float = 0.01
    momentum: float = 0.9
    batch_size: int = 128
    reestimated: bool = False

    def key(self) -> dict[str, Any]:
        """The columns that name this plan in a table."""
        trained = self.epochs > 0
        return {
            "compressor": self.compressor,
            "amount": self.amount,
            "phases": self.phases,
            "epochs": self.epochs,
            "lr": self.lr if trained else None,
            "reestimated": self.reestimated,
        }

    @staticmethod
    def named(row: Mapping[str, Any]) -> tuple[str, ...]:
        """The entries of a key, of a plan or in a row of a table, to be compared: numbers as they are in a file."""
        values = (row[name] for name in _KEY)
        return tuple("" if v is None or v != v else f"{v:.9g}" if isinstance(v, float) else str(v) for v in values)


_KEY = tuple(Plan("", 0.0).key())


def compressed(model: nn.Module, data: Data, plan: Plan, *, seed: int = 0) -> tuple[nn.Module, int]:
    """`model` by this plan, its classifier left whole; and the numbers it stores, without zeros of sparse weights.

    seed: of the order of the training images. Raises ValueError, as `compress`, and Diverged.
    """

    def train(model: nn.Module) -> nn.Module:
        return fine_tuned(
            model,
            data.train,
            epochs=plan.epochs,
            lr=plan.lr,
            momentum=plan.momentum,
            batch_size=plan.batch_size,
            seed=seed,
        )

    found = iterated(model, plan.compressor, plan.amount, phases=plan.phases, train=train, skip=last_layer(model))
    if not plan.reestimated:
        return found.model.eval(), found.size
    images = data.train.pixels(torch.arange(min(len(data.train), STATISTICS_IMAGES)))
    return reestimate_batch_norm(found.model, images).eval(), found.size


STATISTICS_IMAGES = 5000  # of the training images; the standard error of a mean is then below 2 % of the spread


def compression_rows(
    model: nn.Module, data: Data, plan: Plan, attacks: Iterable[Mapping[str, Any]] = (), *, seed: int = 0
) -> list[dict[str, Any]]:
    """One row for the clean test images, and one for each attack and radius.

    attacks: {"name", "eps", "n_examples", "options"} each. Columns: those of the plan's key; n_params_deployed,
    flops_deployed (of the deployed network; zeros of sparse weights are multiplied too), kappa: the largest σ_max/σ_min
    over the layers, of the nonzero singular values, normalization included; attack, norm, eps, options, n_examples,
    n_correct.
    """
    network, size = compressed(model, data, plan, seed=seed)
    about = {
        **plan.key(),
        "n_params_deployed": size,
        "flops_deployed": count_flops(deploy(network), data.shape),
        "kappa": max(effective_kappa(network).values()),
    }
    score = count_correct(network, data.test)
    clean = {
        "attack": CLEAN,
        "norm": "",
        "eps": 0.0,
        "options": "",
        "n_examples": score.n,
        "n_correct": score.n_correct,
    }
    rows = [{**about, **clean}]
    for attack in attacks:
        images = data.test.first(attack["n_examples"])
        curve = robustness_curve(network, images, attack["name"], attack["eps"], seed=seed, **attack["options"])
        rows += [{**about, **{k: v for k, v in row.items() if k != "n_zero_gradient"}} for row in curve]
    return rows


def filter_rows(model: nn.Module) -> list[dict[str, Any]]:
    """layer, index, norm: the l2 norms of the rows of every weight matrix, the filters, in descending order."""
    norms: dict[str, list[float]] = {}
    for name, layer in weight_layers(model).items():
        weight: Any = layer.weight
        norms[name] = (
            torch.linalg.vector_norm(matricize(weight.detach()).double(), dim=1).sort(descending=True).values.tolist()
        )
    return [
        {"layer": layer, "index": index, "norm": norm}
        for layer, values in norms.items()
        for index, norm in enumerate(values)
    ]


# ------------------------------------------------------------------------ what an experiment declares of it


class Grid(Selective):
    """A compressor at several amounts, applied to trained networks in so many phases, each followed by `epochs` epochs
    of training at the learning rate lr; reestimated: with the statistics of batch normalization computed again.
    attack: what the compressed networks are measured under, besides the clean test images."""

    compressor: Annotated[str, one_of("compressor", COMPRESSORS)]
    amount: tuple[Annotated[float, Field(ge=0, lt=1)], ...]
    phases: int = Field(1, ge=1)
    epochs: int = Field(0, ge=0, validate_default=True)
    lr: float = Field(0.01, gt=0, allow_inf_nan=False)
    momentum: float = Field(0.9, ge=0, lt=1)
    reestimated: bool = False
    attack: tuple[AttackGrid, ...] = ()

    @field_validator("epochs")
    @classmethod
    def _between(cls, value: int, info: ValidationInfo) -> int:
        if value == 0 and info.data.get("phases", 1) > 1:
            raise ValueError("must be >= 1 where phases is > 1")
        return value

    def plans(self, batch_size: int) -> list[Plan]:
        """One for each amount."""
        how = {key: getattr(self, key) for key in ("phases", "epochs", "lr", "momentum", "reestimated")}
        return [Plan(self.compressor, amount, batch_size=batch_size, **how) for amount in sorted(self.amount)]


def _task(cell: Cell, plan: Plan, attacks: Sequence[AttackGrid], n_test: int) -> Task:
    clean = Measurement(CLEAN, 0.0)
    under = [clean, *(measurement for attack in attacks for measurement in attack.measurements())]
    wanted = {(Plan.named(plan.key()), measurement.among(n_test)) for measurement in under}

    def key(row: Row) -> tuple[tuple[str, ...], Measurement]:
        return Plan.named(row), measurement(row)

    def known(rows: Sequence[Row]) -> bool:
        return wanted <= {key(row) for row in rows}

    def measure(given: Given) -> list[dict[str, Any]]:
        old, how = {key(row) for row in given.rows}, [attack.model_dump() for attack in attacks]
        new = compression_rows(given.network(cell), given.data, plan, how, seed=cell.seed)
        return [row for row in new if key(row) not in old]

    return Task(cell, "compressions", f"{plan} {[*attacks]}", measure, known)


def tasks(cell: Cell, grid: Grid, n_test: int, cells: Sequence[Cell]) -> Iterator[Task]:
    """The norms of its filters, and the network at each amount."""
    yield Task(cell, "filters", "filters", lambda given: filter_rows(given.network(cell)))
    for plan in grid.plans(cell.train.batch_size):
        yield _task(cell, plan, grid.attack, n_test)


COMPRESSIONS = Table(
    {
        "run_id": str,
        "compressor": str,
        "amount": float,
        "phases": int,
        "epochs": int,
        "lr": float,
        "reestimated": bool,
        "n_params_deployed": int,
        "flops_deployed": int,
        "kappa": float,
        **ATTACKED,
        "n_correct": int,
        "device": str,
        "commit": str,
    },
    key=("run_id", *_KEY, "attack", "eps", "options", "n_examples"),
)
FILTERS = Table({"run_id": str, "layer": str, "index": int, "norm": float}, key=("run_id", "layer", "index"))

register(
    MeasurementKind(
        "compression", Grid, {"compressions": COMPRESSIONS, "filters": FILTERS}, tasks, command="compress", cost=1
    )
)
