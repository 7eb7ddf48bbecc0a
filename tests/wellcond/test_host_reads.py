"""No update rule of a GPU reads a value back to the host, which would stop the queue in every step of every layer.

The tensors are fake: they have shapes and a device and no values, so that what asks for a value raises.
"""

import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import wellcond as wc
from wellcond import optim


@pytest.fixture(autouse=True)
def constructed(monkeypatch):
    """A constructor may read, once, whether factors are frames, which those without values are not."""
    monkeypatch.setattr(optim, "_is_frame", lambda X: True)


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 24))


def step_on_the_gpu(kind, max_cond):
    if kind.startswith("lowrank"):
        groups = wc.param_groups(wc.factorize(network(), rank=4), max_cond=max_cond, kind=kind)
    else:
        weights = [layer.weight for layer in wc.weight_layers(network()).values()]
        groups = [{"params": weights, "kind": kind, "max_cond": max_cond}]

    def fake(p):
        p = nn.Parameter(torch.empty(p.shape, device="cuda"))
        p.grad = torch.empty_like(p)
        return p

    with FakeTensorMode():
        groups = [{**group, "params": [fake(p) for p in group["params"]]} for group in groups]
        optimizer = wc.LowRankSGD(groups, lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.step()


@pytest.mark.parametrize("max_cond", [1.0, 1.1, 2.0, 10.0, math.inf])
def test_the_integrator_reads_nothing(max_cond):
    step_on_the_gpu("lowrank", max_cond)


@pytest.mark.parametrize("kind", ["euclidean", "stiefel", "lowrank_published_mean"])
def test_the_other_rules_read_nothing(kind):
    step_on_the_gpu(kind, 1.0)


@pytest.mark.parametrize("kind", ["clipped", "lowrank_plain", "lowrank_published_band"])
def test_a_rule_that_needs_the_singular_values_is_found_out(kind):
    """These factorize, and choose how by the values: the tests above can fail."""
    with pytest.raises(DataDependentOutputException):
        step_on_the_gpu(kind, 1.1)
