"""Training a compressed network further, with what was removed kept out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from study.training.loop import Images, fit
from wellcond.layers import weight_layers
from wellcond.optim import LowRankSGD, param_groups


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


def fine_tuned(
    model: nn.Module, data: Images, *, epochs: int, lr: float, momentum: float, batch_size: int, seed: int
) -> nn.Module:
    """A copy of `model` trained by momentum SGD at a constant learning rate for `epochs` epochs, its zeros kept.

    Factors U, V of a truncated layer are trained as plain parameters. epochs = 0 returns the copy as it is.
    Raises Diverged, and ValueError as `train.fit`.
    """
    model = copy.deepcopy(model)
    optimizer = LowRankSGD(param_groups(model), lr=lr, momentum=momentum)
    torch.manual_seed(seed)  # dropout
    with held_zeros(model):
        fit(model, optimizer, data, epochs=epochs, batch_size=batch_size, seed=seed)
    return model.eval()
