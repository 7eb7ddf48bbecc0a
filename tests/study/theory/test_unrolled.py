"""Unrolled networks: a layer of ISTA is the proximal step, constraints are what they say, multipliers stay positive."""

import itertools

import pytest
import torch

import wellcond as wc
from study.theory import unrolled
from study.theory.lista import Lista, constraints, dictionary, draw, losses
from study.theory.unrolled import METHODS, dual_step, project, train


@pytest.fixture
def problem():
    torch.manual_seed(0)
    D = dictionary()
    return D, draw(D, 50)


@torch.no_grad()
def test_a_layer_of_ista_is_the_proximal_step(problem):
    """z_{l+1} minimizes ½||z - (z_l - η g(z_l))||² + ηλ||z||_1: its subgradient there contains zero."""
    D, (x, _) = problem
    weight, eta = 0.1, 1 / torch.linalg.matrix_norm(D, 2) ** 2
    states = Lista(D, weight)(x)
    for z, after in itertools.pairwise(states):
        slope = (z - eta * (z @ D.mT - x) @ D - after) / (eta * weight)
        assert slope.abs().max() <= 1 + 1e-4
        torch.testing.assert_close(slope[after != 0], after[after != 0].sign(), rtol=0, atol=1e-3)


@torch.no_grad()
def test_ista_descends_to_the_lasso(problem):
    D, (x, _) = problem
    states = Lista(D, layers=300)(x)
    value = (states @ D.mT - x).square().sum(2) / 2 + 0.1 * states.abs().sum(2)
    assert (value[1:] <= value[:-1] + 1e-5).all()
    gradient = (states[-1] @ D.mT - x) @ D
    assert gradient.abs().max() < 0.1 + 1e-3


@torch.no_grad()
def test_constraints_by_brute_force(problem):
    D, (x, _) = problem
    states = Lista(D, random=True)(x)
    for k, value in enumerate(constraints(states, x, D), 1):
        ratios = [
            float((D.mT @ (D @ states[k, i] - x[i])).norm() / (D.mT @ (D @ states[k - 1, i] - x[i])).norm())
            for i in range(len(x))
        ]
        assert float(value) == pytest.approx(sum(ratios) / len(ratios) - 0.95, abs=1e-5)


def test_multipliers_grow_with_violations_and_are_never_negative():
    moved = dual_step(torch.tensor([0.0, 0.0, 2.0]), torch.tensor([0.5, -0.5, -1.0]))
    assert moved.tolist() == [0.5, 0.0, 1.0]


def test_projection_bounds_norm_and_condition_number(problem):
    network = Lista(problem[0], random=True)
    network.W2.data *= 5
    project(network)
    assert (torch.linalg.matrix_norm(network.W2, 2) <= 1 + 1e-5).all()
    assert (wc.condition_number(network.W2) <= unrolled.BOUND * (1 + 1e-4)).all()


def test_training_learns_and_the_constraints_make_layers_descend(problem, monkeypatch):
    monkeypatch.setattr(unrolled, "EPOCHS", 12)
    monkeypatch.setattr(unrolled, "BATCH", 50)
    D, test = problem
    data = draw(D, 1000)
    violation = {}
    for name in ("LISTA", "descending"):
        torch.manual_seed(0)
        network = train(D, data, METHODS[name])
        with torch.no_grad():
            states = network(test.x)
        assert losses(states, test.z)[-1] < 0.95 * losses(states, test.z)[0]
        violation[name] = float(constraints(states, test.x, D).relu().mean())
    assert violation["descending"] < 0.7 * violation["LISTA"]


def test_findings(monkeypatch):
    for name, value in {
        "TRAIN": 250,
        "TEST": 200,
        "EPOCHS": 1,
        "NOISES": (0.01, 0.3),
        "SPARSITIES": (0.05, 0.2),
    }.items():
        monkeypatch.setattr(unrolled, name, value)
    findings, rows = unrolled.unrolled(2)
    assert all(finding.interval.seeds == 2 for finding in findings)
    assert set(rows["panel"]) == {"layers", "gradients", "noise", "sparsity", "kappa"}
    assert rows["y"].gt(0).all()
