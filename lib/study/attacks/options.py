"""The options of attacks: each declared once, with its default and its range, and checked where it enters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from wellcond.errors import invalid, unknown


class Option(NamedTuple):
    """name; default, None for the number that the authors of the attack chose; whole: an integer >= 1, else > 0."""

    name: str
    default: float | int | None
    whole: bool = True

    def check(self, value: Any, attack: str) -> None:
        """Raise ValueError, naming attack and option, for a value of another type or out of range."""
        number = isinstance(value, int) and not isinstance(value, bool)
        if self.whole and not (number and value >= 1):
            raise invalid(f"{attack}.{self.name}", value, "a whole number >= 1")
        if not self.whole and not ((number or isinstance(value, float)) and 0 < value < math.inf):
            raise invalid(f"{attack}.{self.name}", value, "a finite number > 0")


def complete(attack: str, declared: Iterable[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an attack, its defaults included; None in `given` means the default.

    Raises ValueError, with the nearest name, for an option that it does not have, and for a value out of range.
    """
    options = {option.name: option for option in declared}
    for name in given.keys() - options.keys():
        raise unknown(f"option of {attack}", name, options)
    for name, value in given.items():
        if value is not None:
            options[name].check(value, attack)
    chosen = {name: option.default for name, option in options.items()}
    return chosen | {name: value for name, value in given.items() if value is not None}
