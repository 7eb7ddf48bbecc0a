"""What it costs to return freed memory to the system: two processes, alike but for `keep_freed_memory`, in turn."""

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

from wellcond.allocator import is_glibc, keep_freed_memory
from wellcond.clocks import clock
from wellcond.deployment import deploy
from wellcond.errors import invalid
from wellcond.training_bench import Row, Trainee

TASKS = ("step", "latency")


class Spent(NamedTuple):
    """Processor seconds, and the pages that the system mapped meanwhile."""

    seconds: float
    pages: int


def _begin(keep: bool) -> None:
    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()


@cache
def _work(net: str, method: str, ratio: float, batch: int) -> dict[str, Callable[[], Any]]:
    trainee = Trainee(net, method, ratio, batch, "channels_last", "cpu")
    deployed = deploy(trainee.network).to(memory_format=torch.channels_last)
    return {"step": trainee.step, "latency": torch.inference_mode()(lambda: deployed(trainee.x))}


def spend(net: str, method: str, ratio: float, batch: int, task: str) -> Spent:
    """Do a task, a key of TASKS, once; the network stays for the next time."""
    work = _work(net, method, ratio, batch)[task]
    start, before = clock("cpu"), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return Spent(clock("cpu") - start, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


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
    spent: dict[Any, list[Spent]] = {key: [] for key in product(networks, TASKS, (False, True))}
    with ExitStack() as stack:
        pools = [
            ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin, initargs=(keep,))
            for keep in (False, True)
        ]
        processes = [stack.enter_context(pool) for pool in pools]
        for _ in range(repeats + 1):  # the first builds and warms up
            for network, task, keep in spent:
                found = processes[keep].submit(spend, net, *network, batch, task).result()
                spent[network, task, keep].append(found)
    rows = []
    for (method, ratio), task in product(networks, TASKS):
        both = [spent[(method, ratio), task, keep][1:] for keep in (False, True)]
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
