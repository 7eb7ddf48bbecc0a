"""Networks of as few weights, sparse or of low rank, as rewiring and its rivals train them, and what they store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import wellcond as wc
from wellcond.layers import full_rank, weight_layers
from wellcond.methods.alternating_compression import SparseTraining
from wellcond.methods.rewiring import Rewiring

RHO, BOUND = 1e-3, 1.1


def weights(model: nn.Module) -> list[Tensor]:
    return [layer.weight for layer in weight_layers(model).values()]


def low_rank(model: nn.Module, density: float, core: bool) -> nn.Module:
    """U Vᵀ, or U S Vᵀ inside κ <= BOUND; the last layer, and others for which factors are too many numbers, whole."""
    *_, last = layers = weight_layers(model)
    parameters, N = wc.count_parameters(model).dense, sum(W.numel() for W in weights(model))
    rank = wc.ranks(model, {"parameters": 1 - (1 - density) * N / parameters}, skip=last)
    if core:
        rank = {name: rank.get(name, full_rank(layer)) for name, layer in layers.items()}
    thin = wc.factorize(model, rank=rank, core=core)
    return wc.constrain(thin, BOUND) if core else thin


def prune(optimizer: Optimizer, model: nn.Module, density: float, steps: int) -> None:
    SparseTraining(optimizer, weights(model), lambda t: (t >= 0.5) * (1 - density), steps=steps)


def rewire(optimizer: Optimizer, model: nn.Module, density: float, steps: int, dim: int | None = None) -> Rewiring:
    for W in weights(model):
        W.data *= density**-0.5
    return Rewiring(optimizer, weights(model), density, dim, RHO)


class Method(NamedTuple):
    """start: of the network at a density; zeros: what holds them; densities: those measured, if not all."""

    start: Callable[[nn.Module, float], nn.Module] = lambda model, density: model
    zeros: Callable[[Optimizer, nn.Module, float, int], Rewiring | None] = lambda *_: None
    densities: Sequence[float] = ()


DENSE, REWIRED, CHANNELS, MAGNITUDE, UV, USV = "dense", "rewiring", "channels", "magnitude", "U Vᵀ", "U S Vᵀ, κ ≤ 1.1"
METHODS = {
    DENSE: Method(densities=(1.0,)),
    REWIRED: Method(zeros=rewire),
    CHANNELS: Method(zeros=partial(rewire, dim=1), densities=(0.2,)),
    MAGNITUDE: Method(zeros=prune),
    UV: Method(partial(low_rank, core=False)),
    USV: Method(partial(low_rank, core=True)),
}


@torch.no_grad()
def sizes(model: nn.Module) -> dict[str, float]:
    """In percent of dense weights: non-zeros; numbers stored, with indices; deployed, as factors or live channels."""
    biases = sum(b.numel() for name, b in model.named_parameters() if name.endswith("bias"))
    counts = wc.count_parameters(model)
    N, deployed = counts.dense - biases, counts.deployed - biases
    nonzeros = stored = float(deployed)
    if not wc.low_rank_layers(model):
        live = [W != 0 for W in weights(model)]
        read = [int(mask.transpose(0, 1).flatten(1).any(1).sum()) for mask in live]  # input channels; then the outputs
        deployed = sum(a * b * m[0, 0].numel() for a, b, m in zip(read, [*read[1:], len(live[-1])], live, strict=True))
        nonzeros = float(sum(int(mask.sum()) for mask in live))
        stored = min(nonzeros + min(nonzeros / 2, N / 32), deployed)
    return {"non-zeros": 100 * nonzeros / N, "stored": 100 * stored / N, "deployed": 100 * deployed / N}
