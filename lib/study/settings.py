"""The settings of a configuration: those of its method, and those of adversarial training, whatever the method.

mix        m   in (0, 1]: weight of the adversarial loss in adversarial training
trades     l   weight β > 0 of the divergence in TRADES, the other adversarial training
radius     e   ε > 0 of the l∞ balls of either, in units of the pixel range
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from wellcond.methods import settings
from wellcond.methods.settings import Setting, positive

ADVERSARIAL: dict[str, Setting] = {
    "mix": Setting(
        "m",
        lambda v: 0 < v <= 1,
        "in (0, 1], the weight of the adversarial loss",
        name=lambda v: ", PGD-AT" if v == 1 else f", {100 * v:g} % PGD-AT",
    ),
    "trades": Setting("l", positive, "> 0", name=lambda v: f", TRADES {v:g}"),
    "radius": Setting("e", positive, "> 0, in units of the pixel range", name=lambda v: f", ε = {v:g}"),
}

SETTINGS: dict[str, Setting] = {**settings.SETTINGS, **ADVERSARIAL}


def check_setting(key: str, value: float) -> None:
    """Raise ValueError, naming the setting, if the value is out of its range."""
    SETTINGS[key].check(key, value)


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
