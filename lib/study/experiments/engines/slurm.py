"""Workers on a Slurm cluster: an array of jobs that run the same command and share its work by locks and checkpoints.

A worker may die at any moment, since what it has done is kept: its locks are freed by the system, and whoever takes up
its cell goes on from the last epoch. Hence a job only has to be queued again, and that in two ways:

* Preempted, or its node failed: by Slurm itself (sbatch --requeue), to which the process need not even answer.
  SIGTERM is passed over: a job that ended in its period of grace would be over, where one that is still running at its
  end is queued again; and an epoch that is finished in that time is kept as well.
* Out of time: Slurm ends such a job for good, so submitit has it sent SIGUSR2 a minute or two before, on which the
  process requeues its own job and ends at once.

A cancelled job (scancel) is not queued again; the other workers take over what it has left.
"""

from __future__ import annotations

import io
import math
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study import paths
from study.experiments.engines.local import ENGINES, Engine
from wellcond.errors import invalid, unknown

TIME = "4:00:00"
SHORTEST = 5  # minutes: the signal that announces the end comes 90 s early, and Slurm's clock ticks once a minute
TIMEOUTS = 100  # of one worker: an epoch that does not fit into its time would otherwise be begun for ever
RESERVED = (
    *("array", "error", "input", "job-name", "no-requeue", "open-mode", "output", "partition", "requeue", "signal"),
    *("help", "parsable", "quiet", "test-only", "time", "usage", "verbose", "version", "wait", "wrap"),
)
"""Options of sbatch that are given by options of ours, set here or by submitit, or say nothing of a job."""


@dataclass(frozen=True)
class Worker:
    """What a job runs: python -m study with these arguments. Pickled by submitit, called again after a requeue."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        """Raises SystemExit with the status of the command unless it is 0, so that the job counts as failed."""
        sys.argv[1:] = self.arguments
        try:
            runpy.run_module("study", run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                raise

    def checkpoint(self) -> Any:
        """What submitit is to queue again when the time is up: the same, since the state is in the results folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def minutes(time: str) -> int:
    """A time limit as sbatch takes it (60, 90:00, 4:00:00, 2-12, 2-12:30, 2-12:30:00), rounded up to minutes.

    Raises ValueError for anything else, and below SHORTEST.
    """
    days, dash, clock = time.rpartition("-")
    parts = clock.split(":")
    limit = 0
    if all(re.fullmatch("[0-9]+", part) for part in [*parts, *([days] if dash else [])]) and len(parts) <= 3:
        numbers = [int(part) for part in parts]
        if dash:
            hours, m, s = [*numbers, 0, 0][:3]
        else:
            hours, m, s = {1: [0, *numbers, 0], 2: [0, *numbers], 3: numbers}[len(numbers)]
        limit = math.ceil(int(days or 0) * 1440 + hours * 60 + m + s / 60)
    if limit < SHORTEST:
        accepted = f"minutes, minutes:seconds, [days-]hours:minutes:seconds or days-hours, {SHORTEST} minutes at least"
        raise invalid("time", time, accepted)
    return limit


def sbatch_options(given: Sequence[str], known: Sequence[str] = ()) -> dict[str, str]:
    """key=value, ... as {key: value}, the keys as sbatch spells them. known: the options of sbatch, if they are known.

    Raises ValueError for another form, and for a key that is not known, is RESERVED, or is there twice.
    """
    found: dict[str, str] = {}
    for entry in given:
        key, _, value = entry.partition("=")
        key = key.removeprefix("--").replace("_", "-")
        if not re.fullmatch("[a-z][a-z0-9-]*", key) or not value or re.search(r"[\r\n]", value):
            raise invalid("slurm", entry, "key=value with a long option of sbatch as key, as in gres=gpu:1")
        if key in RESERVED:
            raise invalid("slurm", entry, f"another option of sbatch than {', '.join(RESERVED)}")
        if known and key not in known:
            raise unknown("slurm", key, {*known} - {*RESERVED})
        if key in found:
            raise invalid("slurm", entry, "given once")
        found[key] = value
    return found


def _known_options() -> list[str]:
    """The long options in the help of sbatch."""
    shown = subprocess.run(["sbatch", "--help"], capture_output=True, text=True, check=False).stdout
    return re.findall(r"--([a-z][a-z0-9-]+)", shown)


def _parameters(
    name: str, workers: int, limit: int, partition: str | None, options: Mapping[str, str]
) -> dict[str, Any]:
    """What submitit's SlurmExecutor is told; limit: minutes."""
    told: dict[str, Any] = {"job_name": name, "time": limit, "array_parallelism": workers}
    if partition is not None:
        told["partition"] = partition
    if "cpus-per-task" in options:
        told["srun_args"] = [f"--cpus-per-task={options['cpus-per-task']}"]  # since 22.05 srun does not inherit it
    return {**told, "additional_parameters": {"requeue": True, **options}}


def logs(name: str) -> Path:
    """Where the logs of the workers go, and what submitit keeps of them."""
    return paths.local() / "slurm" / name


def _executor(folder: Path) -> Any:
    from submitit import SlurmExecutor

    return SlurmExecutor(folder, max_num_timeout=TIMEOUTS)


def submit(
    arguments: Sequence[str],
    *,
    name: str,
    workers: int,
    time: str | None = None,
    partition: str | None = None,
    options: Sequence[str] = (),
) -> list[str]:
    """Submit `workers` jobs that run python -m study with `arguments`; returns their ids. Waits for none of them.

    name: of the jobs, and of the folder of their `logs`. time: limit of a worker (TIME if None), after which
    it is queued again. options: more of sbatch, as key=value.
    Raises ValueError for workers < 1, a time or an option that is malformed, where submitit or sbatch is absent, and
    for what sbatch refuses.
    """
    if workers < 1:
        raise invalid("workers", workers, ">= 1")
    limit = minutes(time or TIME)
    more = sbatch_options(options)
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise invalid("engine", "slurm", f"local where there is no {program}: run this on a node that submits jobs")
    more = sbatch_options(options, _known_options())
    try:
        executor = _executor(logs(name))
    except ImportError as error:
        raise invalid("engine", "slurm", "local without submitit, which is in the dependency group cluster") from error
    executor.update_parameters(**_parameters(name, workers, limit, partition, more))
    said = io.StringIO()  # submitit repeats what sbatch says, which an error has in it once more
    try:
        with redirect_stderr(said), executor.batch():
            jobs = [executor.submit(Worker(tuple(arguments))) for _ in range(workers)]
    except (RuntimeError, OSError) as error:  # submitit's are RuntimeErrors
        raise ValueError(f"slurm: {' '.join(str(error).split())}") from error
    sys.stderr.write(said.getvalue())
    return [job.job_id for job in jobs]


ENGINES["slurm"] = Engine(submit, logs)
