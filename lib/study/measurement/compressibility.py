"""How far a trained network can be compressed: its size, accuracy and robustness at one amount of one compressor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from study.data import Data
from study.measurement.accuracy import count_correct, robustness_curve
from study.measurement.attack_suite import CLEAN
from study.training.fine_tuning import fine_tuned
from wellcond.compression.batch_norm import reestimate_batch_norm
from wellcond.compression.compressors import iterated
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
