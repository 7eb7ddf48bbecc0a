"""One-line errors that name the field, the value and what is accepted."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch


class NonFiniteGradient(torch.linalg.LinAlgError, ValueError):  # type: ignore[misc, name-defined]
    """A gradient with nan or inf; nothing has been changed."""


def invalid(field: str, value: object, accepted: str) -> ValueError:
    """``ratio = 1.5: must be in [0, 1)``, as an exception to raise."""
    return ValueError(f"{field} = {value!r}: must be {accepted}")


def unknown(field: str, name: str, choices: Iterable[str]) -> ValueError:
    """An unknown name, with the nearest valid one suggested and all valid ones listed."""
    names = sorted(choices)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return ValueError(f"{field} = {name!r}: unknown; {hint}accepted: {', '.join(names)}")
