"""Cores that are zero, factors in half precision, steps inside a region of autocast."""

import copy

import pytest
import torch
from torch import nn

import wellcond as wc
from helpers import DOUBLE, randn
from optimizers import OPTIMIZERS
from points import M, N, R, clone, gradient, matrix, start, zeros
from wellcond.integrator import Factors, lowrank_step, lowrank_step_

HALF = [torch.bfloat16, torch.float16]


def scaled(W, factor):
    return Factors(W.U, factor * W.S, W.V)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e-300])
@pytest.mark.parametrize("retraction", ["qr", "polar", "cayley"])
def test_bases_wait_where_the_core_is_negligible(factor, dtype, retraction):
    """The first step is S <- -h m_S in the given bases, of both forms; the next one moves all."""
    W, target = scaled(start(dtype), factor), matrix(start(dtype, seed=9))
    momentum, lr = zeros(W), 0.1
    grad = gradient(W, target)
    plain, _ = lowrank_step(W, grad, zeros(W), lr=lr, retraction=retraction)
    new = clone(W)
    lowrank_step_(new, grad, momentum, lr=lr, retraction=retraction)
    tolerance = 30 * torch.finfo(dtype).eps
    for one in (plain, new):
        torch.testing.assert_close(one.U, W.U, rtol=0, atol=tolerance)
        torch.testing.assert_close(one.V, W.V, rtol=0, atol=tolerance)
        torch.testing.assert_close(one.S, -lr * grad.S)
    lowrank_step_(new, gradient(new, target), momentum, lr=lr, retraction=retraction)
    assert all(p.isfinite().all() for p in new)
    assert (new.U - W.U).norm() > 0.01


def test_only_the_layer_of_a_stack_that_starts_at_zero_waits():
    W = start(DOUBLE, batch=(3,))
    W.S[1] = 0
    grad = gradient(W, matrix(start(seed=9)))
    together, _ = lowrank_step(W, grad, zeros(W), lr=0.1)
    for k in range(3):
        own, own_grad = (Factors(*(p[k] for p in F)) for F in (W, grad))
        alone, _ = lowrank_step(own, own_grad, zeros(own), lr=0.1)
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[k], b, rtol=0, atol=1e-13)
        assert torch.allclose(alone.U, own.U, rtol=0, atol=1e-13) == (k == 1)


@pytest.mark.parametrize("max_cond", [1.1, 10.0, float("inf")])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_layer_that_starts_at_zero_is_trained(max_cond, momentum):
    """To the least squares solution of its rank, where the constraint admits it: min ||W - A||² = Σ_{i > r} σ_i²."""
    torch.manual_seed(0)
    P, Q = (torch.linalg.qr(randn(n, R, seed=n))[0] for n in (N, M))
    A = P @ torch.linspace(1.05, 1, R, dtype=DOUBLE).diag() @ Q.mT
    layer = nn.Linear(M, N, bias=False).double()
    nn.init.zeros_(layer.weight)
    layer = wc.factorize(layer, rank=R)
    assert not layer.S.any()
    optimizer = wc.LowRankSGD(wc.param_groups(layer, max_cond=max_cond), lr=0.1, momentum=momentum)
    for _ in range(400):
        optimizer.zero_grad()
        (layer.matrix() - A).square().sum().div(2).backward()
        optimizer.step()
    assert (layer.matrix() - A).norm() < 1e-3 * A.norm()
    assert max(wc.orthogonality_error(layer.U), wc.orthogonality_error(layer.V)) < 1e-12


def test_a_classifier_that_starts_at_zero_is_trained_like_the_dense_one():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 5)).double()
    nn.init.zeros_(dense[2].weight)
    x, y = randn(60, 20), torch.arange(60) % 5
    losses = []
    for model in (copy.deepcopy(dense), wc.factorize(dense, ratio=0)):
        optimizer = wc.LowRankSGD(wc.param_groups(model), lr=0.5)
        for _ in range(150):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] < 1.1 * losses[0] < 1.0  # log 5 = 1.6 at first


# -------------------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_in_half_precision_is_the_rounded_step_in_single(name, dtype):
    model, optimizer = OPTIMIZERS[name]()
    single = copy.deepcopy(model)
    model.to(dtype)
    for p, q in zip(model.parameters(), single.parameters(), strict=True):
        q.data = p.data.float()
    groups = [
        {
            **{k: v for k, v in g.items() if k != "params"},
            "params": [dict(zip(model.parameters(), single.parameters(), strict=True))[p] for p in g["params"]],
        }
        for g in optimizer.param_groups
    ]
    other = type(optimizer)(groups)
    x = randn(5, 7).to(dtype)

    def evaluate(network, steps):
        def run():
            steps.zero_grad()
            loss = (network(x.to(next(network.parameters()).dtype)) - 1).square().mean()
            loss.backward()
            if not name.startswith("BUG"):
                for p, q in zip(model.parameters(), single.parameters(), strict=True):
                    q.grad = p.grad.float()
            return loss

        return run

    if name.startswith("BUG"):  # two evaluations a step
        for _ in range(3):
            optimizer.step(evaluate(model, optimizer))
        frames = [X for layer in model for X in (layer.U, layer.V)]
        assert all(p.dtype == dtype and p.isfinite().all() for p in model.parameters())
        assert all(wc.orthogonality_error(X) < 8 * torch.finfo(dtype).eps for X in frames)
        return
    evaluate(model, optimizer)()
    optimizer.step()
    other.step()
    for (parameter, p), q in zip(model.named_parameters(), single.parameters(), strict=True):
        assert p.dtype == dtype
        if optimizer.state[p]:
            assert optimizer.state[p]["momentum_buffer"].dtype == dtype
        torch.testing.assert_close(
            p.float(), q.to(dtype).float(), rtol=torch.finfo(dtype).eps, atol=1e-3, msg=parameter
        )


@pytest.mark.parametrize("dtype", HALF)
def test_resuming_in_half_precision_is_bit_identical(dtype):
    def started():
        model = wc.factorize(nn.Sequential(nn.Linear(7, 6), nn.Linear(6, 4)), rank=3).to(dtype)
        return model, wc.LowRankSGD(wc.param_groups(model), lr=0.1, momentum=0.9)

    def train(model, optimizer):
        for seed in range(3):
            optimizer.zero_grad()
            (model(randn(5, 7, seed=seed).to(dtype)) - 1).square().mean().backward()
            optimizer.step()

    (model, optimizer), (resumed, other) = started(), started()
    train(model, optimizer)
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer)
    train(resumed, other)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_inside_autocast_is_the_step_outside(name):
    model, optimizer = OPTIMIZERS[name]()
    model.float()
    twin = copy.deepcopy(model)
    own = dict(zip(model.parameters(), twin.parameters(), strict=True))
    other = type(optimizer)([{**g, "params": [own[p] for p in g["params"]]} for g in optimizer.param_groups])

    def evaluate(network, steps):
        def run():
            with torch.autocast("cpu", enabled=False):
                steps.zero_grad()
                loss = (network(randn(5, 7).float()) - 1).square().mean()
                loss.backward()
            return loss

        return run

    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            optimizer.step(evaluate(model, optimizer))
        other.step(evaluate(twin, other))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
