"""A process that runs an experiment in children and kills them, until the experiment is complete: for test_kills.

    python killed.py FOLDER KILLS SEED TOGETHER

Children are forked, so that a kill costs no import. A third are killed by SIGKILL at a random time, a third by
SIGINT or SIGTERM, and a third end in the middle of a write or between two replacements of files.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from helpers import Dropping  # noqa: F401  the network of the experiment, loaded before the children are forked
from study import data, paths
from study.attacks.registry import advertorch
from study.experiments.cells import run_experiment
from study.experiments.specification import Experiment
from study.experiments.tasks import assess
from study.results.provenance import environment


def run(together: int) -> None:
    experiment = Experiment.load("killed")
    run_experiment(experiment, device="cpu", together=together, progress=False)
    assess(experiment, device="cpu", bar=False)


def end_in_a_write(at: int, how: str) -> None:
    """Die where something takes its place for the at-th time: before, after, or with half of a new file written."""
    count = 0

    def dying(move: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def moved(self: Path, target: Path) -> Path:
            nonlocal count
            count += 1
            if count == at:
                if how == "half" and self.is_file():
                    data = self.read_bytes()
                    self.write_bytes(data[: len(data) // 2])
                elif how == "after":
                    move(self, target)
                os.kill(os.getpid(), signal.SIGKILL)
            return move(self, target)

        return moved

    Path.replace, Path.rename = dying(Path.replace), dying(Path.rename)  # type: ignore[method-assign,assignment]


def child(together: int, writes: random.Random | None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
    try:
        if writes is not None:
            end_in_a_write(writes.randint(1, 6), writes.choice(("before", "after", "half")))
        run(together)
    except KeyboardInterrupt:
        os._exit(130)
    os._exit(0)


def main(folder: Path, kills: int, seed: int, together: int) -> None:
    torch.set_num_threads(1)
    os.environ["WELLCOND_RESULTS"] = str(folder / "results")
    paths.experiments = lambda: folder  # type: ignore[assignment]
    environment("cpu")
    advertorch("attacks")  # now, like the images: they are loaded when they are first used, each in some seconds
    data.load("digits")
    chance, killed, finished = random.Random(seed), 0, 0
    kinds = {"SIGKILL": 0, "SIGINT": 0, "SIGTERM": 0, "write": 0}
    while killed < kills or not finished:
        if finished:
            shutil.rmtree(folder / "results")
            finished = 0
        kind = chance.choice(("SIGKILL", "SIGKILL", "SIGINT", "SIGTERM", "write", "write"))
        writes = random.Random(chance.random()) if kind == "write" and killed < kills else None
        pid = os.fork()
        if pid == 0:
            child(together, writes)
        if kind != "write" and killed < kills:
            time.sleep(chance.uniform(0.05, 1.0))
            os.kill(pid, getattr(signal, kind))
        _, status = os.waitpid(pid, 0)
        if status == 0:
            finished += 1
        else:
            killed += 1
            kinds[kind] += 1
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) not in (0, 130):
                raise SystemExit(f"a child failed with {os.WEXITSTATUS(status)}")
    print(json.dumps(kinds))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
