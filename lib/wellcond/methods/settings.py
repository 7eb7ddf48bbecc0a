"""The scientific settings of a method: default, range, letter in the name of a run, and how a label shows it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from wellcond.errors import invalid


class Setting(NamedTuple):
    """letter: in a run_id; accepts, accepted: its range, and that in words; label: how the label of a method shows it;
    name: how the full name of a configuration does; kind: int where it is a whole number."""

    letter: str
    accepts: Callable[[float], bool]
    accepted: str
    label: Callable[[float], str] = lambda value: ""
    name: Callable[[float], str] = lambda value: ""
    kind: type[float] = float

    def check(self, key: str, value: float) -> None:
        """Raise ValueError, naming the setting by its key, if the value is out of range."""
        if not self.accepts(value):
            raise invalid(key, value, self.accepted)


def whole(v: float) -> bool:
    return v >= 1 and v == int(v)


def positive(v: float) -> bool:
    return 0 < v < math.inf


def _setting(default: Any, *description: Any, **more: Any) -> Any:
    return field(default=default, metadata={"setting": Setting(*description, **more)})


@dataclass(frozen=True)
class Settings:
    """The scientific knobs of a method. Of ratio and rank, a truncated method has one.

    ratio in [0, 1): the fraction of the rank removed from every weight matrix; rank >= 1: the same rank in every layer;
    max_cond >= 1: the bound on κ, the papers' 1 + τ; tolerance in [0, 1): the relative truncation error ϑ;
    beta >= 0: the weight of a penalty; decay >= 1: α, the k-th singular value is multiplied by α^-k before training;
    depth >= 1: the number of factors of every weight; fraction in (0, 1]: k of a Frank-Wolfe set over the number of its
    coordinates; scale > 0: its diameter in units of 2 E||W||_F, W as initialised; max_norm > 0: the bound on ||S||_2.
    """

    ratio: float | None = _setting(
        None,
        "r",
        lambda v: 0 <= v < 1,
        "in [0, 1), the fraction of the rank that is removed",
        name=lambda v: f", ratio {v:g}",
    )
    rank: int | None = _setting(None, "k", whole, "a whole number >= 1", name=lambda v: f", rank {v:g}", kind=int)
    max_cond: float = _setting(
        math.inf,
        "c",
        lambda v: v >= 1,
        "a number >= 1 (the papers' 1 + tau, tau >= 0), or inf for no constraint",
        label=lambda v: f", τ = {v - 1:.3g}",
    )
    tolerance: float = _setting(
        0.0, "t", lambda v: 0 <= v < 1, "in [0, 1)", label=lambda v: f", ϑ = {v:g}" if v else ""
    )
    beta: float = _setting(0.0, "b", lambda v: 0 <= v < math.inf, ">= 0", label=lambda v: f", β = {v:g}")
    decay: float = _setting(1.0, "a", lambda v: 1 <= v < math.inf, ">= 1", name=lambda v: f", α = {v:g}")
    depth: int = _setting(1, "n", whole, "a whole number >= 1", label=lambda v: f", N = {v:g}", kind=int)
    fraction: float = _setting(
        1.0,
        "f",
        lambda v: 0 < v <= 1,
        "in (0, 1], a fraction of the coordinates",
        label=lambda v: f", k = {100 * v:g} %",
    )
    scale: float = _setting(1.0, "w", positive, "> 0", label=lambda v: f", w = {v:g}")
    max_norm: float = _setting(math.inf, "g", positive, "> 0", label=lambda v: f", ‖S‖ ≤ {v:g}")

    def size(self) -> dict[str, Any]:
        """The arguments of `factorize`: rank, or ratio (0 if there is neither)."""
        return {"rank": int(self.rank)} if self.rank is not None else {"ratio": self.ratio or 0.0}


SETTINGS: dict[str, Setting] = {field.name: field.metadata["setting"] for field in fields(Settings)}
"""How each of Settings is checked, written and shown."""
