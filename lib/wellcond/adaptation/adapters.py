"""Adapters: a trained network is moved to another task by low-rank updates of its frozen weights.

    y = W₀ x + b + (U S Vᵀ - U₀ S₀ V₀ᵀ) x,      UᵀU = VᵀV = I,  κ(S) <= max_cond,      W₀, U₀, S₀, V₀ frozen

At the start U, S, V = U₀, S₀, V₀, so that the function is that of the trained network, to the rounding of the update.
LoRA starts at a factor that is zero; there the manifold of rank r has no point, no tangent space and no (SSᵀ)^-1 in the
velocity of the bases. So the update starts inside it: Haar frames, S₀ = σI with κ(S₀) = 1, and what it adds is taken
away again by a frozen copy. Merely subtracting it from W₀ would round every weight: here W₀ keeps its bits, whatever
its precision. σ is the root mean square of the singular values of W₀: a step changes U S Vᵀ by what it would change
triplets of W₀ itself, and at the usual learning rates the bases leave their random start; smaller σ trained slower.

The rank of W - W₀ is at most 2r. Sources: Hu et al., ICLR 2022 (LoRA); StelLA, NeurIPS 2025, for orthonormal U, V.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wellcond.adaptation.files import read_tensors, write_tensors
from wellcond.convert import assigned, convertible, copied, matching, replace_module
from wellcond.errors import invalid, unknown
from wellcond.kinds.convolution import CONVOLUTION, LowRankConv2d, convolution_arguments
from wellcond.kinds.opening import close_, open_
from wellcond.layers import HOOKS, LowRankLayer, LowRankLinear, stored

UPDATE, START = "update.", "start."  # how the parameters of an adapter begin, after the name of its layer


def low_rank_like(layer: nn.Linear | nn.Conv2d, rank: int, *, bias: bool = False, core: bool = True) -> LowRankLayer:
    """A factorized layer of the shape of `layer`, at its own start: Haar frames and S = I/√m."""
    like: dict[str, Any] = {"bias": bias, "core": core, **stored(layer)}
    if isinstance(layer, nn.Linear):
        return LowRankLinear(layer.in_features, layer.out_features, rank, **like)
    kernel: Any = layer.kernel_size
    return LowRankConv2d(layer.in_channels, layer.out_channels, kernel, rank, **convolution_arguments(layer), **like)


class AdaptedLayer(nn.Module):
    """dense(x) + (update(x) - start(x)): a frozen nn.Linear or nn.Conv2d, a trained U S Vᵀ, and where that started."""

    def __init__(self, dense: nn.Linear | nn.Conv2d, rank: int) -> None:
        super().__init__()
        self.dense, self.update = dense, low_rank_like(dense, rank)
        W0 = dense.weight.detach().flatten(1)
        assert self.update.S is not None
        if sigma := float(W0.float().norm()) / min(W0.shape) ** 0.5:  # else S = I/√m
            self.update.S.data.copy_(sigma * torch.eye(rank))
        self.start = self.update.plain_layers()
        for name in ("in_features", "out_features", *CONVOLUTION):  # what forward code may read
            if hasattr(dense, name):
                setattr(self, name, getattr(dense, name))

    @property
    def weight(self) -> Tensor:
        """The dense weight of the layer as it is now."""
        return self.dense.weight + self.difference()

    @property
    def bias(self) -> Tensor | None:
        return self.dense.bias

    def difference(self) -> Tensor:
        """W - W₀ = U S Vᵀ - U₀ S₀ V₀ᵀ, in the shape of the weight."""
        first, last = (p.flatten(1) for p in self.start.parameters())  # V₀ᵀ, U₀ S₀
        return (self.update.matrix() - last @ first).reshape(self.dense.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x) + (self.update(x) - self.start(x))


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLayer]:
    """The adapted layers of a model by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLayer)}


def _insert(model: nn.Module, name: str, rank: int) -> nn.Module:
    dense: Any = model.get_submodule(name)
    model = replace_module(model, name, AdaptedLayer(dense, rank))
    for hooks in HOOKS:  # the adapted layer has them now
        getattr(dense, hooks).clear()
    return model


