"""The units of weights, scored and ranked: what every compressor is made of, and the registry of compressors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wellcond.errors import invalid


@dataclass(frozen=True)
class Compressed:
    """model: a new network of the same forward code.

    size: the numbers it stores, its deployed parameters, without the zeros among its weights if they are sparse.
    kept: what is left of each compressed layer by name: its rank, its number of filters, or of nonzero weights.
    whole: the layers from which nothing could be removed, each with the reason.
    """

    model: nn.Module
    size: int
    kept: dict[str, int]
    whole: dict[str, str]


AtAmount = Callable[[float], Compressed]
"""What a compressor returns: amount, the fraction of the units that is removed, in [0, 1) -> the smaller network."""

COMPRESSORS: dict[str, Callable[..., AtAmount]] = {}
"""(model, skip=...) -> the network at an amount. Each file of this folder adds its own."""


def ranked(scores: Mapping[str, Tensor], *, together: bool) -> Callable[[float], dict[str, Tensor]]:
    """amount -> {layer: which of its units stay}: all but the floor(amount·number) with the smallest scores.

    scores: {layer: (number of units,)}. together: whether the units of all layers are ranked in one order, or those of
    each layer in their own. The unit with the largest score of a layer stays. Of equal scores, the first goes first.
    Raises ValueError if there are no scores, or amount is not in [0, 1).
    """
    if not scores:
        raise invalid("scores", {}, "those of one layer at least: this compressor finds none in the network")
    groups = [dict(scores)] if together else [{name: score} for name, score in scores.items()]
    orders = [torch.cat([_largest_last(score) for score in group.values()]).argsort(stable=True) for group in groups]

    def survivors(amount: float) -> dict[str, Tensor]:
        if not 0 <= amount < 1:
            raise invalid("amount", amount, "in [0, 1), the fraction that is removed")
        masks: dict[str, Tensor] = {}
        for group, order in zip(groups, orders, strict=True):
            # 1e-9 absorbs rounding: 0.29·100 is 28.999999999999996 in floating point
            n_removed = min(math.floor(amount * len(order) + 1e-9), len(order) - len(group))
            stays = torch.ones_like(order, dtype=torch.bool)
            stays[order[:n_removed]] = False
            masks |= zip(group, torch.split(stays, [len(score) for score in group.values()]), strict=True)
        return masks

    return survivors


def _largest_last(score: Tensor) -> Tensor:
    protected = score.clone()
    protected[score.argmax()] = math.inf
    return protected
