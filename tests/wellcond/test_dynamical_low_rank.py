"""Basis update and Galerkin: order 1 without a singular value in the constant, ranks, and momenta through changes."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import wellcond as wc
from helpers import DOUBLE, randn
from wellcond.integrator import Factors
from wellcond.methods import dynamical_low_rank as basis_update
from wellcond.methods.dynamical_low_rank import BUG, multilinear, truncated_rank, truncation_bases
from wellcond.methods.tucker import Tucker2Conv2d

N, M, R = 24, 20, 4


def layer_with(sigma, n=N, m=M, seed=0):
    torch.manual_seed(seed)
    layer = wc.LowRankLinear(m, n, len(sigma), bias=False, dtype=DOUBLE)
    with torch.no_grad():
        layer.S.copy_(torch.diag(torch.as_tensor(sigma, dtype=torch.float64)))
    return layer


def closure(optimizer, loss):
    def evaluate():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return evaluate


def integrate(layer, field, lr, time=1.0, **options):
    """Ẇ = F(W) as the descent of -<F(W₀), W>."""
    layer = copy.deepcopy(layer)
    optimizer = BUG(wc.param_groups(layer), lr=lr, **options)
    step = closure(optimizer, lambda: -(field(layer.matrix().detach()) * layer.matrix()).sum())
    for _ in range(round(time / lr)):
        optimizer.step(step)
    return layer


def skew(k, seed):
    A = randn(k, k, seed=seed)
    return (A - A.mT) / torch.linalg.matrix_norm(A - A.mT, 2)


@pytest.mark.parametrize("basis", ["fixed", "augmented"])
@pytest.mark.parametrize("kappa", [1.05, 1e6])
def test_order_one_whatever_the_smallest_singular_value(basis, kappa):
    """The rotating field W' = ΩW - WΩ' keeps the rank: the error is O(h), with the same constant at κ = 1e6."""
    left, right = skew(N, 1), skew(M, 2)
    layer = layer_with(torch.logspace(0, -math.log10(kappa), R, dtype=DOUBLE))
    exact = torch.linalg.matrix_exp(left) @ layer.matrix().detach() @ torch.linalg.matrix_exp(-right)
    steps = [0.1 / 2**k for k in range(4)]
    errors = [
        (integrate(layer, lambda W: left @ W - W @ right, lr, basis=basis).matrix() - exact).norm().item()
        for lr in steps
    ]
    slope = math.log(errors[0] / errors[-1]) / math.log(steps[0] / steps[-1])
    assert 0.9 < slope < 1.1
    assert errors[0] < 0.1


def test_one_augmented_step_is_the_galerkin_projection():
    """P_Û (Y - hG) P_V̂ truncated to rank r, with Û, V̂ spanning [U | GV], [V | GᵀU] (Theorem B)."""
    layer, G, h = layer_with([3.0, 2.0, 1.0, 0.5]), randn(N, M, seed=3), 0.1
    U, V, Y = layer.U.detach().clone(), layer.V.detach().clone(), layer.matrix().detach()
    optimizer = BUG(wc.param_groups(layer), lr=h)
    optimizer.step(closure(optimizer, lambda: (G * layer.matrix()).sum()))
    Uh, Vh = (torch.linalg.qr(torch.cat(pair, 1))[0] for pair in ((U, G @ V), (V, G.mT @ U)))
    P, sigma, Qt = torch.linalg.svd(Uh @ Uh.mT @ (Y - h * G) @ Vh @ Vh.mT)
    expected = (P[:, :R] * sigma[:R]) @ Qt[:R]
    torch.testing.assert_close(layer.matrix(), expected, rtol=0, atol=1e-13)


def test_one_fixed_step_is_k_l_s():
    """K¹ = US - hGV, L¹ = VSᵀ - hGᵀU, bases by QR, then S¹ = U¹ᵀ Y V¹ - h U¹ᵀ G V¹."""
    layer, G, h = layer_with([3.0, 2.0, 1.0, 1e-9]), randn(N, M, seed=3), 0.1
    U, S, V, Y = layer.U.detach(), layer.S.detach(), layer.V.detach(), layer.matrix().detach()
    U1, V1 = (torch.linalg.qr(A)[0] for A in (U @ S - h * G @ V, V @ S.mT - h * G.mT @ U))
    expected = U1 @ (U1.mT @ (Y - h * G) @ V1) @ V1.mT
    optimizer = BUG(wc.param_groups(layer), lr=h, basis="fixed")
    optimizer.step(closure(optimizer, lambda: (G * layer.matrix()).sum()))
    torch.testing.assert_close(layer.matrix(), expected, rtol=0, atol=1e-13)


def test_a_full_core_is_rotated_first():
    """A step does not depend on how Y is factorized."""
    layer, G = layer_with([3.0, 2.0, 1.0, 0.5]), randn(N, M, seed=3)
    other = copy.deepcopy(layer)
    A, B = (torch.linalg.qr(randn(R, R, seed=s))[0] for s in (5, 6))
    with torch.no_grad():
        other.U.copy_(layer.U @ A)
        other.S.copy_(A.mT @ layer.S @ B)
        other.V.copy_(layer.V @ B)
    for basis in ("fixed", "augmented"):
        matrices = []
        for start in (layer, other):
            new = copy.deepcopy(start)
            optimizer = BUG(wc.param_groups(new), lr=0.1, momentum=0.5, basis=basis)
            for _ in range(3):
                optimizer.step(closure(optimizer, lambda new=new: (G * new.matrix()).sum()))
            matrices.append(new.matrix())
        torch.testing.assert_close(*matrices, rtol=0, atol=1e-12)


@pytest.mark.parametrize("start", [1, 2, 8])
def test_rank_adaptation_finds_a_planted_rank(start):
    A = randn(N, 3, seed=1) @ randn(3, M, seed=2) / 10
    torch.manual_seed(0)
    layer = wc.LowRankLinear(M, N, start, bias=False, dtype=DOUBLE)
    optimizer = BUG(wc.param_groups(layer), lr=0.2, momentum=0.3, tolerance=1e-3, max_rank=10)
    step = closure(optimizer, lambda: (layer.matrix() - A).square().sum() / 2)
    for _ in range(120):
        optimizer.step(step)
    assert layer.rank == 3
    assert (layer.matrix() - A).norm() < 1e-9


@given(
    sigma=st.lists(st.just(0.0) | st.floats(1e-9, 10), min_size=1, max_size=12),
    tolerance=st.floats(0, 0.99),
    cap=st.integers(1, 12),
)
def test_truncated_rank_is_the_smallest_that_the_tolerance_allows(sigma, tolerance, cap):
    sigma = torch.tensor(sorted(sigma, reverse=True), dtype=DOUBLE)
    r = truncated_rank(sigma, tolerance, cap)
    norm = sigma.norm()
    assert 1 <= r <= max(1, min(cap, len(sigma)))
    if r < cap:
        assert sigma[r:].norm() <= tolerance * norm * (1 + 1e-9)
    if r > 1:
        assert sigma[r - 1 :].norm() > tolerance * norm * (1 - 1e-9)


def test_truncation_of_a_matrix_is_the_best_approximation():
    S = randn(6, 6)
    P, Q = truncation_bases(S, 0.0, (4, 4))
    P0, sigma, Q0t = torch.linalg.svd(S)
    torch.testing.assert_close(P @ (P.mT @ S @ Q) @ Q.mT, (P0[:, :4] * sigma[:4]) @ Q0t[:4])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), tolerance=st.floats(0.05, 0.6))
def test_truncation_of_a_tucker_core_is_quasi_optimal(seed, tolerance):
    """The truncated higher-order SVD of two modes errs by at most √2 tolerance ||S||."""
    S = randn(5, 4, 3, 3, seed=seed)
    P, Q = truncation_bases(S, tolerance, (5, 4))
    error = (S - multilinear(multilinear(S, P.mT, Q.mT), P, Q)).norm()
    assert error <= math.sqrt(2) * tolerance * S.norm() * (1 + 1e-9)


def tucker(seed=0):
    torch.manual_seed(seed)
    return Tucker2Conv2d(6, 8, 3, (3, 2), bias=False, dtype=DOUBLE)


@pytest.mark.parametrize("make", [lambda: layer_with([3.0, 2.0, 1.0, 0.5]), tucker])
def test_changing_the_bases_keeps_the_weight_and_the_momentum(make):
    """W and the tensor U m_S Vᵀ are the same in wider bases, and in any others of the same span."""
    layer = make()
    optimizer = BUG(wc.param_groups(layer), lr=0.1, momentum=0.9)
    (group, *_) = optimizer.param_groups
    momentum = torch.randn_like(layer.S)
    optimizer.state[layer.S]["momentum_buffer"] = momentum
    before = [multilinear(T, layer.U, layer.V).detach() for T in (layer.S, momentum)]
    with torch.no_grad():
        U, V = (basis_update.augmented_basis(X, randn(*X.shape, seed=s)) for s, X in ((1, layer.U), (2, layer.V)))
        U, V = (X @ torch.linalg.qr(randn(X.shape[1], X.shape[1], seed=7))[0] for X in (U, V))
        basis_update._change_bases(group, optimizer.state, U, V)
    after = (multilinear(T, layer.U, layer.V) for T in (layer.S, optimizer.state[layer.S]["momentum_buffer"]))
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-13)


def test_the_momentum_of_the_core_is_heavy_ball_where_the_bases_rest():
    """In a single cycle the core follows m <- βm + g, S <- S - hm, with the gradient of its own bases."""
    layer, A = layer_with([3.0, 2.0, 1.0, 0.5]), randn(N, M, seed=9)
    optimizer = BUG(wc.param_groups(layer), lr=0.1, momentum=0.6, coefficient_steps=10)
    step = closure(optimizer, lambda: (layer.matrix() - A).square().sum() / 2)
    optimizer.step(step)
    U, V = layer.U.detach().clone(), layer.V.detach().clone()
    S, m = layer.S.detach().clone(), optimizer.state[layer.S]["momentum_buffer"].clone()
    for _ in range(5):
        m = 0.6 * m + U.mT @ (U @ S @ V.mT - A) @ V
        S = S - 0.1 * m
        optimizer.step(step)
    assert torch.equal(layer.U, U)
    torch.testing.assert_close(layer.S, S, rtol=0, atol=1e-12)
    assert layer.rank == 2 * R
    optimizer.end_epoch()
    assert layer.rank == R
    optimizer.end_epoch()  # between cycles there is nothing to end
    assert layer.rank == R


def test_how_often_the_loss_is_evaluated():
    """Two passes in the first step of a cycle, one in the others."""
    layer = layer_with([3.0, 2.0, 1.0, 0.5])
    optimizer = BUG(wc.param_groups(layer), lr=0.01, coefficient_steps=3)
    calls = []

    def loss():
        calls.append(layer.rank)
        return layer.matrix().square().sum()

    for _ in range(6):
        optimizer.step(closure(optimizer, loss))
    assert calls == [4, 8, 8, 8, 4, 8, 8, 8]


def test_a_graph_that_is_kept_alive_does_no_harm():
    layer, kept = layer_with([3.0, 2.0, 1.0, 0.5]), []
    optimizer = BUG(wc.param_groups(layer), lr=0.01)

    def evaluate():
        optimizer.zero_grad()
        kept.append(layer.matrix().square().sum())
        kept[-1].backward()
        return kept[-1]

    losses = [optimizer.step(evaluate).item() for _ in range(3)]
    assert losses == sorted(losses, reverse=True)


def test_bases_stay_orthonormal_in_single_precision():
    torch.manual_seed(0)
    layer = wc.LowRankLinear(60, 40, 8, bias=False)
    for basis in ("fixed", "augmented"):
        trained = copy.deepcopy(layer)
        optimizer = BUG(wc.param_groups(trained), lr=0.05, momentum=0.5, basis=basis)
        generator = torch.Generator().manual_seed(1)
        for _ in range(400):
            noise = torch.randn(40, 60, generator=generator) / 10
            optimizer.step(
                closure(optimizer, lambda W=trained, g=noise: ((g + W.matrix().detach()) * W.matrix()).sum())
            )
        assert max(wc.orthogonality_error(X).item() for X in (trained.U, trained.V)) < 5e-6


def test_a_basis_as_wide_as_the_layer():
    """2r > n: the basis is the whole space, the core rectangular until it is truncated."""
    layer = layer_with([2.0, 1.0, 0.5, 0.2], n=6, m=20)
    A = randn(6, 20, seed=4)
    optimizer = BUG(wc.param_groups(layer), lr=1.0, coefficient_steps=2)
    step = closure(optimizer, lambda: (layer.matrix() - A).square().sum() / 2)
    optimizer.step(step)
    assert layer.S.shape == (6, 8)
    for _ in range(60):
        optimizer.step(step)
    optimizer.end_epoch()
    P, sigma, Qt = torch.linalg.svd(A, full_matrices=False)
    torch.testing.assert_close(layer.matrix(), (P[:, :4] * sigma[:4]) @ Qt[:4], rtol=0, atol=1e-6)


def test_tucker_kernels_converge_to_a_planted_one():
    target = tucker(seed=5)
    layer = Tucker2Conv2d(6, 8, 3, (1, 1), bias=False, dtype=DOUBLE)
    optimizer = BUG(wc.param_groups(layer), lr=0.2, tolerance=1e-4, max_rank=5)
    A = target.weight.detach()
    step = closure(optimizer, lambda: (layer.weight - A).square().sum() / 2)
    for _ in range(150):
        optimizer.step(step)
    assert layer.S.shape[:2] == (3, 2)
    torch.testing.assert_close(layer.weight, A, rtol=0, atol=1e-8)


def test_zero_gradients_and_zero_weights_are_no_trouble():
    for basis in ("fixed", "augmented"):
        layer = layer_with([1.0, 0.0, 0.0, 0.0])
        optimizer = BUG(wc.param_groups(layer), lr=0.1, basis=basis)
        optimizer.step(closure(optimizer, lambda layer=layer: 0 * layer.matrix().sum()))
        assert layer.matrix().isfinite().all()
        torch.testing.assert_close(layer.singular_values()[0], torch.tensor(1.0, dtype=DOUBLE))
        A = randn(N, M, seed=4)
        for _ in range(50):
            optimizer.step(closure(optimizer, lambda layer=layer, A=A: (layer.matrix() - A).square().sum() / 2))
        assert (layer.singular_values() - torch.linalg.svdvals(A)[:R]).abs().max() < 1.5


def test_the_other_parameters_move_once_a_step_as_in_momentum_sgd():
    model = nn.Sequential(layer_with([3.0, 2.0, 1.0, 0.5]))
    bias = nn.Parameter(torch.ones(3, dtype=DOUBLE))
    model.register_parameter("free", bias)
    optimizer = BUG(wc.param_groups(model), lr=0.1, momentum=0.5, weight_decay=0.1)
    twin = nn.Parameter(torch.ones(3, dtype=DOUBLE))
    reference = torch.optim.SGD([twin], lr=0.1, momentum=0.5, weight_decay=0.1)
    for _ in range(4):
        optimizer.step(closure(optimizer, lambda: bias.square().sum() + model[0].matrix().sum()))
        reference.step(closure(reference, lambda: twin.square().sum()))
    torch.testing.assert_close(bias, twin)


def test_state_survives_a_round_trip():
    """A network and an optimizer in the middle of a cycle, saved and loaded, go on as they would have."""
    A = randn(N, M, seed=9)

    def make():
        layer = layer_with([3.0, 2.0, 1.0, 0.5])
        return layer, BUG(wc.param_groups(layer), lr=0.1, momentum=0.6, coefficient_steps=4)

    def steps(layer, optimizer, count):
        for _ in range(count):
            optimizer.step(closure(optimizer, lambda: (layer.matrix() - A).square().sum() / 2))

    layer, optimizer = make()
    steps(layer, optimizer, 6)
    other, other_optimizer = make()
    other.load_state_dict(layer.state_dict())
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(layer, optimizer, 5)
    steps(other, other_optimizer, 5)
    assert torch.equal(layer.matrix(), other.matrix())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"basis": "wide"}, "basis = 'wide': unknown"),
        ({"lr": -0.1}, "lr = -0.1: must be >= 0"),
        ({"momentum": 1.0}, r"momentum = 1.0: must be in \[0, 1\)"),
        ({"weight_decay": -1.0}, "weight_decay = -1.0: must be >= 0"),
        ({"tolerance": 1.0}, r"tolerance = 1.0: must be in \[0, 1\)"),
        ({"max_rank": 0}, "max_rank = 0: must be >= 1"),
        ({"coefficient_steps": 0}, "coefficient_steps = 0: must be >= 1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        BUG(wc.param_groups(layer_with([1.0])), **options)


def test_what_it_cannot_train():
    with pytest.raises(ValueError, match="kind = 'stiefel': unknown"):
        BUG([{"params": [nn.Parameter(torch.ones(2, 2))], "kind": "stiefel"}])
    with pytest.raises(ValueError, match=r"params = '2 tensors': must be \[U, S, V\]"):
        BUG([{"params": [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))], "kind": "lowrank"}])
    with pytest.raises(ValueError, match="basis = 'fixed': must be 'augmented' for a Tucker core"):
        BUG(wc.param_groups(tucker()), basis="fixed")
    with pytest.raises(ValueError, match="closure = None: must be given"):
        BUG(wc.param_groups(layer_with([1.0]))).step()


def test_a_gradient_of_columns_of_any_length():
    """With a diagonal S, G V and Gᵀ U come out of g_U and g_V to full accuracy, also at κ = 1e20."""
    torch.manual_seed(0)
    sigma = torch.logspace(0, -20, R, dtype=DOUBLE)
    U, V, G = (t.to(torch.float64) for t in (wc.random_stiefel(N, R), wc.random_stiefel(M, R), torch.randn(N, M)))
    W = Factors(U, torch.diag(sigma), V)
    grad = Factors(G @ V @ W.S.mT, U.mT @ G @ V, G.mT @ U @ W.S)
    for found, expected in zip(basis_update.basis_gradients(W, grad), (G @ V, G.mT @ U), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


def test_a_convolution_in_groups_is_refused_when_it_is_given():
    model = wc.factorize(nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)), rank=2)
    with pytest.raises(ValueError, match=r"^params = \"a stack of 2 matrices in '0'\": must be one matrix a group"):
        BUG(wc.param_groups(model))
