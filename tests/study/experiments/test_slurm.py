"""Workers on a cluster: what is submitted, what is refused, and a real Slurm under which workers are lost."""

import os
import re
import stat
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

import slurm_cluster
from slurm_cluster import wait_until
from study import paths
from study.__main__ import main
from study.experiments.engines import slurm
from study.experiments.specification import Experiment
from study.results import claims, files
from study.results import store as results
from study.results.checkpoints import in_progress

HEAD = """
name = "tiny"
title = "Tiny"
dataset = "digits"
model = "{model}"
seeds = [0, 1]
n_train = {n_train}
n_test = 60
train = {{ epochs = {epochs}, batch_size = 32, lr = 0.05, momentum = 0.3 }}
method = [{{ name = "dense" }}, {{ name = "condlr", ratio = [0.5], max_cond = [1.1] }}]
attack = [{{ name = "fgsm", eps = [0.0, 0.1] }}]
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("WELLCOND_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(paths, "experiments", lambda: tmp_path)
    text = HEAD.format(model="helpers:Tiny", n_train=64, epochs=1)
    (tmp_path / "tiny.toml").write_text(text, encoding="utf-8")
    return tmp_path


# ------------------------------------------------------------------------------------------------- without a cluster


class FakeExecutor:
    """Takes what submitit's SlurmExecutor takes, and keeps it."""

    def __init__(self, folder):
        self.folder, self.told, self.workers = folder, {}, []

    def update_parameters(self, **told):
        self.told = told

    @contextmanager
    def batch(self):
        yield

    def submit(self, worker):
        self.workers.append(worker)
        return SimpleNamespace(job_id=f"7_{len(self.workers) - 1}")


@pytest.fixture
def executors(monkeypatch):
    """All that are made, on a node that submits jobs, as far as anybody can tell."""
    made = []

    def make(folder):
        made.append(FakeExecutor(folder))
        return made[-1]

    monkeypatch.setattr(slurm, "_executor", make)
    monkeypatch.setattr(slurm.shutil, "which", lambda name: name)
    monkeypatch.setattr(slurm, "_known_options", lambda: ["gres", "cpus-per-task", "qos", "time", "array"])
    return made


def test_workers_are_told_the_same_command(project, executors, capsys):
    given = ["--device", "cpu", "--slurm", "gres=gpu:1", "cpus_per_task=4", "--only", "dense-*", "*-s1"]
    engine = ["--engine", "slurm", "--workers", "3", "--time", "1-2", "--partition", "fast"]
    assert main(["run", "tiny", *engine, *given, "--together", "2"]) == 0
    (executor,) = executors
    assert executor.folder == project / "results" / "local" / "slurm" / "tiny-paper"
    command = ("run", "tiny", "--device", "cpu", "--only", "dense-*", "*-s1", "--together", "2")
    assert executor.workers == 3 * [slurm.Worker(command)]
    assert executor.told == {
        "job_name": "tiny-paper",
        "time": 26 * 60,
        "array_parallelism": 3,
        "partition": "fast",
        "srun_args": ["--cpus-per-task=4"],
        "additional_parameters": {"requeue": True, "gres": "gpu:1", "cpus-per-task": "4"},
    }
    assert capsys.readouterr().out.startswith("tiny (paper): submitted 7_0 to 7_2; logs in ")


def test_a_worker_does_what_the_command_does(project, executors, capsys):
    assert main(["run", "tiny", "--engine", "slurm", "--device", "cpu"]) == 0
    assert executors[0].told["time"] == 4 * 60
    (worker,) = executors[0].workers
    capsys.readouterr()
    worker()
    assert capsys.readouterr().out.startswith("tiny (paper): 4 cells done, 0 missing; ")
    assert worker.checkpoint().function == worker


def test_a_worker_that_fails_is_a_job_that_fails(project, capsys):
    with pytest.raises(SystemExit) as caught:
        slurm.Worker(("run", "tinny"))()
    assert caught.value.code == 2
    assert "unknown; did you mean 'tiny'" in capsys.readouterr().err


def test_measurements_are_shared_like_trainings(project, executors):
    for command in ("attack", "compress"):
        assert main([command, "tiny", "--engine", "slurm", "--workers", "2"]) == 0
        assert executors[-1].workers == 2 * [slurm.Worker((command, "tiny"))]


@pytest.mark.parametrize(
    ("time", "minutes"),
    [("60", 60), ("90:00", 90), ("90:01", 91), ("4:00:00", 240), ("2-12", 3600), ("1-0:30", 1470), ("1-0:0:30", 1441)],
)
def test_time_limits(time, minutes):
    assert slurm.minutes(time) == minutes


