"""Kernel pooling against noise alone: equal accuracy by interpolation, and the whole in small."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wellcond as wc
from study.theory import kernel_pooling as kp
from study.theory.noise_training import BOUND

accuracies = st.lists(st.floats(10, 100), min_size=2, max_size=6)


@pytest.mark.parametrize(
    ("values", "target", "sigma"),
    [
        ((96, 95, 94, 90), 92, 0.25),
        ((96, 97, 95, 90), 96, 0.15),  # noise helps at first: the largest σ counts
        ((96, 95, 95, 95), 95, 0.3),
        ((90, 91, 90, 89), 95, 0.0),
    ],
)
def test_noise_of_a_given_accuracy(values, target, sigma):
    found = kp.noise_at(dict(zip((0.0, 0.1, 0.2, 0.3), values, strict=True)), target)
    assert found == pytest.approx(sigma)


@settings(max_examples=50)
@given(accuracies, st.floats(10, 100))
def test_noise_interpolates_the_accuracy(values, target):
    sigmas = [0.1 * k for k in range(len(values))]
    found = kp.noise_at(dict(zip(sigmas, values, strict=True)), target)
    if max(values) >= target >= values[-1]:
        low = max(k for k, sigma in enumerate(sigmas) if sigma <= found + 1e-9)
        high, weight = min(low + 1, len(values) - 1), (found - sigmas[low]) / 0.1
        assert (1 - weight) * values[low] + weight * values[high] == pytest.approx(target, abs=1e-4)
    else:
        assert found in (sigmas[0], sigmas[-1])


SMALL = kp.MNIST.recipe._replace(epochs=4)


def test_training_with_noise_learns_with_and_without_pooling():
    data = kp.load("digits", n_train=500)
    for name in (kp.PLAIN, kp.POOLED):
        model = kp.unparametrized(kp.train(SMALL, data.train, name, 0.1, 0))
        assert kp.count_correct(model, data.test).n_correct > 0.3 * len(data.test)


def test_the_rival_is_inside_the_bound():
    model = kp.train(SMALL._replace(epochs=1), kp.load("digits", n_train=200).train, kp.BOUNDED, 0.1, 0)
    assert max(report.kappa for report in wc.layer_reports(model).values()) < BOUND + 1e-3


@pytest.mark.parametrize(("protocol", "digits"), [(kp.MNIST, "digits"), (kp.CIFAR10, "digits32")])
def test_findings(protocol, digits):
    small = {"train": 150, "held_out": 50, "attacked": 8, "effort": (("iterations", 1), ("queries", 2))}
    sigmas = {kp.PLAIN: (0, 0.2), kp.POOLED: (0, 0.2), kp.BOUNDED: (0.2,)}
    recipe = protocol.recipe._replace(epochs=1)
    findings, rows = kp.kernel_pooling(2, protocol._replace(dataset=digits, recipe=recipe, sigmas=sigmas, **small))
    assert {finding.system for finding in findings} == {protocol.system}
    assert all(finding.interval.seeds == 2 for finding in findings)
    quantities = {"clean", "l2", "linf", "kappa", "norms", "flags", "neighbours"}
    assert set(rows["panel"]) == quantities | {f"equal {quantity}" for quantity in quantities}
    assert rows.loc[rows["panel"] != "neighbours", "y"].map(math.isfinite).all()
