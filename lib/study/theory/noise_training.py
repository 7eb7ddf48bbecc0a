"""Training with noise, of networks with pooled kernels and of their rivals, and the noise for a given accuracy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

import wellcond as wc
from study.data import Images
from study.theory.triangular import triangular
from wellcond.layers import weight_layers
from wellcond.methods.kernel_average_pooling import pool_kernels

BATCH, RATIO, BOUND = 100, 0.8, 1.1


def _pooled(model: nn.Module, window: int) -> nn.Module:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):  # AW then has the variance of W; published networks have batch normalization
            layer.weight.data *= window**0.5
    return pool_kernels(model, window)


def _normalized(model: nn.Module) -> nn.Module:
    for layer in weight_layers(model).values():
        spectral_norm(layer)
    return model


def _bounded(model: nn.Module) -> nn.Module:
    return wc.constrain(wc.factorize(model, ratio=RATIO, keep_full_rank=list(weight_layers(model))[-1:]), BOUND)


PLAIN, POOLED, WIDER, BOUNDED, NORMALIZED = "noise", "pooling, K = 3", "pooling, K = 5", "κ ≤ 1.1", "spectral norm 1"
METHODS: dict[str, Callable[[nn.Module], nn.Module]] = {
    PLAIN: lambda model: model,
    POOLED: partial(_pooled, window=3),
    WIDER: partial(_pooled, window=5),
    BOUNDED: _bounded,
    NORMALIZED: _normalized,
}
"""What becomes of the network before it is trained."""


class Recipe(NamedTuple):
    """network: to be trained for so many epochs with this learning rate."""

    network: Callable[[], nn.Module]
    epochs: int = 8
    rate: float = 0.3


def train(recipe: Recipe, images: Images, method: str, sigma: float, seed: int) -> nn.Module:
    """Momentum SGD on x + σε with clipped gradients; the rate rises for a quarter of the steps, then falls to zero."""
    torch.manual_seed(seed)
    model = METHODS[method](recipe.network().to(memory_format=torch.channels_last))  # half the time
    optimizer = wc.LowRankSGD(wc.param_groups(model, max_cond=BOUND), lr=recipe.rate, momentum=0.9)
    steps = recipe.epochs * math.ceil(len(images) / BATCH)
    schedule = triangular(optimizer, steps)
    for epoch in range(recipe.epochs):
        for x, y in images.batches(BATCH, seed=seed, epoch=epoch):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x + sigma * torch.randn_like(x)), y)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def noise_at(accuracies: Mapping[float, float], target: float) -> float:
    """The largest σ at which the accuracy, linear between the σ measured, is the target; the largest of these if it is
    above the target there, the smallest if it is below it everywhere."""
    sigmas = sorted(accuracies, reverse=True)
    if accuracies[sigmas[0]] >= target:
        return sigmas[0]
    for high, low in itertools.pairwise(sigmas):
        if accuracies[low] >= target:
            return low + (high - low) * (accuracies[low] - target) / (accuracies[low] - accuracies[high])
    return sigmas[-1]
