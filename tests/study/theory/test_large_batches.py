"""Large batches: the adversary, the machines, one ratio, the bytes, and that the experiment goes through."""

import pytest
import torch
from torch.nn import functional as F

import wellcond as wc
from study.data import load
from study.theory import large_batches as lb
from study.theory import machines
from study.theory.machines import BOUNDED, DENSE, EPS, FORMS, LARS, SGD, adversarial, differentiate
from study.theory.small_networks import perceptron14

DIGITS = load("digits", n_train=200)


def batch():
    images = DIGITS.train.halved()
    return images.pixels(slice(100)), images.labels[:100]


@pytest.mark.parametrize("steps", [1, 4])
def test_the_adversary_stays_in_the_ball_and_raises_the_loss(steps):
    torch.manual_seed(0)
    model, (x, y) = perceptron14(), batch()
    found = adversarial(model, x, y, steps)
    assert float((found - x).abs().max()) <= EPS + 1e-6
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert F.cross_entropy(model(found), y) > F.cross_entropy(model(x), y) + 0.1


def test_several_steps_are_stronger_than_one():
    torch.manual_seed(0)
    model, (x, y) = perceptron14(), batch()
    one, four = (F.cross_entropy(model(adversarial(model, x, y, steps)), y) for steps in (1, 20))
    assert four > one


@pytest.mark.parametrize("form", FORMS)
def test_machines_send_the_gradient_of_the_batch_up_to_their_rounding(form, monkeypatch):
    monkeypatch.setattr(machines, "MACHINE", 30)  # of a hundred: the last one has ten images
    torch.manual_seed(0)
    model, (x, y) = FORMS[form](perceptron14()), batch()
    F.cross_entropy(model(x), y).backward()
    exact = [p.grad.clone() for p in model.parameters()]
    differentiate(model, x, y, 32)
    for p, grad in zip(model.parameters(), exact, strict=True):
        torch.testing.assert_close(p.grad, grad)
    mean = [torch.zeros_like(grad) for grad in exact]
    for _ in range(50):
        differentiate(model, x, y, 8)
        for total, p in zip(mean, model.parameters(), strict=True):
            total += p.grad / 50
    for total, grad in zip(mean, exact, strict=True):
        # four machines, each with an error below a 127th of its largest gradient, averaged fifty times
        assert 0 < float((total - grad).norm()) < 0.02 * float(grad.norm())


def test_one_ratio_is_lars_for_a_network_of_one_layer():
    torch.manual_seed(0)
    model, (x, y) = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(196, 10)), batch()
    found = []
    for scale in (machines.one_ratio_, machines.scale_gradients_):
        differentiate(model, x, y, 32)
        scale(model)
        found.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*found)


def test_bytes_are_those_of_what_is_sent():
    matrices, rest = 196 * 128 + 128 * 64, 64 * 10 + 128 + 64 + 10
    factors = 26 * (196 + 128) + 13 * (128 + 64)
    assert lb.kilobytes(DENSE, 32) == pytest.approx(4e-3 * (matrices + rest))
    assert lb.kilobytes(DENSE, 8) == pytest.approx(1e-3 * (matrices + rest + 4 * 6))
    assert lb.kilobytes("U Vᵀ", 32) == pytest.approx(4e-3 * (factors + rest))
    assert lb.kilobytes(BOUNDED, 32) == pytest.approx(4e-3 * (factors + 26**2 + 13**2 + rest))


def test_a_training_that_diverges_counts_as_guessing():
    images = DIGITS.train.halved()
    assert lb.train(images, DENSE, lb.RULES[SGD]._replace(steps=1), 200, 1e30, 0) is None
    assert lb.measure(None, images, 0) == (lb.CHANCE, lb.CHANCE)


def test_linear_scaling_multiplies_the_rate_of_the_smallest_batch(monkeypatch):
    monkeypatch.setattr(lb, "train", lambda images, form, rule, batch, rate, seed: rate)
    monkeypatch.setattr(lb, "measure", lambda rate, images, seed: (0.0, -abs(rate - 0.4)))
    rates = lb.tuned("digits", lb.Lines())
    assert rates[DENSE, SGD, 128] == rates[BOUNDED, SGD, 2048] == 0.4
    assert rates[DENSE, lb.SCALED, 2048] == pytest.approx(6.4)
    assert rates[BOUNDED, lb.EIGHT, 2048] == rates[BOUNDED, LARS, 2048] == 0.16


def test_the_findings(monkeypatch):
    small = {"IMAGES": 64, "HELD_OUT": 20, "TEST": 20, "BATCHES": (32, 64), "ATTACK": 2}
    for name, value in small.items():
        monkeypatch.setattr(lb, name, value)
    monkeypatch.setattr(machines, "EPOCHS", 2)
    monkeypatch.setattr(lb, "RULES", {name: rule._replace(rates=rule.rates[:1]) for name, rule in lb.RULES.items()})
    findings, rows = lb.large_batches(2, "digits")
    assert len(findings) == 13
    assert set(rows["panel"]) == {"clean", "robust", "sent", "held out"}
    assert set(rows.loc[rows["panel"] == "robust", "seed"]) == {0, 1}
    assert rows["y"].between(0, 100).all()


def test_the_bound_holds_after_training():
    images = DIGITS.train.halved()
    model = lb.train(images.first(64), BOUNDED, lb.RULES[LARS]._replace(steps=1), 32, 0.02, 0)
    assert all(
        layer.S is None or wc.layer_reports(model)[name].kappa < 1.101
        for name, layer in wc.low_rank_layers(model).items()
    )
