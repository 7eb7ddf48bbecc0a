"""A trained network in the form that runs fastest: plain layers, merged factors, no batch normalization."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from wellcond.convert import replace_module, tied, unparametrized
from wellcond.errors import invalid
from wellcond.layers import low_rank_layers
from wellcond.tracing import BATCH_NORMS, Dataflow, calls_of, dataflow, evaluate

ROUNDS = 15
"""How often each form of a layer is timed."""


@torch.no_grad()
def deploy(model: nn.Module, example: Any = None, *, measure: bool = True) -> nn.Module:
    """A copy of `model` for inference, in evaluation mode; the same function up to rounding.

    example: an input, or a tuple of the arguments of the forward code, or a mapping of them by name, to compare the
    outputs on. Without one, only what tracing has proved is changed; with one, also what is likely, as that code which
    cannot be traced calls the blocks inside it and does not reach into them, where the outputs stay the same.

    A factorized layer becomes an ``nn.Sequential`` of plain layers, Vᵀ and then U S with the bias, or one dense layer
    where that takes no more multiply-adds (an embedding, which is looked up: where it holds no more numbers). Both
    factors of a convolution act at the output's resolution (Vᵀ has the stride), so that is where r(n + m) >= nm, for a
    convolution as for a linear layer. Where forward code reads the weight itself, or cannot be traced, the layer stays
    what it is, with U S merged.

    measure: with an example, a layer becomes one dense layer also where its factors take longer on this machine, in the
    median and at best of interleaved calls on what the example gives that layer. Where both forms take as long, the
    form is then a matter of chance; False leaves it to the multiply-adds.

    Batch normalization is folded into the convolution or linear layer that feeds it, if it is the only reader of that
    layer's output; ``nn.Identity`` takes its place. `Normalize` stays: padded with zeros, the images after it are not
    the images before it. Layers that share factors stay as they are. The forward code of the network is unchanged, and
    so is its class.

    ``.to(memory_format=torch.channels_last)`` makes a convolutional copy faster still. Processors round ranks up to
    whole vectors (16 numbers, in single precision with AVX-512): ranks 13 and 16 take the same time.
    """
    model = unparametrized(model)
    if example is None:
        return _deployed(model, dataflow(model), set())
    if not (expected := outputs_of(model, example)):
        raise invalid("example", type(example).__name__, "one for which the network returns tensors")
    if not all(y.isfinite().all() for y in expected if y.is_floating_point()):
        raise invalid("example", type(example).__name__, "one for which the network returns finite numbers")
    slower = _slower_by_factors(model, example) if measure else set()
    for assume in (True, False):
        new = _deployed(copy.deepcopy(model), dataflow(model, assume=assume), slower)
        with suppress(Exception):  # whatever code raises that finds another layer than it expects
            if close(outputs_of(new, example), expected):
                return new
    raise invalid("example", type(example).__name__, "one to which the network returns the same output every time")


def outputs_of(model: nn.Module, example: Any) -> list[Tensor]:
    """The tensors that the network returns for an example, as of `deploy`."""
    return list(_tensors(evaluate(model, example)))


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs.clone()  # forward code may return what it then overwrites
    elif isinstance(outputs, Mapping | list | tuple):
        for part in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from _tensors(part)


def close(outputs: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether they differ by rounding: relative to the norms, by the root of the precision at most."""
    return len(outputs) == len(expected) and all(
        a.shape == b.shape and bool((a - b).norm() <= torch.finfo(b.dtype).eps ** 0.5 * b.norm())
        for a, b in zip(outputs, expected, strict=True)
        if b.is_floating_point()
    )


def _slower_by_factors(model: nn.Module, example: Any) -> set[str]:
    """The factorized layers, by name, whose factors take longer than one dense layer."""
    layers = low_rank_layers(model)
    inputs = {name: args[0] for name, calls in calls_of(layers, model, example).items() for args, _ in calls if args}
    forms = {name: (layers[name].plain_layers(), layers[name].to_dense()) for name in inputs}
    return {name for name, x in inputs.items() if _takes_longer(*forms[name], x)}


def _takes_longer(this: nn.Module, that: nn.Module, x: Tensor) -> bool:
    seconds: dict[nn.Module, list[float]] = {this: [], that: []}
    for layer in (this, that) * (ROUNDS + 1):  # the first warms up
        start = time.perf_counter()
        layer(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        seconds[layer].append(time.perf_counter() - start)
    a, b = (torch.tensor(seconds[layer][1:]) for layer in (this, that))
    return bool(a.median() > b.median() and a.min() > b.min())


def _deployed(new: nn.Module, flow: Dataflow, dense: set[str]) -> nn.Module:
    """`new`, changed in place; dense: the factorized layers that become dense ones, beside those that are no larger."""
    shared = tied(new)
    for name, layer in low_rank_layers(new).items():
        if name in shared:
            continue
        if name in dense & flow.called or layer.n_deployed >= layer.n_dense:
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
    assert isinstance(last, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    assert isinstance(norm, BATCH_NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    last.weight, last.bias = fuse_conv_bn_weights(
        last.weight, last.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
