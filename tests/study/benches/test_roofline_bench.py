"""What the time consists of: the parts add up, and their FLOPs are those counted by hand."""

import math
import time

import pytest
import torch

from study.benches import roofline as roofline_bench
from study.benches import tables as bench


def test_rows_add_up():
    rows = bench.measure("roofline", net="lenet5", ratios=[0.8], batch=4, repeats=2)
    by = {(row["method"], row["task"]): row for row in rows}
    assert by.keys() == {(method, task) for method in ("dense", "condlr") for task in ("step", "latency")}
    for (method, task), row in by.items():
        parts = [row[f"{part}_ratio"] for part in ("products", "factorizations", "rest")]
        assert sum(parts) == pytest.approx(row["ratio_to_dense"])
        assert row["ratio_to_dense"] == pytest.approx(row["seconds"] / by["dense", task]["seconds"])
        assert (row["factorizations_s"] > 0) == (method == "condlr" and task == "step")
        assert math.isnan(row["ratio"]) == (method == "dense")
        flops = row["flops"] / by["dense", task]["flops"]
        assert row["floor_ratio"] == pytest.approx(flops * by["dense", task]["products_ratio"])
    dense = 2 * 4 * (20 * 25 * 24**2 + 50 * 500 * 8**2 + 800 * 500 + 500 * 10)  # of a batch of four
    assert by["dense", "latency"]["flops"] == dense
    first = 2 * 4 * 20 * 25 * 24**2  # its input needs no gradient
    assert by["dense", "step"]["flops"] == 3 * dense - first
    assert by["condlr", "latency"]["flops"] / dense == pytest.approx(0.2576, abs=1e-4)


def test_the_stopwatch_knows_the_kinds_and_changes_nothing():
    A = torch.randn(200, 200)
    with roofline_bench.Stopwatch("cpu") as stopwatch:
        product = A @ A
        assert stopwatch.seconds["products"] > 0
        assert stopwatch.seconds["factorizations"] == 0
        time.sleep(0.01)  # between operators: not counted
        torch.linalg.eigh(A.relu())
    assert torch.equal(product, A @ A)
    assert 0 < stopwatch.seconds["rest"] < stopwatch.seconds["factorizations"]
    once = dict(stopwatch.seconds)
    A @ A
    assert stopwatch.seconds == once
