"""What an attack is: its call, its words, and its options, each declared once and checked where it enters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

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


Attack = Callable[..., Tensor]
"""(model, x, y, *, eps, index, seed, ...) -> x'; index (B,): the numbers of the images, from which random starts are
drawn, so that an image is attacked alike in any batch and on any device."""


@dataclass(frozen=True)
class AttackKind:
    """An attack of the registry: its title in the book, its norm, the call, its options with defaults, and whether
    eps-balls are nested.

    nested: an image that falls at one eps has fallen at every larger one, since the smaller perturbation is allowed
    there too, and one that withstands the larger ball has withstood the smaller; a single-step attack is reported at
    each eps on its own. follows: cheaper attacks; an image which has fallen to one of them at the same eps need not be
    attacked again.
    """

    name: str
    title: str
    norm: str
    call: Attack
    options: tuple[Option, ...] = ()
    nested: bool = True
    follows: tuple[str, ...] = ()


ATTACKS: dict[str, AttackKind] = {}
"""FGSM: x + eps sign ∇L (Goodfellow, 2015). PGD: `steps` projected steps of relative_step·eps/steps from `restarts`
random starts in the ball (Madry, 2018). Momentum PGD: steps along the sign of Σ ∇L/‖∇L‖₁ (Dong, 2018). Square: a random
search of 5,000 queries without gradients (Andriushchenko, 2020). AutoAttack: its standard version, APGD-CE, APGD-T,
FAB-T and Square, 100 iterations each (Croce and Hein, 2020), by its authors' package. scaled: on scaled logits. Of
corruptions, which know no network, eps is the severity, 0 to 5. Each file of this folder registers its own."""

TITLES: dict[str, str] = {"clean": "clean"}
"""What they are called in the book, and what a network is called on without one."""


def register(kind: AttackKind) -> None:
    """Add an attack to ATTACKS and TITLES. Raises ValueError if its name is taken."""
    if kind.name in TITLES:
        raise invalid("attack", kind.name, "a name that is not yet registered")
    ATTACKS[kind.name] = kind
    TITLES[kind.name] = kind.title


def options_text(kind: AttackKind, options: Mapping[str, Any]) -> str:
    """ "relative_step=2.5 restarts=1 steps=40": all options of an attack, its defaults included but for None, which
    leaves a number to the authors of the attack.

    Raises ValueError for an option that it does not have, or out of its range.
    """
    chosen = complete(kind.name, kind.options, options)
    return " ".join(f"{name}={value:g}" for name, value in sorted(chosen.items()) if value is not None)
