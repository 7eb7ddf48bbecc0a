"""Cells are trained, measured and recorded once, whatever interrupts the run; all on a tiny network and digits."""

import itertools
import json
import math
import multiprocessing
from contextlib import ExitStack, suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from experiments import check_that_no_journal_is_left
from study import networks as models
from study import paths
from study.chapters import load_or_run
from study.experiments import cells as runner
from study.experiments import weights as networks
from study.experiments.cells import run_experiment
from study.experiments.conditioning import measure_conditioning
from study.experiments.engines import local as jobs
from study.experiments.failures import Failed
from study.experiments.progress import status
from study.experiments.specification import Experiment
from study.presentation import conditioning as conditioning_report
from study.results import claims, files, provenance
from study.results import store as results
from study.statistics import frames as analysis
from wellcond.counts import count_parameters
from wellcond.layers import weight_layers
from wellcond.methods.registry import METHODS

HEAD = """
name = "tiny"
title = "Tiny"
dataset = "digits"
model = "helpers:Tiny"
seeds = [0]
n_train = 96
n_test = 40

[train]
epochs = 2
batch_size = 32
lr = 0.1
momentum = 0.3
milestones = [1]
"""
DENSE, UV = '[[method]]\nname = "dense"\n', '[[method]]\nname = "uv"\nratio = [0.5]\n'
SVD = '[[method]]\nname = "svd"\nratio = [0.5]\n'
CONDLR = '[[method]]\nname = "condlr"\nratio = [0.5]\nmax_cond = [1.1]\n'
FGSM = '[[attack]]\nname = "fgsm"\neps = [0.0, 0.05, 0.00784313725490196]\n'
PGD = '[[attack]]\nname = "pgd_l2"\neps = [0.5]\nn_examples = 15\noptions = { steps = 2 }\n'
SMOKE = "[presets.smoke]\nn_train = 64\ntrain = { epochs = 1, milestones = [] }\n"


def grid(method):
    swept = {"ratio": 0.5, "max_cond": 1.1, "tolerance": 0.3, "beta": 0.01, "depth": 2, "fraction": 0.3}
    swept |= {"scale": 3.0, "max_norm": 2.0}
    return f'[[method]]\nname = "{method.name}"\n' + "".join(f"{key} = [{swept[key]}]\n" for key in sorted(method.uses))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of its own; declare(parts...) writes its experiment and loads it."""
    monkeypatch.setenv("WELLCOND_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(paths, "experiments", lambda: tmp_path)

    def declare(*parts, head=HEAD, preset="paper"):
        (tmp_path / "tiny.toml").write_text(head + "".join(parts), encoding="utf-8")
        return Experiment.load("tiny", preset)

    return declare


def quiet(spec, *args, **kwargs):
    return run_experiment(spec, *args, device="cpu", progress=False, **kwargs)


def counts(found):
    return found.runs.set_index("run_id")["n_correct"].to_dict()


def interrupted_at(monkeypatch, module, name, call, error):
    """Make the call-th call of module.<name> raise."""
    original, calls = getattr(module, name), itertools.count(1)

    def wrapped(*args, **kwargs):
        if next(calls) == call:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, wrapped)


# ----------------------------------------------------------------------------------------------------- a complete run


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Every method of the registry, two epochs, attacked."""
    folder = tmp_path_factory.mktemp("complete")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WELLCOND_RESULTS", str(folder / "results"))
        patch.setattr(paths, "experiments", lambda: folder)
        (folder / "tiny.toml").write_text(HEAD + "".join(map(grid, METHODS.values())) + FGSM + PGD, encoding="utf-8")
        spec = Experiment.load("tiny")
        found = quiet(spec)
        weights = {cell.run_id: networks.trained(cell) for cell in spec.cells()}
        yield spec, found, weights, folder / "results"


def test_every_method_is_complete(complete):
    _, found, _, folder = complete
    assert found.missing == ()
    assert set(found.runs["method"]) == set(METHODS)
    assert (found.runs["status"] == "done").all()
    assert (folder / "tiny" / "runs.csv").exists()
    assert not (folder / "local" / "failed").exists()


def test_rows_describe_the_network(complete):
    spec, found, weights, _ = complete
    runs = found.runs.set_index("run_id")
    dense = models.build("helpers:Tiny")
    for cell in spec.cells():
        row, model = runs.loc[cell.run_id], weights[cell.run_id].model
        assert (row["dataset"], row["model"], row["method"], row["seed"]) == ("digits", "helpers:Tiny", cell.method, 0)
        assert row["label"] == cell.label
        assert row["epochs"] == (0 if cell.method == "svd" else 2)
        size = count_parameters(model)
        found_sizes = row[["n_params_dense", "n_params_trained", "n_params_deployed", "rank_fraction"]].tolist()
        trained = METHODS[cell.method].prepare(dense, cell.of_method) if cell.method == "lorita" else model
        n_trained = sum(p.numel() for p in trained.parameters())
        expected = [size.dense, n_trained, size.deployed, size.rank_fraction]
        assert found_sizes == pytest.approx(expected, rel=1e-8)
        assert row["n_params_dense"] == sum(p.numel() for p in dense.parameters())
        # 6 x 49 at 16 positions, 24 x 24, 24 x 10
        assert row["flops_dense"] == 2 * (6 * 49 * 16 + 24 * 24 + 24 * 10)
        assert row["flops_deployed"] <= row["flops_dense"]
        assert row["n_test"] == 40
        assert row["wall_s"] > 0
        assert row["peak_bytes"] > 1e6
        assert row["device"] == "cpu"
        assert row["spec_hash"] == cell.spec_hash
        test = networks.cell_data(cell, "cpu").test
        correct = model(test.pixels(slice(None))).argmax(1) == test.labels
        assert row["n_correct"] == int(correct.sum())


