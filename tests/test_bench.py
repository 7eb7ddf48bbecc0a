"""The bench: it measures what it says, and its variants compute the same thing."""

import math
import re
import time

import pytest
import torch

from helpers import randn
from test_integrator import clone, gradient, matrix, start, zeros
from wellcond import bench
from wellcond.integrator import lowrank_step
from wellcond.layers import LowRankConv2d


def test_rounds_are_interleaved_and_the_first_one_is_not_counted():
    calls = []
    seconds = bench.interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=3)
    assert "".join(calls) == "abababab"
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_time_is_the_work_of_this_process():
    assert bench.interleaved({"sleep": lambda: time.sleep(0.05)}, 2)["sleep"][0] < 0.04
    A = torch.randn(600, 600)
    once, often = (bench.interleaved({0: lambda n=n: [A @ A for _ in range(n)]}, 9)[0] for n in (1, 20))
    assert 5 < sorted(often)[4] / sorted(once)[4] < 60


def test_peak_memory_counts_what_is_alive_together():
    def task():
        x = torch.zeros(250_000)  # 1 MB
        y = x + 1
        del x
        z = y * 2
        del y
        return z + 1

    assert bench.peak_bytes(task, "cpu") == pytest.approx(2e6, rel=0.01)


def test_training_rows():
    rows = bench.training_rows("lenet5", [0.8], batch=4, repeats=2)
    by = {(row["method"], row["layout"]): row for row in rows}
    assert by.keys() == {
        ("dense", "contiguous"), ("dense", "channels_last"),
        ("uv", "channels_last"), ("usv", "channels_last"), ("condlr", "channels_last"),
    }  # fmt: skip
    assert min(row["step_ratio"] for row in rows if row["method"] == "dense") == 1
    for row in rows:
        assert all(math.isfinite(value) for key, value in row.items() if isinstance(value, float) and key != "ratio")
        assert 0 < row["optimizer_share"] < 1
        assert 0 < row["data_share"] < 1
    condlr = by["condlr", "channels_last"]
    assert condlr["flop_ratio"] == pytest.approx(
        0.2576, abs=1e-4
    )  # counted by hand: sum of r(n + m) P over sum of nm P
    assert condlr["flop_ratio"] < condlr["train_flop_ratio"]  # the integrator's products, at a batch of four


def test_integrators_count_their_passes():
    """Two evaluations a step for K-L-S and the augmented step, ten in nine steps for RobustDLRT."""
    rows = bench.measure("integrators", net="lenet5", ratios=[0.8], batch=4, repeats=2)
    passes = {row["method"]: row["passes"] for row in rows}
    assert passes == {
        "dense": 1, "usv": 1, "condlr": 1, "dlrt": 2, "dlrt_adaptive": 2, "robust_dlrt": pytest.approx(10 / 9)
    }  # fmt: skip
    flops = {row["method"]: row["train_flop_ratio"] for row in rows}
    assert flops["robust_dlrt"] < flops["dlrt_adaptive"]


def test_products_that_overwrite_a_summand_are_counted():
    """Of one linear layer, four tall products for each basis (and a triangular solve, which is none)."""
    trainee = bench.Trainee("lenet5", "usv", 0.8, 1, "contiguous", "cpu")
    layer = trainee.network.fc1
    n, m, r = 500, 800, 100
    passes = 3 * 2 * r * (n + m + r)  # forward and backward of a batch of one
    everything = trainee.flops()
    assert everything > 4 * 2 * (n + m) * r**2
    assert layer.rank == r
    assert passes < 0.1 * everything


def test_memory_of_a_step_contains_parameters_momenta_and_gradients():
    trainee = bench.Trainee("lenet5", "dense", 0.0, 1, "contiguous", "cpu")
    weights = sum(p.numel() * 4 for p in trainee.network.parameters())
    assert 3 * weights < trainee.memory() < 3.3 * weights


@pytest.mark.parametrize("name", bench.VARIANTS)
def test_the_variants_compute_the_same_step_and_the_same_layer(name):
    kind, step = bench.VARIANTS[name]
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
    monkeypatch.setattr(bench, "SWEEPS", {"rank": [(32, 4, 1), (32, 8, 1)], "layers": [(16, 4, 2)]})
    rows = bench.growth_rows(repeats=2)
    assert [(row["sweep"], row["n"], row["rank"], row["layers"]) for row in rows] == [
        ("rank", 32, 4, 1), ("rank", 32, 8, 1), ("layers", 16, 4, 2),
    ]  # fmt: skip
    assert all(0 < row["products_s"] < row["step_s"] for row in rows)
    rows = bench.ablation_rows(channels=8, positions=4, batch=2, repeats=2)
    assert [row["variant"] for row in rows] == ["dense", *bench.VARIANTS]
    assert rows[0]["step_ratio"] == 1


def test_retraction_rows():
    rows = bench.retraction_rows(n=64, repeats=2)
    assert [(row["retraction"], row["rank"]) for row in rows] == [(name, r) for r in (4, 16) for name in bench.FORMS]
    for row in rows:
        assert row["seconds"] > 0
        assert row["orthogonality"] < 3e-6
        assert row["error"] < 3e-6  # each form computes the retraction that it names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"table": "trainin"}, "table = 'trainin': unknown; did you mean 'training'?"),
        ({"table": "training", "net": "lenet"}, "net = 'lenet': unknown; did you mean 'lenet5'?"),
        ({"table": "training", "batch": 0}, "batch = 0"),
        ({"table": "training", "ratios": [1.0]}, "ratio = 1.0"),
        ({"table": "growth", "repeats": 1}, "repeats = 1"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        bench.measure(**arguments)
