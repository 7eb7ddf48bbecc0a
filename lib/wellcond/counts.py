"""Parameters and floating-point operations of a network, as it is trained and as it is deployed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from wellcond.convert import check_merged
from wellcond.layers import LowRankLayer, full_rank, weight_layers


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters, biases and normalization included, and the rank kept.

    dense: of the same network with dense weights; trained: as stored while training, r(n + m) + r² a layer;
    deployed: merged factors, min(r(n + m), nm) a layer, with the batch normalization that ``deploy`` then folds away
    where it can; rank_fraction: Σ r / Σ min(n, m) over all weight matrices.
    """

    dense: int
    trained: int
    deployed: int
    rank_fraction: float


def count_parameters(model: nn.Module) -> ParameterCount:
    """The counts of `model`; needs no copy of it. Raises ValueError for one with adapters, which are merged before."""
    check_merged(model)
    trained = sum(p.numel() for p in model.parameters())
    dense = deployed = trained
    kept = full = 0
    seen: set[Tensor] = set()
    for layer in weight_layers(model).values():
        factorized = isinstance(layer, LowRankLayer)
        own = layer.U if factorized else layer.weight
        if own in seen:  # tied: one matrix
            continue
        seen.add(own)
        parts = [layer.U, layer.S, layer.V] if factorized else [own]
        if is_parametrized(layer, "weight"):  # a product of factors is deployed multiplied
            parts = [*layer.get_submodule("parametrizations.weight").parameters()]
        stored = sum(p.numel() for p in parts if p is not None)
        dense += (layer.n_dense if factorized else own.numel()) - stored
        deployed += (layer.n_deployed if factorized else own.numel()) - stored
        kept += layer.rank if factorized else full_rank(layer)
        full += full_rank(layer)
    return ParameterCount(dense, trained, deployed, kept / full if full else 1.0)


@torch.no_grad()
def count_flops(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Floating-point operations of one forward pass on one input (C, H, W); a multiply-add counts as 2.

    Counted by torch.utils.flop_counter: convolutions and matrix products, not activations or normalization.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports compilers

    x = next(model.parameters()).new_zeros(1, *input_shape)
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with FlopCounterMode(display=False) as counter:
            model(x)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return int(counter.get_total_flops())