def test_constraints_hold_in_every_recorded_epoch(complete):
    _, found, _, _ = complete
    runs = found.runs.set_index("run_id")
    constrained = found.runs[found.runs["method"].isin(["condlr", "condlr_published"])]
    assert (constrained["kappa_max"] <= 1.1 * (1 + 1e-4)).all()
    factorized = found.runs[found.runs["method"].isin(["condlr", "condlr_published", "usv"])]
    assert (factorized["orth_error_max"] <= 1e-5).all()
    curves = found.select("curves").query("quantity == 'kappa'")
    for method in ("condlr", "usv"):
        row = runs[runs["method"] == method].iloc[0]
        assert curves[curves["method"] == method]["value"].max() == pytest.approx(row["kappa_max"])
    assert runs[runs["method"].isin(["dense", "uv", "svd"])]["kappa_max"].isna().all()  # no constrained layer


def test_curves_cover_every_epoch(complete):
    _, found, _, _ = complete
    for run_id, rows in found.curves.groupby("run_id"):
        epochs = {0} if run_id.startswith("svd-") else {0, 1, 2}
        by_epoch = rows.groupby("epoch")["quantity"].agg(set)
        assert set(by_epoch.index) == epochs
        for epoch, quantities in by_epoch.items():
            expected = {"validation_n", "validation_n_correct", "validation_loss", "kappa", "sigma_max", "sigma_min"}
            assert expected <= quantities
            assert ("train_loss" in quantities) == (epoch > 0)
        layers = set(rows["layer"].dropna())
        assert layers == {"conv", "hidden", "classifier"}


def test_every_method_of_a_seed_starts_from_the_same_draw(project):
    """At ratio 0 the initial validation loss of the projected method is that of the dense network."""
    found = quiet(project(DENSE, '[[method]]\nname = "usv"\nratio = [0.0]\n'))
    initial = found.curves.query("epoch == 0 and quantity == 'validation_loss'")["value"].tolist()
    assert initial[0] == pytest.approx(initial[1], rel=1e-5)


def test_attacks_are_measured_as_asked(complete):
    _, found, _, _ = complete
    for run_id, rows in found.robustness.groupby("run_id"):
        fgsm, pgd = rows[rows["attack"] == "fgsm"], rows[rows["attack"] == "pgd_l2"]
        assert fgsm["eps"].tolist() == pytest.approx([0.0, 2 / 255, 0.05], rel=1e-8)
        assert fgsm["n_correct"].iloc[0] == counts(found)[run_id]
        assert (fgsm["n_examples"] == 40).all()
        options = "relative_step=2.5 restarts=1 steps=2"
        assert pgd[["norm", "eps", "options", "n_examples"]].to_numpy().tolist() == [["l2", 0.5, options, 15]]


def test_spectra_are_those_of_the_trained_weights(complete):
    spec, found, weights, _ = complete
    spectra = found.spectra.groupby(["run_id", "layer"])["singular_value"].agg(list)
    for cell in spec.cells():
        hidden = weights[cell.run_id].model.hidden
        W = hidden.weight.detach().double().numpy()
        sigma = np.linalg.svd(W, compute_uv=False)[: getattr(hidden, "rank", 24)]
        assert spectra[cell.run_id, "hidden"] == pytest.approx(sigma.tolist(), abs=1e-6)  # of S, or of float32 W


def test_svd_cells_truncate_the_dense_network_of_their_seed(complete):
    _, found, _, _ = complete
    spectra = found.spectra.groupby(["run_id", "layer"])["singular_value"].agg(list)
    assert spectra["svd-r0.5-s0", "hidden"] == pytest.approx(spectra["dense-s0", "hidden"][:12], rel=1e-5)
    assert spectra["svd-r0.5-s0", "classifier"] == pytest.approx(spectra["dense-s0", "classifier"], rel=1e-5)


