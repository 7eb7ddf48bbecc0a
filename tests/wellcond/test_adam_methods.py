"""AdamW in place of momentum SGD: each method takes the step that its name says, and keeps what it promises."""

import math

import pytest
import torch
from torch import nn

import wellcond as wc
from helpers import DOUBLE, Tiny, randn
from wellcond.integrator import Factors
from wellcond.methods import Settings, find
from wellcond.methods.adam import ProjectedAdamW, projected_gradient
from wellcond.methods.riemannian import horizontal_gradient

SETTINGS = {
    "dense_adamw": Settings(),
    "uv_adamw": Settings(ratio=0.5),
    "usv_adamw": Settings(ratio=0.5),
    "condlr_adamw": Settings(ratio=0.5, max_cond=1.1),
    "stella_adamw": Settings(ratio=0.5),
}


def prepared(name, **options):
    torch.manual_seed(0)
    method, settings = find(name), SETTINGS[name]
    model = method.prepare(Tiny(), settings)
    return model, method.optimizer(method.groups(model, settings), **options)


def train(model, optimizer, steps):
    x, y = torch.rand(32, 1, 28, 28, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 10
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", SETTINGS)
def test_each_method_descends_and_keeps_its_promise(name):
    model, optimizer = prepared(name, lr=0.01, momentum=0.9)
    first = train(model, optimizer, 1)
    assert train(model, optimizer, 60) < 0.7 * first
    with_core = [layer for layer in wc.low_rank_layers(model).values() if layer.S is not None]
    assert bool(with_core) == (name not in ("dense_adamw", "uv_adamw"))
    for layer in with_core:
        assert max(wc.orthogonality_error(X.detach()) for X in (layer.U, layer.V)) < 1e-5
        assert wc.condition_number(layer.S.detach().double()) <= SETTINGS[name].max_cond * (1 + 1e-4)


@pytest.mark.parametrize("name", ["dense_adamw", "uv_adamw"])
def test_without_a_core_it_is_torchs_adamw(name):
    model, optimizer = prepared(name, lr=0.01, momentum=0.8, weight_decay=0.1)
    plain, _ = prepared(name, lr=0.01)
    expected = torch.optim.AdamW(plain.parameters(), lr=0.01, betas=(0.8, 0.999), weight_decay=0.1)
    assert train(model, optimizer, 3) == train(plain, expected, 3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters(), strict=True))


def test_momentum_is_beta_1():
    for name in SETTINGS:
        _, optimizer = prepared(name, lr=0.01, momentum=0.7, weight_decay=0.05)
        assert {group["betas"] for group in optimizer.param_groups} == {(0.7, 0.999)}
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.05}
        assert isinstance(optimizer, ProjectedAdamW) == (name == "stella_adamw")


def test_the_projected_gradient_is_the_horizontal_one_without_its_preconditioner():
    U, V = (torch.linalg.qr(randn(n, 3, seed=n))[0] for n in (9, 7))
    W = Factors(U, torch.diag(torch.tensor([3.0, 2.0, 0.5], dtype=DOUBLE)), V)
    grad = Factors(*(randn(*p.shape, seed=k) for k, p in enumerate(W)))
    ours, theirs = horizontal_gradient(W, grad), projected_gradient(W, grad)
    torch.testing.assert_close(ours.U @ (W.S @ W.S.mT), theirs.U, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.V @ (W.S.mT @ W.S), theirs.V, rtol=0, atol=1e-6)
    assert (W.U.mT @ theirs.U).norm() < 1e-13
    assert torch.equal(ours.S, theirs.S)


def test_layers_of_equal_shape_step_as_each_alone():
    """One optimizer of three layers, two of them of one shape, against three optimizers."""

    def layers():
        torch.manual_seed(0)
        return wc.factorize(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 6)).double(), rank=3)

    together, apart = wc.constrain(layers(), 1.5), wc.constrain(layers(), 1.5)
    one = wc.LowRankAdamW(wc.param_groups(together, max_cond=1.5), lr=0.05)
    several = [wc.LowRankAdamW(wc.param_groups(layer, max_cond=1.5), lr=0.05) for layer in apart]
    for step in range(4):
        for model, optimizers in ((together, [one]), (apart, several)):
            for optimizer in optimizers:
                optimizer.zero_grad()
            (model(randn(5, 8, seed=step)) - 1).square().sum().backward()
            for optimizer in optimizers:
                optimizer.step()
    for p, q in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_decay_of_a_core_is_decay_of_the_matrix():
    model, optimizer = prepared("condlr_adamw", lr=0.1, momentum=0.9, weight_decay=0.5)
    before = {name: layer.matrix().detach().clone() for name, layer in wc.low_rank_layers(model).items()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, layer in wc.low_rank_layers(model).items():
        torch.testing.assert_close(layer.matrix(), 0.95 * before[name], rtol=0, atol=1e-6)


def test_settings_are_checked():
    find("condlr_adamw").check({"ratio": 0.8, "max_cond": 1.1})
    with pytest.raises(ValueError, match=r"max_cond = 1\.1: must be absent"):
        find("usv_adamw").check({"ratio": 0.8, "max_cond": 1.1})
    assert math.isinf(SETTINGS["usv_adamw"].max_cond)
