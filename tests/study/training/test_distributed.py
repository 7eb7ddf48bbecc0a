"""Several processes train the network that one would train: real processes, talking by gloo."""

import contextlib
import copy
import multiprocessing
import os
import subprocess
import sys
from collections import Counter

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from helpers import DOUBLE, Dropping, Tiny, generator
from study.data import Images
from study.experiments import cells as runner
from study.experiments.specification import Experiment
from study.training import distributed
from study.training.adversarial import Adversary
from study.training.distributed import ALONE, Processes
from study.training.loop import Recipe, fit
from wellcond.methods.registry import find
from wellcond.methods.settings import Settings

SIZE = 2
ROUNDING = 1e-9
"""float64: sums in another order, by 1e-16; a dozen steps with their factorizations amplify that."""

METHODS = {
    "dense": Settings(),
    "condlr": Settings(ratio=0.5, max_cond=1.1),
    "dlrt_adaptive": Settings(ratio=0.5, tolerance=0.4),
    "robust_dlrt": Settings(ratio=0.5, tolerance=0.1, beta=0.1),  # nine steps a cycle, and a penalty
}
ADVERSARIES = {"plain": None, "mixed": Adversary("mix", 0.5, 0.1), "trades": Adversary("trades", 6.0, 0.1)}
CASES = [(method, adversary) for method in METHODS for adversary in ADVERSARIES]


# ------------------------------------------------------------------------------------------------------------ the parts


@given(n=st.integers(0, 50), size=st.integers(1, 9))
def test_parts_make_up_the_batch(n, size):
    parts, weights = zip(*(Processes(rank, size).share(n) for rank in range(size)), strict=True)
    taken = Counter(i for part in parts for i in range(n)[part])
    if n >= size:
        assert taken == dict.fromkeys(range(n), 1)
        assert max(part.stop - part.start for part in parts) - min(part.stop - part.start for part in parts) <= 1
        assert list(weights) == [(part.stop - part.start) / n for part in parts]
    else:
        assert taken == dict.fromkeys(range(n), size)
    assert sum(weights) == pytest.approx(1)


def test_alone_nothing_is_changed():
    model = nn.Linear(2, 1)
    model.weight.grad = torch.ones(1, 2)
    value = torch.ones(3)
    ALONE.sum_gradients(model.parameters())
    ALONE.copy_first(model)
    ALONE.check_equal(model)
    assert torch.equal(model.weight.grad, torch.ones(1, 2))
    assert ALONE.sum(value) is value
    assert ALONE.first(value) is value
    assert ALONE.share(5) == (slice(0, 5), 1.0)
    assert distributed.current() == ALONE
    with distributed.joined("cpu") as processes:
        assert processes == ALONE


# ------------------------------------------------------------------------------------------------- the same as a single


def images(n=41):
    """In batches of 20 a last batch of one image, for two processes."""
    labels = torch.randint(0, 10, (n,), generator=generator(1))
    return Images(torch.randint(0, 256, (n, 1, 28, 28), generator=generator(2)).to(torch.uint8), labels)


def trained(method, adversary, processes=ALONE):
    """The losses, ranks and parameters after two epochs; the processes start with different weights."""
    torch.manual_seed(processes.rank)
    method, settings = find(method), METHODS[method]
    model = method.prepare(Tiny(), settings)
    optimizer = method.optimizer(method.groups(model, settings), lr=0.05, momentum=0.3, weight_decay=1e-3)
    losses = []
    fit(
        model,
        optimizer,
        images(),
        Recipe(epochs=2, batch_size=20, milestones=[1], augment="crop_flip"),
        seed=3,
        penalty=method.penalty(settings),
        adversary=ADVERSARIES[adversary],
        processes=processes,
        on_epoch=lambda _, loss: losses.append(loss),
    )
    return {"losses": losses, "parameters": [p.detach() for p in model.parameters()]}


class Stopped(Exception):
    """In all processes at once, after the first epoch."""


class Stopping:
    """A keeper of the first process, which stops all when it has kept the first epoch."""

    def __init__(self, processes, state=None):
        self.processes, self.state, self.stops = processes, state, state is None

    def restore(self):
        return self.state

    def keep(self, epoch, state):
        self.state = copy.deepcopy(state)
        if self.processes.first(self.stops):
            raise Stopped


def interrupted(method, processes):
    """The parameters after two epochs in one go, and with a stop and a new start between them."""

    def train(keeper):
        torch.manual_seed(processes.rank)
        kind, settings = find(method), METHODS[method]
        model = kind.prepare(Dropping(), settings)
        optimizer = kind.optimizer(kind.groups(model, settings), lr=0.05, momentum=0.3)

        def follow(*_):
            if processes.rank and keeper is not None and processes.first(None):
                raise Stopped

        protocol, options = Recipe(3, 20, schedule="cosine"), {"seed": 3, "penalty": kind.penalty(settings)}
        mine = keeper if processes.rank == 0 else None
        fit(model, optimizer, images(), protocol, **options, processes=processes, on_epoch=follow, keeper=mine)
        return [p.detach().clone() for p in model.parameters()]

    whole = train(None)
    first = Stopping(processes)
    with contextlib.suppress(Stopped):
        train(first)
    return whole, train(Stopping(processes, first.state or {"epoch": 0}))


class Normalized(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 2, 7, stride=7), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 10))


