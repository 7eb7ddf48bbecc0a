"""What a layer costs at each rank: parameters, floating-point operations, or time on this machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn

from wellcond.compression.importance import Layers, matrix
from wellcond.convert import densify, factorize
from wellcond.counts import count_parameters
from wellcond.tracing import calls_of, evaluate

Menus = Mapping[str, Sequence[int]]
"""The ranks that each layer may have below its dense matrix, ascending."""
TIMED, SECONDS = 5, 0.05  # ranks of a layer that are timed, and how long each at least


class Costs(NamedTuple):
    """layers: of each layer at each rank of its menu, then dense; rest: of all else; total: of the whole, dense."""

    layers: dict[str, list[float]]
    rest: float
    total: float


def parameters(model: nn.Module, layers: Layers, menus: Menus, input: Any) -> Costs:
    """Deployed parameters, of which `rest` has biases and normalization."""
    counts, dense = count_parameters(model), {name: float(layer.weight.numel()) for name, layer in layers.items()}
    return Costs(_proportional(dense, layers, menus), counts.deployed - sum(dense.values()), counts.dense)


@torch.no_grad()
def flops(model: nn.Module, layers: Layers, menus: Menus, input: Any) -> Costs:
    """Floating-point operations of one pass, as torch.utils.flop_counter has them."""
    from torch.utils.flop_counter import FlopCounterMode  # imports compilers

    def count(work: Callable[[], Any]) -> float:
        with FlopCounterMode(display=False) as counter:
            work()
        return float(counter.get_total_flops())

    calls = _calls(model, layers, input)
    dense = {name: count(partial(calls[name], layer)) for name, layer in layers.items()}
    rest = count(partial(evaluate, model, input)) - sum(dense.values())
    return Costs(_proportional(dense, layers, menus), rest, count(partial(evaluate, densify(model), input)))


@torch.no_grad()
def latency(model: nn.Module, layers: Layers, menus: Menus, input: Any) -> Costs:
    """Seconds, from a table of timings: ascending by isotonic regression, and linear between the ranks timed."""
    calls = _calls(model, layers, input)
    costs: dict[str, list[float]] = {}
    for name, layer in layers.items():
        full: Any = factorize(layer, ratio=0, core=False)
        last = len(menus[name]) - 1
        nodes = sorted({round(last * i / (TIMED - 1)) for i in range(TIMED)} if last >= 0 else ())
        times = isotonic([seconds(partial(calls[name], _truncated(full, menus[name][i]))) for i in nodes])
        table = times[:1]
        for (i, a), (j, b) in pairwise(zip(nodes, times, strict=True)):
            table += [a + (b - a) * k / (j - i) for k in range(1, j - i + 1)]
        costs[name] = [*table, seconds(partial(calls[name], layer))]
    return Costs(costs, 0.0, sum(cost[-1] for cost in costs.values()))


COSTS: dict[str, Callable[..., Costs]] = {"parameters": parameters, "flops": flops, "latency": latency}
"""(model, layers, menus, input) -> what the layers cost."""


def _proportional(dense: Mapping[str, float], layers: Layers, menus: Menus) -> dict[str, list[float]]:
    """r(n + m)/(nm) of what W costs: the factors act at the same positions."""
    costs = {}
    for name, whole in dense.items():
        n, m = matrix(layers[name]).shape[-2:]
        costs[name] = [*(whole * rank * (n + m) / (n * m) for rank in menus[name]), whole]
    return costs


def _calls(model: nn.Module, layers: Layers, input: Any) -> dict[str, Callable[[nn.Module], None]]:
    """For each layer, a function that repeats, on a module in its place, all calls that one pass makes."""
    seen = calls_of(layers, model, input)

    def repeat(name: str, module: nn.Module) -> None:
        for args, named in seen[name]:
            module(*args, **named)

    return {name: partial(repeat, name) for name in layers}


def _truncated(full: Any, rank: int) -> nn.Module:
    """The plain layers of a layer U Vᵀ at a lower rank."""
    layer = copy.deepcopy(full)
    layer.U, layer.V = (nn.Parameter(factor[..., :rank].clone()) for factor in (layer.U, layer.V))
    plain: nn.Module = layer.plain_layers()
    return plain


def isotonic(y: Sequence[float]) -> list[float]:
    """The nearest ascending sequence in the 2-norm: max over i <= k of min over j >= k of the mean of y_i, ..., y_j."""
    n = range(len(y))
    return [max(min(sum(y[i : j + 1]) / (j + 1 - i) for j in n[k:]) for i in n[: k + 1]) for k in n]


def seconds(work: Callable[[], Any]) -> float:
    """The median time of `work`, in the threads that torch is set to; on a GPU, until its queue is empty."""
    from torch.utils.benchmark import Timer

    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=SECONDS).median)
