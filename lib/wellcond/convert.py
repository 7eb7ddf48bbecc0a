"""From a dense model to a factorized one and back, in the user's own architecture.

``ratio`` is the papers' nominal compression: the fraction of the rank that is removed from every weight matrix,
r = ceil((1 - ratio)·min(n, m)). It is not a fraction of the parameters; `counts` reports those.
"""

from __future__ import annotations

import copy
import fnmatch
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from wellcond.errors import invalid, unknown
from wellcond.kinds.convolution import LowRankConv2d
from wellcond.kinds.opening import close_, open_
from wellcond.layers import KINDS, LowRankLayer, inherit, kind_of, low_rank_layers

T = TypeVar("T")


def rank_for_ratio(ratio: float, full: int) -> int:
    """ceil((1 - ratio)·full), at least 1; ratio in [0, 1). Raises ValueError outside it."""
    if not (isinstance(ratio, Real) and 0 <= ratio < 1):
        raise invalid("ratio", ratio, "in [0, 1), the fraction of the rank that is removed")
    # 1e-9 absorbs the rounding of 1 - ratio: (1 - 0.7)·10 is 3.0000000000000004 in floating point
    return max(1, math.ceil((1 - ratio) * full - 1e-9))


def assigned(values: Mapping[str, T], names: Iterable[str], field: str) -> dict[str, T]:
    """{name: the value of its own key, or else of the first pattern among the keys that matches it}, of the names that
    have one; raises ValueError, naming `field`, for a key that matches none."""
    names = list(names)
    chosen: dict[str, T] = {}
    for key in sorted(values, key=lambda key: key not in names):  # a name is taken as it is, before all patterns
        hits = [key] if key in names else fnmatch.filter(names, key)
        if not hits:
            raise unknown(field, key, names)
        chosen = dict.fromkeys(hits, values[key]) | chosen
    return chosen


def matching(patterns: str | Iterable[str], names: Iterable[str], field: str) -> set[str]:
    """The names that match a pattern; raises ValueError, naming `field`, for a pattern that matches none."""
    return set(assigned(dict.fromkeys([patterns] if isinstance(patterns, str) else patterns), names, field))


def copied(model: nn.Module) -> nn.Module:
    """A copy of `model`, to be changed. Raises ValueError for a scripted one, whose layers cannot be replaced."""
    if isinstance(model, torch.jit.ScriptModule):
        raise invalid("model", type(model).__name__, "an nn.Module as it was before torch.jit")
    return copy.deepcopy(model)


def tied(model: nn.Module) -> dict[str, str]:
    """{module: another one that holds one of its parameters too}, by name: tied weights."""
    holders: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():
        for p in module.parameters(recurse=False):
            holders.setdefault(p, []).append(name)
    return {name: names[names[0] == name] for names in holders.values() if len(names) > 1 for name in names}


def check_finite(layers: Mapping[str, nn.Module]) -> None:
    """Raise ValueError, naming the layer, for a weight with nan or inf."""
    for name, layer in layers.items():
        weight = layer.weight
        if isinstance(weight, Tensor) and not weight.is_meta and not weight.isfinite().all():
            raise invalid(f"{name}.weight".lstrip("."), "one with nan or inf", "finite")


def check_merged(model: nn.Module) -> None:
    """Raise ValueError, naming them, for modules with `unmerged`: only the sum of their layers is a weight matrix."""
    if found := [name or "itself" for name, module in model.named_modules() if hasattr(module, "unmerged")]:
        raise invalid("model", f"one with adapters ({_few(found)})", "merged, wc.adaptation.merge(model)")


def convertible(
    model: nn.Module, kinds: Mapping[Any, type[LowRankLayer]] | None = None, skip: str | Iterable[str] = ()
) -> dict[str, Any]:
    """The layers whose weight is one plain matrix of their own, or a stack of them, by name; warns once of what stays
    dense, see `sorted_out`. skip: patterns of what is not told.

    Raises ValueError, naming the layer, for weights that are not finite, and for adapters that are not merged.
    """
    plain, dense = sorted_out(model, kinds or {})
    patterns = [skip] if isinstance(skip, str) else list(skip)
    reasons: dict[str, list[str]] = {}
    for name, reason in dense.items():
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            reasons.setdefault(reason, []).append(name)
    if reasons:
        listed = "; ".join(f"{_few(names)} ({reason})" for reason, names in reasons.items())
        warnings.warn(f"left dense: {listed}", stacklevel=3)
    check_finite(plain)
    return plain


def sorted_out(model: nn.Module, kinds: Mapping[Any, type[LowRankLayer]]) -> tuple[dict[str, Any], dict[str, str]]:
    """{name: layer} of the layers that can be factorized, and {name: why not} of those that cannot, and of all else
    that holds more than a hundredth of the parameters. kinds: used before those of KINDS."""
    check_merged(model)
    shared, much = tied(model), MUCH * sum(p.numel() for p in model.parameters())
    plain: dict[str, Any] = {}
    dense: dict[str, str] = {}
    for name, layer in model.named_modules():
        kind = kinds.get(type(layer)) or kind_of(layer)
        if kind is None:
            dense |= _unknown(name, layer, much)
        elif layer._parameters.get("weight") is None:
            dense[name] = "its weight is computed from others"
        elif name in shared:
            dense[name] = f"tied to {shared[name]}"
        elif reason := kind.refuses(layer):
            dense[name] = reason
        else:
            plain[name] = layer
    return plain, dense


