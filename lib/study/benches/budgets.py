"""What ranks from a budget bring over one ratio for all layers, at the same number of deployed parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from study import data, networks
from study.benches.training import Row
from study.measurement.accuracy import count_correct
from study.training.fine_tuning import fine_tuned
from study.training.loop import Recipe, fit
from wellcond.compression.batch_norm import reestimate_batch_norm
from wellcond.compression.budgets import ranks
from wellcond.convert import convertible, factorize
from wellcond.counts import count_parameters
from wellcond.errors import invalid, unknown
from wellcond.layers import full_rank, low_rank_layers
from wellcond.methods.method import last_layer
from wellcond.optim import LowRankSGD, constrain, param_groups

MAX_COND = 1.1
BATCHES = 16  # of training images, from which the sensitivity is computed
STATISTICS = 1000  # training images, from which the statistics of batch normalization are computed after truncation


class Protocol(NamedTuple):
    """A network, its data, and how it is trained; fine-tuned for `tuning` epochs at a third of the learning rate."""

    make: Callable[..., nn.Module]
    dataset: str
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    tuning: int
    n_train: int | None = None
    n_test: int | None = None


def resnet8(**how: Any) -> nn.Module:
    """A block for each of 16, 32 and 64 channels, on images of half the size: the digits are enlarged fourfold."""
    return nn.Sequential(nn.AvgPool2d(2), networks.ResNet(blocks=1, **how))


PROTOCOLS = {
    "lenet5": Protocol(networks.LeNet5, "digits", epochs=8, batch_size=32, lr=0.05, momentum=0.5, tuning=1),
    "lenet5_mnist": Protocol(networks.LeNet5, "mnist", 4, 64, 0.1, 0.3, tuning=1, n_train=4000, n_test=5000),
    "resnet8": Protocol(resnet8, "digits", epochs=5, batch_size=32, lr=0.05, momentum=0.9, tuning=1),
}
"""By the name of the network in the table."""


def budget_rows(
    net: str, ratios: Sequence[float], *, repeats: int = 3, protocols: Mapping[str, Protocol] = PROTOCOLS, **_: Any
) -> list[Row]:
    """One row a seed (`repeats` of them), ratio and way to choose the ranks; the classifier keeps its rank.

    ratios: the fractions of the rank of every layer that are removed where `ranks` is "one ratio"; their deployed
    parameters are the budget of the others, "energy" and "sensitivity" of the trained dense network, and "initial", the
    energy of the network before training. Columns: net, dataset, seed, ranks, ratio, share (deployed parameters over
    dense), n_test, and the numbers of test images that are right: dense; truncated, by SVD of the trained weights with
    new statistics of batch normalization; fine_tuned, after that; condlr, trained at these ranks from the start with
    κ(S) <= MAX_COND in every layer, those that stay dense at full rank. Empty: not measured.
    Raises ValueError for an unknown network, or ratios out of range.
    """
    if net not in protocols:
        raise unknown("net", net, protocols)
    for ratio in ratios:
        if not 0 <= ratio < 1:
            raise invalid("ratio", ratio, "in [0, 1), the fraction of the rank that is removed")
    return [row for seed in range(repeats) for row in _rows(net, protocols[net], ratios, seed)]


def _rows(net: str, protocol: Protocol, ratios: Sequence[float], seed: int) -> Iterator[Row]:
    images = data.load(protocol.dataset, seed=seed, n_train=protocol.n_train, n_test=protocol.n_test)
    torch.manual_seed(seed)
    start = protocol.make(num_classes=images.num_classes, in_channels=images.shape[0])
    dense = _trained(factorize(start, rank={}), images, protocol, seed)
    batches = list(images.train.batches(protocol.batch_size, seed=seed, epoch=0))[:BATCHES]
    statistics = images.train.pixels(slice(STATISTICS))
    right = partial(count_correct, images=images.test)
    skip = last_layer(start)
    full = {name: full_rank(layer) for name, layer in convertible(start).items()}
    about: Row = {
        "net": net,
        "dataset": protocol.dataset,
        "seed": seed,
        "n_test": len(images.test),
        "dense": right(dense).n_correct,
    }
    for ratio in ratios:
        uniform = factorize(dense, ratio=ratio, skip=skip)
        budget = {"parameters": _share(uniform)}
        chosen: dict[str, dict[str, int]] = {
            "one ratio": {name: layer.rank for name, layer in low_rank_layers(uniform).items()},
            "energy": ranks(dense, budget, skip=skip),
            "sensitivity": ranks(dense, budget, skip=skip, importance="sensitivity", data=batches),
            "initial": ranks(start, budget, skip=skip),
        }
        for name, rank in chosen.items():
            row = {**about, "ranks": name, "ratio": ratio}
            truncated = reestimate_batch_norm(factorize(dense, rank=rank, core=False), statistics)
            row |= {"share": _share(truncated)}
            if name != "initial":
                row["truncated"] = right(truncated).n_correct
                row["fine_tuned"] = right(_fine_tuned(truncated, images, protocol, seed)).n_correct
            if name != "sensitivity":
                low_rank = constrain(factorize(start, rank={**full, **rank}), MAX_COND)
                row["condlr"] = right(_trained(low_rank, images, protocol, seed)).n_correct
            yield row


def _share(model: nn.Module) -> float:
    counts = count_parameters(model)
    return counts.deployed / counts.dense


def _trained(model: nn.Module, images: data.Data, protocol: Protocol, seed: int) -> nn.Module:
    model = model.to(memory_format=torch.channels_last)
    optimizer = LowRankSGD(param_groups(model, max_cond=MAX_COND), lr=protocol.lr, momentum=protocol.momentum)
    recipe = Recipe(protocol.epochs, protocol.batch_size, schedule="cosine")
    fit(model, optimizer, images.train, recipe, seed=seed)
    return model


def _fine_tuned(model: nn.Module, images: data.Data, protocol: Protocol, seed: int) -> nn.Module:
    how = {"lr": protocol.lr / 3, "momentum": protocol.momentum, "batch_size": protocol.batch_size}
    return fine_tuned(model, images.train, epochs=protocol.tuning, seed=seed, **how)  # type: ignore[arg-type]