def test_provenance_says_where_each_row_comes_from(complete):
    spec, found, _, folder = complete
    assert set(found.provenance) == set(found.runs["run_id"])
    cells = {cell.run_id: cell for cell in spec.cells()}
    for run_id, record in found.provenance.items():
        assert record["spec"] == cells[run_id].spec()
        assert record["spec_hash"] == cells[run_id].spec_hash
        expected = {"commit", "versions", "device", "threads", "dtype", "deterministic", "data_sha256", "command"}
        assert expected <= record.keys()
        assert record["started"] <= record["finished"]
        assert {"python", "torch", "numpy", "advertorch", "wellcond"} <= record["versions"].keys()
    text = (folder / "tiny" / "provenance.json").read_text()
    assert str(folder) not in text  # no path of a machine
    assert json.loads(text)["runs"].keys() == cells.keys()


# -------------------------------------------------------------------------------------------- again, and interrupted


def test_the_same_seed_gives_the_same_numbers(project, monkeypatch, tmp_path):
    tables = []
    for folder in ("one", "two"):
        monkeypatch.setenv("WELLCOND_RESULTS", str(tmp_path / folder))
        tables.append(quiet(project(DENSE, CONDLR, FGSM, PGD)))
    for table in ("curves", "robustness", "spectra"):
        pd.testing.assert_frame_equal(getattr(tables[0], table), getattr(tables[1], table))
    columns = ["run_id", "n_correct", "kappa_max", "orth_error_max"]
    pd.testing.assert_frame_equal(tables[0].runs[columns], tables[1].runs[columns])


def test_another_seed_gives_other_numbers(project):
    found = quiet(project(CONDLR, head=HEAD.replace("seeds = [0]", "seeds = [0, 1]")))
    losses = found.curves.query("quantity == 'train_loss'").groupby("run_id")["value"].agg(list)
    assert losses["condlr-r0.5-c1.1-s0"] != losses["condlr-r0.5-c1.1-s1"]
    initial = found.curves.query("epoch == 0 and quantity == 'sigma_max' and layer == 'hidden'")["value"]
    assert initial.nunique() == 2  # another draw of the weights, not only another order of the images


def test_a_second_run_computes_nothing(project, monkeypatch):
    spec = project(DENSE, UV, FGSM)
    before = quiet(spec)
    monkeypatch.setattr(runner, "run_cell", None)
    after = quiet(spec)
    pd.testing.assert_frame_equal(before.runs, after.runs)


@pytest.mark.parametrize("where", [(networks, "fit_together", 2), (runner, "count_flops", 3)])
def test_an_interrupted_run_keeps_finished_cells_and_is_resumed(project, monkeypatch, tmp_path, where):
    """Ctrl-C while the second cell trains, or while it is measured."""
    spec = project(DENSE, UV, CONDLR, FGSM)
    with monkeypatch.context() as patch:
        interrupted_at(patch, *where, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            quiet(spec)
    found = runner.load(spec)
    assert found.runs["run_id"].tolist() == ["dense-s0"]
    assert set(found.robustness["run_id"]) == {"dense-s0"}
    assert found.missing == ("uv-r0.5-s0", "condlr-r0.5-c1.1-s0")
    hidden = [path for path in (tmp_path / "results").rglob(".*") if path.is_file()]
    assert hidden == []  # nothing half-written
    resumed = quiet(spec)
    assert resumed.missing == ()
    assert counts(resumed)["dense-s0"] == counts(found)["dense-s0"]


def test_trained_weights_are_used_again(project, monkeypatch):
    """Measuring a cell anew, and cells that start from another's weights, train nothing twice."""
    spec = project(DENSE, SVD, FGSM)
    with monkeypatch.context() as patch:
        interrupted_at(patch, runner, "count_flops", 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            quiet(spec)
    monkeypatch.setattr(networks, "fit_together", None)  # from now on
    found = quiet(spec)
    assert found.missing == ()
    more = quiet(project(DENSE, SVD, FGSM, PGD))  # another attack: measured, on the same weights
    assert counts(more) == counts(found)
    assert len(more.robustness) == len(found.robustness) + 2


def test_loaded_weights_give_the_logits_of_the_trained_ones(project):
    """Bit for bit, as the memory layout is the same too."""
    model = 'model = "lenet5"'
    spec = project(DENSE, head=HEAD.replace('model = "helpers:Tiny"', model).replace("epochs = 2", "epochs = 1"))
    (cell,) = spec.cells()
    trained, loaded = networks.trained(cell), networks.trained(cell)
    assert loaded.curves == trained.curves
    x = networks.cell_data(cell, "cpu").test.pixels(slice(None))
    assert torch.equal(loaded.model(x), trained.model(x))


@pytest.mark.parametrize("seconds", range(1, 30, 4))
def test_a_deadline_leaves_whole_cells(project, monkeypatch, seconds):
    """A clock that advances a second each time it is looked at: wherever time runs out, the rest can be resumed."""
    spec = project(DENSE, UV, FGSM)
    ticks = itertools.count()
    with monkeypatch.context() as patch:
        for module in (jobs, networks, runner):
            patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(ticks), perf_counter=lambda: 0.0))
        partial = quiet(spec, max_minutes=seconds / 60)
    order = ["dense-s0", "uv-r0.5-s0"]
    assert partial.runs["run_id"].tolist() == order[: len(partial.runs)]
    assert partial.missing == tuple(order[len(partial.runs) :])
    assert len(partial.robustness) == 3 * len(partial.runs)
    assert quiet(spec).missing == ()


