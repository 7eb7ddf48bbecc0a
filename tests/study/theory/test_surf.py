"""Unrolled federated descent: what agents have, hear and compute, against loops, autograd and centralized descent."""

import pytest
import torch
from torch.nn import functional as F

from study.data import load
from study.theory import decentralized, surf
from study.theory.decentralized import Descent, accuracy, gradient, gradient_norms, ladder, mix, pools, start
from study.theory.lista import descent
from study.theory.surf import Surf, train


@pytest.fixture
def small(monkeypatch):
    """Four agents with ten digits each."""
    for module in (decentralized, surf):
        monkeypatch.setattr(module, "AGENTS", 4)
    for name, value in {"OWN": 10, "NEW": 20, "FEATURES": 6}.items():
        monkeypatch.setattr(decentralized, name, value)
    for name, value in {"BATCH": 5, "STEPS": 3, "LAYERS": 3, "EXCHANGES": 6, "ROUNDS": 8, "TESTS": 2}.items():
        monkeypatch.setattr(surf, name, value)
    torch.manual_seed(0)
    data = load("digits")
    return pools(data.train, data.test)


def test_the_ladder_is_doubly_stochastic_and_connected():
    S = ladder(12)
    torch.testing.assert_close(S, S.mT)
    assert ((S > 0).sum(1) == 4).all()
    torch.testing.assert_close(S.sum(0), torch.ones(12))
    assert torch.linalg.eigvalsh(S)[-2] < 0.9


def test_problems_have_no_image_twice_and_one_numbering_of_the_classes(small):
    for labels in ("same", "new"):
        problems = small[0].draw(3, labels)
        for x, y, x_new, y_new in zip(*problems, strict=True):
            images = torch.cat([x.flatten(0, 1), x_new])
            numbers = torch.cat([y.argmax(-1).flatten(), y_new]).tolist()
            assert len(images.unique(dim=0)) == 4 * 10 + 20
            true = [int(small[0].y[(small[0].x == image).all(1)][0]) for image in images]
            assert len(set(zip(true, numbers, strict=True))) == len(set(true)) == len(set(numbers))
            assert labels == "new" or true == numbers


def test_gradients_are_those_of_the_cross_entropy(small):
    problems = small[0].draw(2, "same")
    W = start(problems).requires_grad_()
    total = sum(
        F.cross_entropy(problems.x[b, i] @ W[b, i], problems.y[b, i].argmax(-1)) for b in range(2) for i in range(4)
    )
    (exact,) = torch.autograd.grad(total, W)
    torch.testing.assert_close(gradient(W, problems.x, problems.y), exact)
    torch.testing.assert_close(gradient_norms(W[None], problems)[0], exact.flatten(1).norm(dim=1))


def test_with_a_server_and_equal_data_descent_is_centralized(small):
    problems = small[0].draw(1, "same")
    equal = problems._replace(x=problems.x[:, :1].expand(-1, 4, -1, -1), y=problems.y[:, :1].expand(-1, 4, -1, -1))
    W = start(equal)[:, :1].expand(-1, 4, -1, -1)
    states = Descent(torch.full((4, 4), 0.25), 0.5, 3, local=2)(W, equal)
    alone = W[0, 0]
    for _ in range(6):
        alone = alone - 0.5 * gradient(alone, equal.x[0, 0], equal.y[0, 0])
    torch.testing.assert_close(states[-1, 0, 2], alone)


@torch.no_grad()
def test_a_layer_by_loops(small):
    problems = small[0].draw(1, "same")
    problems = problems._replace(
        x=problems.x[:, :, :1].expand(-1, -1, 10, -1), y=problems.y[:, :, :1].expand(-1, -1, 10, -1)
    )
    network, W, S = Surf(7), start(problems), ladder(4)
    network.h.copy_(torch.tensor([0.2, 0.5, 0.3]))
    network.d.fill_(0.05)
    after = network(W, problems)[1]
    for i in range(4):
        mixed = sum(
            ((0.2 * torch.eye(4) + 0.5 * S + 0.3 * S @ S)[i, j] * W[0, j] for j in range(4)), torch.zeros(7, 10)
        )
        seen = torch.cat([W[0, i].flatten(), problems.x[0, i, :5].flatten(), problems.y[0, i, :5].flatten()])
        torch.testing.assert_close(after[0, i], mixed - (network.M[0] @ seen + 0.05).relu().view(7, 10))


@torch.no_grad()
def test_who_sleeps_keeps_the_weights_and_noise_is_relative(small):
    problems = small[0].draw(2, "same")
    W = start(problems)
    for way in (Surf(7), Descent(ladder(4), 1.0, 3)):
        assert way(W, problems, asleep=1.0)[-1].equal(W)
        kept = (way(W, problems, asleep=0.5)[1] == W).flatten(2).all(2)
        assert kept.any()
        assert not kept.all()
    W = torch.randn(50, 4, 7, 10) * 3
    assert float((mix(torch.eye(4), W, 0.1) - W).std()) == pytest.approx(0.3, rel=0.05)


def test_constraints_make_layers_descend(small, monkeypatch):
    for name, value in {"STEPS": 100, "LAYERS": 8, "DUAL_EVERY": 5, "PROBLEMS": 2}.items():
        monkeypatch.setattr(surf, name, value)
    violation = {}
    for constrained in (False, True):
        torch.manual_seed(0)
        network = train(small[0], "same", constrained)
        with torch.no_grad():
            problems = small[1].draw(10, "same")
            states = network(start(problems), problems)
        violation[constrained] = float(descent(gradient_norms(states, problems)).relu().sum())
        assert accuracy(states, problems)[-1] > 30
    assert violation[True] < 0.5 * violation[False]


def test_the_findings(small):
    findings, rows = surf.surf(2, "digits")
    assert len(findings) == 9
    assert all(one.interval.seeds == 2 for one in findings)
    assert set(rows["panel"]) == {"same labels", "new labels", "gradients", "asleep", "noise"}
    ends = rows[rows["panel"] == "same labels"].groupby("series")["x"].max()
    assert ends.to_dict() == {"descending": 6, "unconstrained": 6, "FedAvg": 6, "long": 8, "stored": 0}
