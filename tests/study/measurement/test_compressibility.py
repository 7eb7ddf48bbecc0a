"""Compression as a measurement: the rows are those of the network that they describe, and an experiment resumes."""

import math

import pytest
import torch
from torch import nn

from experiments import trained_experiment
from helpers import Tiny, convolutional
from study import data
from study.experiments.specification import Experiment
from study.experiments.tasks import assess, progress
from study.measurement import compressibility
from study.measurement.accuracy import count_correct, robustness_curve
from study.measurement.compressibility import Plan, compressed, compression_rows, filter_rows
from study.measurement.registry import tables_of
from study.results import store as results
from wellcond.compression.compressors import COMPRESSORS, compress
from wellcond.counts import count_flops, count_parameters
from wellcond.deployment import deploy
from wellcond.layers import matricize, weight_layers
from wellcond.methods.lorita import overparametrize


def chain():
    torch.manual_seed(0)
    return convolutional().eval()


def digits():
    return data.load("digits", n_train=96, n_test=40)


ATTACK = {"name": "fgsm", "eps": (0.02, 0.05), "n_examples": 20, "options": {}}


def test_rows_describe_the_compressed_network():
    model, images = chain(), digits()
    clean, *attacked = compression_rows(model, images, Plan("svd", 0.6), [ATTACK], seed=3)
    network = compress(model, "svd", amount=0.6, skip=["5"]).model
    for row in (clean, *attacked):
        assert (row["compressor"], row["amount"], row["phases"], row["epochs"], row["lr"]) == ("svd", 0.6, 1, 0, None)
        assert row["n_params_deployed"] == count_parameters(network).deployed < count_parameters(model).deployed
        assert row["flops_deployed"] == count_flops(deploy(network), images.shape)
        assert 1 <= row["kappa"] < math.inf
    assert (clean["attack"], clean["n_examples"], clean["n_correct"]) == (
        "clean",
        40,
        count_correct(network, images.test).n_correct,
    )
    curve = robustness_curve(network, images.test.first(20), "fgsm", (0.02, 0.05), seed=3)
    assert [(row["eps"], row["n_correct"]) for row in attacked] == [(row["eps"], row["n_correct"]) for row in curve]