def test_no_time_starts_nothing(project):
    assert len(quiet(project(DENSE), max_minutes=1e-9).missing) == 1


def test_an_error_in_a_cell_is_noted_and_cleared_by_success(project, monkeypatch, tmp_path):
    spec = project(DENSE, UV)
    with monkeypatch.context() as patch:
        interrupted_at(patch, networks, "fit_together", 2, RuntimeError("something broke"))
        with pytest.raises(RuntimeError, match="something broke"):
            quiet(spec)
    (row,) = status()
    assert (row["done"], row["missing"], row["failed"]) == (1, ["uv-r0.5-s0"], ["uv-r0.5-s0"])
    note = tmp_path / "results" / "local" / "failed" / "tiny" / "uv-r0.5-s0.txt"
    assert "something broke" in note.read_text()
    quiet(spec)
    (row,) = status()
    assert (row["done"], row["missing"], row["failed"]) == (2, [], [])


def test_divergence_is_recorded_without_numbers(project, capsys):
    """Also of cells that start from weights that never came to be; they are not tried again and again."""
    spec = project(DENSE, SVD, CONDLR, UV + "train = { lr = 0.1 }\n", FGSM, head=HEAD.replace("lr = 0.1", "lr = 1e30"))
    found = quiet(spec)
    runs = found.runs.set_index("run_id")
    assert runs["status"].to_dict() == {
        "dense-s0": "diverged",
        "svd-r0.5-s0": "diverged",
        "condlr-r0.5-c1.1-s0": "diverged",
        "uv-r0.5-s0": "done",
    }
    diverged = runs[runs["status"] == "diverged"]
    assert diverged[["n_correct", "n_test", "kappa_max", "n_params_trained"]].isna().all(axis=None)
    assert set(found.robustness["run_id"]) == set(found.spectra["run_id"]) == {"uv-r0.5-s0"}
    assert "dense-s0: diverged (epoch 1: " in capsys.readouterr().err
    (row,) = status()
    assert (row["done"], row["missing"], row["failed"]) == (1, [], [])
    assert row["diverged"] == ["condlr-r0.5-c1.1-s0", "dense-s0", "svd-r0.5-s0"]


def test_a_cell_that_ends_between_its_record_and_its_journal_leaves_no_journal(project, monkeypatch):
    spec = project(DENSE, PGD)
    check_that_no_journal_is_left(lambda: quiet(spec), monkeypatch)


@pytest.mark.slow
def test_two_processes_share_the_work(project, tmp_path):
    """Each cell once, though one waits for the weights that the other trains."""
    spec = project(DENSE, SVD, UV, CONDLR, FGSM)
    found = quiet(spec, jobs=2)
    assert found.missing == ()
    for table in ("runs", "robustness", "spectra"):
        frame = getattr(found, table)
        assert not frame.drop(columns=[c for c in frame if c in ("wall_s", "peak_bytes")]).duplicated().any()
    assert len(found.runs) == 4
    alone = tmp_path / "alone"
    assert counts(found) == counts(quiet(spec, alone))


def test_a_worker_notes_its_code_before_it_works(project, monkeypatch):
    """Not when its first cell is complete, hours later, when the checked-out commit may be another."""
    started, known = provenance._started, []
    started.cache_clear()
    monkeypatch.setattr(runner, "_work", lambda *_: known.append(started.cache_info().currsize) or [])
    jobs._drain(runner._work, "cpu", project(DENSE), paths.results(), "cpu", math.inf, [])
    assert known == [1]


def hold(name, locked, done):
    with claims.claimed(name):
        locked.set()
        done.wait(60)


def test_a_cell_that_somebody_else_is_running_is_left_to_him(project):
    spec = project(DENSE, UV)
    context = multiprocessing.get_context("fork")
    locked, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(claims.key("cell", spec.folder(), "dense-s0"), locked, done))
    other.start()
    locked.wait(60)
    found = quiet(spec)
    (row,) = status()
    assert {run_id: worker.pid for run_id, worker in row["workers"].items()} == {"dense-s0": other.pid}
    done.set()
    other.join(60)
    assert status()[0]["workers"] == {}
    assert found.runs["run_id"].tolist() == ["uv-r0.5-s0"]
    assert quiet(spec).missing == ()


def test_a_cell_that_somebody_else_has_left_is_taken_over(project, monkeypatch):
    """Left after this process has passed it by: its lock is free when the other cell is done."""
    spec, original, others = project(DENSE, UV), runner._run_batch, ExitStack()
    others.enter_context(claims.claimed(claims.key("cell", spec.folder(), "dense-s0")))

    def run_batch(*args):
        yield from original(*args)
        others.close()

    monkeypatch.setattr(runner, "_run_batch", run_batch)
    found = quiet(spec)
    assert found.missing == ()
    assert found.runs["run_id"].tolist() == ["uv-r0.5-s0", "dense-s0"]


