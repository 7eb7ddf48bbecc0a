"""From a dense model to a factorized one and back, in the user's own architecture.

``ratio`` is the papers' nominal compression: the fraction of the rank that is removed from every weight matrix,
r = ceil((1 - ratio)·min(n, m)). It is not a fraction of the parameters; ``count_parameters`` reports those.
"""

from __future__ import annotations

import copy
import fnmatch
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from wellcond.errors import invalid, unknown
from wellcond.layers import (
    LowRankConv2d,
    LowRankLayer,
    LowRankLinear,
    full_rank,
    low_rank_layers,
    matricize,
    weight_layers,
)


def rank_for_ratio(ratio: float, full: int) -> int:
    """ceil((1 - ratio)·full), at least 1; ratio in [0, 1). Raises ValueError outside it."""
    if not 0 <= ratio < 1:
        raise invalid("ratio", ratio, "in [0, 1), the fraction of the rank that is removed")
    # 1e-9 absorbs the rounding of 1 - ratio: (1 - 0.7)·10 is 3.0000000000000004 in floating point
    return max(1, math.ceil((1 - ratio) * full - 1e-9))


def _matched(patterns: Iterable[str], names: Iterable[str], field: str) -> set[str]:
    names = list(names)
    matched: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits:
            raise unknown(field, pattern, names)
        matched.update(hits)
    return matched


def _convertible(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    # Exact types: a subclass may use its weight in other ways (nn.MultiheadAttention's output projection does).
    layers = {name: m for name, m in model.named_modules() if type(m) in (nn.Linear, nn.Conv2d)}
    grouped = [name for name, m in layers.items() if isinstance(m, nn.Conv2d) and (m.groups > 1)]
    other = [name for name, m in layers.items() if isinstance(m, nn.Conv2d) and m.padding_mode != "zeros"]
    if grouped or other:
        warnings.warn(
            f"left dense: {', '.join(grouped + other)} (a grouped convolution, or padding other than zeros)",
            stacklevel=3,
        )
    return {name: m for name, m in layers.items() if name not in {*grouped, *other}}


def factorize(
    model: nn.Module,
    *,
    ratio: float | None = None,
    rank: int | Mapping[str, int] | None = None,
    skip: Iterable[str] = (),
    keep_full_rank: Iterable[str] = (),
    core: bool = True,
) -> nn.Module:
    """A copy of `model` with every nn.Linear and nn.Conv2d factorized by truncated SVD of its own weights.

    model: any module; its forward code, residual connections included, is kept. It is not modified.
    ratio: fraction of the rank removed, in [0, 1); or rank: an int, capped at each layer's full rank, or
        {layer name: rank}, which converts only the layers it names. Give exactly one.
    skip, keep_full_rank: names or glob patterns of layers left dense, or factorized at full rank.
    core: True for U S Vᵀ, False for U Vᵀ.

    Grouped convolutions are left dense, with a warning that names them.
    Raises ValueError for ratio or rank out of range, both or neither given, or a pattern that matches no layer.
    """
    if (ratio is None) == (rank is None):
        raise ValueError(f"ratio = {ratio}, rank = {rank}: give exactly one of them")
    new = copy.deepcopy(model)
    layers = _convertible(new)
    skipped = _matched(skip, layers, "skip")
    at_full_rank = _matched(keep_full_rank, layers, "keep_full_rank")
    if isinstance(rank, Mapping):
        _matched(rank, layers, "rank")
        skipped |= layers.keys() - rank.keys()
    for name, layer in layers.items():
        if name in skipped:
            continue
        full = full_rank(layer)
        if name in at_full_rank:
            r = full
        elif isinstance(rank, Mapping):
            r = rank[name]
        elif rank is not None:
            r = min(rank, full)
        else:
            assert ratio is not None
            r = rank_for_ratio(ratio, full)
        converted: LowRankLayer
        if isinstance(layer, nn.Linear):
            converted = LowRankLinear.from_dense(layer, r, core=core)
        else:
            converted = LowRankConv2d.from_dense(layer, r, core=core)
        new = replace_module(new, name, converted)
    return new


def replace_module(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """`model` with `layer` in the place of the module of that name; `layer` itself where the name is empty."""
    if name == "":  # the model is itself the layer
        return layer
    old = model.get_submodule(name)
    for alias, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:  # a layer shared under several names stays shared
            model.set_submodule(alias, layer)
    return model


def densify(model: nn.Module) -> nn.Module:
    """A copy of `model` with every factorized layer replaced by the dense layer W = U S Vᵀ."""
    new = copy.deepcopy(model)
    for name, layer in low_rank_layers(new).items():
        assert isinstance(layer, LowRankLinear | LowRankConv2d)
        new = replace_module(new, name, layer.to_dense())
    return new


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
    for layer in weight_layers(model).values():
        if isinstance(layer, LowRankLayer):
            n, m, r = layer.U.shape[0], layer.V.shape[0], layer.rank
            factors = r * (n + m) + (0 if layer.S is None else r * r)
            dense += n * m - factors
            deployed += min(r * (n + m), n * m) - factors
        else:
            n, m = matricize(layer.weight).shape
            r = min(n, m)
        kept += r
        full += min(n, m)
    return ParameterCount(dense, trained, deployed, kept / full if full else 1.0)


@torch.no_grad()
def count_flops(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Floating-point operations of one forward pass on one input (C, H, W); a multiply-add counts as 2.

    Counted by torch.utils.flop_counter: convolutions and matrix products, not activations or normalization.
    """
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
