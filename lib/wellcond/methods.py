"""The methods of the study: each is data, a way to prepare a network and the parameter groups of its optimizer.

A method starts from the network as its constructor initialises it, the same draw for every method of a seed, or from
the trained network of another method (`starts_from`). Low-rank methods begin with the truncated SVD of those weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from wellcond.convert import factorize
from wellcond.errors import invalid, unknown
from wellcond.layers import weight_layers
from wellcond.optim import Group, constrain, orthonormalize, param_groups
from wellcond.spectrum import check_max_cond


@dataclass(frozen=True)
class Settings:
    """The scientific knobs of a method. ratio: rank fraction removed, in [0, 1); max_cond: bound on κ(S), >= 1."""

    ratio: float = 0.0
    max_cond: float = math.inf


@dataclass(frozen=True)
class Method:
    """name: key in METHODS; label: for figures; summary: one sentence; uses: the settings it reads;
    starts_from: "" or the method whose trained weights it starts from; trains: whether it then trains."""

    name: str
    label: str
    summary: str
    prepare: Callable[[nn.Module, Settings], nn.Module]
    groups: Callable[[nn.Module, Settings], list[Group]]
    uses: frozenset[str] = frozenset()
    starts_from: str = ""
    trains: bool = True

    def check(self, settings: dict[str, Any]) -> None:
        """Raise ValueError, naming the setting, unless exactly the used settings are given and in range."""
        for key in settings.keys() - self.uses:
            raise invalid(key, settings[key], f"absent: {self.name} has no such setting")
        for key in self.uses - settings.keys():
            raise invalid(key, None, f"given for {self.name}")
        if "ratio" in settings and not 0 <= settings["ratio"] < 1:
            raise invalid("ratio", settings["ratio"], "in [0, 1), the fraction of the rank that is removed")
        if "max_cond" in settings:
            check_max_cond(settings["max_cond"])

    def title(self, max_cond: float | None) -> str:
        """The label, with τ = max_cond - 1 where the method has one."""
        if "max_cond" not in self.uses or max_cond is None:
            return self.label
        return f"{self.label}, τ = {max_cond - 1:.3g}"


def last_layer(model: nn.Module) -> list[str]:
    """The name of the last linear or convolution layer, the classifier, in a list; it is never truncated."""
    return list(weight_layers(model))[-1:]


def _unchanged(model: nn.Module, settings: Settings) -> nn.Module:
    return model


def _usv(model: nn.Module, settings: Settings) -> nn.Module:
    # the classifier is factorized at full rank: it is constrained but not truncated
    factorized = factorize(model, ratio=settings.ratio, keep_full_rank=last_layer(model))
    return constrain(factorized, settings.max_cond)


def _uv(model: nn.Module, settings: Settings) -> nn.Module:
    return factorize(model, ratio=settings.ratio, skip=last_layer(model), core=False)


def _orthonormal(model: nn.Module, settings: Settings) -> nn.Module:
    for layer in weight_layers(model).values():
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        orthonormalize(layer.weight)
    return model


def _lowrank_groups(model: nn.Module, settings: Settings) -> list[Group]:
    return param_groups(model, max_cond=settings.max_cond)


def _published_groups(model: nn.Module, settings: Settings) -> list[Group]:
    kind = "lowrank_published_mean" if settings.max_cond == 1 else "lowrank_published_band"
    return param_groups(model, max_cond=settings.max_cond, kind=kind)


def _stiefel_groups(retraction: str) -> Callable[[nn.Module, Settings], list[Group]]:
    def groups(model: nn.Module, settings: Settings) -> list[Group]:
        weights = [layer.weight for layer in weight_layers(model).values()]
        taken = {id(w) for w in weights}
        rest = [p for p in model.parameters() if id(p) not in taken]
        return [{"params": weights, "kind": "stiefel", "retraction": retraction}, {"params": rest, "kind": "euclidean"}]

    return groups


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method to METHODS. Raises ValueError if its name is taken or it starts from an unknown method."""
    if method.name in METHODS:
        raise invalid("method", method.name, "a name that is not yet registered")
    if method.starts_from:
        find(method.starts_from)
    METHODS[method.name] = method
    return method


def find(name: str) -> Method:
    """The method of that name. Raises ValueError, suggesting the nearest name."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


_RATIO, _BOTH = frozenset({"ratio"}), frozenset({"ratio", "max_cond"})

for _method in (
    Method("dense", "dense SGD", "Dense weights, momentum SGD.", _unchanged, _lowrank_groups),
    Method("uv", "U Vᵀ", "Two factors, trained by plain momentum SGD.", _uv, _lowrank_groups, _RATIO),
    Method(
        "svd",
        "SVD of dense",
        "Truncated SVD of the trained dense network, no further training.",
        _uv,
        _lowrank_groups,
        _RATIO,
        starts_from="dense",
        trains=False,
    ),
    Method(
        "svd_finetuned",
        "SVD of dense, fine-tuned",
        "Truncated SVD of the trained dense network, then U Vᵀ trained on.",
        _uv,
        _lowrank_groups,
        _RATIO,
        starts_from="dense",
    ),
    Method(
        "usv",
        "projected U S Vᵀ",
        "The manifold integrator without a bound on κ(S): τ = ∞.",
        _usv,
        _lowrank_groups,
        _RATIO,
    ),
    Method(
        "condlr",
        "CondLR",
        "The manifold integrator with the nearest projection onto κ(S) <= 1 + τ after each step.",
        _usv,
        _lowrank_groups,
        _BOTH,
    ),
    Method(
        "condlr_published",
        "CondLR as published",
        "The step of the released code: scalar preconditioner and mean-centred clamp (RMS at τ = 0).",
        _usv,
        _published_groups,
        _BOTH,
    ),
    Method(
        "cayley_sgd",
        "Cayley SGD",
        "Full-rank weights with orthonormal rows, Cayley retraction.",
        _orthonormal,
        _stiefel_groups("cayley"),
    ),
    Method(
        "projected_sgd",
        "projected SGD",
        "Full-rank weights with orthonormal rows, QR retraction.",
        _orthonormal,
        _stiefel_groups("qr"),
    ),
):
    register(_method)