def adapt(model: nn.Module, rank: int | Mapping[str, int] = 8, *, train: str | Iterable[str] = ()) -> nn.Module:
    """A copy of `model` whose linear layers, those of attention too, and convolutions have low-rank adapters, which are
    all that is trained.

        model = wc.adapt(trained_network, rank=8, train="classifier")
        optimizer = wc.LowRankAdamW(wc.param_groups(model, max_cond=10), lr=1e-3)

    rank: r >= 1, capped at the full rank of a layer; or {name or glob pattern: r}, as in `factorize`, which adapts only
    the layers it matches. train: names or patterns of modules or parameters that are trained as they are, without an
    adapter. Biases, normalization and all else are frozen; running statistics move in training mode, as always.
    Raises ValueError for a rank out of range, a pattern that matches nothing, or weights that are not finite.
    """
    new = open_(copied(model))
    layers = {name: layer for name, layer in convertible(new).items() if _adaptable(layer)}
    parameters, modules = dict(new.named_parameters()), dict(new.named_modules())
    chosen = matching(train, [*parameters, *filter(None, modules)], "train")
    trained = {p for name in chosen for p in ([parameters[name]] if name in parameters else modules[name].parameters())}
    for name, r in assigned(rank if isinstance(rank, Mapping) else {"*": rank}, layers, "rank").items():
        if layers[name].weight not in trained:
            capped = r if isinstance(rank, Mapping) and name in rank else min(r, *layers[name].weight.flatten(1).shape)
            new = _insert(new, name, capped)
    updates = {p for layer in adapted_layers(new).values() for p in layer.update.parameters()}
    for p in new.parameters():
        p.requires_grad_(p in trained or p in updates)
    return close_(new)


def _adaptable(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """A copy of an adapted network with plain layers, W = W₀ + U S Vᵀ - U₀ S₀ V₀ᵀ, rounded once; `model` keeps W₀."""
    new = copied(model)
    for name, layer in adapted_layers(new).items():
        layer.dense.weight.copy_(layer.weight)
        new = replace_module(new, name, layer.dense)
    return close_(new)


@torch.no_grad()
def unmerge(model: nn.Module, adapter: Mapping[str, Tensor] | str | Path) -> nn.Module:
    """The adapted network again, from the merged one and its adapter: W₀ to two roundings of the weights. What was
    adapted keeps W₀ exactly, and so does the network before it: `load_adapter` on that has no rounding."""
    new = load_adapter(model, adapter)
    for layer in adapted_layers(new).values():
        layer.dense.weight.sub_(layer.difference())
    return new


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """What the adapted network has beyond the one before it: updates and their starts, all that requires a gradient,
    and buffers, such as running statistics. Raises ValueError for a network without adapters."""
    own = tuple(f"{name}.{part}".lstrip(".") for name in adapted_layers(model) for part in (UPDATE, START))
    if not own:
        raise invalid("model", type(model).__name__, "a network with adapters, as wc.adapt returns it")
    frozen = {name for name, p in model.named_parameters() if not (p.requires_grad or name.startswith(own))}
    return {name: value.detach() for name, value in model.state_dict().items() if name not in frozen}


def save_adapter(model: nn.Module, path: str | Path) -> None:
    """Write `adapter_state` to a file: safetensors where the path ends in .safetensors, otherwise by torch.save."""
    write_tensors(adapter_state(model), path)


def load_adapter(model: nn.Module, adapter: Mapping[str, Tensor] | str | Path) -> nn.Module:
    """A copy of the network before `adapt`, with the adapter of a file or of `adapter_state`, whose ranks it gets.

    Raises ValueError for an adapter that is none, or of another network.
    """
    state = adapter if isinstance(adapter, Mapping) else read_tensors(adapter)
    new, core = open_(copied(model)), f"{UPDATE}S"
    layers = {key.removesuffix(core).rstrip("."): len(value) for key, value in state.items() if key.endswith(core)}
    names = dict(new.named_modules())
    for name, rank in layers.items():
        if name not in names:
            raise unknown("adapter", name, names)
        new = _insert(new, name, rank)
    try:
        absent, unexpected = new.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes
        raise invalid("adapter", f"{len(layers)} layers", f"that of this network ({error})") from error
    if unexpected or not layers or any(UPDATE in key or START in key for key in absent):
        raise invalid("adapter", [*unexpected, *state][:1], "one of this network, as adapter_state returns it")
    starts = tuple(f"{name}.{START}".lstrip(".") for name in layers)
    for key, p in new.named_parameters():
        p.requires_grad_(key in state and not key.startswith(starts))
    return close_(new)
