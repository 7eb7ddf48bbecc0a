"""Rewiring: budgets, what is dead stays dead, shares of the regrown, and masked SGD where nothing moves."""

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
from wellcond.methods import Rewiring
from wellcond.methods.rewiring import apportion, per_unit, pruned, random_masks, regrown, shares


def weights_of(model):
    return [p for name, p in model.named_parameters() if name.endswith("weight")]


def steps_of(model, optimizer, count):
    x, y = randn(16, 1, 28, 28, dtype=next(model.parameters()).dtype), torch.arange(16) % 10
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        yield


layers = st.lists(st.tuples(st.floats(0, 10), st.integers(0, 50)), min_size=1, max_size=6)


@settings(max_examples=100)
@given(st.integers(0, 200), layers)
def test_parts_are_whole_fit_and_sum_to_the_count(count, drawn):
    weights, room = zip(*drawn, strict=True)
    parts = apportion(count, weights, room)
    assert sum(parts) == min(count, sum(room))
    assert all(0 <= part <= size for part, size in zip(parts, room, strict=True))


@settings(max_examples=100)
@given(st.integers(0, 500), st.lists(st.floats(0.01, 10), min_size=1, max_size=6))
def test_with_room_the_parts_are_proportional_to_less_than_one(count, weights):
    parts = apportion(count, weights, [500] * len(weights))
    assert np.abs(np.array(parts) - count * np.array(weights) / sum(weights)).max() < 1


def test_what_a_full_layer_cannot_take_goes_to_the_others_in_proportion():
    assert apportion(60, [3, 2, 1], [10, 100, 100]) == [10, 33, 17]
    assert apportion(60, [0, 0, 1], [10, 10, 20]) == [10, 10, 20]


def test_shares_are_normalised_means_over_the_living():
    momenta = [torch.tensor([1.0, 3.0, 100.0]), torch.tensor([6.0, 50.0])]
    masks = [torch.tensor([True, True, False]), torch.tensor([True, False])]
    assert shares(momenta, masks) == pytest.approx([0.25, 0.75])
    assert shares([torch.zeros(3), torch.zeros(2)], masks) == [0.5, 0.5]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.2, 1), st.floats(0, 1), st.sampled_from([None, 0, 1]))
def test_pruning_and_regrowth_keep_the_budget(seed, density, share, dim):
    weights = [randn(6, 3, 2, 2, seed=seed), randn(8, 24, seed=seed + 1), randn(3, 8, seed=seed + 2)]
    torch.manual_seed(seed)
    masks = random_masks(weights, density, dim)
    sizes = [W.numel() // mask.numel() for W, mask in zip(weights, masks, strict=True)]
    budget = round(density * sum(W.numel() for W in weights))

    def live(masks):
        return sum(int(mask.expand_as(W).sum()) for mask, W in zip(masks, weights, strict=True))

    norms = [per_unit(W.square(), dim) for W in weights]
    kept = pruned(norms, masks, sizes, share)
    gone = [mask & ~new for mask, new in zip(masks, kept, strict=True)]
    assert live(gone) <= share * live(masks) + 1e-9
    assert all(new.any() and not (new & ~mask).any() for mask, new in zip(masks, kept, strict=True))
    # no unit has gone that is larger than one that stays, but for the largest of a layer
    largest_gone = max((float(n[g].max()) for n, g in zip(norms, gone, strict=True) if g.any()), default=0)
    for norm, new in zip(norms, kept, strict=True):
        assert (norm[new] >= largest_gone).sum() >= new.sum() - 1
    momenta = [per_unit(randn(*W.shape, seed=seed + 3).abs(), dim) for W in weights]
    parts = shares(momenta, masks)
    new = regrown(kept, momenta, parts, sizes, budget)
    assert all((mask | ~old).all() for mask, old in zip(new, kept, strict=True))
    assert live(new) <= budget
    if dim is None:
        assert live(new) == live(masks) == budget
    else:
        assert budget - live(new) < sum(sizes)


def test_regrowth_is_where_the_momenta_are_and_as_they_share():
    masks = [torch.arange(40) < 4, torch.arange(40) < 4]
    momenta = [torch.arange(40.0), torch.arange(40.0).flip(0)]
    new = regrown(masks, momenta, [0.25, 0.75], [1, 1], 8 + 12)
    grown = [set(torch.where(mask & ~old)[0].tolist()) for mask, old in zip(new, masks, strict=True)]
    assert grown == [{39, 38, 37}, set(range(4, 13))]


def test_a_full_layer_leaves_the_budget_to_the_others():
    masks = [torch.tensor([True, True, False]), torch.zeros(50, dtype=torch.bool)]
    new = regrown(masks, [torch.rand(3), torch.rand(50)], [0.99, 0.01], [1, 1], 22)
    assert [int(mask.sum()) for mask in new] == [3, 19]


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, wc.LowRankSGD])
@pytest.mark.parametrize("dim", [None, 1])
def test_the_dead_and_their_momenta_are_exactly_zero_in_every_step(make, dim):
    torch.manual_seed(0)
    model = Tiny()
    weights = weights_of(model)
    extra = {"momentum": 0.9} if make is not torch.optim.AdamW else {}
    optimizer = make(model.parameters(), lr=0.01, weight_decay=0.01, **extra)
    density = 0.4 if dim else 0.1
    rewiring = Rewiring(optimizer, weights, density, dim, rho=0.01)
    budget, supports = round(density * sum(W.numel() for W in weights)), set()
    for epoch in range(4):
        for _ in steps_of(model, optimizer, 3):
            assert 0 < sum(int(W.count_nonzero()) for W in weights) <= budget
            for W, mask in zip(weights, rewiring.masks, strict=True):
                dead = ~mask.expand_as(W)
                states = [value for value in optimizer.state[W].values() if getattr(value, "shape", None) == W.shape]
                assert states
                assert all((value[dead] == 0).all() for value in (W, *states))
        rewiring.rewire(0.5 * (1 - epoch / 4))
        supports.add(tuple(tuple(mask.flatten().tolist()) for mask in rewiring.masks))
    assert len(supports) > 1  # it does move