def test_what_has_failed_under_another_worker_is_not_taken_over(project, monkeypatch):
    spec, original = project(DENSE, UV), runner._run_batch
    others = ExitStack()
    others.enter_context(claims.claimed(claims.key("cell", spec.folder(), "dense-s0")))

    def run_batch(cells, *args):
        yield from original(cells, *args)
        with suppress(RuntimeError), runner._failures_noted(spec.folder(), spec.cells()[:1]):
            raise RuntimeError
        others.close()

    monkeypatch.setattr(runner, "_run_batch", run_batch)
    assert quiet(spec).missing == ("dense-s0",)


def test_a_validation_fraction_of_zero_has_no_validation_curve(project):
    found = quiet(project(DENSE, head=HEAD.replace("momentum = 0.3", "validation = 0.0")))
    assert found.missing == ()
    assert not found.curves["quantity"].str.startswith("validation").any()


# ------------------------------------------------------------------------------------------------ several seeds at once

SEEDS = HEAD.replace("seeds = [0]", "seeds = [0, 1, 2]")


def sizes_of_batches(monkeypatch):
    """The number of networks in each call of fit_together, as they are made."""
    sizes, original = [], networks.fit_together

    def counted(networks, *args, **kwargs):
        sizes.append(len(networks))
        return original(networks, *args, **kwargs)

    monkeypatch.setattr(networks, "fit_together", counted)
    return sizes


def test_cells_trained_together_are_those_trained_alone(project, monkeypatch, tmp_path):
    """Two seeds of three at a time; up to the rounding of float32 in six steps, which may move an image or two."""
    monkeypatch.setenv("WELLCOND_RESULTS", str(tmp_path / "alone"))
    spec = project(DENSE, SVD, UV, CONDLR, FGSM, head=SEEDS)
    alone, expected = quiet(spec), {cell.run_id: networks.trained(cell) for cell in spec.cells()}
    monkeypatch.setenv("WELLCOND_RESULTS", str(tmp_path / "together"))
    sizes = sizes_of_batches(monkeypatch)
    found = quiet(spec, together=2)
    assert sizes == [2, 2, 2, 1, 1, 1]
    assert found.missing == ()
    for cell in spec.cells():
        network, wanted = networks.trained(cell), expected[cell.run_id]
        torch.testing.assert_close(network.model.state_dict(), wanted.model.state_dict(), rtol=0, atol=1e-4)
        assert [row["epoch"] for row in network.curves] == [row["epoch"] for row in wanted.curves]
        assert abs(counts(found)[cell.run_id] - counts(alone)[cell.run_id]) <= 1
        recorded = {**found.provenance[cell.run_id]["training"]}
        assert recorded.pop("together", 1) == (2 if cell.method != "svd" and cell.seed < 2 else 1)
        assert recorded == alone.provenance[cell.run_id]["training"]


def test_each_of_a_batch_is_recorded_and_resumed_by_itself(project, monkeypatch):
    """Interrupted while the second of three is measured: the others are not trained again."""
    spec = project(DENSE, FGSM, head=SEEDS)
    with monkeypatch.context() as patch:
        interrupted_at(patch, runner, "run_cell", 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            quiet(spec, together=3)
    assert runner.load(spec).missing == ("dense-s1", "dense-s2")
    monkeypatch.setattr(networks, "fit_together", None)  # from now on
    found = quiet(spec, together=3)
    assert found.missing == ()
    assert len(set(found.runs["wall_s"])) == 1  # a third of the batch's


def test_a_batch_is_of_missing_cells_that_nobody_else_is_running(project, monkeypatch):
    spec = project(DENSE, UV, head=HEAD.replace("seeds = [0]", "seeds = [0, 1, 2, 3]"))
    quiet(spec, only=["dense-s1"])
    sizes = sizes_of_batches(monkeypatch)
    with files.lock(files.guard(spec.folder(), "cell-dense-s2")):
        quiet(spec, only=["dense-*"], together=4)
    assert sizes == [2]
    assert runner.load(spec).runs["run_id"].tolist() == ["dense-s1", "dense-s0", "dense-s3"]


@pytest.mark.parametrize("seconds", range(1, 30, 4))
def test_a_deadline_leaves_whole_cells_of_a_batch(project, monkeypatch, seconds):
    spec = project(DENSE, FGSM, head=SEEDS)
    ticks = itertools.count()
    with monkeypatch.context() as patch:
        for module in (jobs, networks, runner):
            patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(ticks), perf_counter=lambda: 0.0))
        partial = quiet(spec, max_minutes=seconds / 60, together=2)
    assert [*partial.runs["run_id"], *partial.missing] == ["dense-s0", "dense-s1", "dense-s2"]
    assert len(partial.robustness) == 3 * len(partial.runs)


