"""The fast integrator against the plain one, and the promises it keeps over long runs."""

import contextlib
import copy
import math

import pytest
import torch
from torch import nn

import wellcond as wc
from architectures import networks
from helpers import DOUBLE, randn
from points import N, R, clone, gradient, matrix, start, zeros
from wellcond import integrator, optim, spectrum, stiefel
from wellcond.integrator import Factors, lowrank_step, lowrank_step_
from wellcond.methods import riemannian


@pytest.mark.parametrize("max_cond", [1.0, 1.1, math.inf])
@pytest.mark.parametrize("retraction", ["qr", "polar", "cayley"])
@pytest.mark.parametrize(("batch", "steps"), [((), 200), ((3,), 60)])
def test_fast_agrees_with_plain_over_many_steps(max_cond, retraction, batch, steps):
    # A moving target keeps the step at work; the flow is contracting, so rounding (eps = 2e-16) does not grow, and
    # 1e-10 leaves room for κ of the preconditioner.
    options = {"lr": 0.05, "beta": 0.8, "max_cond": max_cond, "retraction": retraction}
    plain, fast = start(batch=batch), start(batch=batch)
    plain_m, fast_m = zeros(plain), zeros(fast)
    first, second = (matrix(start(kappa=k, seed=s, batch=batch)) for k, s in ((3.0, 20), (2.0, 40)))
    for step in range(steps):
        target = first + math.sin(step / 50) * second
        plain, plain_m = lowrank_step(plain, gradient(plain, target), plain_m, **options)
        lowrank_step_(fast, gradient(fast, target), fast_m, **options)
        if step in (0, 9, steps - 1):
            for a, b in zip((*plain, *plain_m), (*fast, *fast_m), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert (matrix(fast) - matrix(start(batch=batch))).norm() > 1  # it went somewhere


@pytest.mark.parametrize(("retraction", "max_cond", "steps"), [("qr", 1.1, 10_000), ("polar", 1.0, 1000)])
def test_promises_after_many_float32_steps(retraction, max_cond, steps):
    torch.manual_seed(0)
    W = start(torch.float32)
    momentum = zeros(W)
    worst = 0.0
    for step in range(steps):
        grad = Factors(*(torch.randn_like(p) for p in W))  # noise without end: the worst case for drift
        lowrank_step_(W, grad, momentum, lr=0.01, beta=0.9, max_cond=max_cond, retraction=retraction)
        if step % 100 == 99:
            worst = max(worst, *(float(stiefel.orthogonality_error(X)) for X in (W.U, W.V)))
            assert spectrum.condition_number(W.S.double()) <= max_cond * (1 + 1e-4)
    assert worst <= 1e-5


def test_a_step_as_long_as_the_frame_is_retracted_exactly():
    """Far steps take the second pass, very far ones Householder's QR; in float32 both stay orthonormal."""
    torch.manual_seed(0)
    X = start(torch.float32).U
    horizontal = stiefel.project_horizontal(X, torch.randn(N, R))
    for size in (1e-3, 1.0, 10.0, 1e3, 1e6):
        Y = X + size * horizontal
        for fast, oracle in ((stiefel.cholesky_qr_, stiefel.qr), (stiefel.gram_polar_, stiefel.polar)):
            fast(Q := Y.clone())
            assert stiefel.orthogonality_error(Q) < 2e-6
            condition = float(spectrum.condition_number(Y.double()))
            torch.testing.assert_close(Q.double(), oracle(Y.double()), rtol=0, atol=2e-6 * condition)


@pytest.mark.parametrize("fast", [stiefel.cholesky_qr_, stiefel.gram_polar_])
def test_not_finite_is_not_silent(fast):
    A = start(torch.float32).U.clone()
    A[0, 0] = math.nan
    with contextlib.suppress(torch.linalg.LinAlgError):  # LAPACK's eigensolver says so itself
        fast(A)
        assert not A.isfinite().all()


def test_in_place_and_nothing_else():
    W, momentum = start(), zeros(start())
    grad = gradient(W, matrix(start(seed=9)))
    kept, pointers = clone(grad), [p.data_ptr() for p in (*W, *momentum)]
    assert lowrank_step_(W, grad, momentum, lr=0.1, beta=0.5, max_cond=1.1) is None
    assert pointers == [p.data_ptr() for p in (*W, *momentum)]
    for a, b in zip(grad, kept, strict=True):
        assert torch.equal(a, b)


def test_the_fast_retractions_are_retractions_of_the_library():
    assert integrator.ORTHONORMALIZE.keys() <= stiefel.RETRACTIONS.keys()


def test_a_network_in_bfloat16_trains_float32_factors():
    """Autocast is for the network; the factors, their gradients and retractions stay in float32."""
    torch.manual_seed(0)
    network = wc.factorize(networks.build("lenet5"), ratio=0.8)
    optimizer = wc.LowRankSGD(wc.param_groups(wc.constrain(network, 1.1), max_cond=1.1), lr=0.05, momentum=0.9)
    x, y = torch.rand(32, 1, 28, 28), torch.arange(32) % 10
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(x)
        assert logits.dtype == torch.bfloat16
        loss = nn.functional.cross_entropy(logits.float(), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]  # random labels are learnt slowly
    for layer in wc.low_rank_layers(network).values():
        assert layer.U.dtype == layer.U.grad.dtype == torch.float32
        assert stiefel.orthogonality_error(layer.U) < 1e-5
        assert spectrum.condition_number(layer.S) <= 1.1 * (1 + 1e-4)


@pytest.mark.parametrize("recomputes", [False, True])
def test_a_factorized_network_compiles_to_one_graph(recomputes):
    network = wc.recompute(wc.factorize(networks.build("lenet5"), ratio=0.5), recomputes)
    x = torch.rand(2, 1, 28, 28)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)  # a graph break is an error
    gradients = []
    for run in (compiled, network):
        network.zero_grad()
        logits = run(x)
        logits.square().sum().backward()
        gradients.append([logits.detach(), *(p.grad for p in network.parameters())])
    for by_graph, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(by_graph, plain)


