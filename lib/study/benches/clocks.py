"""How long work takes, and how much memory, so that numbers of one process can be compared.

Times on a CPU are processor seconds of this process, which other processes on the machine disturb far less than the
clock; on a GPU, seconds until the queue is empty.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def clock(device: str) -> float:
    """Seconds of work so far: of this process on a CPU, of the finished queue on a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def interleaved(tasks: Mapping[Any, Callable[[], Any]], repeats: int, device: str = "cpu") -> dict[Any, list[float]]:
    """Seconds of each task in each of `repeats` rounds; a round runs every task once, after one round to warm up."""
    seconds: dict[Any, list[float]] = {name: [] for name in tasks}
    for round_ in range(repeats + 1):
        for name, task in tasks.items():
            start = clock(device)
            task()
            if round_:
                seconds[name].append(clock(device) - start)
    return seconds


def peak_bytes(task: Callable[[], Any], device: str) -> int:
    """The most bytes of tensors alive at once during `task`, beyond those alive before.

    On a CPU it is the running sum of what torch's allocator hands out and takes back, temporaries inside an operator
    included; the workspaces of other libraries are not.
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        task()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler reports every start
    gc.collect()  # what is garbage already is not freed by the task
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        task()
    # the raw records: profile.events() books what is freed between two operators on the function around them, which
    # may be the whole task
    records: Any = profile.profiler.kineto_results.events()
    alive = peak = 0
    for record in sorted((r for r in records if r.name() == "[memory]"), key=lambda record: record.start_ns()):
        alive += record.nbytes()
        peak = max(peak, alive)
    return peak


def spread(seconds: Sequence[float]) -> float:
    """Half the interquartile range over the median."""
    low, middle, high = statistics.quantiles(seconds, n=4)
    return (high - low) / 2 / middle
