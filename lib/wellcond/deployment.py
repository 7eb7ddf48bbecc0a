"""A trained network in the form that runs fastest: plain layers, merged factors, no batch normalization."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from wellcond.convert import replace_module, unparametrized
from wellcond.layers import LowRankConv2d, LowRankLayer, LowRankLinear, low_rank_layers
from wellcond.tracing import dataflow
from wellcond.tucker import Tucker2Conv2d


@torch.no_grad()
def deploy(model: nn.Module) -> nn.Module:
    """A copy of `model` for inference, in evaluation mode; the same function up to rounding.

    A factorized layer becomes an ``nn.Sequential`` of plain layers, Vᵀ and then U S with the bias, or one dense
    layer where that takes no more multiply-adds. Both factors of a convolution act at the output's resolution (Vᵀ has
    the stride), so that is where r(n + m) >= nm, for a convolution as for a linear layer. Where forward code reads the
    weight itself, or cannot be traced, the layer stays what it is, with U S merged.

    Batch normalization is folded into the convolution or linear layer that feeds it, if it is the only reader of that
    layer's output; ``nn.Identity`` takes its place. `Normalize` stays: padded with zeros, the images after it are not
    the images before it. The forward code of the network is unchanged, and so is its class.

    ``.to(memory_format=torch.channels_last)`` makes a convolutional copy faster still. Processors round ranks up to
    whole vectors (16 numbers, in single precision with AVX-512): ranks 13 and 16 take the same time.
    """
    model = unparametrized(model)
    flow = dataflow(model)
    new = model
    for name, layer in low_rank_layers(new).items():
        if layer.n_deployed >= math.prod(layer.matrix_shape):
            new = replace_module(new, name, layer.to_dense())
        elif name in flow.called:
            new = replace_module(new, name, plain_layers(layer))
        elif not isinstance(layer, Tucker2Conv2d):
            layer.U.copy_(layer.left())
            layer.S = None
            layer.V.data = layer.V.mT.contiguous().mT  # as a kernel, Vᵀ is then a view and not a copy at every call
    for name, norm in flow.normalized.items():
        _fold(new.get_submodule(name), new.get_submodule(norm))
        new = replace_module(new, norm, nn.Identity())
    return new.eval()


def plain_layers(layer: LowRankLayer) -> nn.Sequential:
    """Vᵀ (r, m), then U S (n, r) with the bias, or Vᵀ, the core and U of a Tucker-2 kernel, as plain layers; sizes,
    stride and the like stay readable on it."""
    like: dict[str, Any] = {"device": layer.U.device, "dtype": layer.U.dtype}
    bias = layer.bias is not None
    plain: list[nn.Linear | nn.Conv2d]
    if isinstance(layer, LowRankLinear):
        attributes = ["in_features", "out_features"]
        plain = [
            nn.Linear(layer.in_features, layer.rank, bias=False, **like),
            nn.Linear(layer.rank, layer.out_features, bias=bias, **like),
        ]
    else:
        assert isinstance(layer, LowRankConv2d | Tucker2Conv2d)
        attributes = ["kernel_size", "stride", "padding", "dilation"]
        geometry = {name: getattr(layer, name) for name in attributes}
        attributes += ["in_channels", "out_channels"]
        last = nn.Conv2d(layer.rank, layer.out_channels, 1, bias=bias, **like)
        if isinstance(layer, LowRankConv2d):
            plain = [nn.Conv2d(layer.in_channels, layer.rank, **geometry, bias=False, **like), last]
        else:
            r_o, r_i = layer.S.shape[:2]
            first = nn.Conv2d(layer.in_channels, r_i, 1, bias=False, **like)
            plain = [first, nn.Conv2d(r_i, r_o, **geometry, bias=False, **like), last]
    factors = [layer.V.mT, layer.S, layer.U] if isinstance(layer, Tucker2Conv2d) else [layer.V.mT, layer.left()]
    for part, factor in zip(plain, factors, strict=True):
        part.weight.data.copy_(factor.reshape(part.weight.shape))
    if layer.bias is not None and plain[-1].bias is not None:
        plain[-1].bias.data.copy_(layer.bias)
    whole = nn.Sequential(*plain)
    for name in attributes:  # forward code may read them
        setattr(whole, name, getattr(layer, name))
    return whole


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    """Scale the rows of the layer that writes the output, and set its bias."""
    last = layer[-1] if isinstance(layer, nn.Sequential) else layer
    assert isinstance(last, nn.Linear | nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    last.weight, last.bias = fuse_conv_bn_weights(
        last.weight, last.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
