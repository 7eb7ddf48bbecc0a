"""Optimizers of torch on the manifold: consistent with the integrator, and right where they end."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

import wellcond as wc
from helpers import DOUBLE, randn
from wellcond.integrator import Factors, lowrank_step
from wellcond.methods.riemannian import back_on_manifold, horizontal_gradient

OPTIMIZERS = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    "Adam": {"lr": 0.01},
    "AdamW": {"lr": 0.01},
    "NAdam": {"lr": 0.01},
    "RAdam": {"lr": 0.01},
    "Adamax": {"lr": 0.01},
    "RMSprop": {"lr": 0.003, "momentum": 0.5},
    "Adagrad": {"lr": 0.03},
    "Adadelta": {"lr": 1.0},
    "Rprop": {"lr": 0.003},
}


def layer(n=9, m=7, rank=3, dtype=DOUBLE, seed=0):
    torch.manual_seed(seed)
    return wc.factorize(nn.Sequential(nn.Linear(m, n, bias=False).to(dtype)), rank=rank)


def factors(model):
    return Factors(*(p.detach().clone() for p in (model[0].U, model[0].S, model[0].V)))


def matrix(W):
    return W.U @ W.S @ W.V.mT


def kappa(model):
    return wc.condition_number(model[0].S.detach().double()).item()


def distance(model, target):
    return (model[0].weight - target).square().sum() / 2


def stepped(model, optimizer, target):
    optimizer.zero_grad()
    loss = distance(model, target)
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("max_cond", [math.inf, 1.5])
def test_sgd_on_the_manifold_is_the_integrator(max_cond):
    """Without momentum: the same formulas, evaluated by another program."""
    model, target = layer(), randn(9, 7, seed=1)
    wc.constrain(model, max_cond)
    optimizer = wc.on_manifold(torch.optim.SGD, wc.param_groups(model, max_cond=max_cond), lr=0.1)
    W = factors(model)
    for _ in range(5):
        stepped(model, optimizer, target)
        G = matrix(W) - target
        grad = Factors(G @ W.V @ W.S.mT, W.U.mT @ G @ W.V, G.mT @ W.U @ W.S)
        zero = Factors(*map(torch.zeros_like, W))
        W, _ = lowrank_step(W, grad, zero, lr=0.1, max_cond=max_cond)
        torch.testing.assert_close(matrix(factors(model)), matrix(W), rtol=0, atol=1e-12)


def test_order_of_accuracy():
    """One step of SGD is W - h P_W G up to O(h²), P_W the projection onto the tangent space of the rank-r matrices."""
    errors, steps = [], [2.0**-k for k in range(4, 10)]
    for h in steps:
        model, target = layer(), randn(9, 7, seed=1)
        W = factors(model)
        G = matrix(W) - target
        P, Q = W.U @ W.U.mT, W.V @ W.V.mT
        tangent = P @ G + G @ Q - P @ G @ Q
        stepped(model, wc.on_manifold(torch.optim.SGD, wc.param_groups(model), lr=h), target)
        errors.append((matrix(factors(model)) - (matrix(W) - h * tangent)).norm().item())
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes[-1] == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends_inside_the_constraint(name):
    model, target = layer(), 0.3 * randn(9, 7, seed=1)
    wc.constrain(model, 1.5)
    groups = wc.param_groups(model, max_cond=1.5)
    optimizer = wc.on_manifold(getattr(torch.optim, name), groups, **OPTIMIZERS[name])
    assert isinstance(optimizer, getattr(torch.optim, name))
    losses = [stepped(model, optimizer, target) for _ in range(300)]
    assert min(losses[-10:]) < 0.8 * losses[0]
    assert kappa(model) <= 1.5 * (1 + 1e-9)
    assert max(wc.orthogonality_error(X.detach()) for X in (model[0].U, model[0].V)) < 1e-12
    for X in (model[0].U, model[0].V):
        for key in ("momentum_buffer", "exp_avg"):
            if optimizer.state[X].get(key) is not None:
                assert (X.mT @ optimizer.state[X][key]).norm() < 1e-12, "the first moment is horizontal"


def test_adam_ends_in_the_best_approximation():
    """min ||W - A|| over rank 3 is the truncated singular value decomposition of A (Eckart and Young)."""
    model = layer()
    left, right = (torch.linalg.qr(randn(n, 7, seed=n))[0] for n in (9, 7))
    target = left * torch.tensor([2.0, 1.8, 1.6, 0.2, 0.1, 0.1, 0.05], dtype=DOUBLE) @ right.mT
    optimizer = wc.LowRankAdamW(wc.param_groups(model), lr=0.02, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        stepped(model, optimizer, target)
        schedule.step()
    least = torch.linalg.svdvals(target)[3:].square().sum().item() / 2
    assert distance(model, target).item() == pytest.approx(least, rel=1e-4)


def test_decoupled_decay_shrinks_the_matrix_and_nothing_else():
    model = layer()
    W = factors(model)
    optimizer = wc.LowRankAdamW(wc.param_groups(model), lr=0.1, weight_decay=0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(matrix(factors(model)), 0.95 * matrix(W), rtol=0, atol=1e-14)
    assert (factors(model).U - W.U).norm() < 1e-14


def test_what_is_not_low_rank_is_trained_by_the_optimizer_itself():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    ours = copy.deepcopy(plain)
    optimizers = [torch.optim.AdamW(plain.parameters(), lr=0.01), wc.LowRankAdamW(wc.param_groups(ours), lr=0.01)]
    x = torch.rand(8, 5)
    for _ in range(3):
        for model, optimizer in zip((plain, ours), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), ours.parameters(), strict=True))


def test_many_noisy_steps_in_single_precision():
    model = layer(40, 30, 8, torch.float32)
    wc.constrain(model, 1.1)
    optimizer = wc.LowRankAdamW(wc.param_groups(model, max_cond=1.1), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    assert kappa(model) <= 1.1 * (1 + 1e-5)
    assert max(wc.orthogonality_error(X.detach()) for X in (model[0].U, model[0].V)) < 2e-6


def test_a_resumed_training_is_the_same():
    target = randn(9, 7, seed=1)
    models = [layer(), layer()]
    optimizers = [wc.LowRankAdamW(wc.param_groups(model, max_cond=1.2), lr=0.01) for model in models]
    for _ in range(4):
        stepped(models[0], optimizers[0], target)
    models[1].load_state_dict(copy.deepcopy(models[0].state_dict()))
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for _ in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            stepped(model, optimizer, target)
    assert torch.equal(models[0][0].weight, models[1][0].weight)


@pytest.mark.parametrize("frozen", ["U", "S", "V"])
def test_a_frozen_factor_stays(frozen):
    model, target = layer(), randn(9, 7, seed=1)
    getattr(model[0], frozen).requires_grad_(False)
    before = factors(model)._asdict()
    stepped(model, wc.LowRankAdamW(wc.param_groups(model, max_cond=2.0), lr=0.01), target)
    after = factors(model)._asdict()
    assert {name for name in before if torch.equal(before[name], after[name])} == {frozen}


def test_gradients_and_loss_are_given_back():
    model, target = layer(), randn(9, 7, seed=1)
    optimizer = wc.LowRankAdamW(wc.param_groups(model), lr=0.01)

    def closure():
        optimizer.zero_grad()
        loss = distance(model, target)
        loss.backward()
        return loss

    expected = distance(model, target).item()
    assert optimizer.step(closure).item() == expected
    given = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), given, strict=True))


def test_half_precision():
    model = layer(dtype=torch.bfloat16)
    optimizer = wc.LowRankAdamW(wc.param_groups(model, max_cond=1.5), lr=0.01)
    for _ in range(20):
        stepped(model, optimizer, randn(9, 7, seed=1).bfloat16())
    assert max(wc.orthogonality_error(X.detach()) for X in (model[0].U, model[0].V)) < 0.02
    assert kappa(model) < 1.55


def test_the_two_halves_are_projections():
    W = factors(layer())
    grad = Factors(*(randn(*p.shape, seed=k) for k, p in enumerate(W)))
    ahead = horizontal_gradient(W, grad)
    assert (W.U.mT @ ahead.U).norm() < 1e-13
    assert torch.equal(ahead.S, grad.S)
    still = back_on_manifold(
        W, Factors(W.U @ randn(3, 3), W.S, W.V), max_cond=math.inf, rule="nearest", retraction="polar"
    )
    torch.testing.assert_close(still.U, W.U, rtol=0, atol=1e-13)  # a step along the fibre leads nowhere


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: wc.on_manifold(torch.optim.LBFGS, m.parameters()),
            "optimizer = 'LBFGS': must be one that evaluates",
        ),
        (lambda m: wc.on_manifold("Adam", m.parameters()), "optimizer = 'Adam': must be a class of torch.optim"),
        (lambda m: wc.on_manifold(nn.Linear, m.parameters()), "must be a class of torch.optim"),
        (
            lambda m: wc.LowRankAdamW(wc.param_groups(m, max_cnd=1.1)),
            "option = 'max_cnd': unknown; did you mean 'max_cond'",
        ),
        (lambda m: wc.LowRankAdamW(wc.param_groups(m, max_cond=0.5)), "max_cond = 0.5: must be a number >= 1"),
        (lambda m: wc.LowRankAdamW(wc.param_groups(m, kind="stiefel")), "kind = 'stiefel': unknown"),
        (lambda m: wc.LowRankAdamW([{"params": m[0].U, "kind": "lowrank"}]), r"must be \[U, S, V\]"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(layer())


def test_a_gradient_that_is_not_finite_changes_nothing():
    model = layer()
    optimizer = wc.LowRankAdamW(wc.param_groups(model), lr=0.01)
    before = factors(model)
    for p in model.parameters():
        p.grad = torch.full_like(p, math.nan)
    with pytest.raises(ValueError, match="gradient = nan or inf"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, factors(model), strict=True))


@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_the_scale_of_the_loss_is_no_matter_to_adam(scale):
    model, ends = layer(), []
    optimizer = wc.LowRankAdamW(wc.param_groups(model), lr=0.01, eps=0.0)
    target = randn(9, 7, seed=1)
    for _ in range(5):
        optimizer.zero_grad()
        (scale * distance(model, target)).backward()
        optimizer.step()
        ends.append(matrix(factors(model)))
    plain = layer()
    plain_optimizer = wc.LowRankAdamW(wc.param_groups(plain), lr=0.01, eps=0.0)
    for end in ends:
        stepped(plain, plain_optimizer, target)
        torch.testing.assert_close(matrix(factors(plain)), end, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("maximize", [False, True])
def test_weight_decay_is_that_of_the_core(name, maximize):
    """The gradient of ||W||² has no component along the bases: they stay, whatever the optimizer does with it."""
    model = layer()
    before = factors(model)
    options = {**OPTIMIZERS[name], "weight_decay": 0.1, **({"maximize": True} if maximize else {})}
    if name == "Rprop":  # has none
        with pytest.raises(TypeError, match="weight_decay"):
            wc.on_manifold(torch.optim.Rprop, wc.param_groups(model), **options)
        return
    optimizer = wc.on_manifold(getattr(torch.optim, name), wc.param_groups(model), **options)
    for _ in range(20):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    after = factors(model)
    for X, Y in ((before.U, after.U), (before.V, after.V)):
        torch.testing.assert_close(Y, X, rtol=0, atol=1e-12)
    assert after.S.norm() < 0.9999 * before.S.norm()
    assert all(group["weight_decay"] == 0.1 for group in optimizer.param_groups)


def test_the_step_that_a_scaler_skips_is_skipped():
    """GradScaler leaves it to a fused optimizer to skip a step whose gradients have overflowed."""
    model = layer(dtype=torch.float32)
    before = factors(model)
    optimizer = wc.LowRankAdamW(wc.param_groups(model), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    (scaler.scale(distance(model, randn(9, 7, seed=1).float())) * math.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, factors(model), strict=True))
    assert scaler.get_scale() == 2.0**9
    optimizer.zero_grad()
    scaler.scale(distance(model, randn(9, 7, seed=1).float())).backward()
    scaler.step(optimizer)
    assert not torch.equal(before.S, factors(model).S)
