"""The bench of linear minimizations: its steps do what they are timed for, and its rows are complete."""

import copy
import math

import pytest
import torch

from study import networks as models
from study.benches import linear_minimization as lmo_bench
from study.benches import tables as bench
from study.benches import training as training_bench
from study.benches.linear_minimization import CONTENDERS, ENGINES, LR, SETS, WEIGHT
from wellcond.methods import frank_wolfe
from wellcond.methods.constraint_sets import FAMILIES
from wellcond.methods.lorita import factors, overparametrize

TINY = "helpers:Tiny"


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(training_bench.INPUTS, TINY, (1, 28, 28))
    torch.manual_seed(0)
    return models.build(TINY)


def gradients_of(model):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(w.shape, generator=generator) for w in model.parameters() if w.ndim >= 2]


def parameters(contender):
    return [p.detach().clone() for group in contender.optimizer.param_groups for p in group["params"]]


def stepped(key, model, gradients):
    """What a contender has after a step: its weights, or their factors."""
    contender = CONTENDERS[key](model)
    contender.receive(gradients)
    contender.step()
    return parameters(contender)


def test_rows_are_complete(tiny):
    rows = bench.measure("lmo", net=TINY, batch=8, repeats=2)
    assert [(row["method"], row["engine"]) for row in rows] == list(CONTENDERS)
    first, *others = rows
    assert (first["method"], first["step_ratio"], first["training_ratio"]) == ("sgd", 1, 1)
    for row in rows:
        assert row.keys() == first.keys() == {
            "net", "method", "engine", "iterations", "batch", "step_s", "spread", "passes_s", "step_ratio",
            "training_ratio", "lmo_error", "largest_error",
        }  # fmt: skip
        assert (row["net"], row["batch"], row["passes_s"]) == (TINY, 8, first["passes_s"])
        together = (row["passes_s"] + row["step_s"]) / (first["passes_s"] + first["step_s"])
        assert row["training_ratio"] == pytest.approx(together)
        assert row["step_ratio"] == pytest.approx(row["step_s"] / first["step_s"])
        assert (row["iterations"] > 0) == row["engine"].startswith("power")
        assert math.isnan(row["lmo_error"]) == (row["method"] not in SETS)
    assert all(row["step_ratio"] > 1 for row in others)


def test_the_sets_are_those_of_the_library():
    assert set(SETS) == set(FAMILIES) - {"l1", "lp"}
    for name, engines in SETS.items():
        spectral = FAMILIES[name].coordinates is FAMILIES["nuclear"].coordinates
        assert engines == (("svd", "power_warm", "power_cold") if spectral else ("closed_form",))


def test_errors_are_those_of_the_engine(tiny):
    """Closed forms and the SVD up to rounding; ten iterations from nothing do better than one from the last step."""
    errors = lmo_bench.lmo_errors(TINY, batch=8, steps=6, checked=2)
    assert {len(values) for values in errors.values()} == {2 * len(gradients_of(tiny))}
    for (name, engine), values in errors.items():
        assert min(values) > -1e-5
        if engine in ("svd", "closed_form"):
            assert max(values) < 1e-5, name
    assert max(errors["nuclear", "power_warm"]) > max(errors["nuclear", "power_cold"])


def test_momentum_is_the_sum_of_decayed_gradients(tiny):
    reference = lmo_bench._Reference(TINY, 8, "cpu")
    m = [torch.zeros(()) for _ in gradients_of(tiny)]
    for momenta in reference.momenta(3):
        m = [0.9 * old + g for old, g in zip(m, reference.gradients(), strict=True)]
        torch.testing.assert_close(momenta, m)
    buffers = [state["momentum_buffer"] for w, state in reference.optimizer.state.items() if w.ndim >= 2]
    torch.testing.assert_close(buffers, m)  # the training is that of the momentum