ON = ["--engine", "slurm"]
BAD = [
    ([*ON, "--workers", "0"], "workers = 0: must be >= 1"),
    ([*ON, "--workers", "-2"], "workers = -2: must be >= 1"),
    *(
        ([*ON, "--time", time], f"time = {time!r}: must be minutes, minutes:seconds, [days-]hours:minutes:seconds")
        for time in ("4h", "4", "1:2:3:4", "1:", "1.5", "a-4", "UNLIMITED", "4:00:00 ", "٦٠")
    ),
    ([*ON, "--jobs", "2"], "jobs = 2: must be 1 with --engine slurm"),
    ([*ON, "--rehearse"], "rehearse = True: must be absent with --engine slurm"),
    ([*ON, "--device", "tpu"], "device = 'tpu': must be auto, cpu or cuda"),
    ([*ON, "--together", "0"], "together = 0: must be an integer >= 1"),
    ([*ON, "--max-minutes", "0"], "max_minutes = 0.0: must be > 0"),
    ([*ON, "--only", "lorita-*"], "only = 'lorita-*': unknown"),
    ([*ON, "--slurm", "gres"], "slurm = 'gres': must be key=value with a long option of sbatch"),
    ([*ON, "--slurm", "gres="], "slurm = 'gres=': must be key=value"),
    ([*ON, "--slurm", "qos=a\n#SBATCH --uid=0"], "slurm = 'qos=a\\n#SBATCH --uid=0': must be key=value"),
    (
        [*ON, "--slurm", "gers=gpu:1"],
        "slurm = 'gers': unknown; did you mean 'gres'? accepted: cpus-per-task, ",
    ),
    ([*ON, "--slurm", "qos=a", "qos=b"], "slurm = 'qos=b': must be given once"),
    ([*ON, "--slurm", "time=60"], "slurm = 'time=60': must be another option of sbatch than array, "),
    ([*ON, "--slurm", "open_mode=truncate"], "slurm = 'open_mode=truncate': must be another option of sbatch than"),
    (["--engine", "lsf"], "engine = 'lsf': must be local or slurm"),
    (["--workers", "2"], "workers = 2: must be absent without --engine slurm"),
    (["--time", "60"], "time = '60': must be absent without --engine slurm"),
    (["--engine", "local", "--partition", "fast"], "partition = 'fast': must be absent without --engine slurm"),
    (["--slurm", "gres=gpu:1"], "slurm = ['gres=gpu:1']: must be absent without --engine slurm"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_and_status_two(project, executors, capsys, arguments, message):
    assert main(["run", "tiny", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"study: {message}")
    assert captured.err.count("\n") == 1
    assert not executors


def test_an_attack_that_no_suite_has_is_refused_before_anything_is_submitted(project, executors, capsys):
    assert main(["attack", "tiny", *ON, "--attacks", "pgd"]) == 2
    assert capsys.readouterr().err.startswith("study: attacks = 'pgd': unknown")
    assert not executors


@pytest.mark.parametrize("absent", ["sbatch", "srun"])
def test_a_machine_without_slurm(project, executors, monkeypatch, capsys, absent):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None if name == absent else name)
    assert main(["run", "tiny", *ON]) == 2
    assert capsys.readouterr().err == (
        f"study: engine = 'slurm': must be local where there is no {absent}: run this on a node that submits jobs\n"
    )


def test_an_environment_without_submitit(project, monkeypatch, capsys):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: name)
    monkeypatch.setattr(slurm, "_known_options", list)
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["run", "tiny", *ON]) == 2
    assert capsys.readouterr().err == (
        "study: engine = 'slurm': must be local without submitit, which is in the dependency group cluster\n"
    )


def stand_in(folder, name, script):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_what_sbatch_is_given(project, monkeypatch):
    """By submitit itself, to a program that keeps it."""
    stand_in(project, "srun", "exit 1")
    shown = "  -p, --partition=partition  where\\n  --qos=qos  how\\n"
    keep = f"cp \"$1\" '{project}/submitted' && echo Submitted batch job 7"
    stand_in(project, "sbatch", f"if [ \"$1\" = --help ]; then printf '{shown}'; else {keep}; fi")
    monkeypatch.setenv("PATH", str(project), prepend=os.pathsep)
    assert main(["run", "tiny", *ON, "--workers", "2", "--time", "30", "--slurm", "qos=high"]) == 0
    lines = (project / "submitted").read_text().splitlines()
    assert {"#SBATCH --array=0-1%2", "#SBATCH --time=30", "#SBATCH --qos=high", "#SBATCH --requeue"} <= {*lines}
    assert "#SBATCH --signal=USR2@90" in lines
    assert "#SBATCH --open-mode=append" in lines


def test_what_sbatch_refuses_is_said_in_a_line(project, monkeypatch, capsys):
    stand_in(project, "srun", "exit 1")
    stand_in(
        project, "sbatch", "[ \"$1\" = --help ] || { printf 'sbatch: error: no\\nsuch partition\\n' >&2; exit 1; }"
    )
    monkeypatch.setenv("PATH", str(project), prepend=os.pathsep)
    assert main(["run", "tiny", *ON, "--partition", "nowhere"]) == 2
    assert capsys.readouterr().err == "study: slurm: sbatch: error: no such partition\n"


