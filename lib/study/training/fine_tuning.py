"""Training a compressed network further, with what was removed kept out."""

from __future__ import annotations

import copy

import torch
from torch import nn

from study.training.loop import Images, Recipe, fit
from wellcond.compression.weights import held_zeros
from wellcond.optim import LowRankSGD, param_groups


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
        fit(model, optimizer, data, Recipe(epochs, batch_size), seed=seed)
    return model.eval()