def test_without_rewiring_and_regularizer_it_is_masked_sgd_bit_for_bit():
    torch.manual_seed(0)
    model = Tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    rewiring = Rewiring(optimizer, weights_of(model), 0.3)
    twin, masks = copy.deepcopy(model), [mask.clone() for mask in rewiring.masks]
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    x, y = randn(16, 1, 28, 28, dtype=torch.float32), torch.arange(16) % 10
    for _ in steps_of(model, optimizer, 6):
        rewiring.rewire(0.0)
        plain.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        for W, mask in zip(weights_of(twin), masks, strict=True):
            W.grad *= mask
        plain.step()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(p, q)
    assert all(torch.equal(*pair) for pair in zip(rewiring.masks, masks, strict=True))


def test_the_regularizer_is_that_of_admm_whose_multiplier_stays_zero():
    torch.manual_seed(0)
    model, rho = Tiny().double(), 0.3
    W = model.hidden.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    rewiring = Rewiring(optimizer, [W], 0.3, rho=rho)
    Z, Lambda = W.detach().clone(), torch.zeros_like(W)
    x, y = randn(16, 1, 28, 28), torch.arange(16) % 10
    for _ in range(3):
        for _ in range(2):
            before = W.detach().clone().requires_grad_()
            logits = torch.func.functional_call(model, {"hidden.weight": before}, x)
            loss = F.cross_entropy(logits, y) + rho / 2 * (before - Z + Lambda).square().sum()
            (gradient,) = torch.autograd.grad(loss, before)
            list(steps_of(model, optimizer, 1))
            torch.testing.assert_close(W, before - 0.05 * gradient * rewiring.masks[0], rtol=1e-12, atol=1e-14)
        rewiring.rewire(0.3)
        A = (W + Lambda).detach().flatten()  # projected on tensors with as many non-zeros as W may have
        index = A.abs().topk(rewiring.budget).indices
        Z = torch.zeros_like(A).index_put((index,), A[index]).view_as(W)
        Lambda = Lambda + W.detach() - Z
        assert Lambda.abs().max() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o, W: Rewiring(o, W, 1.1), "density = 1.1: must be in [0.00174, 1]"),
        (lambda o, W: Rewiring(o, W, 0.0005), "density = 0.0005: must be in [0.00174, 1]"),
        (lambda o, W: Rewiring(o, W, 0.5, rho=-1), "rho = -1: must be a number >= 0"),
        (lambda o, W: Rewiring(o, W, 0.5).rewire(1.5), "share = 1.5: must be in [0, 1]"),
    ],
)
def test_bad_input(call, message):
    W = torch.nn.Parameter(randn(24, 24))
    with pytest.raises(ValueError, match=re.escape(message)):
        call(torch.optim.SGD([W], lr=0.1), [W])


def trained(epochs, at):
    """Weights after so many epochs of two steps, all in one process or, from epoch `at` on, in another one."""

    def new(seed):
        torch.manual_seed(seed)
        model = Tiny()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return Rewiring(optimizer, weights_of(model), 0.3, rho=0.01), model, optimizer

    def train(parts, start, end):
        rewiring, model, optimizer = parts
        for epoch in range(start, end):
            for _ in steps_of(model, optimizer, 2):
                pass
            rewiring.rewire(0.5 * (1 - epoch / epochs))

    parts = new(0)
    train(parts, 0, at)
    states = copy.deepcopy([part.state_dict() for part in parts])
    parts = new(1)
    for part, state in zip(parts, states, strict=True):
        part.load_state_dict(state)
    train(parts, at, epochs)
    return weights_of(parts[1])


def test_an_interrupted_training_goes_on_with_its_masks_and_averages():
    for mine, whole in zip(trained(4, 2), trained(4, 0), strict=True):
        assert torch.equal(mine, whole)
