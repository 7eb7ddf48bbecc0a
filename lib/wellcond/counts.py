"""Parameters and floating-point operations of a network, as it is trained and as it is deployed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

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
    """The counts of `model`; needs no copy of it."""
    trained = sum(p.numel() for p in model.parameters())
    dense = deployed = trained
    kept = full = 0
    seen: set[Tensor] = set()
    for layer in weight_layers(model).values():
        own = layer.U if isinstance(layer, LowRankLayer) else layer.weight
        assert isinstance(own, Tensor)
        if own in seen:  # tied: one matrix
            continue
        seen.add(own)
        if isinstance(layer, LowRankLayer):
            factors = sum(p.numel() for p in (layer.U, layer.S, layer.V) if p is not None)
            dense += layer.n_dense - factors
            deployed += layer.n_deployed - factors
            kept += layer.rank
        else:
            if is_parametrized(layer, "weight"):  # a product of factors is deployed multiplied
                stored = sum(p.numel() for p in layer.get_submodule("parametrizations.weight").parameters())
                dense += layer.weight.numel() - stored
                deployed += layer.weight.numel() - stored
            kept += full_rank(layer)
        full += full_rank(layer)
    return ParameterCount(dense, trained, deployed, kept / full if full else 1.0)


@torch.no_grad()
def count_flops(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Floating-point operations of one forward pass on one input (C, H, W); a multiply-add counts as 2.

    Counted by torch.utils.flop_counter: convolutions and matrix products, not activations or normalization.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports compilers

    parameter = next(model.parameters())
    x = torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype)
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with FlopCounterMode(display=False) as counter:
            model(x)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return int(counter.get_total_flops())
