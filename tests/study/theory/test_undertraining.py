"""Under-training: a stack of rates is one network after the other, budgets hold, epochs are read off rightly."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

import wellcond as wc
from study.theory import undertraining as ut
from study.theory.compressed_training import METHODS, MOMENTUM, fit, measure
from study.theory.small_networks import lenet14
from study.theory.undertraining import needed
from wellcond.methods.method import plain_groups


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 10
    prototypes = torch.randn(10, 1, 14, 14, generator=generator)
    return prototypes[y] + 0.5 * torch.randn(64, 1, 14, 14, generator=generator), y


@pytest.mark.parametrize("key", [("dense", 0.0), ("U Vᵀ", 0.8), ("CondLR", 0.9)])
def test_a_member_trains_as_it_would_alone(data, key):
    rates = (0.0625, 0.25)  # exact in float32 too
    (x, y), start = data, lenet14().double()
    x = x.double()
    torch.manual_seed(1)
    members = fit(METHODS[key], [start], [(x, y)], 3, rates, 16)
    for rate, member in zip(rates, members, strict=True):
        torch.manual_seed(1)  # which what is prepared draws from as well
        alone, _ = (METHODS[key].prepare(copy.deepcopy(start), METHODS[key].settings) for _ in rates)
        optimizer = wc.LowRankSGD(plain_groups(alone, METHODS[key].settings), lr=rate, momentum=MOMENTUM)
        for epoch in range(3):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1, 1, 0.3)[epoch]  # milestones at epochs 1.8 and 2.55 of 3
            for index in torch.randperm(64).split(16):
                optimizer.zero_grad()
                F.cross_entropy(alone(x[index]), y[index]).backward()
                optimizer.step()
        for p, q in zip(member.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("key", [("AC/DC", 0.95), ("gradual", 0.95)])
def test_sparse_networks_end_within_their_budget_and_learn(data, key):
    torch.manual_seed(0)
    model = fit(METHODS[key], [lenet14()], [data], 60, (0.3,), 64)[0]
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    assert sum(W.numel() for W in weights) == 13_840
    assert sum(int(W.count_nonzero()) for W in weights) <= 13_840 - round(0.95 * 13_840)
    found = measure(model, data, data, data)
    assert found["loss"] < 0.5 * math.log(10)
    assert 0 < found["entropy"] < math.log(10)
    assert found["test"] == found["held out"] > 80


@pytest.mark.parametrize(
    ("accuracies", "multiple"),
    [
        ((90, 90.3, 90.4, 90.4), 1),
        ((80, 90, 90, 90), 2 ** (9.5 / 10)),
        ((80, 88, 89, 90), 4 * 2**0.5),
        ((80, 90, 80, 90), 4 * 2**0.95),  # stays, not touches
        ((91, 91, 91, 90), 1),
    ],
)
def test_epochs_to_the_limit_are_interpolated_in_their_logarithm(accuracies, multiple):
    assert needed((1, 2, 4, 8), accuracies) == pytest.approx(multiple)


@pytest.mark.parametrize("protocol", [ut.MNIST._replace(dataset="digits"), ut.CIFAR10._replace(dataset="digits32")])
def test_findings(protocol):
    small = {"epochs": 1, "train": 64, "held_out": 40, "test": 60, "budgets": (1, 2), "rates": (0.3,)}
    findings, rows = ut.undertraining(2, protocol._replace(**small))
    assert {finding.system for finding in findings} == {protocol.system}
    assert all(finding.interval.seeds == 2 for finding in findings)
    assert all(math.isfinite(value) for finding in findings for value in finding.by_seed)
    assert set(rows["panel"]) == {"error", "loss", "entropy", "recipe", "gain", "needed"}
    errors = rows[rows["panel"] == "error"]
    assert errors["y"].between(0, 100).all()
    assert set(errors["x"]) == {1, 2}
    dense = rows[(rows["panel"] == "gain") & (rows["series"] == "dense")]
    assert (dense["y"] == 0).all()
    assert (dense["x"] == 100).all()