def refused(call):
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def disturbed(processes):
    """A network whose last weight differs in its last bit from one process to the next."""
    torch.manual_seed(0)
    model = Tiny()
    processes.check_equal(model)
    if processes.rank:
        model.classifier.bias.data[-1] = torch.nextafter(model.classifier.bias[-1], torch.tensor(torch.inf))
    processes.check_equal(model)


def in_group(rank, folder):
    """What one of the processes computes; written to <folder>/<rank>.pt."""
    torch.set_default_dtype(DOUBLE)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=SIZE)
    processes = distributed.current()
    found = {case: trained(*case, processes) for case in CASES}
    found["interrupted"] = {method: interrupted(method, processes) for method in METHODS}
    found["first"] = processes.first({"rank": rank})
    found["sum"] = processes.sum(torch.tensor([1.0, rank])).tolist()
    found["disturbed"] = refused(lambda: disturbed(processes))
    normalized = Normalized()
    found["normalized"] = refused(
        lambda: fit(
            normalized,
            torch.optim.SGD(normalized.parameters()),
            images(),
            Recipe(epochs=1, batch_size=20),
            processes=processes,
        )
    )
    spec = Experiment.load("digits_lenet5", "smoke")
    for option in ("jobs", "together"):
        found[option] = refused(lambda option=option: runner.run_experiment(spec, device="cpu", **{option: 3}))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """What each of the processes has computed."""
    folder = tmp_path_factory.mktemp("group")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=in_group, args=(rank, folder)) for rank in range(SIZE)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * SIZE
    return [torch.load(folder / f"{rank}.pt") for rank in range(SIZE)]


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_training_of_two_processes_ends_with_the_same_bits(group, method):
    """With dropout, whose masks differ from one process to the other."""
    for found in group:
        whole, parts = found["interrupted"][method]
        assert len(whole) == len(parts) > 0
        assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize(("method", "adversary"), CASES)
def test_two_processes_train_the_network_of_one(group, method, adversary):
    torch.set_default_dtype(DOUBLE)
    try:
        alone = trained(method, adversary)
    finally:
        torch.set_default_dtype(torch.float32)
    first, second = (found[method, adversary] for found in group)
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(alone["losses"], rel=ROUNDING)
    for p, q, expected in zip(first["parameters"], second["parameters"], alone["parameters"], strict=True):
        assert torch.equal(p, q)
        torch.testing.assert_close(p, expected, rtol=0, atol=ROUNDING)


def test_adaptive_ranks_have_changed(group):
    """Else the equality above would say nothing about parameters that change their shapes."""
    start = find("dlrt_adaptive").prepare(Tiny(), METHODS["dlrt_adaptive"])
    shapes = [p.shape for p in group[0]["dlrt_adaptive", "plain"]["parameters"]]
    assert shapes != [p.shape for p in start.parameters()]


def test_what_the_processes_say_to_each_other(group):
    assert [found["first"] for found in group] == [{"rank": 0}] * SIZE
    assert [found["sum"] for found in group] == [[2.0, 1.0]] * SIZE
    assert [found["disturbed"] for found in group] == [
        "",
        "RuntimeError: process 1 of 2 has other weights than the first",
    ]


def test_what_several_processes_cannot_do_is_refused_in_a_line(group):
    for found in group:
        message = "ValueError: processes = 2: must be 1 for a network with batch normalization on a CPU"
        assert found["normalized"] == message
        for option in ("jobs", "together"):
            message = f"ValueError: {option} = 3: must be 1 for 2 processes that train one network"
            assert found[option] == message


# ------------------------------------------------------------------------------------------------------------- torchrun

TOML = """
name = "tiny"
title = "Tiny"
dataset = "digits"
model = "helpers:Tiny"
seeds = [0]
n_train = 97
n_test = 40
train = { epochs = 2, batch_size = 16, lr = 0.1, momentum = 0.3, batch_factor = 2, warmup = 1 }
method = [
    { name = "svd_finetuned", ratio = [0.5] },
    { name = "dlrt_adaptive", ratio = [0.5], tolerance = [0.1], mix = [0.5], radius = [0.1] },
]
attack = [{ name = "fgsm", eps = [0.0, 0.1] }]
"""


@pytest.mark.slow
def test_torchrun_fills_in_an_experiment(tmp_path, monkeypatch):
    """With the results of a single process, written once; the dense base of a method is trained on the way."""
    (tmp_path / "tiny.toml").write_text(TOML, encoding="utf-8")
    spec = Experiment.load(tmp_path / "tiny.toml")
    monkeypatch.setenv("WELLCOND_RESULTS", str(tmp_path / "alone"))
    alone = runner.run_experiment(spec, device="cpu", progress=False)
    monkeypatch.setenv("WELLCOND_RESULTS", str(tmp_path / "torchrun"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "study", "run", str(tmp_path / "tiny.toml"), "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 cells done, 0 missing") == 1
    together = runner.load(spec)
    for found, processes in ((alone, None), (together, 2)):
        assert [run["training"].get("processes") for run in found.provenance.values()] == [processes] * 2
    first, second = (
        found.curves[found.curves["quantity"] != "orth_error"].set_index(["run_id", "epoch", "layer", "quantity"])
        for found in (alone, together)
    )
    pd.testing.assert_frame_equal(first, second, rtol=1e-3)
