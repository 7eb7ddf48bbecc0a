"""Compression by setting single weights to zero, and training on with these zeros held."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wellcond.compression.units import COMPRESSORS, AtAmount, Compressed, ranked
from wellcond.convert import densify, matching, tied
from wellcond.counts import count_parameters
from wellcond.layers import weight_layers


@torch.no_grad()
def pruned_weights(model: nn.Module, *, together: bool = True, skip: str | Iterable[str] = ()) -> AtAmount:
    """Set single weights to zero, those of least magnitude; biases and normalization are left alone.

    No tensor becomes smaller, and training the network further fills the zeros again. skip: names or patterns of
    layers left whole. Source: Han et al., NeurIPS 2015.
    """
    dense = densify(model)
    shared = tied(dense)
    layers = {name: layer for name, layer in weight_layers(dense).items() if type(layer) in (nn.Linear, nn.Conv2d)}
    skipped = matching(skip, layers, "skip") | shared.keys()
    whole = {name: "skipped, or not a plain layer" for name in weight_layers(dense) if name not in {*layers} - skipped}
    whole |= {name: f"tied to {shared[name]}" for name in whole.keys() & shared.keys()}
    weights = {name: dense.get_parameter(f"{name}.weight") for name in layers if name not in skipped}
    survivors = ranked({name: weight.abs().flatten() for name, weight in weights.items()}, together=together)

    @torch.no_grad()
    def at(amount: float) -> Compressed:
        new = copy.deepcopy(dense)
        kept: dict[str, int] = {}
        for name, stays in survivors(amount).items():
            weight = new.get_parameter(f"{name}.weight")
            weight.masked_fill_(~stays.view(weight.shape), 0)
            kept[name] = int(weight.count_nonzero())
        zeros = sum(weight.numel() - kept[name] for name, weight in weights.items())
        return Compressed(new, count_parameters(new).deployed - zeros, kept, whole)

    return at


COMPRESSORS["magnitude"] = pruned_weights


@contextmanager
def held_zeros(model: nn.Module) -> Iterator[None]:
    """While it is open, the weights that are zero have zero gradients, so that an optimizer leaves them there."""

    def held(zero: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda gradient: gradient.masked_fill(zero, 0)

    weights = [layer.weight for layer in weight_layers(model).values() if isinstance(layer.weight, nn.Parameter)]
    zeros = [(weight, weight.detach() == 0) for weight in weights]
    hooks = [
        weight.register_hook(held(zero))  # type: ignore[no-untyped-call]
        for weight, zero in zeros
        if zero.any()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
