"""Federated training: who has which images, what each way of merging does, and that the experiment goes through."""

import copy
import math

import pytest
import torch

import wellcond as wc
from study.data import load
from study.theory import federated as fe
from study.theory.federation import BATCH, CLIENTS, WAYS, Clients, drift, identical, network, skewed
from wellcond.methods.tangent_aggregation import exact_sum

DIGITS = load("digits")


def test_every_image_belongs_to_one_client():
    for split in (identical, skewed):
        assert torch.cat(split(DIGITS.train)).sort().values.tolist() == list(range(len(DIGITS.train)))


def test_skewed_clients_have_two_classes_each():
    for i, part in enumerate(skewed(DIGITS.train)):
        assert set(DIGITS.train.labels[part].tolist()) == {i, (i + 1) % CLIENTS}


def test_clients_train_as_each_would_alone():
    server = WAYS["tangent"].start(0)
    clients = Clients(DIGITS.train, "skewed", server, math.inf)
    torch.manual_seed(1)
    models = clients.train(server, 0.1, 0.5)
    torch.manual_seed(1)
    order = torch.rand(clients.y.shape).argsort(1)[3]
    alone = copy.deepcopy(server).requires_grad_()
    optimizer = wc.LowRankSGD(wc.param_groups(alone), lr=0.1)
    Z = dict(wc.densify(server).named_parameters())
    for index in torch.split(order, BATCH):
        optimizer.zero_grad()
        weights = [(layer, Z[f"{name}.weight"]) for name, layer in wc.weight_layers(alone).items()]
        penalty = sum((layer.weight - W).square().sum() for layer, W in weights)
        loss = torch.nn.functional.cross_entropy(alone(clients.x[3, index]), clients.y[3, index]) + 0.25 * penalty
        loss.backward()
        optimizer.step()
    for name, layer in wc.weight_layers(alone).items():
        torch.testing.assert_close(models[3].get_submodule(name).weight, layer.weight, rtol=1e-3, atol=1e-5)


def test_the_drift_is_the_distance_of_the_matrices():
    models = [wc.factorize(network(seed), ratio=0.8, skip="4") for seed in (0, 1)]
    own, server = ({name: p[None] for name, p in model.named_parameters()} for model in models)
    server = {name: p[0] for name, p in server.items()}
    pairs = zip(*(wc.densify(model).parameters() for model in models), strict=True)
    exact = sum((p - q).square().sum() for p, q in pairs if p.ndim == 2)
    torch.testing.assert_close(drift(own, server), exact)


@torch.no_grad()
@pytest.mark.parametrize("name", WAYS)
def test_every_way_returns_a_server_whose_clients_stayed(name):
    way = WAYS[name]
    server = way.start(0)
    before = [p.clone() for p in wc.densify(server).parameters()]
    way.merge(server, [copy.deepcopy(server) for _ in range(3)], exact_sum, way.max_cond)
    for p, q in zip(wc.densify(server).parameters(), before, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_products_are_the_truncation_of_the_mean_and_own_bases_are_not():
    server = WAYS["tangent"].start(0)
    models = Clients(DIGITS.train, "skewed", server, math.inf).train(server, 0.3, 0.0)
    mean = torch.stack([fe.first(model) for model in models]).mean(0)
    P, sigma, Qt = torch.linalg.svd(mean, full_matrices=False)
    best = (P[:, :26] * sigma[:26]) @ Qt[:26]
    errors = {}
    for name in ("tangent", "products", "factors", "own SVD"):
        merged = copy.deepcopy(server)
        WAYS[name].merge(merged, models, exact_sum, math.inf)
        errors[name] = float((fe.first(merged) - best).norm() / best.norm())
    assert errors["products"] < 1e-5
    assert max(errors["tangent"], errors["factors"]) < 0.1 < 0.3 < errors["own SVD"]


def test_megabytes_are_those_of_what_is_sent():
    n = {"matrices": 196 * 128 + 128 * 64, "coordinates": 26 * (196 + 128) + 13 * (128 + 64), "cores": 26**2 + 13**2}
    rest = 128 + 64 + 64 * 10 + 10
    for name, numbers in {
        "dense": 2 * n["matrices"],
        "tangent": 2 * n["coordinates"],
        "products": n["matrices"] + n["coordinates"],
        "factors": 2 * n["coordinates"] + n["cores"],
    }.items():
        assert WAYS[name].megabytes(WAYS[name].start(0)) == pytest.approx(4e-6 * (numbers + 2 * rest))


def test_the_findings(monkeypatch):
    monkeypatch.setattr(fe, "ROUNDS", 1)
    monkeypatch.setattr(fe, "RATES", (0.3,))
    monkeypatch.setattr(fe, "HALVINGS", 3)
    monkeypatch.setattr(fe, "SNRS", (20.0, 10.0))
    monkeypatch.setattr(fe, "NOISY", [name for name in fe.NOISY if "tangent" in name])
    monkeypatch.setattr(fe, "load", lambda name, **how: load("digits", seed=how["seed"]))
    findings, rows = fe.federated_mnist(2)
    assert [one.system for one in findings] == 13 * ["federated_mnist"]
    slope = next(one for one in findings if "second order" in one.claim)
    assert all(1.5 < value < 3 for value in slope.by_seed)
    panels = {"identical", "skewed", "noise", "drift", "kappa", "error", "normal", "angle"}
    assert set(rows["panel"]) == panels
    bounded = rows[(rows["panel"] == "kappa") & rows["series"].str.contains("κ ≤ 1.1")]
    assert bounded["y"].max() < 1.101
