"""Weights beside the tables: published where they are those of the results, and found by all that measures."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments import trained_experiment
from study import load_network, paths
from study.__main__ import main
from study.experiments import weights
from study.experiments.conditioning import measure_conditioning
from study.experiments.published import published
from study.experiments.publishing import publish
from study.experiments.tasks import assess
from study.results import store as results

TOML = """
method = [{ name = "dense" }, { name = "condlr", ratio = [0.5], max_cond = [1.1] }, { name = "spectral_norm" }]
attack = [{ name = "fgsm", eps = [0.0, 0.05] }]
suite = [{ name = "fgsm", eps = [0.1], n_examples = 20 }]
"""


@pytest.fixture
def trained(tmp_path, monkeypatch):
    return trained_experiment(TOML, tmp_path, monkeypatch)


def forget(spec, *run_ids):
    for cell in spec.cells():
        if cell.run_id in run_ids or not run_ids:
            weights.weights_file(cell).unlink(missing_ok=True)


def test_a_published_network_is_the_trained_one(trained, capsys):
    before = {cell.run_id: weights.kept(cell, "cpu").model for cell in trained.cells()}
    assert main(["publish", str(paths.experiments() / "tiny.toml"), "--only", "*-s0"]) == 0
    assert "condlr-r0.5-c1.1-s0: published" in capsys.readouterr().out
    forget(trained)
    x = torch.rand(5, *weights.cell_data(trained.cells()[0], "cpu").shape)
    for run_id in ("dense-s0", "condlr-r0.5-c1.1-s0", "spectral_norm-s0"):
        model = load_network(paths.experiments() / "tiny.toml", run_id)
        assert not model.training
        torch.testing.assert_close(model(x), before[run_id](x), rtol=0, atol=1e-6)  # the strides are others
        assert torch.equal(model(x), load_network(paths.experiments() / "tiny.toml", run_id)(x))
    found = results.read_provenance(trained.folder())["dense-s0"]
    assert found["weights"] == weights.digest(before["dense-s0"])
    assert found["published"]["command"] == "python -m study publish tiny --preset paper"


def test_what_measures_finds_it_and_trains_nothing(trained, monkeypatch):
    publish(trained)
    forget(trained)

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(weights, "_train", refuse)
    assert "no weights" not in measure_conditioning(trained, n_images=2).values()
    assert set(assess(trained, device="cpu", bar=False).attacks["run_id"]) == {c.run_id for c in trained.cells()}


def test_weights_that_are_not_those_of_the_results_are_not_published(trained):
    folder = trained.folder()
    cell = trained.cells()[0]
    saved = torch.load(weights.weights_file(cell), weights_only=True)
    name = next(iter(saved["model"]))
    saved["model"][name] = -saved["model"][name]
    del saved["digest"]
    torch.save(saved, weights.weights_file(cell))
    assert publish(trained, only=["dense-s0"]) == {"dense-s0": "other weights than those of the results"}
    record = json.loads((folder / "provenance.json").read_text())
    del record["runs"]["dense-s0"]["weights"]  # as in a record that is older than the hashes
    (folder / "provenance.json").write_text(json.dumps(record))
    (outcome,) = publish(trained, only=["dense-s0"]).values()
    assert "of 40 images right, where the results have" in outcome
    assert not (folder / "weights").exists()
    forget(trained, "dense-s0")
    assert publish(trained, only=["dense-s0"]) == {"dense-s0": "no weights"}


def test_older_records_are_recognized_by_what_is_counted(trained):
    folder = trained.folder()
    record = json.loads((folder / "provenance.json").read_text())
    del record["runs"]["dense-s0"]["weights"]
    (folder / "provenance.json").write_text(json.dumps(record))
    assert publish(trained, only=["dense-s0"]) == {"dense-s0": "published"}
    table = results.read_table(folder, "robustness")
    table.loc[table["run_id"] == "dense-s1", "n_correct"] -= 1
    table.to_csv(folder / "robustness.csv", index=False)
    record["runs"]["dense-s1"].pop("weights")
    (folder / "provenance.json").write_text(json.dumps(record))
    assert publish(trained, only=["dense-s1"]) == {"dense-s1": "other counts under FGSM than the results"}


def test_files_that_cannot_be_those(trained):
    publish(trained, only=["dense-s0"])
    forget(trained)
    cell = trained.cells()[0]
    path = trained.folder() / "weights" / "dense-s0.safetensors"
    about = {"run_id": "dense-s0", "spec_hash": cell.spec_hash, "digest": "0" * 16}
    tensors = load_file(path)
    save_file(tensors, path, metadata=about)
    with pytest.raises(ValueError, match=r"dense-s0\.safetensors': must be those of dense-s0, unchanged"):
        published(cell)
    save_file(dict(list(tensors.items())[1:]), path, metadata=about)
    with pytest.raises(ValueError, match=r"must be those of dense-s0 \(Error"):
        published(cell)
    path.write_bytes(b"torn")
    with pytest.raises(ValueError, match="must be a readable safetensors file"):
        published(cell)


def test_networks_that_are_not_here(trained):
    forget(trained)
    file = paths.experiments() / "tiny.toml"
    with pytest.raises(
        ValueError, match="run_id = 'dense-s0': must be one whose weights are here; python -m study run"
    ):
        load_network(file, "dense-s0")
    with pytest.raises(ValueError, match="run_id = 'dense-s9': unknown; did you mean 'dense-s1'"):
        load_network(file, "dense-s9")


PUBLISHED = sorted(paths.results().glob("*/weights/*.safetensors"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_committed_weights_load_and_are_those_of_the_record(path):
    experiment, run_id = path.parts[-3], path.stem
    model = load_network(experiment, run_id)
    assert weights.digest(model) == results.read_provenance(path.parents[1])[run_id]["weights"]


def test_every_network_that_the_text_names_is_committed():
    root = paths.results().parent
    texts = [
        path.read_text(encoding="utf-8") for path in (root / "README.md", *sorted((root / "book").glob("*.ipynb")))
    ]
    named = {found for text in texts for found in re.findall(r'load_network\(\\?"(\w+)\\?", \\?"([\w.-]+)\\?"\)', text)}
    assert len(named) > 1
    kept = {(path.parts[-3], path.stem) for path in PUBLISHED}
    assert named <= kept
    assert {name for _, name in kept} <= {name for text in texts for name in re.findall(r"[\w.-]+-s0", text)}
