"""Sparse training: budgets of the masks, what is held at zero, and dense training where nothing is."""

import copy
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import wellcond as wc
from helpers import Tiny, randn
from wellcond.methods import SparseTraining
from wellcond.methods.alternating_compression import alternating, gradual, magnitude_masks


def steps_of(model, optimizer, count):
    x, y = randn(16, 1, 28, 28, dtype=torch.float32), torch.arange(16) % 10
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        yield


def weights_of(model):
    return [p for name, p in model.named_parameters() if name.endswith("weight")]


@given(st.integers(0, 10**6), st.floats(0, 0.999), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_masks_keep_the_largest_of_all_layers_and_their_budget(seed, sparsity, networks):
    weights = [randn(networks, 3, 4, seed=seed), randn(networks, 7, seed=seed + 1)]
    weights[1][:, :3] = 0  # ties
    masks = magnitude_masks(weights, sparsity, stacked=True)
    for k in range(networks):
        size = np.abs(np.concatenate([W[k].flatten().numpy() for W in weights]))
        mask = np.concatenate([m[k].flatten().numpy() for m in masks])
        assert mask.sum() == 19 - round(sparsity * 19)
        assert size[mask].min(initial=np.inf) >= size[~mask].max(initial=0)
        alone = magnitude_masks([W[k] for W in weights], sparsity)
        assert sum(int(m.sum()) for m in alone) == mask.sum()


def test_ac_dc_alternates_and_ends_compressed():
    share = alternating(0.9)
    shares = [share(epoch / 100) for epoch in range(101)]
    compressed = [epoch for epoch, s in enumerate(shares) if s]
    wanted = [e for e in range(70) if (e // 5) % 2 == 1] + [*range(85, 101)]
    assert compressed == wanted
    assert set(shares) == {0.0, 0.9}


def test_gradual_pruning_follows_the_cubic_from_below():
    share = gradual(0.9, end=0.5, stairs=100)
    t = np.linspace(0, 1, 777)
    cubic = 0.9 * (1 - (1 - np.minimum(t / 0.5, 1)) ** 3)
    found = np.array([share(float(s)) for s in t])
    assert (np.diff(found) >= 0).all()
    assert (found <= cubic + 1e-6).all()
    assert np.abs(found - cubic).max() < 3 * 0.9 / 100  # the slope of the cubic times a stair
    assert found[0] == 0
    assert found[-1] == 0.9


def test_without_zeros_it_is_dense_training_bit_for_bit():
    torch.manual_seed(0)
    models = [Tiny()]
    models.append(copy.deepcopy(models[0]))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
    SparseTraining(optimizers[1], weights_of(models[1]), alternating(0.9, last_dense=0, final=1), steps=100)
    for model, optimizer in zip(models, optimizers, strict=True):
        list(steps_of(model, optimizer, 5))
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, wc.LowRankSGD])
def test_zeros_stay_zero_within_a_phase_and_come_back_after_it(optimizer):
    torch.manual_seed(0)
    model = Tiny()
    weights = weights_of(model)
    total = sum(W.numel() for W in weights)
    optimizer = optimizer(model.parameters(), lr=0.05, weight_decay=0.01)
    share = alternating(0.9, period=0.2, last_dense=0.6, final=0.8)
    training = SparseTraining(optimizer, weights, share, steps=20)
    supports = []
    for _ in steps_of(model, optimizer, 20):
        supports.append(torch.cat([W.flatten() != 0 for W in weights]))
    kept = [int(support.sum()) for support in supports]
    budget = total - round(0.9 * total)
    for k, support in enumerate(supports, 1):
        if share(k / 20):
            assert kept[k - 1] <= budget
            assert share((k - 1) / 20) == 0 or not (support & ~supports[k - 2]).any()
    assert kept[3] <= budget < kept[8]
    assert training.sparsity == 0.9


def test_a_hand_written_masked_step_is_the_oracle():
    torch.manual_seed(0)
    model = Tiny().double()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    SparseTraining(optimizer, weights_of(model), lambda t: 0.8, steps=4)
    masks = magnitude_masks(weights_of(twin), 0.8)
    momenta = [torch.zeros_like(p) for p in twin.parameters()]
    position = {id(W): k for k, W in enumerate(weights_of(twin))}
    with torch.no_grad():
        for W, mask in zip(weights_of(twin), masks, strict=True):
            W *= mask
    x, y = randn(8, 1, 28, 28), torch.arange(8)
    for _ in range(4):
        for network in (model, twin):
            network.zero_grad()
            F.cross_entropy(network(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            for p, m in zip(twin.parameters(), momenta, strict=True):
                mask = masks[position[id(p)]] if id(p) in position else 1
                m.mul_(0.5).add_(p.grad * mask)
                p -= 0.1 * m
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_the_holding_ends():
    model = Tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = SparseTraining(optimizer, [model.hidden.weight], lambda t: 0.5, steps=10)
    list(steps_of(model, optimizer, 2))
    assert int((model.hidden.weight == 0).sum()) == 288
    training.stop()
    list(steps_of(model, optimizer, 1))
    assert int((model.hidden.weight == 0).sum()) < 288


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: alternating(1.0), "sparsity = 1.0: must be in [0, 1)"),
        (lambda: alternating(0.5, period=0), "period = 0: must be > 0"),
        (lambda: alternating(0.5, final=0.5), "final = 0.5: must be in [last_dense, 1]"),
        (lambda: gradual(0.5, end=0), "end = 0: must be in (0, 1]"),
        (lambda: gradual(0.5, stairs=0), "stairs = 0: must be >= 1"),
        (lambda: magnitude_masks([], 0.5), "weights = []: must be one tensor or more"),
        (lambda: SparseTraining(None, [], alternating(0.5), steps=0), "steps = 0: must be >= 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def interrupted(total, at):
    """Weights after `total` steps, all in one process or, from `at` on, in another one."""
    torch.manual_seed(0)
    model = Tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparse = SparseTraining(optimizer, weights_of(model), alternating(0.8, period=0.2), steps=total)
    for _ in steps_of(model, optimizer, at):
        pass
    states = copy.deepcopy([x.state_dict() for x in (sparse, model, optimizer)])
    torch.manual_seed(1)
    model = Tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparse = SparseTraining(optimizer, weights_of(model), alternating(0.8, period=0.2), steps=total)
    for part, state in zip((sparse, model, optimizer), states, strict=True):
        part.load_state_dict(state)
    for _ in steps_of(model, optimizer, total - at):
        pass
    return weights_of(model)


@pytest.mark.parametrize("at", [3, 5, 8])  # dense, compressed, compressed for the second time
def test_an_interrupted_training_goes_on_with_its_masks(at):
    for mine, whole in zip(interrupted(10, at), interrupted(10, 0), strict=True):
        assert torch.equal(mine, whole)
