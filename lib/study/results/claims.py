"""Who is at work on what: a claim is a lock, with a note beside it that says who holds it.

The lock alone decides: the note of a process that was killed stays, and is worth nothing once the lock is free.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import Timeout

from study.results import files
from study.results.provenance import now


class Holder(NamedTuple):
    """A process at work. job: its number in the queue of a cluster, empty elsewhere; since: UTC, ISO 8601."""

    host: str
    pid: int
    job: str
    since: str

    def __str__(self) -> str:
        return f"{f'job {self.job}, ' if self.job else ''}process {self.pid} on {self.host} since {self.since}"


def job_id(environment: Mapping[str, str] = os.environ) -> str:
    """The Slurm job that this process belongs to, with its index in an array as squeue writes it; empty if none."""
    array, index = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else environment.get("SLURM_JOB_ID", "")


def key(work: str, folder: Path, run_id: str) -> str:
    """The name of a claim. work: cell, to train and record it in `folder`, or assess, to measure more."""
    return files.guard(folder, f"{work}-{run_id}")


def _note(name: str) -> Path:
    return files.lock_file(name).with_suffix(".json")


@contextmanager
def claimed(name: str) -> Iterator[None]:
    """Hold the lock `name`, and say so beside it. Raises filelock.Timeout if another process holds it."""
    with files.lock(name, timeout=0):
        holder = Holder(socket.gethostname(), os.getpid(), job_id(), now())
        with files.replacing(_note(name)) as part:
            part.write_text(json.dumps(holder._asdict()) + "\n", encoding="utf-8")
        try:
            yield
        finally:
            _note(name).unlink(missing_ok=True)


def holders(folder: Path) -> dict[tuple[str, str], Holder]:
    """{(work, run_id): who is at it} in `folder`; without those who cannot be known."""
    found = {}
    for path in sorted((folder / ".locks").glob("*-*.json")):
        work, _, run_id = path.stem.partition("-")
        if worker := holder(key(work, folder, run_id)):
            found[work, run_id] = worker
    return found


def holder(name: str) -> Holder | None:
    """Who holds a claim; None if nobody does, or nobody who can be known."""
    path = _note(name)
    if not path.exists():
        return None  # without a try at the lock, which a worker might want at this moment
    try:
        with files.lock(name, timeout=0):
            path.unlink(missing_ok=True)  # of a process that was killed
    except Timeout:
        try:
            return Holder(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None  # released in between
    except OSError:
        return None  # somebody else's folder
    return None
