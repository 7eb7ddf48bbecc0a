"""The allocator keeps what it is told to keep; what that saves is measured in two processes."""

import subprocess
import sys

import pytest

from study import allocator
from study.benches import pages as pages_bench

needs_glibc = pytest.mark.skipif(not allocator.is_glibc(), reason="the C library is not glibc")
PROGRAM = """
import resource, sys
import torch
from study.allocator import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else False)
for _ in range(3):  # 96 MB each
    torch.ones(24_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(24_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(how):
    """What keep_freed_memory returned, and the pages mapped by five more allocations of 96 MB, in a fresh process."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept, int(faults) * pages_bench.resource.getpagesize() / 96e6


@needs_glibc
def test_freed_memory_is_mapped_once():
    kept, mapped = pages("keep")
    assert kept == "True"
    assert mapped < 0.1
    assert pages("return")[1] > 2  # five times, where transparent huge pages do not hide some


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert not allocator.keep_freed_memory()
    with pytest.raises(ValueError, match=r"C library = 'another': must be glibc in the table pages"):
        pages_bench.pages_rows("lenet5", [0.8])


@needs_glibc
def test_two_processes_do_the_task_in_turn():
    both = pages_bench._in_turn(2, "lenet5", "condlr", 0.8, 2, "step")
    assert [len(found) for found in both] == [2, 2]
    assert all(spent.seconds > 0 and spent.pages >= 0 for found in both for spent in found)


@needs_glibc
def test_the_rows_compare_the_medians_of_two_processes(monkeypatch):
    page = pages_bench.resource.getpagesize() / 2**20
    asked, Spent = [], pages_bench.Spent

    def in_turn(*what):
        asked.append(what)
        return [Spent(8, 7), Spent(6, 9), Spent(1, 1)], [Spent(2, 0), Spent(3, 0), Spent(9, 2)]

    monkeypatch.setattr(pages_bench, "_in_turn", in_turn)
    rows = pages_bench.pages_rows("lenet5", [0.8], batch=2, repeats=3)
    compared = ("returned_s", "kept_s", "gain", "returned_mib", "kept_mib")
    assert [tuple(row[key] for key in compared) for row in rows] == [(6, 3, 2, 7 * page, 0)] * 4
    kinds = [(method, task) for method in ("dense", "condlr") for task in pages_bench.TASKS]
    assert [(row["method"], row["task"]) for row in rows] == kinds
    ratio = {"dense": 0.0, "condlr": 0.8}
    assert asked == [(3, "lenet5", method, ratio[method], 2, task) for method, task in kinds]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"net": "lenet"}, "net = 'lenet': unknown; did you mean 'lenet5'"),
        ({"batch": 0}, "batch = 0: must be >= 1"),
        ({"ratios": [1.0]}, "ratio = 1.0"),
        ({"device": "cuda"}, "device = 'cuda': must be cpu in the table pages"),
    ],
)
def test_bad_input_starts_no_process(arguments, message, monkeypatch):
    monkeypatch.setattr(pages_bench, "ProcessPoolExecutor", None)
    with pytest.raises(ValueError, match=message):
        pages_bench.pages_rows(**{"net": "lenet5", "ratios": [0.8], **arguments})
