"""A trained network in the form that runs fastest: plain layers, merged factors, no batch normalization."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from wellcond.convert import replace_module, unparametrized
from wellcond.layers import low_rank_layers
from wellcond.tracing import dataflow


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
            new = replace_module(new, name, layer.plain_layers())
        else:
            layer.merge_core_()
    for name, norm in flow.normalized.items():
        _fold(new.get_submodule(name), new.get_submodule(norm))
        new = replace_module(new, norm, nn.Identity())
    return new.eval()


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
