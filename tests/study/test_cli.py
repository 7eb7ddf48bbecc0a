"""python -m study: what it prints, and one line on stderr with status 2 for bad input."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from study import paths
from study.__main__ import main
from study.benches import tables as bench
from study.benches.training import INPUTS
from study.experiments import cells as runner
from study.experiments.specification import Experiment
from study.results import claims
from study.results.checkpoints import Header, write_checkpoint

TOML = """
name = "tiny"
title = "Tiny"
dataset = "digits"
model = "helpers:Tiny"
seeds = [0]
n_train = 64
n_test = 30
train = { epochs = 1, batch_size = 32, lr = 0.1 }
method = [{ name = "dense" }, { name = "uv", ratio = [0.5] }]
attack = [{ name = "fgsm", eps = [0.0, 0.1] }]

[presets.smoke]
n_test = 20
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("WELLCOND_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("WELLCOND_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(paths, "experiments", lambda: tmp_path)
    (tmp_path / "tiny.toml").write_text(TOML, encoding="utf-8")
    return tmp_path


def test_run_and_status(project, capsys):
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["tiny", "2", "0", "2", "0", "0", "0", "0"]
    assert main(["run", "tiny", "--device", "cpu"]) == 0
    assert "tiny (paper): 2 cells done, 0 missing; " in capsys.readouterr().out
    assert main(["status", "--verbose"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["tiny", "2", "2", "0", "0", "0", "0", "0"]
    assert (project / "results" / "tiny" / "runs.csv").exists()


def test_seeds_are_trained_together(project, capsys):
    (project / "tiny.toml").write_text(TOML.replace("seeds = [0]", "seeds = [0, 1]"), encoding="utf-8")
    assert main(["run", "tiny", "--device", "cpu", "--together", "2"]) == 0
    assert "tiny (paper): 4 cells done, 0 missing; " in capsys.readouterr().out
    provenance = json.loads((project / "results" / "tiny" / "provenance.json").read_text(encoding="utf-8"))["runs"]
    assert [record["training"]["together"] for record in provenance.values()] == [2, 2, 2, 2]


def test_status_lists_what_is_missing(project, capsys):
    assert main(["status", "--verbose"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["  missing: dense-s0", "  missing: uv-r0.5-s0"]


def test_status_says_who_is_at_work(project, monkeypatch, capsys):
    """On the cells that are missing, and on those that are measured afterwards; with how far they are."""
    spec = Experiment.load("tiny")
    dense, uv = spec.cells()
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    write_checkpoint(Header((dense.spec_hash,), 3, 10), {})
    with claims.claimed(claims.key("cell", spec.folder(), uv.run_id)):
        worker = f"job 12, process {os.getpid()} on {socket.gethostname()} since 20"
        assert main(["status"]) == 0
        lines = capsys.readouterr().out.splitlines()[2:]
        assert lines[0] == "  in progress: dense-s0, epoch 3 of 10"
        assert lines[1].startswith(f"  in progress: uv-r0.5-s0; {worker}")
    assert main(["run", "tiny", "--device", "cpu", "--only", "uv-*"]) == 0
    with claims.claimed(claims.key("assess", spec.folder(), uv.run_id)):
        capsys.readouterr()
        assert main(["status"]) == 0
        assert capsys.readouterr().out.splitlines()[3].startswith(f"  being measured: uv-r0.5-s0; {worker}")


def test_run_a_preset_of_a_file_and_stop_in_time(project, capsys):
    assert main(["run", str(project / "tiny.toml"), "--preset", "smoke", "--max-minutes", "1e-9"]) == 0
    out = capsys.readouterr().out
    assert "tiny (smoke): 0 cells done, 2 missing; " in out
    assert str(project / "results" / "local" / "tiny" / "smoke-") in out


def test_data_are_checked_and_named(project, capsys):
    assert main(["data", "digits", "digits32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"{name}: 1437 + 360 images" for name in ("digits", "digits32")]
    assert all(len(line.split()[-1]) == 64 for line in lines)


def offline(*_, **__):
    raise OSError("no network")


def test_bench_prints_json_and_saves_with_provenance(project, capsys):
    arguments = ["bench", "--ratio", "0.8", "--batch", "2", "--repeats", "2", "--device", "cpu"]
    assert main([*arguments, "--json", "--save"]) == 0
    rows = json.loads(capsys.readouterr().out)
    fields = {"net", "method", "ratio", "batch", "step_ratio", "flop_ratio", "optimizer_share"}
    assert all(row.keys() >= fields | {"memory_ratio", "latency_ratio"} for row in rows)
    folder = project / "results" / "bench" / "cpu"
    assert len(pd.read_csv(folder / "training.csv")) == len(rows) == 6
    assert "--save" in json.loads((folder / "provenance.json").read_text())["runs"]["training/lenet5"]["command"]
    assert main([*arguments, "--save"]) == 0  # replaces the rows of this network
    assert "optimizer_share" in capsys.readouterr().out.splitlines()[0]
    assert len(pd.read_csv(folder / "training.csv")) == 6


def test_the_help_of_bench_names_what_it_accepts(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    words = set(re.findall(r"\w+", capsys.readouterr().out))
    assert words >= {*INPUTS, *bench.BY_NET, *bench.TABLES}


BAD = [
    (["run", "mnits_lenet5"], "experiment = 'mnits_lenet5': unknown"),
    (["run", "tiny", "--preset", "smok"], "preset = 'smok': unknown; did you mean 'smoke'"),
    (["run", "tiny", "--device", "tpu"], "device = 'tpu': must be auto, cpu or cuda"),
    (["run", "tiny", "--jobs", "0"], "jobs = 0: must be >= 1"),
    (["run", "tiny", "--together", "0"], "together = 0: must be an integer >= 1"),
    (["run", "tiny", "--max-minutes", "-1"], "max_minutes = -1.0: must be > 0"),
    (["run", "nowhere.toml"], "experiment = 'nowhere.toml': must be a readable TOML file"),
    (["run", "broken.toml"], "broken.toml: key = 'seds': unknown; did you mean 'seeds'"),
    (["bench", "--net", "lenet"], "net = 'lenet': unknown; did you mean 'lenet5'"),
    (["bench", "--repeats", "1"], "repeats = 1: must be >= 2"),
    (["data", "minst"], "dataset = 'minst': unknown; did you mean 'mnist'"),
    (["data", "mnist"], "dataset = 'mnist': must be in "),
    (["data", "cifar10"], "file = "),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_and_status_two(project, monkeypatch, capsys, arguments, message):
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets, "MNIST", offline)
    monkeypatch.chdir(project)
    (project / "broken.toml").write_text(TOML.replace("seeds", "seds"), encoding="utf-8")
    (project / "data").mkdir()
    (project / "data" / "cifar10.npz").write_text("damaged")
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"study: {message}")
    assert captured.err.count("\n") == 1


def test_a_results_folder_that_cannot_be_written(project, monkeypatch, capsys):
    monkeypatch.setenv("WELLCOND_RESULTS", str(project / "tiny.toml"))
    assert main(["run", "tiny"]) == 2
    assert capsys.readouterr().err.startswith("study: results = ")


def test_an_interruption_is_said_in_a_line(project, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_cell", interrupt)
    assert main(["run", "tiny", "--device", "cpu"]) == 130
    assert capsys.readouterr().err.endswith("interrupted; run again to go on from the last epoch\n")


@pytest.mark.parametrize("arguments", [[], ["run"], ["run", "tiny", "--job", "x"], ["data"], ["stats"]])
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m study" in capsys.readouterr().err


def command(project, *arguments):
    environment = {
        **os.environ,
        "WELLCOND_RESULTS": str(project / "results"),
        "PYTHONPATH": str(Path(__file__).parents[1]),  # where the network of the experiment is
    }
    line = [sys.executable, "-m", "study", *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=environment, cwd=project, check=False)


@pytest.mark.slow
def test_as_a_process_from_any_folder(project):
    """A file that is not one of the book's; its results are local."""
    done = command(project, "run", "tiny.toml", "--preset", "smoke", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tiny (smoke): 2 cells done, 0 missing; ")
    assert len(list((project / "results" / "local" / "tiny").glob("smoke-*/runs.csv"))) == 1
    wrong = command(project, "run", "tinny.toml")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
