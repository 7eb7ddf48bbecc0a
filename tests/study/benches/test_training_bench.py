"""The rows of the training step, and what they count."""

import math

import pytest

from study.benches import tables as bench
from study.benches import training as training_bench


def test_training_rows():
    rows = training_bench.training_rows("lenet5", [0.8], batch=4, repeats=2)
    by = {(row["method"], row["layout"]): row for row in rows}
    assert by.keys() == {
        ("dense", "contiguous"), ("dense", "channels_last"),
        ("uv", "channels_last"), ("usv", "channels_last"), ("condlr", "channels_last"),
        ("condlr_recomputed", "channels_last"),
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
    recomputed = by["condlr_recomputed", "channels_last"]
    assert recomputed["train_flop_ratio"] > condlr["train_flop_ratio"]
    assert recomputed["memory_ratio"] <= condlr["memory_ratio"]  # at a batch of four the integrator may need the most
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
    trainee = training_bench.Trainee("lenet5", "usv", 0.8, 1, "contiguous", "cpu")
    layer = trainee.network.fc1
    n, m, r = 500, 800, 100
    passes = 3 * 2 * r * (n + m + r)  # forward and backward of a batch of one
    everything = trainee.flops()
    assert everything > 4 * 2 * (n + m) * r**2
    assert layer.rank == r
    assert passes < 0.1 * everything


def test_memory_of_a_step_contains_parameters_momenta_and_gradients():
    trainee = training_bench.Trainee("lenet5", "dense", 0.0, 1, "contiguous", "cpu")
    weights = sum(p.numel() * 4 for p in trainee.network.parameters())
    assert 3 * weights < trainee.memory() < 3.32 * weights
