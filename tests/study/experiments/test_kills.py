"""An experiment whose processes are killed again and again ends with the tables and weights of one left in peace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from study import paths
from study.experiments.cells import load
from study.experiments.specification import Experiment
from study.experiments.weights import weights_file
from study.results.checkpoints import in_progress

HERE = Path(__file__).parent
HEAD = """
name = "killed"
title = "Killed"
dataset = "digits"
model = "helpers:Dropping"
n_train = 96
n_test = 40
spectra_epochs = [0, 2]
train = { epochs = 4, batch_size = 32, lr = 0.05, momentum = 0.5, schedule = "cosine", warmup = 1 }
"""
METHODS = """
[[method]]
name = "condlr"
ratio = [0.5]
max_cond = [1.1]
[[method]]
name = "robust_dlrt"
ratio = [0.2]
tolerance = [0.1]
beta = [0.01]
[[method]]
name = "fw_spectral_k_support"
fraction = [0.2]
scale = [10]
[[method]]
name = "svd_finetuned"
ratio = [0.5]
"""
ATTACKS = """
[[attack]]
name = "pgd_linf"
eps = [0.02, 0.05]
options = { steps = 2 }
[[suite]]
name = "pgd_l2"
eps = [0.1, 0.5]
options = { steps = 2, restarts = 2 }
[distortion]
steps = 3
[confidence]
"""
COSTS = ["wall_s", "peak_bytes", "commit"]


def project(folder, toml):
    folder.mkdir()
    (folder / "killed.toml").write_text(toml, encoding="utf-8")
    return folder


def run(folder, kills, seed, together):
    """Kill processes in `folder` until the experiment is complete; how many, by kind."""
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(HERE / "killed.py"), str(folder), str(kills), str(seed), str(together)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def tables(folder):
    found = {}
    for path in sorted((folder / "results" / "killed").glob("*.csv")):
        frame = pd.read_csv(path, dtype=str).drop(columns=COSTS, errors="ignore")
        found[path.name] = frame.sort_values(list(frame)).reset_index(drop=True)
    return found


def weights(folder, monkeypatch):
    monkeypatch.setenv("WELLCOND_RESULTS", str(folder / "results"))
    monkeypatch.setattr(paths, "experiments", lambda: folder)
    return {
        cell.run_id: torch.load(weights_file(cell), weights_only=True)["model"]
        for cell in Experiment.load("killed").cells()
    }


def check(tmp_path, monkeypatch, toml, kills, together=1):
    disturbed, peaceful = project(tmp_path / "disturbed", toml), project(tmp_path / "peaceful", toml)
    kinds = run(disturbed, kills, 0, together)
    assert sum(kinds.values()) >= kills
    run(peaceful, 0, 0, together)
    mine, theirs = tables(disturbed), tables(peaceful)
    assert mine.keys() == theirs.keys()
    for name in theirs:
        pd.testing.assert_frame_equal(mine[name], theirs[name], obj=name)
    killed, whole = weights(disturbed, monkeypatch), weights(peaceful, monkeypatch)
    for run_id, state in whole.items():
        for key, tensor in state.items():
            assert torch.equal(killed[run_id][key], tensor), (run_id, key)
    monkeypatch.setenv("WELLCOND_RESULTS", str(disturbed / "results"))
    monkeypatch.setattr(paths, "experiments", lambda: disturbed)
    assert not load(Experiment.load("killed")).missing
    assert not in_progress()
    assert not list((disturbed / "results" / "local").glob("journals/*"))
    return kinds


def test_killed_processes_change_nothing(tmp_path, monkeypatch):
    kinds = check(tmp_path, monkeypatch, HEAD + "seeds = [0]\n" + METHODS + ATTACKS, kills=24)
    assert min(kinds.values()) > 0


def test_killed_processes_that_train_seeds_together_change_nothing(tmp_path, monkeypatch):
    toml = HEAD + "seeds = [0, 1, 2]\n" + METHODS[: METHODS.index("[[method]]", 5)]
    check(tmp_path, monkeypatch, toml, kills=9, together=3)


@pytest.mark.long
def test_many_killed_processes_change_nothing(tmp_path, monkeypatch):
    check(tmp_path, monkeypatch, HEAD + "seeds = [0, 1]\n" + METHODS + ATTACKS, kills=200)
