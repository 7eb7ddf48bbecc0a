"""From a dense model to a factorized one and back, in the user's own architecture.

``ratio`` is the papers' nominal compression: the fraction of the rank that is removed from every weight matrix,
r = ceil((1 - ratio)·min(n, m)). It is not a fraction of the parameters; `counts` reports those.
"""

from __future__ import annotations

import copy
import fnmatch
import math
import warnings
from collections.abc import Iterable, Mapping

from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from wellcond.errors import invalid, unknown
from wellcond.layers import (
    LowRankConv2d,
    LowRankLayer,
    LowRankLinear,
    low_rank_layers,
)


def rank_for_ratio(ratio: float, full: int) -> int:
    """ceil((1 - ratio)·full), at least 1; ratio in [0, 1). Raises ValueError outside it."""
    if not 0 <= ratio < 1:
        raise invalid("ratio", ratio, "in [0, 1), the fraction of the rank that is removed")
    # 1e-9 absorbs the rounding of 1 - ratio: (1 - 0.7)·10 is 3.0000000000000004 in floating point
    return max(1, math.ceil((1 - ratio) * full - 1e-9))


def matching(patterns: Iterable[str], names: Iterable[str], field: str) -> set[str]:
    """The names that match a pattern; raises ValueError, naming `field`, for a pattern that matches none."""
    names = list(names)
    matched: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits:
            raise unknown(field, pattern, names)
        matched.update(hits)
    return matched


def convertible(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers whose weight is one plain matrix, by name; warns of the convolutions that have none."""
    # Exact types: a subclass may use its weight in other ways (nn.MultiheadAttention's output projection does).
    layers = {name: m for name, m in model.named_modules() if type(m) in (nn.Linear, nn.Conv2d)}
    grouped = [name for name, m in layers.items() if isinstance(m, nn.Conv2d) and (m.groups > 1)]
    other = [name for name, m in layers.items() if isinstance(m, nn.Conv2d) and m.padding_mode != "zeros"]
    if grouped or other:
        warnings.warn(
            f"left dense: {', '.join(grouped + other)} (a grouped convolution, or padding other than zeros)",
            stacklevel=3,
        )
    return {name: m for name, m in layers.items() if name not in {*grouped, *other}}


def factorize(
    model: nn.Module,
    *,
    ratio: float | None = None,
    rank: int | Mapping[str, int] | None = None,
    skip: Iterable[str] = (),
    keep_full_rank: Iterable[str] = (),
    core: bool = True,
    convolution: type[LowRankLayer] = LowRankConv2d,
) -> nn.Module:
    """A copy of `model` with every nn.Linear and nn.Conv2d factorized by truncated SVD of its own weights.

    model: any module; its forward code, residual connections included, is kept. It is not modified.
    ratio: fraction of the rank removed, in [0, 1); or rank: an int, capped at each layer's full rank, or
        {layer name: rank}, which converts only the layers it names. Give exactly one.
    skip, keep_full_rank: names or glob patterns of layers left dense, or factorized at full rank.
    core: True for U S Vᵀ, False for U Vᵀ. convolution: the form of convolutions, such as methods.Tucker2Conv2d, whose
        two ranks are then fractions of the numbers of channels.

    Grouped convolutions are left dense, with a warning that names them.
    Raises ValueError for ratio or rank out of range, both or neither given, or a pattern that matches no layer.
    """
    if (ratio is None) == (rank is None):
        raise ValueError(f"ratio = {ratio}, rank = {rank}: give exactly one of them")
    new = copy.deepcopy(model)
    layers = convertible(new)
    skipped = matching(skip, layers, "skip")
    at_full_rank = matching(keep_full_rank, layers, "keep_full_rank")
    if isinstance(rank, Mapping):
        matching(rank, layers, "rank")
        skipped |= layers.keys() - rank.keys()
    for name, layer in layers.items():
        if name in skipped:
            continue

        def chosen(full: int, name: str = name) -> int:
            if name in at_full_rank:
                return full
            if isinstance(rank, Mapping):
                return rank[name]
            if rank is not None:
                return min(rank, full)
            assert ratio is not None
            return rank_for_ratio(ratio, full)

        kind = LowRankLinear if isinstance(layer, nn.Linear) else convolution
        new = replace_module(new, name, kind.truncated(layer, chosen, core=core))
    return new


def replace_module(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """`model` with `layer` in the place of the module of that name; `layer` itself where the name is empty."""
    if name == "":  # the model is itself the layer
        return layer
    old = model.get_submodule(name)
    for alias, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:  # a layer shared under several names stays shared
            model.set_submodule(alias, layer)
    return model


def unparametrized(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose weights are plain parameters, with the values that spectral normalization and the
    like give them now."""
    new = copy.deepcopy(model).eval()
    for name, module in list(new.named_modules()):
        if is_parametrized(module):
            new = replace_module(new, name, _plain(module))
    return new


def _plain(module: nn.Module) -> nn.Module:
    # torch's remove_parametrizations edits the class, which a module shares with its copies
    kind: type[nn.Module] = type_before_parametrizations(module)
    plain = nn.Module.__new__(kind)
    plain.__dict__.update(module.__dict__)
    plain._modules = {name: child for name, child in module._modules.items() if name != "parametrizations"}
    names = module.parametrizations.keys()  # type: ignore[operator, union-attr]
    values = {name: nn.Parameter(getattr(module, name).detach().clone()) for name in names}
    plain._parameters = {**module._parameters, **values}
    return plain


def densify(model: nn.Module) -> nn.Module:
    """A copy of `model` with every factorized layer replaced by the dense layer W = U S Vᵀ."""
    new = copy.deepcopy(model)
    for name, layer in low_rank_layers(new).items():
        new = replace_module(new, name, layer.to_dense())
    return new
