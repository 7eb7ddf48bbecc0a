"""To add a method, an attack, a compressor, a measurement or an engine, one writes one file: each of them, used."""

import json
import os
import subprocess
import sys

import pytest

FILES = {
    "method": """
from torch import nn
from wellcond.methods.method import Method, dense, plain_groups, register

register(Method("mine", "my method", "Dense weights, once more.", dense, plain_groups))
""",
    "attack": """
from study.attacks.attack import AttackKind, Option, register

def brighter(model, x, y, *, eps, index, seed, steps):
    return (x + eps).clamp(0, 1)

register(AttackKind("brighter", "more light", "linf", brighter, (Option("steps", 1),)))
""",
    "compressor": """
from wellcond.compression.units import COMPRESSORS, Compressed
from wellcond.counts import count_parameters

def nothing(model, *, skip=()):
    '''nothing at all is removed'''
    return lambda amount: Compressed(model, count_parameters(model).deployed, {}, {})

COMPRESSORS["nothing"] = nothing
""",
    "measurement": """
from pydantic import Field
from study.measurement.measurement import MeasurementKind, Selective, Task, register
from study.results.tables import Table

class Grid(Selective):
    n_examples: int = Field(10, ge=1)

TABLE = Table({"run_id": str, "n_examples": int, "largest": float}, key=("run_id",))

def rows(model, images):
    return [{"n_examples": len(images), "largest": model(images.pixels(slice(None))).abs().max().item()}]

def tasks(cell, grid, n_test, cells):
    measure = lambda given: rows(given.network(cell), given.data.test.first(grid.n_examples))
    return [Task(cell, "logits", "logits", measure)]

register(MeasurementKind("logit", Grid, {"logits": TABLE}, tasks))
""",
    "engine": """
from pathlib import Path
from study.__main__ import main
from study.experiments.engines.local import ENGINES, Engine

def submit(arguments, *, name, workers, time, partition, options):
    assert main(arguments) == 0
    return ["here"]

ENGINES["here"] = Engine(submit, lambda name: Path("nowhere"))
""",
}

EXPERIMENT = """
name = "one_file"
title = "One file"
dataset = "digits"
model = "helpers:Tiny"
seeds = [0]
n_train = 64
n_test = 20
train = { epochs = 1, batch_size = 32, lr = 0.1 }
method = [{ name = "dense" }, { name = "mine" }]
attack = [{ name = "brighter", eps = [0.1] }]
logit = { n_examples = 5, only = ["mine-*"] }
suite = [{ name = "brighter", eps = [0.2], options = { steps = 2 } }]
compression = [{ compressor = "nothing", amount = [0.5] }]
"""

USE = """
import importlib, json, sys
import wellcond, study
from study.__main__ import main
from study.experiments.cells import load
from study.experiments.rehearsal import rehearsal
from study.experiments.specification import Experiment
from study.presentation import compression, robustness_tables, style, tables
from study.results.tables import records

for name in sys.argv[2:]:
    importlib.import_module(f"my_{name}")
for command in ("run", "attack", "compress"):
    assert main([command, sys.argv[1], "--device", "cpu", "--engine", "here"]) == 0
spec = Experiment.load(sys.argv[1])
found = load(spec)
assert rehearsal(spec).measurements["logit"][0].n_examples == 4
print(json.dumps({
    "look": style.look("mine"),
    "accuracy": list(tables.accuracy_table(found).data["method"]),
    "attack": style.ATTACKS["brighter"],
    "robustness": records(found.robustness[["run_id", "attack", "n_examples"]]),
    "robustness table": list(tables.robustness_table(found).data.columns),
    "attacks": records(found.attacks.query("attack != 'clean'")[["run_id", "attack", "options"]]),
    "compressions": records(found.compressions[["run_id", "compressor", "n_params_deployed"]]),
    "areas": list(compression.area_table(found, ["nothing"]).data.columns),
    "logits": records(found.logits),
    "commands": sorted(found.provenance["mine-s0"][table]["command"] for table in ("logits", "compressions")),
    "folder": str(spec.folder()),
}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    for name, text in FILES.items():
        (folder / f"my_{name}.py").write_text(text, encoding="utf-8")
    (folder / "one_file.toml").write_text(EXPERIMENT, encoding="utf-8")
    path = os.pathsep.join([str(folder), *sys.path])
    ran = subprocess.run(
        [sys.executable, "-c", USE, str(folder / "one_file.toml"), *FILES],
        env={**os.environ, "PYTHONPATH": path, "WELLCOND_RESULTS": str(folder / "results")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_a_method_has_its_label_and_a_colour(found):
    label, color, marker, *_ = found["look"]
    assert label == "my method"
    assert color != "#888888"
    assert marker
    assert found["accuracy"] == ["dense SGD", "my method"]


def test_an_attack_is_measured_and_has_its_title(found):
    assert found["attack"] == "more light"
    assert found["robustness"] == [
        {"run_id": f"{method}-s0", "attack": "brighter", "n_examples": 20} for method in ("dense", "mine")
    ]
    assert any("more light" in column for column in found["robustness table"])
    assert found["attacks"] == [
        {"run_id": f"{method}-s0", "attack": "brighter", "options": "steps=2"} for method in ("dense", "mine")
    ]


def test_a_compressor_is_measured_and_says_what_it_does(found):
    assert [row["compressor"] for row in found["compressions"]] == ["nothing", "nothing"]
    assert any("nothing at all is removed" in column for column in found["areas"])


def test_a_measurement_has_a_table_where_it_is_declared(found):
    (row,) = found["logits"]
    assert row["run_id"] == "mine-s0"
    assert row["n_examples"] == 5
    assert row["largest"] > 0
    assert [command.split()[3] for command in found["commands"]] == ["attack", "compress"]


def test_an_engine_has_done_the_work(found):
    assert found["accuracy"]
