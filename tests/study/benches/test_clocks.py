"""The clocks measure what they say."""

import time

import pytest
import torch

from study.benches import clocks


def test_rounds_are_interleaved_and_the_first_one_is_not_counted():
    calls = []
    seconds = clocks.interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=3)
    assert "".join(calls) == "abababab"
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_time_is_the_work_of_this_process():
    assert clocks.interleaved({"sleep": lambda: time.sleep(0.05)}, 2)["sleep"][0] < 0.04
    A = torch.randn(600, 600)
    once, often = (clocks.interleaved({0: lambda n=n: [A @ A for _ in range(n)]}, 9)[0] for n in (1, 20))
    assert 5 < sorted(often)[4] / sorted(once)[4] < 60


def test_peak_memory_counts_what_is_alive_together():
    def task():
        x = torch.zeros(250_000)  # 1 MB
        y = x + 1
        del x
        z = y * 2
        del y
        return z + 1

    def step():
        """As an optimizer does with its steps: what is freed inside is not put off to the end."""
        with torch.profiler.record_function("step"):
            task()

    for work in (task, step):
        assert clocks.peak_bytes(work, "cpu") == pytest.approx(2e6, rel=0.01)