def test_the_condition_number_is_that_of_what_is_left():
    """Truncation to rank r leaves σ_1/σ_r; the normalization is the identity here."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 30), nn.ReLU(), nn.Linear(30, 10)).eval()
    sigma = torch.linalg.svdvals(model[1].weight.detach().double())
    head = torch.linalg.svdvals(model[3].weight.detach().double())
    (row,) = compression_rows(model, digits(), Plan("svd", 0.5))
    assert row["kappa"] == pytest.approx(max(sigma[0] / sigma[14], head[0] / head[-1]).item(), rel=1e-4)


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_every_compressor_leaves_the_classifier_whole(compressor):
    model = chain()
    network, size = compressed(model, digits(), Plan(compressor, 0.5))
    assert size < count_parameters(model).deployed
    *_, classifier = weight_layers(network).values()
    kept = classifier.weight
    assert all(any(torch.equal(column, other) for other in model[5].weight.T) for column in kept.T)  # or what it reads


def test_the_classifier_has_no_zeros():
    model = chain()
    network, size = compressed(model, digits(), Plan("magnitude", 0.9))
    assert torch.equal(network[5].weight, model[5].weight)
    assert size == count_parameters(model).deployed - int((network[0].weight == 0).sum())


def test_reestimated_statistics_are_those_of_the_training_images():
    model, images = chain(), digits()
    network, _ = compressed(model, images, Plan("svd", 0.6, reestimated=True))
    same, _ = compressed(model, images, Plan("svd", 0.6))
    assert torch.equal(same[1].running_mean, model[1].running_mean)
    with torch.no_grad():
        expected = network[0](images.train.pixels(slice(None))).mean((0, 2, 3))
    torch.testing.assert_close(network[1].running_mean, expected, rtol=0, atol=1e-4)


def test_training_after_compression_restores_accuracy():
    images, model = digits(), chain()
    straight, tuned = (
        compression_rows(model, images, Plan("svd", 0.5, epochs=epochs, lr=0.1, batch_size=16))[0] for epochs in (0, 6)
    )
    assert tuned["n_correct"] > straight["n_correct"] + 8
    assert tuned["n_params_deployed"] == straight["n_params_deployed"]
    assert (straight["lr"], tuned["lr"]) == (None, 0.1)


def test_filter_norms_are_those_of_the_rows_in_descending_order():
    model = Tiny()
    rows = filter_rows(model)
    for name, layer in weight_layers(model).items():
        norms = [row["norm"] for row in rows if row["layer"] == name]
        assert norms == sorted(norms, reverse=True)
        expected = sorted(matricize(layer.weight.detach().double()).norm(dim=1).tolist(), reverse=True)
        assert norms == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------ an experiment

TOML = """
method = [{ name = "dense" }, { name = "lorita", depth = [2], beta = [0.001] }]
suite = [{ name = "fgsm", eps = [0.02], n_examples = 30 }]
compression = [
    { compressor = "svd", amount = [0.8, 0.4], attack = [{ name = "fgsm", eps = [0.02, 0.05], n_examples = 20 }] },
    { compressor = "magnitude", amount = [0.7], phases = 2, epochs = 1, lr = 0.02, only = ["dense-*"] },
]
"""


@pytest.fixture
def trained(tmp_path, monkeypatch):
    return trained_experiment(TOML, tmp_path, monkeypatch)


COMPRESSION, ROBUSTNESS = tables_of("compress"), tables_of("attack")


def quiet(spec, tables=COMPRESSION, **options):
    return assess(spec, device="cpu", bar=False, tables=tables, **options)


def test_an_experiment_is_compressed_as_declared(trained):
    assert progress(trained, tables=COMPRESSION) == (0, 4 + 4 * 2 + 2)  # filters, svd, pruning
    assert progress(trained, tables=ROBUSTNESS) == (0, 4)
    found = quiet(trained)
    assert progress(trained, tables=COMPRESSION) == (14, 14)
    assert progress(trained, tables=ROBUSTNESS) == (0, 4)
    rows = found.compressions
    assert len(rows) == 4 * 2 * 3 + 2
    assert not rows.duplicated().any()
    assert set(rows["run_id"]) == set(found.filters["run_id"]) == set(found.runs["run_id"])
    pruned = rows.query("compressor == 'magnitude'")
    assert pruned[["phases", "epochs", "lr"]].drop_duplicates().to_numpy().tolist() == [[2, 1, 0.02]]
    record = found.provenance["dense-s0"]["compressions"]
    assert record["command"] == "python -m study compress tiny --preset paper"
    assert set(rows["commit"]) == {record["commit"]}


def test_a_product_is_counted_as_it_is_trained(trained):
    runs = results.read_table(trained.folder(), "runs").query("seed == 0").set_index("method")
    dense, product = runs.loc["dense"], runs.loc["lorita"]
    factors = overparametrize(Tiny(), 2, skip=["classifier"])
    assert product["n_params_trained"] == sum(p.numel() for p in factors.parameters())
    assert product["n_params_trained"] > dense["n_params_trained"] == product["n_params_deployed"]


def test_only_what_is_new_is_measured(trained, monkeypatch):
    before = quiet(trained).compressions
    calls = []
    original = compressibility.compression_rows
    monkeypatch.setattr(compressibility, "compression_rows", lambda *a, **k: calls.append(a[2]) or original(*a, **k))
    quiet(trained)
    assert not calls
    wider = Experiment.load("tiny", compression=[{"compressor": "svd", "amount": [0.8, 0.9]}])
    assess(wider, trained.folder(), device="cpu", bar=False, tables=COMPRESSION)
    assert [plan.amount for plan in calls] == [0.9] * 4
    rows = results.read_table(trained.folder(), "compressions")
    assert len(rows) == len(before) + 4
    assert not rows.duplicated().any()
