"""Ranks from a budget: how much of its rank each layer keeps, so that the whole network has a given size or cost.

    maximize Σ_i v_i(r_i)    subject to    Σ_i c_i(r_i) <= budget

v_i(r): what the r leading singular directions of layer i are worth (`importance`); c_i(r): what the layer costs at
rank r (`costs`). The menu of a layer has the ranks at which its factors are smaller than its matrix, r(n + m) < nm, and
last the matrix itself. This is a multiple-choice knapsack, solved greedily along the upper concave hulls of the menus:
the step that gains most for its cost is taken first. Wherever an edge of the hull is complete, the ranks are optimal
for what they cost; always, less than one step of one layer is left over, and a larger budget lowers no rank.

Source: Sinha, Zoltners, Operations Research 27 (1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from wellcond.compression.costs import COSTS
from wellcond.compression.importance import IMPORTANCE, matrix
from wellcond.convert import convertible, copied, matching
from wellcond.errors import invalid, unknown
from wellcond.kinds.opening import open_

SLACK = 1e-9  # of the whole: absorbs the rounding of a fraction


class Choice(NamedTuple):
    """What a layer may become; rank None: dense."""

    cost: float
    value: float
    rank: int | None


def ranks(
    model: nn.Module,
    budget: Mapping[str, float],
    *,
    input: Any = None,
    skip: str | Iterable[str] = (),
    multiple_of: int = 1,
    importance: str = "energy",
    data: Iterable[tuple[Any, Any]] = (),
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
) -> dict[str, int]:
    """{layer: rank} within a budget, for ``factorize(model, rank=ranks)``; a layer that stays dense is not in it.

    budget: one entry, with a value in (0, 1].

    * parameters: the fraction deployed (`count_parameters`) of those of the whole dense network, biases included.
    * flops: the fraction, once deployed, of one pass of the whole dense network on `input`.
    * latency: the fraction of the time that the layers take when dense. Each is timed by itself at a few ranks, on this
      machine, on the activations that `input` leads to; all that is not in these layers is left out.
    * energy: each layer for itself gets the least rank that keeps this fraction of its Σσ_k².

    input: what the forward code takes, a tensor, a tuple of arguments or a mapping of them by name. skip: names or
    patterns of layers left dense, which are paid for all the same. multiple_of: every rank is a multiple of it.
    importance: a key of IMPORTANCE; "sensitivity" needs data, a few batches (x, y), and loss(model(x), y).

    A layer stays dense where no rank costs less than its matrix; to be constrained like the others, give it its full
    rank. The least there is has every layer at the smallest rank, `multiple_of`. The model is not changed; what is
    measured is measured in evaluation mode.
    Raises ValueError for a budget below the least or out of range, an unknown entry, importance or layer, more than one
    entry, multiple_of < 1, missing input or data, a network without layers to convert, or one that is scripted.
    """
    kind, fraction = _entry(budget)
    if multiple_of < 1:
        raise invalid("multiple_of", multiple_of, ">= 1")
    if importance not in IMPORTANCE:
        raise unknown("importance", importance, IMPORTANCE)
    if kind == "energy" and importance != "energy":
        raise invalid("importance", importance, "'energy' for a budget of energy")
    if kind in ("flops", "latency") and input is None:
        raise invalid("input", None, f"what the forward code takes, for a budget of {kind}")
    model = open_(copied(model)).eval()
    layers = convertible(model, skip=skip)
    skipped = matching(skip, layers, "skip")
    layers = {name: layer for name, layer in layers.items() if name not in skipped}
    if not layers:
        raise invalid("model", type(model).__name__, "one with layers to convert")
    values = IMPORTANCE[importance](model, layers, data, loss)
    menus = {name: _ranks_below_dense(layer, multiple_of) for name, layer in layers.items()}
    if kind == "energy":
        enough = math.log(fraction) - SLACK
        kept = {name: [r for r in menu if values[name][r - 1] >= enough] for name, menu in menus.items()}
        return {name: least[0] for name, least in kept.items() if least}
    costs = COSTS[kind](model, layers, menus, input)
    choices = {}
    for name, menu in menus.items():
        value = values[name].tolist()
        worth = [*(value[rank - 1] for rank in menu), value[-1]]
        choices[name] = frontier([Choice(*c) for c in zip(costs.layers[name], worth, (*menu, None), strict=True)])
    limit = (fraction + SLACK) * costs.total - costs.rest
    needed = sum(menu[0].cost for menu in choices.values())
    if needed > limit:
        accepted = f"at least {(needed + costs.rest) / costs.total:.3g}, where every layer has the smallest rank"
        raise invalid(f"budget[{kind!r}]", fraction, accepted)
    return {name: choice.rank for name, choice in allocated(choices, limit).items() if choice.rank is not None}


def _entry(budget: Mapping[str, float]) -> tuple[str, float]:
    kinds = (*COSTS, "energy")
    if len(budget) != 1:
        raise invalid("budget", dict(budget), f"one entry, of {', '.join(kinds)}")
    ((kind, fraction),) = budget.items()
    if kind not in kinds:
        raise unknown("budget", kind, kinds)
    if not 0 < fraction <= 1:
        raise invalid(f"budget[{kind!r}]", fraction, "in (0, 1], a fraction of the dense network")
    return kind, fraction


def _ranks_below_dense(layer: nn.Module, multiple_of: int) -> range:
    n, m = matrix(layer).shape[-2:]
    return range(multiple_of, math.ceil(n * m / (n + m)), multiple_of)


def frontier(menu: Sequence[Choice]) -> list[Choice]:
    """The choices of a menu, ascending in value, that cost less than all after them."""
    cheapest = [*accumulate((choice.cost for choice in reversed(menu)), min)][::-1]
    return [choice for choice, after in zip(menu, [*cheapest[1:], math.inf], strict=True) if choice.cost < after]


def allocated(menus: Mapping[str, Sequence[Choice]], limit: float) -> dict[str, Choice]:
    """The choice of each layer: the first of its menu, then steps by their gain for the cost while they fit in `limit`.

    menus: strictly ascending in cost, ascending in value, as `frontier` leaves them.
    """
    chosen = {name: menu[0] for name, menu in menus.items()}
    spent = sum(choice.cost for choice in chosen.values())
    edges = [(rate, name, steps) for name, menu in menus.items() for rate, steps in _edges(menu)]
    for _, name, steps in sorted(edges, key=lambda edge: -edge[0]):  # stable: along a hull the rates fall
        for choice in steps:
            spent += choice.cost - chosen[name].cost
            if spent > limit:
                return chosen
            chosen[name] = choice
    return chosen


def _edges(menu: Sequence[Choice]) -> Iterator[tuple[float, Sequence[Choice]]]:
    """Of each edge of the upper concave hull of a menu: its gain for the cost, and the choices that lead to its end."""

    def rate(i: int, j: int) -> float:
        return (menu[j].value - menu[i].value) / (menu[j].cost - menu[i].cost)

    hull: list[int] = []
    for k in range(len(menu)):
        while len(hull) > 1 and rate(*hull[-2:]) <= rate(hull[-1], k):
            hull.pop()
        hull.append(k)
    for i, j in pairwise(hull):
        yield rate(i, j), menu[i + 1 : j + 1]
