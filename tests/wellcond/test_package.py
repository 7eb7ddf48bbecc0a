"""The library as a package: what importing it loads, where its command line went, and what one file adds to it."""

import importlib.util
import json
import subprocess
import sys

import torch
from torch import nn

import wellcond as wc
from helpers import Tiny

PROBE = """
import json, sys
import torch
before = set(sys.modules)
import wellcond
print(json.dumps(sorted(set(sys.modules) - before)))
"""

METHOD = """
from wellcond.methods.method import Method, dense, plain_groups, register

register(Method("halved", "halved", "Dense weights, halved at the start.", dense, plain_groups))
"""

COMPRESSOR = """
import copy

import torch

from wellcond.compression.units import COMPRESSORS, Compressed


def shrunk(model, *, skip=()):
    def at(amount):
        new = copy.deepcopy(model)
        with torch.no_grad():
            for p in new.parameters():
                p.mul_(1 - amount)
        return Compressed(new, sum(p.numel() for p in new.parameters()), {}, {})

    return at


COMPRESSORS["shrunk"] = shrunk
"""


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def load(folder, name, source):
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_importing_it_loads_torch_and_nothing_else():
    """But what torch has loaded already: so it takes milliseconds."""
    loaded = json.loads(run("-c", PROBE).stdout)
    assert [name for name in loaded if name.split(".")[0] != "wellcond"] == []


def test_the_command_line_says_where_it_went():
    found = run("-m", "wellcond", "run", "mnist_lenet5")
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.splitlines() == [
        "wellcond is the library; experiments are run by: python -m study run mnist_lenet5"
    ]


def test_a_method_is_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr("wellcond.methods.method.METHODS", dict(wc.methods.METHODS))
    load(tmp_path, "halved", METHOD)
    method = wc.methods.find("halved")
    method.check({})
    model = method.prepare(Tiny(), wc.methods.Settings())
    optimizer = method.optimizer(method.groups(model, wc.methods.Settings()), lr=0.1)
    before = model.hidden.weight.clone()
    model(torch.rand(2, 1, 28, 28)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.hidden.weight, before)


def test_a_compressor_is_one_file(tmp_path, monkeypatch):
    monkeypatch.delitem(wc.compression.COMPRESSORS, "shrunk", raising=False)
    load(tmp_path, "shrunk", COMPRESSOR)
    small = wc.compression.compress(nn.Linear(2, 2, bias=False), "shrunk", amount=0.5)
    assert small.size == 4
    del wc.compression.COMPRESSORS["shrunk"]