def test_divergence_of_a_batch_is_recorded_once(project, monkeypatch, capsys):
    """Each is not trained again, alone, when its turn to be measured comes."""
    spec = project(DENSE, head=SEEDS.replace("lr = 0.1", "lr = 1e30"))
    sizes = sizes_of_batches(monkeypatch)
    found = quiet(spec, together=3)
    assert sizes == [3]
    assert found.runs["status"].tolist() == ["diverged"] * 3
    assert capsys.readouterr().err.count("diverged (epoch 1: training loss nan)") == 3


def test_an_error_in_a_batch_is_noted_for_each_of_its_cells(project, monkeypatch):
    spec, batches = project(DENSE, head=SEEDS), []

    def breaking(models, *_, **__):
        batches.append(len(models))
        raise RuntimeError("something broke")

    monkeypatch.setattr(networks, "fit_together", breaking)
    with pytest.raises(Failed, match=r"dense-s0 and 2 more: failed \(RuntimeError: something broke\)"):
        quiet(spec, together=2)
    assert status()[0]["failed"] == ["dense-s0", "dense-s1", "dense-s2"]
    assert batches == [2, 1], "each cell is tried once"


# ----------------------------------------------------------------------------------------------- folders and choices


def test_results_of_another_protocol_are_refused_until_rerun(project):
    quiet(project(DENSE))
    edited = project(DENSE, head=HEAD.replace("lr = 0.1", "lr = 0.05"))
    with pytest.raises(ValueError, match=r"dense-s0 is of another specification \(changed: train.lr 0.1 -> 0.05\)"):
        runner.load(edited)
    assert quiet(edited).missing == ()
    assert status()[0]["done"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "gpu"}, "device = 'gpu': must be auto, cpu or cuda"),
        ({"jobs": 0}, "jobs = 0: must be >= 1"),
        ({"together": 0}, "together = 0: must be an integer >= 1"),
        ({"together": 1.5}, "together = 1.5: must be an integer >= 1"),
        ({"max_minutes": 0}, "max_minutes = 0: must be > 0"),
        ({"max_minutes": -1.0}, "max_minutes = -1.0: must be > 0"),
        ({"max_minutes": math.nan}, "max_minutes = nan: must be > 0"),
        ({"only": ["desne*"]}, r"only = 'desne\*': unknown; did you mean 'dense-s0'"),
    ],
)
def test_bad_arguments(project, arguments, message):
    with pytest.raises(ValueError, match=message):
        run_experiment(project(DENSE), progress=False, **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there():
    assert jobs.pick_device("auto") == "cpu"
    with pytest.raises(ValueError, match="device = 'cuda': must be auto or cpu: torch sees no CUDA device"):
        jobs.pick_device("cuda")


def test_only_some_cells(project):
    spec = project(DENSE, UV, CONDLR)
    found = quiet(spec, only=["c*", "uv*"])
    assert set(found.runs["run_id"]) == {"condlr-r0.5-c1.1-s0", "uv-r0.5-s0"}
    assert found.missing == ("dense-s0",)


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_results_folder_that_cannot_be_written(project, monkeypatch, tmp_path, below):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WELLCOND_RESULTS", str(tmp_path / "file" / below))
    with pytest.raises(ValueError, match=r"results = .*: must be a writable folder") as caught:
        quiet(project(DENSE))
    assert "\n" not in str(caught.value)


def test_what_a_chapter_shows(project, tmp_path):
    """The committed results, or results computed now, which never touch the committed ones."""
    spec = project(DENSE, FGSM, SMOKE)
    with pytest.raises(ValueError, match="run = False: must be True: there are no results for preset 'smoke'"):
        load_or_run("tiny", preset="smoke")
    assert load_or_run("tiny").missing == ("dense-s0",)  # waiting is no error
    committed = quiet(spec)
    before = {path: path.read_bytes() for path in (tmp_path / "results" / "tiny").glob("[!.]*")}
    computed = load_or_run("tiny", preset="smoke", run=True, model="", n_test=20)
    assert computed.runs["n_test"].tolist() == [20]
    assert load_or_run("tiny", preset="smoke", n_test=20).runs["n_test"].tolist() == [20]
    load_or_run("tiny", run=True)
    assert {path: path.read_bytes() for path in (tmp_path / "results" / "tiny").glob("[!.]*")} == before
    pd.testing.assert_frame_equal(load_or_run("tiny").runs, committed.runs)


def test_a_network_of_ones_own(project):
    project(CONDLR, FGSM, SMOKE)
    found = load_or_run("tiny", preset="smoke", run=True, model="helpers:noise")
    assert found.runs["model"].tolist() == ["helpers:noise"]
    with pytest.raises(ValueError, match=r"model = 'helpers:nois': must be an importable package.module:factory"):
        load_or_run("tiny", preset="smoke", run=True, model="helpers:nois")


def test_a_chapter_trains_what_its_parameters_say_and_keeps_it_where_they_say(project, tmp_path):
    project(DENSE, UV.replace("[0.5]", "[0.5, 0.8]"), FGSM, SMOKE)
    chosen = {"preset": "smoke", "seeds": [3], "epochs": 2, "ratios": [0.8], "out": str(tmp_path / "mine")}
    with pytest.raises(ValueError, match="run = False: must be True"):
        load_or_run("tiny", **chosen)
    computed = load_or_run("tiny", run=True, **chosen)
    assert computed.runs["run_id"].tolist() == ["dense-s3", "uv-r0.8-s3"]
    assert set(computed.runs["epochs"]) == {2}
    (folder,) = (tmp_path / "mine" / "tiny").iterdir()
    assert folder.name.startswith("smoke-")
    pd.testing.assert_frame_equal(load_or_run("tiny", **chosen).runs, computed.runs)
    assert load_or_run("tiny", seeds=None, epochs=None, ratios=None, out="").missing  # the committed ones, as ever


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("ratios", [0.7], "a list of ratios of the experiment, which has 0.5"),
        ("ratios", 0.5, "a list of ratios"),
        ("ratios", [], "a list of ratios"),
        ("epochs", 0, "greater than or equal to 1"),
        ("epochs", "many", "valid integer"),
        ("seeds", 0, "valid tuple"),
        ("seeds", [-1], "greater than or equal to 0"),
        ("out", 3, "text"),
    ],
)
def test_a_bad_parameter_is_an_error_of_one_line(project, field, value, accepted):
    project(UV)
    with pytest.raises(ValueError, match=accepted) as caught:
        load_or_run("tiny", **{field: value})
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)


