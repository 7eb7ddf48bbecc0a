"""The variants of the integrator compute the same thing, and the rows are complete."""

import pytest
import torch

from helpers import randn
from points import clone, gradient, matrix, start, zeros
from study.benches import integrator as integrator_bench
from wellcond.integrator import lowrank_step
from wellcond.kinds.convolution import LowRankConv2d


@pytest.mark.parametrize("name", integrator_bench.VARIANTS)
def test_the_variants_compute_the_same_step_and_the_same_layer(name):
    kind, step = integrator_bench.VARIANTS[name]
    dense = torch.nn.Conv2d(6, 8, 3, padding=1, bias=False)
    layer, x = kind.from_dense(dense, 4), randn(2, 6, 5, 5, dtype=torch.float32)
    torch.testing.assert_close(layer(x), LowRankConv2d.from_dense(dense, 4)(x))

    W, options = start(), {"lr": 0.05, "beta": 0.5, "max_cond": 1.02}
    grad = gradient(W, matrix(start(seed=5, kappa=2.0)))
    expected, _ = lowrank_step(W, grad, zeros(W), **options)
    found = clone(W)
    returned = step(found, grad, zeros(W), **options)
    torch.testing.assert_close(matrix(returned[0] if returned else found), matrix(expected))


def test_growth_and_ablation_rows(monkeypatch):
    monkeypatch.setattr(integrator_bench, "SWEEPS", {"rank": [(32, 4, 1), (32, 8, 1)], "layers": [(16, 4, 2)]})
    rows = integrator_bench.growth_rows(repeats=2)
    assert [(row["sweep"], row["n"], row["rank"], row["layers"]) for row in rows] == [
        ("rank", 32, 4, 1), ("rank", 32, 8, 1), ("layers", 16, 4, 2),
    ]  # fmt: skip
    assert all(0 < row["products_s"] < row["step_s"] for row in rows)
    rows = integrator_bench.ablation_rows(channels=8, positions=4, batch=2, repeats=2)
    assert [row["variant"] for row in rows] == ["dense", *integrator_bench.VARIANTS]
    assert rows[0]["step_ratio"] == 1


def test_clip_rows():
    rows = integrator_bench.clip_rows(cores=1, repeats=2)
    assert [(row["rank"], row["max_cond"]) for row in rows] == [(r, c) for r in (16, 64, 256) for c in (1.0, 1.1, 2.0)]
    assert all(row["ratio"] == row["products_s"] / row["decomposition_s"] > 0 for row in rows)


def test_retraction_rows():
    rows = integrator_bench.retraction_rows(n=64, repeats=2)
    assert [(row["retraction"], row["rank"]) for row in rows] == [
        (name, r) for r in (4, 16) for name in integrator_bench.FORMS
    ]
    for row in rows:
        assert row["seconds"] > 0
        assert row["orthogonality"] < 3e-6
        assert row["error"] < 3e-6  # each form computes the retraction that it names