MATMULS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


@pytest.fixture
def precisions():
    """What products in float32 may be, put back afterwards."""
    before = [matmul.fp32_precision for matmul in MATMULS]
    yield lambda: [matmul.fp32_precision for matmul in MATMULS]
    for matmul, precision in zip(MATMULS, before, strict=True):
        matmul.fp32_precision = precision


def reduced_by_name():
    torch.set_float32_matmul_precision("medium")


def reduced_by_backend():
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.mark.parametrize("optimizer", [wc.LowRankSGD, wc.LowRankAdamW])
@pytest.mark.parametrize("reduce", [reduced_by_name, reduced_by_backend])
def test_the_step_is_in_float32_whatever_the_network_may_use(monkeypatch, precisions, reduce, optimizer):
    seen = []
    whole = integrator.precondition
    for module in (integrator, riemannian):
        monkeypatch.setattr(module, "precondition", lambda *args: seen.append(precisions()) or whole(*args))
    layer = wc.factorize(nn.Linear(4, 3), rank=2)
    steps = optimizer(wc.param_groups(layer), lr=0.1)
    layer(torch.ones(1, 4)).sum().backward()
    reduce()
    allowed = precisions()
    steps.step()
    assert precisions() == allowed
    assert {*seen[0]} <= {"ieee", "none"}
    assert not {*allowed} <= {"ieee", "none"}


@pytest.mark.parametrize("max_cond", [1.1, math.inf])
def test_layers_of_equal_shape_step_together_as_they_do_one_by_one(monkeypatch, max_cond):
    """On a GPU they are stacked; the stack itself needs none."""
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Linear(12, 12) for _ in range(3)), nn.Linear(12, 5)).to(DOUBLE)
    alone = wc.constrain(wc.factorize(network, rank=4), max_cond)
    together = copy.deepcopy(alone)
    sizes = []
    stacked = optim._lowrank_together
    monkeypatch.setattr(
        optim, "_lowrank_together", lambda groups, state: sizes.append(len(groups)) or stacked(groups, state)
    )
    x, target = randn(20, 12), randn(20, 5, seed=3)
    for model in (alone, together):
        monkeypatch.setattr(
            optim, "_stackable", lambda group, model=model: model is together and group["kind"] == "lowrank"
        )
        options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
        optimizer = wc.LowRankSGD(wc.param_groups(model, max_cond=max_cond), **options)
        for _ in range(20):
            optimizer.zero_grad()
            (model(x) - target).square().mean().backward()
            optimizer.step()
    assert sizes == [3] * 20
    for a, b in zip(alone.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