def test_measurements_of_networks_that_a_narrower_grid_lacks_are_left_out(project):
    alone = '[[suite]]\nname = "fgsm"\neps = [0.1]\nonly = ["uv-r0.8-*"]\n'
    project(UV.replace("[0.5]", "[0.5, 0.8]"), alone)
    assert [entry.only for entry in Experiment.load("tiny", ratios=[0.8]).suite] == [("uv-r0.8-*",)]
    assert Experiment.load("tiny", ratios=[0.5]).suite == ()


def test_chapters_may_not_pass_what_nobody_reads(project):
    project(DENSE)
    with pytest.raises(ValueError, match="key = 'epoch': unknown"):
        load_or_run("tiny", epoch=3)


def test_status_of_nothing(project):
    project(DENSE, UV)
    (row,) = status()
    assert row == {
        "experiment": "tiny",
        "cells": 2,
        "done": 0,
        "missing": ["dense-s0", "uv-r0.5-s0"],
        "diverged": [],
        "failed": [],
        "progress": {},
        "workers": {},
    }


# --------------------------------------------------------------------------------------------- adaptive ranks, starts


ADAPTIVE = '[[method]]\nname = "dlrt_adaptive"\nratio = [0.5]\ntolerance = [0.4]\n'


def test_ranks_and_sizes_over_training_are_recorded(project):
    """The last recorded ranks are those of the network that is kept, and of its row."""
    spec = project(ADAPTIVE)
    found = quiet(spec)
    (cell,) = spec.cells()
    model = networks.trained(cell).model
    curves = found.curves.query("quantity == 'rank'").pivot_table(index="epoch", columns="layer", values="value")
    assert curves.loc[2].to_dict() == {
        name: layer.rank if hasattr(layer, "rank") else min(layer.weight.flatten(1).shape)
        for name, layer in weight_layers(model).items()
    }
    assert curves.loc[2, "hidden"] < curves.loc[0, "hidden"] == 12
    sizes = found.curves.query("quantity == 'n_params_deployed'").set_index("epoch")["value"]
    assert sizes[2] == found.runs["n_params_deployed"].item() == count_parameters(model).deployed
    assert sizes[2] < sizes[0]


def test_spectra_of_chosen_epochs(project):
    spec = project(ADAPTIVE, head=HEAD.replace("n_test = 40\n", "n_test = 40\nspectra_epochs = [0]\n"))
    found = quiet(spec)
    (cell,) = spec.cells()
    trained = networks.trained(cell)
    assert set(found.spectra["epoch"]) == {0, 2}
    last = found.spectra.query("epoch == 2 and layer == 'hidden'")["singular_value"]
    assert list(last) == pytest.approx(trained.model.hidden.singular_values().tolist(), rel=1e-6)
    first = found.spectra.query("epoch == 0 and layer == 'hidden'")
    assert len(first) == 12


def test_ill_conditioned_starts(project):
    """κ of the start is that of the Kaiming draw times α^(r-1); α = 1 is the start without a decay."""
    spec = project('[[method]]\nname = "uv"\nrank = [5]\ndecay = [1, 10]\n', '[[method]]\nname = "uv"\nrank = [5]\n')
    found = quiet(spec)
    start = found.curves.query("quantity == 'kappa' and epoch == 0 and layer == 'hidden'").set_index("run_id")["value"]
    assert start["uv-k5-a10-s0"] == pytest.approx(1e4 * start["uv-k5-s0"], rel=1e-3)
    assert start["uv-k5-a1-s0"] == start["uv-k5-s0"]
    runs = found.runs.set_index("run_id")
    assert runs.loc["uv-k5-a1-s0", "n_correct"] == runs.loc["uv-k5-s0", "n_correct"]
    assert runs.loc["uv-k5-a10-s0", ["rank", "decay"]].tolist() == [5, 10]


