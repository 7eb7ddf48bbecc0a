"""What the time of a training step and of a deployed network consists of: products, factorizations, and the rest.

The products (convolutions among them) are what the FLOPs of a network count, so their time is a floor: with these
kernels nothing can be faster than its products alone, and at the rate of the dense network's products not than its
FLOPs at that rate. What is left are activations, normalization, pooling, copies, and the calls themselves.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from study.benches.clocks import clock, interleaved
from study.benches.training import PRODUCTS, Row, Trainee, product_flops
from wellcond.deployment import deploy

COUNTED = {*flop_registry, *PRODUCTS}
"""The operators whose FLOPs are counted: convolutions and products of matrices."""


def _kind(operator: Any) -> str:
    if operator._overloadpacket in COUNTED:
        return "products"
    return "factorizations" if any(word in str(operator) for word in ("linalg", "cholesky")) else "rest"


class Stopwatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, `seconds` adds up the time inside the operators of torch, by their kind."""

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.seconds = dict.fromkeys(("products", "factorizations", "rest"), 0.0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = clock(self.device)
        found = func(*args, **(kwargs or {}))
        spent = clock(self.device) - start  # before its kind is looked up, which is not its time
        self.seconds[_kind(func)] += spent
        return found


def _works(trainee: Trainee) -> dict[str, Callable[[], Any]]:
    deployed = deploy(trainee.network).to(memory_format=trainee.layout)
    return {"step": trainee.step, "latency": torch.no_grad()(lambda: deployed(trainee.x))}


def roofline_rows(
    net: str, ratios: Sequence[float], *, batch: int = 128, repeats: int = 15, device: str = "cpu"
) -> list[Row]:
    """One row a network (dense, and CondLR at each ratio) and task: a training step, or a pass once deployed.

    Columns: net, method, ratio, batch, task, seconds (median), products_s and factorizations_s (medians of rounds in
    which every operator is timed), rest_s (what is left), flops (of the products), and, over the seconds of the dense
    network: ratio_to_dense, products_ratio, factorizations_ratio, rest_ratio (they add up to the first), and
    floor_ratio (the FLOPs at the rate of the dense network's products).
    Raises ValueError for an unknown network, or a batch or ratio out of range.
    """
    networks = [("dense", 0.0), *(("condlr", ratio) for ratio in ratios)]
    works = {
        (task, key): work
        for key in networks
        for task, work in _works(Trainee(net, *key, batch, "channels_last", device)).items()
    }
    watched: dict[Any, list[dict[str, float]]] = {key: [] for key in works}

    def watch(key: Any) -> None:
        with Stopwatch(device) as stopwatch:
            works[key]()
        watched[key].append(stopwatch.seconds)

    tasks: dict[Any, Callable[[], Any]] = {}
    for key, work in works.items():
        tasks[key] = work
        tasks["watched", key] = partial(watch, key)
    seconds = interleaved(tasks, repeats, device)
    total = {key: statistics.median(seconds[key]) for key in works}
    parts = {
        key: {part: statistics.median(times[part] for times in watched[key][1:]) for part in watched[key][0]}
        for key in works
    }
    flops = {key: product_flops(work) for key, work in works.items()}
    rows = []
    for key in works:
        task, (method, ratio) = key
        products, factorizations = parts[key]["products"], parts[key]["factorizations"]
        split = {"products": products, "factorizations": factorizations, "rest": total[key] - products - factorizations}
        dense = task, networks[0]
        floor = flops[key] * parts[dense]["products"] / flops[dense]
        rows.append(
            {
                "net": net, "method": method, "ratio": ratio if method == "condlr" else math.nan, "batch": batch,
                "task": task, "seconds": total[key], **{f"{part}_s": value for part, value in split.items()},
                "flops": flops[key], "ratio_to_dense": total[key] / total[dense],
                **{f"{part}_ratio": value / total[dense] for part, value in split.items()},
                "floor_ratio": floor / total[dense],
            }
        )  # fmt: skip
    return rows
