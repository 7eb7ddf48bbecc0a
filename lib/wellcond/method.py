"""What a method of the study is: data, a way to prepare a network and the parameter groups of its optimizer.

A method starts from the network as its constructor initialises it, the same draw for every method of a seed, or from
the trained network of another method (`starts_from`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wellcond.adversarial import OBJECTIVES, Adversary
from wellcond.errors import invalid
from wellcond.layers import weight_layers
from wellcond.optim import Group, LowRankSGD
from wellcond.settings import check_setting, label_suffix

Penalty = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Settings:
    """The scientific knobs of a method; see `wellcond.settings`. Of ratio and rank, a truncated method has one."""

    ratio: float | None = None
    max_cond: float = math.inf
    rank: int | None = None
    tolerance: float = 0.0
    beta: float = 0.0
    decay: float = 1.0
    mix: float | None = None
    trades: float | None = None
    radius: float = 0.0
    depth: int = 1
    fraction: float = 1.0
    scale: float = 1.0

    def size(self) -> dict[str, Any]:
        """The arguments of `factorize`: rank, or ratio (0 if there is neither)."""
        return {"rank": int(self.rank)} if self.rank is not None else {"ratio": self.ratio or 0.0}

    def adversary(self) -> Adversary | None:
        """That of adversarial training, whose objective is the one of mix and trades that is given."""
        weights = {key: weight for key in OBJECTIVES if (weight := getattr(self, key)) is not None}
        return next((Adversary(key, weight, self.radius) for key, weight in weights.items()), None)


def _check_adversary(settings: dict[str, Any]) -> None:
    given = [key for key in OBJECTIVES if key in settings]
    if given and "radius" not in settings:
        raise invalid("radius", None, f"given where {given[0]} is")
    if "radius" in settings and not given:
        raise invalid("radius", settings["radius"], f"absent without one of {' and '.join(OBJECTIVES)}")
    if len(given) > 1:
        raise invalid(given[1], settings[given[1]], f"absent where {given[0]} is given")


def _no_penalty(settings: Settings) -> Penalty | None:
    return None


def _as_trained(model: nn.Module) -> nn.Module:
    return model


@dataclass(frozen=True)
class Method:
    """name: key in METHODS; label: for figures; summary: one sentence; uses: the settings it needs ("ratio" stands
    for ratio or rank); starts_from: "" or the method whose trained weights it starts from; trains: whether it then
    trains; optimizer: made from the groups with lr, momentum and weight_decay; penalty: what is added to the loss;
    finish: what becomes of the trained network;
    any_start: whether the spectra of its start may be decayed. A method that trains can be trained adversarially."""

    name: str
    label: str
    summary: str
    prepare: Callable[[nn.Module, Settings], nn.Module]
    groups: Callable[[nn.Module, Settings], list[Group]]
    uses: frozenset[str] = frozenset()
    starts_from: str = ""
    trains: bool = True
    optimizer: Callable[..., torch.optim.Optimizer] = LowRankSGD
    penalty: Callable[[Settings], Penalty | None] = _no_penalty
    finish: Callable[[nn.Module], nn.Module] = _as_trained
    any_start: bool = True

    @property
    def finishes(self) -> bool:
        """Whether the trained network becomes another one."""
        return self.finish is not _as_trained

    @property
    def stackable(self) -> bool:
        """Whether several seeds can be trained as one batched network."""
        plain = self.penalty is _no_penalty and not self.finishes
        return self.optimizer is LowRankSGD and plain and not self.starts_from and self.trains

    def check(self, settings: dict[str, Any]) -> None:
        """Raise ValueError, naming the setting, unless exactly the used settings are given and in range."""
        allowed = {*self.uses, *(("decay",) if self.any_start else ())}
        if self.trains:
            allowed |= {"radius", *OBJECTIVES}
        if "ratio" in self.uses:
            allowed.add("rank")
            if settings.keys() >= {"ratio", "rank"}:
                raise invalid("rank", settings["rank"], f"absent where ratio is given, for {self.name}")
        for key in settings.keys() - allowed:
            raise invalid(key, settings[key], f"absent: {self.name} has no such setting")
        for key in self.uses - settings.keys():
            if key != "ratio" or "rank" not in settings:
                raise invalid(key, None, f"given for {self.name}")
        _check_adversary(settings)
        for key, value in settings.items():
            check_setting(key, value)

    def title(self, **settings: float | None) -> str:
        """The label with the settings that it shows: τ = max_cond - 1, β, ϑ."""
        return self.label + label_suffix({key: value for key, value in settings.items() if key in self.uses})


def last_layer(model: nn.Module) -> list[str]:
    """The name of the last linear or convolution layer, the classifier, in a list; it is never truncated."""
    return list(weight_layers(model))[-1:]
