"""The statistics of batch normalization, estimated again after the network before it has changed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wellcond.errors import invalid


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, images: Tensor, batch_size: int = 500) -> nn.Module:
    """A copy of `model` whose running means and variances are those of `images` (N, C, ...), N >= 2.

    They are averages over batches of equal size, batch_size or a little more, with dropout off: compression changes the
    distributions that the statistics of training describe. The variance between the means of batches is left out.
    Raises ValueError for fewer than two images or a batch_size < 2.
    """
    if len(images) < 2:
        raise invalid("images", tuple(images.shape), "a batch of at least two images")
    if batch_size < 2:
        raise invalid("batch_size", batch_size, ">= 2")
    new = copy.deepcopy(model).eval()
    norms = [m for m in new.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's cumulative average
        norm.train()
    for batch in images.tensor_split(max(1, len(images) // batch_size)):
        new(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, original in zip(new.modules(), model.modules(), strict=True):
        module.training = original.training
    return new
