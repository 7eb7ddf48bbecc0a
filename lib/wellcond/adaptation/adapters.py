"""Adapters: a trained network is moved to another task by low-rank updates of its frozen weights.

    y = W₀ x + b + (U S Vᵀ - U₀ S₀ V₀ᵀ) x,      UᵀU = VᵀV = I,  κ(S) <= max_cond,      W₀, U₀, S₀, V₀ frozen

At the start U, S, V = U₀, S₀, V₀, so that the function is that of the trained network, to the rounding of the update.
LoRA starts at a factor that is zero; there the manifold of rank r has no point, no tangent space and no (SSᵀ)^-1 in the
velocity of the bases. So the update starts inside it: Haar frames, S₀ = σI with κ(S₀) = 1, and what it adds is taken
away again by a frozen copy. Merely subtracting it from W₀ would round every weight: here W₀ keeps its bits, whatever
its precision. σ is the root mean square of the singular values of W₀: a step changes U S Vᵀ by what it would change
triplets of W₀ itself, and at the usual learning rates the bases leave their random start; smaller σ trained slower.

W is the matrix of a layer as its kind says (`layers.KINDS`), or a stack of them, each with its own σ. The rank of
W - W₀ is at most 2r. Sources: Hu et al., ICLR 2022 (LoRA); StelLA, NeurIPS 2025, for orthonormal U, V.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wellcond.adaptation.files import mismatch, read_tensors, write_tensors
from wellcond.convert import assigned, convertible, copied, matching, replace_module
from wellcond.errors import invalid, unknown
from wellcond.kinds.embedding import LowRankEmbedding
from wellcond.kinds.opening import close_, open_
from wellcond.kinds.transposed import LowRankConvTranspose
from wellcond.layers import HOOKS, LowRankLayer, kind_of, weight_matrix
from wellcond.stiefel import qr, random_stiefel

UPDATE, START = "update.", "start."  # how the parameters of an adapter begin, after the name of its layer


def low_rank_like(layer: nn.Module, rank: Any, *, core: bool = True, kind: Any = None) -> LowRankLayer:
    """A factorized layer of the shape of `layer`, and of its kind or another, whose numbers are still to be set."""
    kind = kind or kind_of(layer)
    shape = copy.deepcopy(layer).to("meta")  # without numbers there is nothing to decompose
    new: LowRankLayer = kind.from_dense(shape, rank, core=core)
    return new.to_empty(device=next(layer.parameters()).device)


def largest_rank(layer: nn.Module) -> int:
    """min(n, m) of an update of `layer`, the row of padding not counted, which stays as it is."""
    n, m = weight_matrix(layer).shape[-2:]
    return min(n - (getattr(layer, "padding_idx", None) is not None), m)


class AdaptedLayer(nn.Module):
    """dense(x) + (update(x) - start(x)): a frozen layer of any kind, a trained U S Vᵀ, and where that started."""

    unmerged: ClassVar[bool] = True
    """The weight is a sum: what reads matrices layer by layer, as `factorize` does, asks for it to be merged before."""

    dense: Any

    def __init__(self, dense: nn.Module, rank: int) -> None:
        super().__init__()
        self.dense, self.update = dense, low_rank_like(dense, rank)
        self.update.bias = None
        for name, value in vars(dense).items():  # sizes, stride and the like, which forward code may read
            if not name.startswith("_") and name != "training":
                setattr(self, name, value)
        self._start()
        self.start = self.update.plain_layers()

    @torch.no_grad()
    def _start(self) -> None:
        """U, S, V = U₀, σI, V₀; of an embedding, U₀ has a row of zeros for the padding, which training keeps."""
        U, S, V = self.update.U, self.update.S, self.update.V
        assert S is not None
        for X in (U, V):
            X.copy_(random_stiefel(*X.shape[-2:], batch=X.shape[:-2], dtype=X.dtype, device=X.device))
        if (padding := getattr(self, "padding_idx", None)) is not None:
            if self.update.rank > (most := largest_rank(self.dense)):
                raise invalid("rank", self.update.rank, f"in 1..{most}, beside the row of padding")
            U[padding] = 0
            U.copy_(qr(U))
        W0 = weight_matrix(self.dense)
        sigma = torch.linalg.matrix_norm(W0.float()).cpu().double() / min(W0.shape[-2:]) ** 0.5
        sigma = torch.where(sigma > 0, sigma, W0.shape[-1] ** -0.5)  # W₀ = 0 has no scale
        S.copy_(sigma[..., None, None] * torch.eye(self.update.rank))

    @property
    def weight(self) -> Tensor:
        """The dense weight of the layer as it is now."""
        W: Tensor = self.dense.weight + self.difference()
        return W

    @property
    def bias(self) -> Any:
        return getattr(self.dense, "bias", None)

    def difference(self) -> Tensor:
        """W - W₀ = U S Vᵀ - U₀ S₀ V₀ᵀ, in the shape of the weight."""
        D = self.update.matrix() - self._start_matrix()
        return (D.mT if self.update.transposed else D).reshape(self.dense.weight.shape)

    def _start_matrix(self) -> Tensor:
        """U₀ S₀ V₀ᵀ of the two plain layers, which stand in the order in which they act."""
        first, last = self.start.parameters()
        if isinstance(self.update, LowRankEmbedding):
            return first @ last.mT
        if isinstance(self.update, LowRankConvTranspose):
            return first.flatten(1) @ last.flatten(1)
        return last.reshape(self.update.U.shape) @ first.reshape(self.update.V.mT.shape)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """output_size: as of transposed convolutions, and for them alone."""
        size = () if output_size is None else (output_size,)
        first, last = self.start
        y: Tensor = self.dense(x, *size) + (self.update(x, *size) - last(first(x), *size))
        return y


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
    """A copy of `model` whose weight matrices, all those that `factorize` knows, have low-rank adapters, which are all
    that is trained.

        model = wc.adapt(trained_network, rank=8, train="classifier")
        optimizer = wc.LowRankAdamW(wc.param_groups(model, max_cond=10), lr=1e-3)

    The matrices are those of linear layers, convolutions, transposed or in groups too, embeddings, attention, recurrent
    layers, and kinds of your own. What has none, as a depthwise convolution, or shares it, is left as it is, with a
    warning that names it.
    rank: r >= 1, capped at the full rank of a layer; or {name or glob pattern: r}, as in `factorize`, which adapts only
    the layers it matches. train: names or patterns of modules or parameters that are trained as they are, without an
    adapter. Biases, normalization and all else are frozen; running statistics move in training mode, as always.
    Raises ValueError for a rank out of range, a pattern that matches nothing, weights that are not finite, a network
    without a layer to adapt, or one that has adapters already.
    """
    new = open_(copied(model))
    layers = convertible(new)
    if not layers:
        raise invalid("model", type(model).__name__, "one with layers to adapt, of the kinds in wellcond.layers.KINDS")
    parameters, modules = dict(new.named_parameters()), dict(new.named_modules())
    chosen = matching(train, [*parameters, *filter(None, modules)], "train")
    trained = {p for name in chosen for p in ([parameters[name]] if name in parameters else modules[name].parameters())}
    for name, r in assigned(rank if isinstance(rank, Mapping) else {"*": rank}, layers, "rank").items():
        if layers[name].weight not in trained:
            named = isinstance(rank, Mapping) and name in rank
            new = _insert(new, name, r if named else min(r, largest_rank(layers[name])))
    updates = {p for layer in adapted_layers(new).values() for p in layer.update.parameters()}
    for p in new.parameters():
        p.requires_grad_(p in trained or p in updates)
    return close_(new)


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
    ranks = {key.removesuffix(core).rstrip("."): S.shape[-1] for key, S in state.items() if key.endswith(core)}
    layers = [name for name, module in new.named_modules() if kind_of(module) is not None]
    for name, rank in ranks.items():
        if name not in layers:
            raise unknown("adapter", name, layers)
        new = _insert(new, name, rank)
    if not ranks:
        raise invalid("adapter", [*state][:1], "one of a network, as adapter_state returns it")
    own = tuple(f"{name}.{part}".lstrip(".") for name in ranks for part in (UPDATE, START))
    expected = {key: value for key, value in new.state_dict().items() if key in state or key.startswith(own)}
    if difference := mismatch(state, expected):
        raise invalid("adapter", f"one of {len(ranks)} layers", f"of this network; there {difference}")
    new.load_state_dict(state, strict=False)
    starts = tuple(f"{name}.{START}".lstrip(".") for name in ranks)
    for key, p in new.named_parameters():
        p.requires_grad_(key in state and not key.startswith(starts))
    return close_(new)
