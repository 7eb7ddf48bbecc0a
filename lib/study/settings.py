"""The scientific settings of a method: ranges, letters in a run_id, and how labels show them. Never imports torch.

ratio      r   fraction of the rank removed from every weight matrix, in [0, 1)
rank       k   instead of ratio: the same rank in every layer (capped at its full rank)
max_cond   c   bound on the condition number, the papers' 1 + τ
tolerance  t   relative truncation error ϑ of a rank-adaptive method, in [0, 1)
beta       b   weight β >= 0 of a penalty
decay      a   α >= 1: the k-th singular value of every weight is multiplied by α^-k before training
mix        m   in (0, 1]: weight of the adversarial loss in adversarial training
trades     l   weight β > 0 of the divergence in TRADES, the other adversarial training
radius     e   ε > 0 of the l∞ balls of either, in units of the pixel range
depth      n   N >= 1, the number of factors of every weight
fraction   f   k of a Frank-Wolfe set as a fraction of the number of its coordinates, in (0, 1]
max_norm   g   L > 0, the bound on ||S||_2 of every layer
scale      w   > 0: the diameter of a Frank-Wolfe set in units of 2 E||W||_F, W as it is initialised
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

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


SETTINGS: dict[str, Setting] = {
    "ratio": Setting(
        "r",
        lambda v: 0 <= v < 1,
        "in [0, 1), the fraction of the rank that is removed",
        name=lambda v: f", ratio {v:g}",
    ),
    "rank": Setting(
        "k", lambda v: v >= 1 and v == int(v), "a whole number >= 1", name=lambda v: f", rank {v:g}", kind=int
    ),
    "max_cond": Setting(
        "c",
        lambda v: v >= 1,
        "a number >= 1 (the papers' 1 + tau, tau >= 0), or inf for no constraint",
        label=lambda v: f", τ = {v - 1:.3g}",
    ),
    "tolerance": Setting("t", lambda v: 0 <= v < 1, "in [0, 1)", label=lambda v: f", ϑ = {v:g}" if v else ""),
    "beta": Setting("b", lambda v: 0 <= v < float("inf"), ">= 0", label=lambda v: f", β = {v:g}"),
    "decay": Setting("a", lambda v: 1 <= v < float("inf"), ">= 1", name=lambda v: f", α = {v:g}"),
    "mix": Setting(
        "m",
        lambda v: 0 < v <= 1,
        "in (0, 1], the weight of the adversarial loss",
        name=lambda v: ", PGD-AT" if v == 1 else f", {100 * v:g} % PGD-AT",
    ),
    "trades": Setting("l", lambda v: 0 < v < float("inf"), "> 0", name=lambda v: f", TRADES {v:g}"),
    "radius": Setting(
        "e", lambda v: 0 < v < float("inf"), "> 0, in units of the pixel range", name=lambda v: f", ε = {v:g}"
    ),
    "depth": Setting(
        "n", lambda v: v >= 1 and v == int(v), "a whole number >= 1", label=lambda v: f", N = {v:g}", kind=int
    ),
    "fraction": Setting(
        "f", lambda v: 0 < v <= 1, "in (0, 1], a fraction of the coordinates", label=lambda v: f", k = {100 * v:g} %"
    ),
    "scale": Setting("w", lambda v: 0 < v < float("inf"), "> 0", label=lambda v: f", w = {v:g}"),
    "max_norm": Setting("g", lambda v: 0 < v < float("inf"), "> 0", label=lambda v: f", ‖S‖ ≤ {v:g}"),
}


ADVERSARIAL = ("mix", "trades", "radius")
"""Those of adversarial training, whatever the method."""


def check_setting(key: str, value: float) -> None:
    """Raise ValueError, naming the setting, if the value is out of its range."""
    if not SETTINGS[key].accepts(value):
        raise invalid(key, value, SETTINGS[key].accepted)


def suffix(values: Mapping[str, float | None]) -> str:
    """ "-r0.8-c1.1": the settings that are given, as they stand in a run_id."""
    given = ((setting.letter, values.get(key)) for key, setting in SETTINGS.items())
    return "".join(f"-{letter}{value:g}" for letter, value in given if value is not None)


def parsed(run_id: str) -> dict[str, str | float | None]:
    """What a run_id spells out: method, seed, and each setting as a number or None."""
    optional = "".join(rf"(-{s.letter}(?P<{key}>\d[\w.+-]*?|inf))?" for key, s in SETTINGS.items())
    match = re.fullmatch(rf"(?P<method>.+?){optional}-s(?P<seed>\d+)", run_id)
    if match is None:
        return {"method": run_id, "seed": None, **dict.fromkeys(SETTINGS)}
    found = match.groupdict()
    numbers = {key: None if found[key] is None else float(found[key]) for key in (*SETTINGS, "seed")}
    return {"method": found["method"], **numbers}


def label_suffix(values: Mapping[str, float | None]) -> str:
    """ ", τ = 0.1": what the label of a method adds for its settings."""
    return "".join(s.label(v) for key, s in SETTINGS.items() if (v := values.get(key)) is not None and v == v)


def title(label: str, uses: Collection[str], values: Mapping[str, float | None]) -> str:
    """The label of a method with the settings that it shows: of those it uses, τ = max_cond - 1, β, ϑ, ..."""
    return label + label_suffix({key: value for key, value in values.items() if key in uses})


def name_suffix(values: Mapping[str, float | None]) -> str:
    """ ", ratio 0.8": what the full name of a configuration adds to its label."""
    return "".join(s.name(v) for key, s in SETTINGS.items() if (v := values.get(key)) is not None and v == v)