def weights(cell):
    return tuple(torch.cat([p.detach().flatten() for p in networks.trained(cell).model.parameters()]).tolist())


ROBUST = DENSE + "mix = [0.5, 1.0]\nradius = [0.1]\n", UV + "trades = [6]\nradius = [0.1]\n"


def test_adversarial_training_of_any_method(project, monkeypatch):
    """Each configuration has its row and its name; no batched network is trained adversarially."""
    spec = project(DENSE, *ROBUST, FGSM, head=HEAD.replace("seeds = [0]", "seeds = [0, 1]"))
    sizes = sizes_of_batches(monkeypatch)
    found = quiet(spec, together=2)
    assert sorted(sizes) == [1] * 6 + [2]
    runs = found.runs.set_index("run_id")
    assert runs.loc["dense-m0.5-e0.1-s0", ["mix", "radius"]].tolist() == [0.5, 0.1]
    assert runs.loc["uv-r0.5-l6-e0.1-s1", ["ratio", "trades", "radius"]].tolist() == [0.5, 6, 0.1]
    assert len({weights(cell) for cell in spec.cells()}) == 8
    assert list(analysis.by_seed(found).columns) == [
        "dense SGD",
        "dense SGD, 50 % PGD-AT, ε = 0.1",
        "dense SGD, PGD-AT, ε = 0.1",
        "U Vᵀ, ratio 0.5, TRADES 6, ε = 0.1",
    ]
    assert set(analysis.pick(found, ["dense"]).runs["run_id"]) == {id for id in runs.index if id.startswith("dense-")}
    waiting = analysis.summary(replace(found.restricted([]), missing=tuple(runs.index)))
    assert set(waiting["name"]) == set(analysis.by_seed(found).columns)


def test_large_batches_follow_the_linear_scaling_rule(project):
    """k times the batch and k times the rate; the warm-up starts at the rate of the small batches."""
    small = HEAD.replace("batch_size = 32\nlr = 0.1", "batch_size = 16\nlr = 0.05\nbatch_factor = 2")
    warm, slow = small.replace("momentum", "warmup = 1\nmomentum"), HEAD.replace("lr = 0.1", "lr = 0.05")

    def trained(head, images=96, epochs=2):
        head = head.replace("n_train = 96", f"n_train = {images}").replace("epochs = 2", f"epochs = {epochs}")
        (cell,) = project(DENSE, head=head).cells()
        return weights(cell)

    assert trained(HEAD) == trained(small) != trained(warm)
    assert trained(slow, 32, 1) == trained(warm, 32, 1)  # one step only


# --------------------------------------------------------------------------------------------------------- conditioning


CHAIN = HEAD.replace('model = "helpers:Tiny"', 'model = "helpers:chain"')


def test_conditioning_is_measured_on_the_kept_networks(project):
    """Once for each network; a network without weights is not trained again; a new run drops the old rows."""
    spec = project(DENSE, UV, FGSM, head=CHAIN)
    assert set(measure_conditioning(spec, n_images=5).values()) == {"no weights"}  # nothing is trained yet
    quiet(spec)
    dense, uv = spec.cells()
    paths.local().joinpath("weights", f"{uv.spec_hash}.pt").unlink()
    assert measure_conditioning(spec, n_images=5) == {"dense-s0": "measured", "uv-r0.5-s0": "no weights"}
    assert measure_conditioning(spec, n_images=5)["dense-s0"] == "known"
    found = runner.load(spec)
    rows = found.conditioning.set_index("quantity")["value"]
    assert set(found.conditioning["run_id"]) == {"dense-s0"}
    assert rows["images"] == 5
    assert 1 <= rows["kappa_rel_max"] <= rows["bound"] * 10
    assert rows["kappa_rel"] <= rows["gain_bound"] <= rows["bound"]
    record = found.provenance["dense-s0"]
    assert record["conditioning"]["command"].startswith("python -m study conditioning tiny")
    assert record["spec_hash"] == dense.spec_hash  # beside what was there
    frame = conditioning_report.predictors(found, "fgsm")
    assert frame["kappa_rel"].item() == rows["kappa_rel"]
    assert frame["kappas"].item() == pytest.approx(rows["kappa"].prod())
    assert conditioning_report.predictors(found, "fgsm", least=100.5).empty
    assert len(conditioning_report.plot_predictors(frame).axes) == 3
    plt.close("all")
    results.save(spec.folder(), "dense-s0", {"runs": found.runs.to_dict("records")[:1]}, record)
    assert runner.load(spec).conditioning.empty


def test_networks_without_a_chain_are_refused_one_by_one(project):
    spec = project(DENSE)
    quiet(spec)
    (outcome,) = measure_conditioning(spec, n_images=5).values()
    assert outcome.startswith("model = 'Tiny': must be a chain of layers")
    with pytest.raises(ValueError, match="n_images = 0: must be >= 1"):
        measure_conditioning(spec, n_images=0)
