"""Compression of a trained network, without training it further.

A weight is made up of units: singular triples, filters, or single entries. A compressor scores them and removes a
fraction of them, those with the smallest scores, in each layer by itself or over all layers together; the largest of
a layer always stays. What is expensive (decompositions, tracing, sorting) is done once, and then each amount is cheap:

    at = COMPRESSORS["svd_global"](model)
    smaller = [at(amount).model for amount in (0.5, 0.8, 0.9)]

A factorized layer counts as the dense layer that it stands for; `model` itself is never changed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from wellcond.compression.units import Channels, channels
from wellcond.convert import densify, factorize, matching, replace_module
from wellcond.counts import count_parameters
from wellcond.errors import invalid, unknown
from wellcond.layers import low_rank_layers, matricize, weight_layers


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


def _as_is(sigma: Tensor) -> Tensor:
    return sigma


def relative_to_largest(sigma: Tensor) -> Tensor:
    """σ_i/σ_1, and 0 if all are."""
    return sigma / sigma.max().clamp(min=torch.finfo(sigma.dtype).tiny)


def relative_to_norm(sigma: Tensor) -> Tensor:
    """σ_i/||σ||_2, and 0 if all are."""
    norm: Tensor = torch.linalg.vector_norm(sigma)
    return sigma / norm.clamp(min=torch.finfo(sigma.dtype).tiny)


@torch.no_grad()
def truncated_svd(
    model: nn.Module,
    *,
    scale: Callable[[Tensor], Tensor] = _as_is,
    together: bool = False,
    skip: Iterable[str] = (),
) -> AtAmount:
    """Remove singular values: each weight matrix becomes its best approximation of the rank that is left to it.

    The score is scale(σ_1, σ_2, ...). together = False leaves every layer the same fraction of its rank, which no
    scale changes; together = True is one threshold on the scores of all layers. A layer becomes U Vᵀ where
    r(n + m) < nm, and the dense layer with that matrix otherwise: never more parameters. At its full rank it is left
    alone. skip: names or patterns of layers left whole. Source: Eckart, Young, 1936.
    """
    dense = densify(model)
    full = low_rank_layers(factorize(dense, ratio=0, skip=skip, core=False))
    spectra = {name: layer.U.square().sum(0) for name, layer in full.items()}  # balanced: |u_i| = |v_i| = sqrt(σ_i)
    survivors = ranked({name: scale(sigma) for name, sigma in spectra.items()}, together=together)
    whole = {name: "skipped, or not one plain matrix" for name in weight_layers(dense) if name not in full}

    @torch.no_grad()
    def at(amount: float) -> Compressed:
        new = copy.deepcopy(dense)
        kept = {name: int(stays.sum()) for name, stays in survivors(amount).items()}
        for name, rank in kept.items():
            if rank == full[name].rank:
                continue
            layer = copy.deepcopy(full[name])
            layer.U, layer.V = (nn.Parameter(factor[:, :rank].clone()) for factor in (layer.U, layer.V))
            smaller = rank * sum(layer.matrix_shape) < math.prod(layer.matrix_shape)
            new = replace_module(new, name, layer if smaller else layer.to_dense())
        return Compressed(new, count_parameters(new).deployed, kept, whole)

    return at


@torch.no_grad()
def pruned_filters(model: nn.Module, *, p: float = 2.0, together: bool = False, skip: Iterable[str] = ()) -> AtAmount:
    """Remove filters of convolutions, with their normalization and what later layers read of them.

    The score is (Σ |w|^p / number)^(1/p) over the entries of a filter: of a layer that is the order of the l_p norms,
    and layers with filters of different sizes can be compared. Tensors become smaller; nothing is masked. The network
    is then the one whose later layers have zeros where they read the removed channels.

    Convolutions whose channels do not belong to them alone, as those that write into a residual sum, are left whole:
    `Compressed.whole` says which and why. skip: names or patterns of layers left whole.
    Source: Li et al., ICLR 2017.
    """
    dense = densify(model)
    found, whole = channels(dense)
    skipped = matching(skip, weight_layers(dense), "skip") & {*found, *whole}
    whole |= dict.fromkeys(sorted(skipped), "skipped")
    found = {name: own for name, own in found.items() if name not in skipped}
    filters = {name: matricize(dense.get_parameter(f"{name}.weight")) for name in found}
    scores = {name: torch.linalg.vector_norm(W, p, dim=1) / W.shape[1] ** (1 / p) for name, W in filters.items()}
    survivors = ranked(scores, together=together)

    @torch.no_grad()
    def at(amount: float) -> Compressed:
        new = copy.deepcopy(dense)
        masks = survivors(amount)
        for name, stays in masks.items():
            _remove_channels(new, name, found[name], stays)
        kept = {name: int(stays.sum()) for name, stays in masks.items()}
        return Compressed(new, count_parameters(new).deployed, kept, whole)

    return at


def _remove_channels(model: nn.Module, name: str, own: Channels, stays: Tensor) -> None:
    """In place: the channels of the convolution of that name that do not stay."""
    _select(model.get_submodule(name), ("weight", "bias"), "out_channels", stays)
    for norm, share in own.norms.items():
        entries = ("weight", "bias", "running_mean", "running_var")
        _select(model.get_submodule(norm), entries, "num_features", stays.repeat_interleave(share))
    for reader, share in own.readers.items():
        layer = model.get_submodule(reader)
        inputs = "in_features" if isinstance(layer, nn.Linear) else "in_channels"
        _select(layer, ("weight",), inputs, stays.repeat_interleave(share), dim=1)


def _select(module: nn.Module, names: Iterable[str], count: str, stays: Tensor, dim: int = 0) -> None:
    """In place: of the tensors of these names the entries that stay along `dim`; their number, an attribute."""
    index = stays.nonzero().flatten()
    for name in names:
        tensor = getattr(module, name)
        if tensor is not None:
            part = tensor.index_select(dim, index)
            own = isinstance(tensor, nn.Parameter)
            setattr(module, name, nn.Parameter(part, requires_grad=tensor.requires_grad) if own else part)
    setattr(module, count, len(index))


@torch.no_grad()
def pruned_weights(model: nn.Module, *, together: bool = True, skip: Iterable[str] = ()) -> AtAmount:
    """Set single weights to zero, those of least magnitude; biases and normalization are left alone.

    No tensor becomes smaller, and training the network further fills the zeros again. skip: names or patterns of
    layers left whole. Source: Han et al., NeurIPS 2015.
    """
    dense = densify(model)
    layers = {name: layer for name, layer in weight_layers(dense).items() if type(layer) in (nn.Linear, nn.Conv2d)}
    skipped = matching(skip, layers, "skip")
    whole = {name: "skipped, or not a plain layer" for name in weight_layers(dense) if name not in {*layers} - skipped}
    weights = {name: dense.get_parameter(f"{name}.weight") for name in layers if name not in skipped}
    survivors = ranked({name: weight.abs().flatten() for name, weight in weights.items()}, together=together)

    @torch.no_grad()
    def at(amount: float) -> Compressed:
        new = copy.deepcopy(dense)
        kept: dict[str, int] = {}
        for name, stays in survivors(amount).items():
            weight = new.get_parameter(f"{name}.weight")
            weight.masked_fill_(~stays.view(weight.shape), 0)
            kept[name] = int(weight.count_nonzero())
        zeros = sum(weight.numel() - kept[name] for name, weight in weights.items())
        return Compressed(new, count_parameters(new).deployed - zeros, kept, whole)

    return at


COMPRESSORS: dict[str, Callable[..., AtAmount]] = {
    "svd": truncated_svd,
    "svd_global": partial(truncated_svd, scale=relative_to_largest, together=True),
    "svd_global_norm": partial(truncated_svd, scale=relative_to_norm, together=True),
    "filters_l1": partial(pruned_filters, p=1.0),
    "filters_l2": partial(pruned_filters, p=2.0),
    "filters_l1_global": partial(pruned_filters, p=1.0, together=True),
    "filters_l2_global": partial(pruned_filters, p=2.0, together=True),
    "magnitude": pruned_weights,
}
"""(model, skip=...) -> the network at an amount. Add to it to add a compressor."""

RESOLUTION = 2.0**-20  # of the amount that meets a target: one weight in a million


def compress(
    model: nn.Module,
    compressor: str,
    *,
    amount: float | None = None,
    share: float | None = None,
    skip: Iterable[str] = (),
) -> Compressed:
    """`model`, smaller; it is not changed itself. Parametrized weights are left whole: collapse products first.

    compressor: a key of COMPRESSORS. amount: the fraction of the units removed, in [0, 1); or share: the size to
    reach, as a fraction of the parameters of the dense network, in (0, 1], by the smallest amount that does. Give
    exactly one. skip: names or patterns of layers left whole.
    Raises ValueError for an unknown compressor or pattern, amount or share out of range, both or neither given, a
    share that the compressor cannot reach, or a network with nothing to compress.
    """
    if (amount is None) == (share is None):
        raise ValueError(f"amount = {amount}, share = {share}: give exactly one of them")
    if share is not None and not 0 < share <= 1:
        raise invalid("share", share, "in (0, 1], a fraction of the parameters of the dense network")
    at = _at_amount(model, compressor, skip)
    if amount is not None:
        return at(amount)
    assert share is not None
    dense = count_parameters(model).dense
    found = _first(at, lambda compressed: compressed.size <= share * dense)
    if found.size > share * dense:
        raise invalid("share", share, f"at least {found.size / dense:.3g}, all that {compressor!r} can remove here")
    return found


def _at_amount(model: nn.Module, compressor: str, skip: Iterable[str]) -> AtAmount:
    if compressor not in COMPRESSORS:
        raise unknown("compressor", compressor, COMPRESSORS)
    return COMPRESSORS[compressor](model, skip=skip)


def _first(at: AtAmount, fits: Callable[[Compressed], bool]) -> Compressed:
    """The network at the smallest amount at which it fits, or at the largest amount if it never does."""
    low, high = 0.0, 1 - RESOLUTION
    if fits(found := at(low)):
        return found
    if not fits(found := at(high)):
        return found
    while high - low > RESOLUTION:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(at(middle)) else (middle, high)
    return at(high)


def iterated(
    model: nn.Module,
    compressor: str,
    amount: float,
    *,
    phases: int,
    train: Callable[[nn.Module], nn.Module],
    skip: Iterable[str] = (),
) -> Compressed:
    """Compress and train in turn, `phases` times; after phase j, the fraction (1 - amount)^(j/phases) of the units is
    left. phases = 1 is compression followed by training. The scores of a phase are those of the network it finds.

    train: returns the network that it is given, trained further; zeros among the weights must stay zero.
    Raises ValueError for phases < 1, and as `compress`. Source: Han et al., NeurIPS 2015; Frankle, Carbin, ICLR 2019.
    """
    if phases < 1:
        raise invalid("phases", phases, ">= 1")
    at = _at_amount(model, compressor, skip)
    if phases == 1:
        found = at(amount)
        return replace(found, model=train(found.model))
    units, least = (sum(compressed.kept.values()) for compressed in (at(0.0), at(amount)))
    for phase in range(1, phases + 1):
        left = least if phase == phases else max(least, math.floor(units * (1 - amount) ** (phase / phases)))

        def fits(compressed: Compressed, left: int = left) -> bool:
            return sum(compressed.kept.values()) <= left

        found = _first(at, fits)
        model = train(found.model)
        if phase < phases:
            at = _at_amount(model, compressor, skip)
    return replace(found, model=model)


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, images: Tensor, batch_size: int = 500) -> nn.Module:
    """A copy of `model` whose running means and variances are those of `images` (N, C, H, W), N >= 2.

    They are averages over batches of equal size, batch_size or a little more, with dropout off: compression changes the
    distributions that the statistics of training describe. The variance between the means of batches is left out.
    Raises ValueError for fewer than two images or a batch_size < 2.
    """
    if len(images) < 2:
        raise invalid("images", tuple(images.shape), "a batch of at least two images")
    if batch_size < 2:
        raise invalid("batch_size", batch_size, ">= 2")
    new = copy.deepcopy(model).eval()
    norms = [m for m in new.modules() if isinstance(m, NORMS) and m.running_mean is not None]
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
