"""An experiment small enough to run in a test, and the attacks that are quick."""

from collections.abc import Callable
from pathlib import Path

import pytest

from study import paths
from study.attacks.registry import ATTACKS
from study.experiments.cells import run_experiment
from study.experiments.specification import Experiment
from study.results.checkpoints import Journal

GRADIENT_ATTACKS = [  # AutoAttack and its parts take seconds
    name
    for name, kind in ATTACKS.items()
    if kind.norm != "corruption" and not name.startswith(("square", "autoattack"))
]

TINY_EXPERIMENT = """
name = "tiny"
title = "Tiny"
dataset = "digits"
model = "helpers:Tiny"
seeds = [0, 1]
n_train = 96
n_test = 40
train = { epochs = 2, batch_size = 32, lr = 0.1 }
"""


def trained_experiment(toml: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """TINY_EXPERIMENT with more lines, as the only experiment, run in `folder`."""
    monkeypatch.setenv("WELLCOND_RESULTS", str(folder / "results"))
    monkeypatch.setattr(paths, "experiments", lambda: folder)
    (folder / "tiny.toml").write_text(TINY_EXPERIMENT + toml, encoding="utf-8")
    spec = Experiment.load("tiny")
    run_experiment(spec, device="cpu", progress=False)
    return spec


def check_that_no_journal_is_left(run: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where run() ends when something is recorded and its journal is still there, the next run() removes it."""

    def ended(journal: Journal) -> None:
        if journal.path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "close", ended)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert [*(paths.local() / "journals").iterdir()]
    run()
    assert not [*(paths.local() / "journals").iterdir()]