MUCH = 0.01
"""The fraction of all parameters from which a weight of no known kind is told."""


def _unknown(name: str, layer: nn.Module, much: float) -> dict[str, str]:
    """Why the weights of more than `much` numbers of a layer of no known kind stay dense, by name."""
    large = [key for key, p in layer.named_parameters(recurse=False) if p.squeeze().ndim > 1 and p.numel() > much]
    if not large or isinstance(layer, LowRankLayer):
        return {}
    own: Any = getattr(layer, "closed", type(layer))
    if base := next((parent.__name__ for parent in own.__mro__[1:] if parent in KINDS), ""):
        return {name: f"{own.__name__}, a {base} that may use its weight in another way"}
    return {f"{name}.{key}".lstrip("."): f"a parameter of {own.__name__}, of no known kind" for key in large}


def _few(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def factorize(
    model: nn.Module,
    *,
    ratio: float | Mapping[str, float] | None = None,
    rank: int | Mapping[str, int] | None = None,
    skip: str | Iterable[str] = (),
    keep_full_rank: str | Iterable[str] = (),
    core: bool = True,
    convolution: type[LowRankLayer] = LowRankConv2d,
) -> nn.Module:
    """A copy of `model` with every weight matrix factorized by truncated SVD of its own weights.

    model: any module; its forward code, residual connections included, is kept. It is not modified. Its matrices are
        those of linear layers, convolutions, and the other layers of `layers.KINDS`; those that a module reads itself,
        attention or an LSTM, are named as layers of it, "attention.in_proj" (see `opened`).
    ratio: fraction of the rank removed, in [0, 1); or rank: an int, capped at each layer's full rank. Give exactly one;
        either may be {name or glob pattern: number}, which converts only the layers it matches, a name before the
        patterns and these in their order; the rank of a name is not capped.
    skip, keep_full_rank: names or glob patterns of layers left dense, or factorized at full rank.
    core: True for U S Vᵀ, False for U Vᵀ. convolution: the form of convolutions, such as methods.Tucker2Conv2d, whose
        two ranks are then fractions of the numbers of channels.

    A layer in the place of another has its hooks, and is frozen where that was. Depthwise convolutions, weights that
    several modules share, and what holds a hundredth of all parameters and is of no known kind, are left dense, with
    one warning that names them and is silent about what `skip` matches. `summary` tells what became of each layer.
    Raises ValueError for ratio or rank out of range, both or neither given, a pattern that matches no layer, weights
    that are not finite, a scripted module, or one with adapters.
    """
    if (ratio is None) == (rank is None):
        raise ValueError(f"ratio = {ratio}, rank = {rank}: give exactly one of them")
    new = open_(copied(model))
    kinds = {nn.Conv2d: convolution}
    layers = convertible(new, kinds, skip)
    holders = [*layers, *(name for name, m in new.named_modules() if m._parameters), *dict(new.named_parameters())]
    skipped = matching(skip, holders, "skip")
    at_full_rank = matching(keep_full_rank, layers, "keep_full_rank")
    given: Any = ratio if rank is None else rank
    size: Mapping[str, Any] = given if isinstance(given, Mapping) else dict.fromkeys(layers, given)
    sizes = assigned(size, layers, "ratio" if rank is None else "rank")
    for name, layer in layers.items():
        if name in skipped or name not in sizes:
            continue

        def chosen(full: int, name: str = name) -> int:
            if name in at_full_rank:
                return full
            if rank is None:
                return rank_for_ratio(sizes[name], full)
            r: int = sizes[name]
            return r if isinstance(rank, Mapping) and name in rank else min(r, full)

        kind = kinds.get(type(layer)) or kind_of(layer)
        assert kind is not None
        new = replace_module(new, name, kind.truncated(layer, chosen, core=core))
    return close_(new)


def opened(model: nn.Module) -> nn.Module:
    """A copy of `model` in which each weight matrix that a module reads itself, as attention does, is the weight of a
    linear layer, a child of the module: the same function, for methods that act on linear layers."""
    return open_(copied(model))


def replace_module(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """`model` with `layer` in the place of the module of that name; `layer` itself where the name is empty."""
    old = model.get_submodule(name)
    inherit(layer, old)
    if name == "":  # the model is itself the layer
        return layer
    for alias, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:  # a layer shared under several names stays shared
            model.set_submodule(alias, layer)
    return model


def unparametrized(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose weights are plain parameters, with the values that spectral normalization and the
    like give them now."""
    new = copied(model).eval()
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
    """A copy of `model` with every factorized layer replaced by the dense layer W = U S Vᵀ, of the type it was."""
    new = copied(model)
    made: dict[tuple[Tensor | None, ...], Any] = {}
    for name, layer in low_rank_layers(new).items():
        dense = layer.to_dense()
        dense.weight = made.setdefault((layer.U, layer.S, layer.V), dense.weight)  # tied factors, a tied weight
        new = replace_module(new, name, dense)
    return close_(new)
