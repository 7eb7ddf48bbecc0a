"""Work that is cut into pieces: on which device, until when, and by how many processes, which share it by locks."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from study.results.provenance import environment
from wellcond.errors import invalid


def check_device_name(device: str) -> None:
    """Raise ValueError for a name that stands for no device; whether there is such a device is another question."""
    if device not in ("auto", "cpu", "cuda"):
        raise invalid("device", device, "auto, cpu or cuda")


def pick_device(device: str) -> str:
    """ "auto" is cuda where there is one. Raises ValueError for a device that torch does not have."""
    check_device_name(device)
    if device == "cuda" and not torch.cuda.is_available():
        raise invalid("device", device, "auto or cpu: torch sees no CUDA device")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _end_with_parent() -> None:
    """Wait for the parent process to end, then end this one: for a thread of a worker."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # nothing is half-written: a cell is recorded by atomic replacement


# glibc returns large blocks to the system when they are freed and maps them anew, page by page, in the next step: a
# step of WRN16-4 took half as long again. Read when a process starts, so it is set for the workers.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}

Work = Callable[..., Iterator[str]]
"""Its arguments -> the run_id of each piece of work as it is recorded."""


def _drain(work: Work, device: str, *given: Any) -> int:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    environment(device)  # as in the parent: the code that this process has loaded
    return sum(1 for _ in work(*given))


def carry_out(work: Work, *given: Any, device: str, jobs: int, bar: tqdm[Any], count: Callable[[], int]) -> None:
    """Exhaust work(*given), here or, for jobs > 1, in so many spawned processes, which share the work by locks; the bar
    follows what it yields, or count()."""
    if jobs == 1:
        for run_id in work(*given):
            bar.update()
            bar.set_postfix_str(run_id)
        return
    os.environ.update({key: os.environ.get(key, value) for key, value in KEEP_FREED_MEMORY.items()})
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    workers = [pool.submit(_drain, work, device, *given) for _ in range(jobs)]
    try:
        while not all(worker.done() for worker in workers):
            started = time.monotonic()
            bar.update(count() - bar.n)
            # counting reads the tables: it may take a twentieth of one processor
            wait(workers, timeout=max(1.0, 20 * (time.monotonic() - started)))
        for worker in workers:
            worker.result()
        bar.update(count() - bar.n)
    except BrokenProcessPool as error:
        raise Interrupted("a worker was killed; run again to go on from what is kept") from error
    except BaseException:  # Ctrl-C: what the workers have begun goes on in the next run
        for process in active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


class Engine(NamedTuple):
    """Another place to work: submit(arguments, name=, workers=, time=, partition=, options=) has workers run python -m
    study with these arguments, and returns their ids; logs(name): where they say what they do."""

    submit: Callable[..., list[str]]
    logs: Callable[[str], Path]


ENGINES: dict[str, Engine] = {}
"""The other engines by name. Each file of this folder adds its own."""


class Interrupted(RuntimeError):
    """A worker ended before its work did."""


def deadline_of(jobs: int, max_minutes: float | None) -> float:
    """time.monotonic() in max_minutes from now, inf for None. Raises ValueError for jobs < 1 or max_minutes <= 0."""
    if jobs < 1:
        raise invalid("jobs", jobs, ">= 1")
    if max_minutes is not None and not max_minutes > 0:
        raise invalid("max_minutes", max_minutes, "> 0")
    return math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
