"""What it costs to return freed memory to the system: pairs of processes, alike but for `keep_freed_memory`."""

from __future__ import annotations

import math
import resource
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from itertools import product
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch

from study.allocator import is_glibc, keep_freed_memory
from study.benches.clocks import clock
from study.benches.training import Row, Trainee
from wellcond.deployment import deploy
from wellcond.errors import invalid

TASKS = ("step", "latency")
WARM_UP = 3
"""Rounds until the allocator has settled."""


class Spent(NamedTuple):
    """Processor seconds, and the pages that the system mapped meanwhile."""

    seconds: float
    pages: int


def _begin(keep: bool) -> None:
    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()


@cache
def _work(net: str, method: str, ratio: float, batch: int, task: str) -> Callable[[], Any]:
    trainee = Trainee(net, method, ratio, batch, "channels_last", "cpu")
    if task == "step":
        return trainee.step
    deployed = deploy(trainee.network).to(memory_format=torch.channels_last)
    return torch.inference_mode()(lambda: deployed(trainee.x))


def spend(*what: Any) -> Spent:
    """Do the task once, for net, method, ratio, batch and a key of TASKS; the network stays for the next time."""
    work = _work(*what)
    start, before = clock("cpu"), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return Spent(clock("cpu") - start, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def _in_turn(repeats: int, *what: Any) -> tuple[list[Spent], list[Spent]]:
    """What the task takes in a process that returns freed memory and in one that keeps it; both do nothing else."""
    spent: tuple[list[Spent], list[Spent]] = ([], [])
    with ExitStack() as stack:
        pools = [
            ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin, initargs=(keep,))
            for keep in (False, True)
        ]
        processes = [stack.enter_context(pool) for pool in pools]
        for round_ in range(-WARM_UP, repeats):
            for found, process in zip(spent, processes, strict=True):
                once = process.submit(spend, *what).result()
                if round_ >= 0:
                    found.append(once)
    return spent


def pages_rows(
    net: str, ratios: Sequence[float], *, batch: int = 128, repeats: int = 15, device: str = "cpu"
) -> list[Row]:
    """One row a network (dense, and CondLR at each ratio) and task: a training step, or a pass once deployed.

    Columns: net, method, ratio, batch, task ("step" or "latency"), returned_s and kept_s (median seconds where freed
    memory is returned to the system, and where it is kept), gain (their ratio), returned_mib and kept_mib (memory
    mapped anew during the task, medians).
    Raises ValueError for an unknown network, a batch or ratio out of range, a device other than the CPU (torch manages
    the memory of a GPU itself), or a C library other than glibc.
    """
    if device != "cpu":
        raise invalid("device", device, "cpu in the table pages")
    if not is_glibc():
        raise invalid("C library", "another", "glibc in the table pages")
    networks = [("dense", 0.0), *(("condlr", ratio) for ratio in ratios)]
    for method, ratio in networks:
        Trainee(net, method, ratio, batch, "channels_last", "cpu")  # what it refuses is refused here, in one line
    rows = []
    for (method, ratio), task in product(networks, TASKS):
        both = _in_turn(repeats, net, method, ratio, batch, task)
        returned_s, kept_s = (statistics.median(s.seconds for s in found) for found in both)
        mapped = (statistics.median(s.pages for s in found) * resource.getpagesize() / 2**20 for found in both)
        rows.append(
            {
                "net": net, "method": method, "ratio": ratio if method == "condlr" else math.nan, "batch": batch,
                "task": task, "returned_s": returned_s, "kept_s": kept_s, "gain": returned_s / kept_s,
                **dict(zip(("returned_mib", "kept_mib"), mapped, strict=True)),
            }
        )  # fmt: skip
    return rows