def test_a_file_system_without_locks(project, executors, monkeypatch, capsys):
    @contextmanager
    def refused(*_, **__):
        raise OSError(37, "No locks available")
        yield

    monkeypatch.setattr(files, "lock", refused)
    for engine in ([], ON):
        assert main(["run", "tiny", "--device", "cpu", *engine]) == 2
        line = capsys.readouterr().err
        assert line.endswith("must be on a file system with locks (No locks available)\n")
    assert not executors


# ----------------------------------------------------------------------------------------------------- a real cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := slurm_cluster.absent():
        pytest.skip(reason)
    with slurm_cluster.started(tmp_path_factory.mktemp("slurm"), cpus=3) as running:
        yield running


EPOCHS = 24  # a worker whose cell is in its first third still has it when it is cancelled


def at_work(spec, folder):
    """{run_id: (epochs kept, its worker)} of the cells that have a worker and a checkpoint."""
    kept = in_progress()
    found = {cell.run_id: claims.holder(claims.key("cell", folder, cell.run_id)) for cell in spec.cells()}
    return {
        cell.run_id: (kept[cell.spec_hash].epoch, worker)
        for cell in spec.cells()
        if cell.spec_hash in kept and (worker := found[cell.run_id])
    }


def tables(folder):
    """What may not depend on who has computed it: the rows of each cell as they are written, and its provenance."""
    found = {}
    for table in ("runs", "curves", "spectra", "robustness"):
        frame = pd.read_csv(folder / f"{table}.csv", dtype=str, keep_default_na=False)
        frame = frame.drop(columns=["wall_s", "peak_bytes"], errors="ignore")
        found[table] = frame.sort_values("run_id", kind="stable").to_dict("records")
    provenance = results.read_provenance(folder)
    for entry in provenance.values():
        del entry["started"], entry["finished"]
        entry["training"].pop("interruptions", None)
    return {**found, "provenance": provenance}


def restarts(cluster, job):
    return int(re.search(r"Restarts=(\d+)", cluster.ask("scontrol", "show", "job", job)).group(1))


@pytest.mark.slow
@pytest.mark.slurm
def test_workers_that_are_lost_lose_nothing(cluster, tmp_path, monkeypatch, capsys):
    """Three workers: one is cancelled in the middle of a cell, one is told in the middle of another that its time is
    up, and is queued again. The results are those of one process that nobody disturbs."""
    experiment = tmp_path / "tiny.toml"
    experiment.write_text(HEAD.format(model="helpers:Unhurried", n_train=32, epochs=EPOCHS), encoding="utf-8")
    spec, command = Experiment.load(experiment), ["run", str(experiment), "--device", "cpu"]

    monkeypatch.setenv("WELLCOND_RESULTS", str(tmp_path / "alone"))
    assert main(command) == 0
    alone = spec.folder()

    monkeypatch.setenv("WELLCOND_RESULTS", str(tmp_path / "shared"))
    monkeypatch.setenv("PAUSE", "0.8")  # an epoch is one step: long beside a look, and no processor is needed for it
    monkeypatch.setenv("PYTHONPATH", str(Path(slurm_cluster.__file__).parent), prepend=os.pathsep)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    shared = spec.folder()
    assert main([*command, "--engine", "slurm", "--workers", "3", "--slurm", "comment=a test"]) == 0
    job = re.search(r"submitted (\d+)_0 to \1_2;", capsys.readouterr().out).group(1)
    jobs = [f"{job}_{k}" for k in range(3)]

    def two_in_the_middle():
        middle = {run_id: found for run_id, found in at_work(spec, shared).items() if 1 <= found[0] < EPOCHS // 3}
        return list(middle.items())[:2] if len(middle) >= 2 else None

    (cancelled_cell, (_, first)), (requeued_cell, (_, second)) = wait_until(two_in_the_middle, "work", 300)
    assert {first.job, second.job} < {*jobs}
    cluster.ask("scancel", first.job)
    cluster.ask("scancel", "--signal=USR2", second.job)
    wait_until(lambda: cluster.states()[second.job] == "PENDING", "the requeue", 60)
    cluster.ask("scontrol", "update", f"JobId={second.job}", "StartTime=now")  # Slurm itself waits for two minutes

    def ended():
        states = cluster.states()
        return None if {"PENDING", "RUNNING", "COMPLETING"} & {*states.values()} else states

    ends = wait_until(ended, "the end of all jobs", 300)

    assert ends == {one: "CANCELLED" if one == first.job else "COMPLETED" for one in jobs}
    assert restarts(cluster, second.job) == 1
    interruptions = {
        run_id: entry["training"].get("interruptions", 0) for run_id, entry in results.read_provenance(shared).items()
    }
    lost = {cancelled_cell, requeued_cell}
    assert interruptions == {cell.run_id: int(cell.run_id in lost) for cell in spec.cells()}
    assert at_work(spec, shared) == {}
    logs = {log.name: log.read_text() for log in slurm.logs("tiny-paper").glob("*_log.err")}
    recorded = [run_id for text in logs.values() for run_id in {*re.findall(r"cell, (\S+)\]", text)}]
    assert sorted(recorded) == sorted(cell.run_id for cell in spec.cells()), "a cell was recorded by two workers"
    assert tables(shared) == tables(alone)