def test_contenders_start_from_the_weights_and_leave_the_network_alone(tiny):
    before, gradients = copy.deepcopy(tiny.state_dict()), gradients_of(tiny)
    given = [g.clone() for g in gradients]
    for make in CONTENDERS.values():
        contender = make(tiny)
        contender.receive(gradients)
        contender.step()
    torch.testing.assert_close(tiny.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(gradients, given, rtol=0, atol=0)


def test_the_steps_of_the_rivals(tiny):
    """What each adds to a step of SGD, computed another way."""
    gradients = gradients_of(tiny)
    weights = [w.detach() for w in tiny.parameters() if w.ndim >= 2]
    for sgd, w, g in zip(stepped(("sgd", "closed_form"), tiny, gradients), weights, gradients, strict=True):
        torch.testing.assert_close(sgd, w - LR * g)
    for i, w in enumerate(weights):
        A = w.flatten(1)
        P, _, Qt = torch.linalg.svd(A, full_matrices=False)
        plain = A - LR * gradients[i].flatten(1)
        L, s, Rt = torch.linalg.svd(plain, full_matrices=False)
        expected = {
            ("nuclear_penalty", "svd"): plain - LR * WEIGHT * P @ Qt,
            ("group_lasso", "closed_form"): plain - LR * WEIGHT * A / A.norm(dim=1, keepdim=True),
            ("singular_value_threshold", "svd"): L * (s - LR * WEIGHT).clamp(min=0) @ Rt,
        }
        for key, matrix in expected.items():
            torch.testing.assert_close(stepped(key, tiny, gradients)[i].flatten(1), matrix)


@pytest.mark.parametrize("depth", [2, 3])
def test_lorita_moves_its_factors_along_the_gradient_of_the_product(tiny, depth):
    gradients = gradients_of(tiny)
    found = stepped((f"lorita_{depth}", "closed_form"), tiny, gradients)
    product = overparametrize(tiny, depth)
    optimizer = torch.optim.SGD(product.parameters(), lr=LR, weight_decay=WEIGHT)
    layers = [module for module in product.modules() if hasattr(module, "parametrizations")]
    sum((layer.weight * g).sum() for layer, g in zip(layers, gradients, strict=True)).backward()
    optimizer.step()
    torch.testing.assert_close(found, [f.detach() for product_factors in factors(product) for f in product_factors])


@pytest.mark.parametrize("key", [key for key in CONTENDERS if key[0] in SETS], ids="-".join)
def test_frank_wolfe_moves_every_weight_and_only_warm_starts_remember(tiny, key, monkeypatch):
    gradients, calls, find = gradients_of(tiny), [], frank_wolfe.block_power_iteration

    def watched(A, k, start=None, *, iterations):
        calls.append((start is not None, iterations))
        return find(A, k, start, iterations=iterations)

    monkeypatch.setattr(frank_wolfe, "block_power_iteration", watched)
    contender = CONTENDERS[key](tiny)
    start = parameters(contender)
    contender.receive(gradients)
    contender.step()
    calls.clear()
    contender.step()
    kind, iterations, warm = ENGINES[key[1]]
    assert calls == ([(warm, iterations)] * len(gradients) if kind == "power" else [])
    assert {group["constraint"] for group in contender.optimizer.param_groups} == {key[0]}
    assert all(not torch.equal(w, old) for w, old in zip(parameters(contender), start, strict=True))


def test_growth_rows(monkeypatch):
    monkeypatch.setattr(lmo_bench, "SWEEPS", {"k": [(24, 2), (24, 4)], "size": [(16, 3)]})
    rows = bench.measure("lmo_growth", repeats=2)
    assert [(row["sweep"], row["n"], row["k"]) for row in rows] == [("k", 24, 2), ("k", 24, 4), ("size", 16, 3)]
    assert all(0 < row["products_s"] < row["power_cold_s"] for row in rows)  # two products against twenty
    assert all(min(row[name] for name in lmo_bench.QUANTITIES) > 0 for row in rows)
