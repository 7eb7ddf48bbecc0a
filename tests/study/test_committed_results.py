"""What is committed stays readable: hashes, names and tables are those that the results were measured under.

committed.json lists them: of each experiment and preset how many cells it has, and the SHA-256 of their run_ids and
specification hashes, sorted; of each table under results/ its rows, of which none may go; and the names of methods,
settings, attacks and compressors, which stand in these tables.
"""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from study import paths
from study.attacks.registry import ATTACKS
from study.experiments.cells import load
from study.experiments.specification import Experiment
from study.results import store as results
from study.settings import SETTINGS
from wellcond.compression.compressors import COMPRESSORS
from wellcond.methods.registry import METHODS

COMMITTED = json.loads(Path(__file__).with_name("committed.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("experiment", COMMITTED["experiments"])
def test_specifications_keep_their_hashes(experiment):
    name, preset = experiment.split("/")
    lines = sorted(f"{run_id} {spec_hash}" for run_id, spec_hash in Experiment.load(name, preset).hashes().items())
    found = {"cells": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}
    assert found == COMMITTED["experiments"][experiment]


@pytest.mark.parametrize("table", COMMITTED["tables"])
def test_tables_keep_their_rows(table):
    assert len(pd.read_csv(paths.results() / f"{table}.csv")) >= COMMITTED["tables"][table]


@pytest.mark.parametrize("name", sorted({table.split("/")[0] for table in COMMITTED["tables"]} - {"bench"}))
def test_results_load_as_they_are(name):
    """Every committed run of the experiment is complete, and every row of every table belongs to one."""
    spec = Experiment.load(name)
    found, folder = load(spec), paths.results() / name
    for table in (*results.COLUMNS, *results.AFTERWARDS):
        assert len(getattr(found, table)) == len(results.read_table(folder, table)), table
    assert len(found.runs) + len(found.missing) == len(spec.cells())


@pytest.mark.parametrize(
    ("kind", "registry"),
    [("methods", METHODS), ("settings", SETTINGS), ("attacks", ATTACKS), ("compressors", COMPRESSORS)],
)
def test_names_in_results_stay(kind, registry):
    assert set(COMMITTED["names"][kind]) <= set(registry)
