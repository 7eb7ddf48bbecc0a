"""Compression of a trained network, without training it further.

A weight is made up of units: singular triples, filters, or single entries. A compressor scores them and removes a
fraction of them, those with the smallest scores, in each layer by itself or over all layers together; the largest of
a layer always stays. What is expensive (decompositions, tracing, sorting) is done once, and then each amount is cheap:

    at = COMPRESSORS["svd_global"](model)
    smaller = [at(amount).model for amount in (0.5, 0.8, 0.9)]

A factorized layer counts as the dense layer that it stands for; `model` itself is never changed.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from torch import nn

from wellcond.compression.units import COMPRESSORS as COMPRESSORS
from wellcond.compression.units import AtAmount, Compressed
from wellcond.convert import check_finite
from wellcond.counts import count_parameters
from wellcond.errors import invalid, unknown
from wellcond.layers import weight_layers

for _file in pkgutil.iter_modules([str(Path(__file__).parent)]):  # each registers its own
    importlib.import_module(f"wellcond.compression.{_file.name}")

RESOLUTION = 2.0**-20  # of the amount that meets a target: one weight in a million


def compress(
    model: nn.Module,
    compressor: str,
    *,
    amount: float | None = None,
    share: float | None = None,
    skip: str | Iterable[str] = (),
) -> Compressed:
    """`model`, smaller; it is not changed itself. Parametrized weights are left whole: collapse products first.

    compressor: a key of COMPRESSORS. amount: the fraction of the units removed, in [0, 1); or share: the size to
    reach, as a fraction of the parameters of the dense network, in (0, 1], by the smallest amount that does. Give
    exactly one. skip: names or patterns of layers left whole.
    Raises ValueError for an unknown compressor or pattern, amount or share out of range, both or neither given, a
    share that the compressor cannot reach, a network with nothing to compress, or weights that are not finite.
    """
    if (amount is None) == (share is None):
        raise ValueError(f"amount = {amount}, share = {share}: give exactly one of them")
    if share is not None and not 0 < share <= 1:
        raise invalid("share", share, "in (0, 1], a fraction of the parameters of the dense network")
    at = _at_amount(model, compressor, skip)
    if amount is not None:
        return at(amount)
    assert share is not None
    dense = count_parameters(model).dense
    found = _first(at, lambda compressed: compressed.size <= share * dense)
    if found.size > share * dense:
        raise invalid("share", share, f"at least {found.size / dense:.3g}, all that {compressor!r} can remove here")
    return found


def _at_amount(model: nn.Module, compressor: str, skip: str | Iterable[str]) -> AtAmount:
    if compressor not in COMPRESSORS:
        raise unknown("compressor", compressor, COMPRESSORS)
    check_finite(weight_layers(model))
    return COMPRESSORS[compressor](model, skip=skip)


def _first(at: AtAmount, fits: Callable[[Compressed], bool]) -> Compressed:
    """The network at the smallest amount at which it fits, or at the largest amount if it never does."""
    low, high = 0.0, 1 - RESOLUTION
    if fits(found := at(low)):
        return found
    if not fits(found := at(high)):
        return found
    while high - low > RESOLUTION:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(at(middle)) else (middle, high)
    return at(high)


def iterated(
    model: nn.Module,
    compressor: str,
    amount: float,
    *,
    phases: int,
    train: Callable[[nn.Module], nn.Module],
    skip: str | Iterable[str] = (),
) -> Compressed:
    """Compress and train in turn, `phases` times; after phase j, the fraction (1 - amount)^(j/phases) of the units is
    left. phases = 1 is compression followed by training. The scores of a phase are those of the network it finds.

    train: returns the network that it is given, trained further; zeros among the weights must stay zero.
    Raises ValueError for phases < 1, and as `compress`. Source: Han et al., NeurIPS 2015; Frankle, Carbin, ICLR 2019.
    """
    if phases < 1:
        raise invalid("phases", phases, ">= 1")
    at = _at_amount(model, compressor, skip)
    if phases == 1:
        found = at(amount)
        return replace(found, model=train(found.model))
    units, least = (sum(compressed.kept.values()) for compressed in (at(0.0), at(amount)))
    for phase in range(1, phases + 1):
        left = least if phase == phases else max(least, math.floor(units * (1 - amount) ** (phase / phases)))

        def fits(compressed: Compressed, left: int = left) -> bool:
            return sum(compressed.kept.values()) <= left

        found = _first(at, fits)
        model = train(found.model)
        if phase < phases:
            at = _at_amount(model, compressor, skip)
    return replace(found, model=model)
