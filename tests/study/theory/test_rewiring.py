"""Rewiring on MNIST: sizes by hand, budgets after training, and the whole in small."""

import math

import pytest
import torch

import wellcond as wc
from study.theory import fewer_weights as fw
from study.theory import rewiring as rw

TOTAL = 16 * 25 + 64 * 16 * 9 + 64 * 64 * 4 + 640


def test_sizes_count_indices_and_live_channels():
    model = rw.convnet14()
    assert rw.sizes(model) == dict.fromkeys(("non-zeros", "stored", "deployed"), 100)
    first, second, third, last = fw.weights(model)
    with torch.no_grad():
        second[:, 4:] = 0  # 4 of 16 channels are read, and 10 and 64 behind
        third[:, 10:] = 0
        found = rw.sizes(model)
        nonzeros = 400 + 64 * 4 * 9 + 64 * 10 * 4 + 640
        deployed = 4 * 25 + 10 * 4 * 9 + 64 * 10 * 4 + 640
        assert found["non-zeros"] == pytest.approx(100 * nonzeros / TOTAL)
        assert found["stored"] == found["deployed"] == pytest.approx(100 * deployed / TOTAL)
        for W in (first, second, third, last):
            W.zero_()
            W[:, 0, ...] = 1  # all that is read: one channel each
        last.fill_(1)
        first.view(-1)[:399] = 0
        found = rw.sizes(model)
        nonzeros = 1 + 64 * 9 + 64 * 4 + 640
        assert found["stored"] == pytest.approx(100 * (25 + 9 + 64 * 4 + 640) / TOTAL)
        assert found["non-zeros"] == pytest.approx(100 * nonzeros / TOTAL)
        few = torch.zeros(TOTAL)
        few[::20] = 1  # 5 %, an index each; at 10 % a bit for every weight is less
        for share, bits in ((20, 0.5 / 20), (10, 1 / 32)):
            few[::share] = 1
            for W, part in zip(fw.weights(model), few.split([W.numel() for W in fw.weights(model)]), strict=True):
                W.copy_(part.view_as(W))
            assert rw.sizes(model)["stored"] == pytest.approx(100 * (1 / share + bits), rel=1e-3)


@pytest.mark.parametrize("density", [0.2, 0.1, 0.05])
@pytest.mark.parametrize("core", [False, True])
def test_low_rank_rivals_deploy_at_most_as_many_weights(density, core):
    found = rw.sizes(fw.low_rank(rw.convnet14(), density, core))
    assert 0.9 * density < found["deployed"] / 100 <= density + 1e-9
    assert found["deployed"] == found["stored"] == found["non-zeros"]


QUICK = {"train": 40, "test": 30, "attacked": 5, "epochs": 1, "steps": 2}
SMALL = rw.MNIST._replace(dataset="digits", **QUICK)


@pytest.fixture(autouse=True)
def batches(monkeypatch):
    monkeypatch.setattr(rw, "BATCH", 20)


@pytest.mark.parametrize(
    ("name", "density"), [(rw.REWIRED, 0.05), (rw.CHANNELS, 0.2), (rw.MAGNITUDE, 0.05), (rw.USV, 0.1)]
)
def test_trained_networks_keep_their_budget(name, density):
    images = rw.load("digits", n_train=60).train.halved()
    model = rw.train(SMALL._replace(epochs=3), name, density, images, 0)
    found = rw.sizes(model)
    assert found["non-zeros"] <= 100 * density + 1e-9
    assert (found["deployed"] < found["non-zeros"]) == (name == rw.CHANNELS)
    if name == rw.USV:
        assert max(report.kappa for report in wc.layer_reports(model).values()) < rw.BOUND + 1e-3


def test_a_rewired_network_learns_against_the_adversary():
    images = rw.load("digits", n_train=120).train.halved()
    model = rw.train(SMALL._replace(epochs=10), rw.REWIRED, 0.2, images, 0)
    found = rw.accuracies(SMALL, model, images, 0)
    assert found["clean"] > 50
    assert 0 <= found["robust"] <= 100


@pytest.mark.parametrize("protocol", [SMALL, rw.CIFAR10._replace(dataset="digits32", **QUICK)])
def test_findings(protocol):
    findings, rows = rw.rewiring(2, protocol)
    assert {finding.system for finding in findings} == {protocol.system}
    assert all(finding.interval.seeds == 2 for finding in findings)
    assert all(math.isfinite(value) for finding in findings for value in finding.by_seed)
    assert len({finding.claim for finding in findings}) == len(findings)
    assert set(rows["panel"]) == {"clean", "robust", "non-zeros", "stored", "deployed"}
    assert rows["y"].between(0, 100).all()
