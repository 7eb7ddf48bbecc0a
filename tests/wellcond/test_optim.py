"""The integrators: order of accuracy, invariants over a thousand steps, and literal transcriptions of the formulas."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn

import wellcond as wc
from helpers import DOUBLE, matrix_with, order, randn
from wellcond import convert, layers, optim, spectrum, stiefel
from wellcond.methods import condlr
from wellcond.methods.orthonormal import orthonormalize, stiefel_step
from wellcond.optim import Factors, LowRankSGD

N, M, R = 8, 6, 3


def orthonormal(n, r, seed):
    return torch.linalg.qr(randn(n, r, seed=seed))[0]


def factors(sigma, seed=0):
    """U S Vᵀ (8 x 6) with these singular values and a full core."""
    return Factors(orthonormal(N, R, seed), matrix_with(sigma, seed=seed + 10), orthonormal(M, R, seed + 20))


def matrix(W):
    return W.U @ W.S @ W.V.mT


def zeros(W):
    return Factors(*(torch.zeros_like(p) for p in W))


def factor_gradients(W, G):
    """By autograd, from the dense gradient G = ∂L/∂W."""
    leaves = [p.detach().requires_grad_() for p in W]
    return Factors(*torch.autograd.grad((G * matrix(Factors(*leaves))).sum(), leaves))


def tangent_projection(W, G):
    """P_W(G) on the rank-r matrices, by the n x n projectors."""
    A, B = W.U @ W.U.mT, W.V @ W.V.mT
    return A @ G + G @ B - A @ G @ B


G = randn(N, M, seed=77)


class TestOrderOfAccuracy:
    """The defect ‖W₁ - (W - h P_W(G))‖ of one step from W, while the constraint is inactive."""

    W = factors([0.7, 0.6, 0.5])

    def defect(self, W, step):
        grad, target = factor_gradients(W, G), tangent_projection(W, G)
        return lambda h: (matrix(step(W, grad, zeros(W), h)[0]) - (matrix(W) - h * target)).norm().item()

    @pytest.mark.parametrize("max_cond", [math.inf, 3.0])
    @pytest.mark.parametrize("retraction", stiefel.RETRACTIONS)
    def test_the_step_is_the_projected_gradient_flow_to_second_order(self, retraction, max_cond):
        options = {"max_cond": max_cond, "retraction": retraction}
        slope = order(self.defect(self.W, lambda *a: optim.lowrank_step(*a[:3], lr=a[3], **options)))
        assert slope == pytest.approx(2, abs=0.1)

    def test_rank_equal_to_size_is_plain_gradient_descent(self):
        S = matrix_with([2.0, 1.0, 0.5])
        W = Factors(orthonormal(3, 3, 1), S, orthonormal(3, 3, 2))
        g = randn(3, 3, seed=5)
        new, _ = optim.lowrank_step(W, factor_gradients(W, g), zeros(W), lr=0.3)
        torch.testing.assert_close(matrix(new), matrix(W) - 0.3 * g, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("scale", [1.0, (0.5 / 0.7) ** 2])
    def test_the_published_band_step_is_not(self, scale):
        """Its defect divided by h does not vanish: it follows another flow, with either value of its scale."""
        c = torch.tensor(scale, dtype=DOUBLE)
        W = factors([0.6, 0.59, 0.58])  # inside the band: the mean-centred clamp does not act either
        step = lambda W, g, m, h: condlr.published_band_step(W, g, m, c, lr=h, beta=0.0, max_cond=3.0)  # noqa: E731
        defect = self.defect(W, step)
        assert order(defect) == pytest.approx(1, abs=0.1)
        assert defect(1e-5) / 1e-5 > 0.1 * tangent_projection(W, G).norm()

    def test_the_published_mean_step_is_not(self):
        a0 = 0.5
        W = factors(3 * [a0])  # its fixed form: a multiple of an orthogonal core
        g = G - W.U @ (W.U.mT @ G @ W.V) @ W.V.mT  # no gradient for the core, so that only the bases are compared
        target, grad = tangent_projection(W, g), factor_gradients(W, g)
        scale = torch.tensor(1 / a0, dtype=DOUBLE)

        def defect(h):
            new = condlr.published_mean_step(W, grad, zeros(W), scale, lr=h, beta=0.0)[0]
            return (matrix(new) - (matrix(W) - h * target)).norm().item()

        assert order(defect) == pytest.approx(1, abs=0.1)
        assert defect(1e-5) / 1e-5 > 0.1 * target.norm()

    def test_the_defect_does_not_grow_with_the_condition_number_of_the_target(self):
        """With κ(S) bounded, one step's constant depends on ‖G‖ and σ_min only (methods.md 8.4, T1)."""
        constants = [self.defect(factors([s, s, s]), self.exact)(1e-3) / 1e-6 for s in (0.1, 1.0, 10.0)]
        ratios = [constants[k] / constants[k + 1] for k in range(2)]
        assert ratios == pytest.approx([10, 10], rel=0.1)  # slope -1 in s

    @staticmethod
    def exact(W, grad, momentum, h):
        return optim.lowrank_step(W, grad, momentum, lr=h)


# ------------------------------------------------------------- transcriptions in numpy, from methods.md 3.1, 3.3, 3.4


def qf(A):
    Q, R_ = np.linalg.qr(A)
    return Q * np.where(np.diag(R_) < 0, -1, 1)


def exact_numpy(U, S, V, grads, lr, beta, clip):
    mU, mS, mV = np.zeros_like(U), np.zeros_like(S), np.zeros_like(V)
    for gU, gS, gV in grads:
        mU = beta * mU + (np.eye(N) - U @ U.T) @ gU
        mV = beta * mV + (np.eye(M) - V @ V.T) @ gV
        mS = beta * mS + gS
        dU = (np.eye(N) - U @ U.T) @ mU @ np.linalg.inv(S @ S.T)
        dV = (np.eye(M) - V @ V.T) @ mV @ np.linalg.inv(S.T @ S)
        mU, mV = (np.eye(N) - U @ U.T) @ mU, (np.eye(M) - V @ V.T) @ mV  # the transported momenta
        U, V, S = qf(U - lr * dU), qf(V - lr * dV), clip(S - lr * mS)
    return U, S, V


def band_numpy(U, S, V, grads, lr, beta, E):
    bU, bS, bV, c = np.zeros_like(U), np.zeros_like(S), np.zeros_like(V), 1.0
    for gU, gS, gV in grads:
        bU, bS, bV = beta * bU + gU, beta * bS + gS, beta * bV + gV
        bU, bV = c * (bU - U @ (U.T @ bU)), c * (bV - V @ (V.T @ bV))
        U, S, V = qf(U - lr * bU), S - lr * bS, qf(V - lr * bV)
        P, sigma, Qt = np.linalg.svd(S)
        mean = sigma.mean()
        h = mean * (E - 1) / (E + 1)
        sigma = np.clip(sigma, mean - h, mean + h)
        S = P @ np.diag(sigma) @ Qt
        c = (sigma.min() / sigma.max()) ** 2
    return U, S, V


def mean_numpy(U, S, V, grads, lr, beta):
    bU, bS, bV = np.zeros_like(U), np.zeros_like(S), np.zeros_like(V)
    a0 = np.linalg.svd(S, compute_uv=False).mean()
    for gU, gS, gV in grads:
        bU, bS, bV = beta * bU + gU, beta * bS + gS, beta * bV + gV
        bU, bV = (bU - U @ (U.T @ bU)) / a0, (bV - V @ (V.T @ bV)) / a0
        U, S, V = U - lr * bU, S - lr * bS, V - lr * bV
        a = np.trace(S @ S.T) / len(S)
        U, V, S = qf(U), qf(V), np.sqrt(a) * qf(S)
    return U, S, V


def clip_nearest(c):
    return lambda S: spectrum.clip_condition_number(torch.tensor(S), c).numpy()  # itself tested in test_spectrum


@pytest.mark.parametrize(
    ("options", "transcription"),
    [
        ({"kind": "lowrank"}, lambda *a: exact_numpy(*a, lambda S: S)),
        ({"kind": "lowrank", "max_cond": 1.2}, lambda *a: exact_numpy(*a, clip_nearest(1.2))),
        ({"kind": "lowrank", "max_cond": 1.0}, lambda *a: exact_numpy(*a, clip_nearest(1.0))),
        ({"kind": "lowrank_published_band", "max_cond": 1.5}, lambda *a: band_numpy(*a, 1.5)),
        ({"kind": "lowrank_published_mean", "max_cond": 1.0}, mean_numpy),
    ],
    ids=["exact", "exact tau .2", "exact tau 0", "published band", "published mean"],
)
def test_six_steps_with_momentum_follow_the_literal_formulas(options, transcription):
    """Through the optimizer, with its state: the same gradients, an independent transcription of methods.md."""
    W = factors([1.2, 0.9, 0.7], seed=4)
    grads = [[randn(*p.shape, seed=100 + 3 * k + j) for j, p in enumerate(W)] for k in range(6)]
    expected = transcription(*(p.numpy() for p in W), [[g.numpy() for g in step] for step in grads], 0.05, 0.8)
    parameters = [nn.Parameter(p.clone()) for p in W]
    optimizer = LowRankSGD([{"params": parameters, **options}], lr=0.05, momentum=0.8)
    for step in grads:
        for p, g in zip(parameters, step, strict=True):
            p.grad = g.clone()
        optimizer.step()
    for p, e in zip(parameters, expected, strict=True):
        # the regularization δ = 1e-8 relative to (SSᵀ)⁻¹ is the only difference
        np.testing.assert_allclose(p.detach().numpy(), e, atol=1e-6)


# ------------------------------------------------------------------------------------------------ what steps preserve


def lowrank_layer(dtype=torch.float32):
    torch.manual_seed(0)
    return layers.LowRankLinear.from_dense(nn.Linear(9, 12, dtype=dtype), 4)


@pytest.mark.parametrize(
    ("kind", "tau"),
    [
        *(("lowrank", tau) for tau in (0, 0.1, 0.5)),
        *(("lowrank_published_band", tau) for tau in (0.1, 0.5)),
        ("lowrank_published_mean", 0),
    ],
)
def test_noisy_float32_steps_keep_the_invariants(kind, tau):
    """Orthogonality error <= 1e-5 and κ(S) <= (1 + τ)(1 + 1e-4), under noisy gradients and momentum."""
    layer = lowrank_layer()
    optim.constrain(layer, 1 + tau)
    optimizer = LowRankSGD(optim.param_groups(layer, max_cond=1 + tau, kind=kind), lr=0.05, momentum=0.5)
    x = torch.randn(300, 16, 9, generator=torch.Generator().manual_seed(1))
    y = torch.randn(300, 16, 12, generator=torch.Generator().manual_seed(2))
    worst_kappa = worst_error = 0.0
    for step in range(300):
        optimizer.zero_grad()
        (layer(x[step]) - y[step]).square().mean().backward()
        optimizer.step()
        if step % 20 == 19:
            worst_kappa = max(worst_kappa, spectrum.condition_number(layer.S.double()).item())
            worst_error = max(worst_error, *(stiefel.orthogonality_error(p).item() for p in (layer.U, layer.V)))
    assert worst_kappa <= (1 + tau) * (1 + 1e-4)
    assert worst_error <= 1e-5


@pytest.mark.parametrize("retraction", stiefel.RETRACTIONS)
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_convergence_to_a_planted_optimum(retraction, beta):
    """½‖W - A‖² with A of rank r: W -> A, to working precision."""
    A = matrix(factors([3.0, 2.0, 1.0], seed=30))
    W = factors([1.0, 1.0, 1.0], seed=60)
    momentum = zeros(W)
    for _ in range(400):
        grad = factor_gradients(W, matrix(W) - A)
        W, momentum = optim.lowrank_step(W, grad, momentum, lr=0.1, beta=beta, retraction=retraction)
    assert (matrix(W) - A).norm() < 1e-6


def test_constrained_convergence_to_the_nearest_admissible_matrix():
    """With κ(S) <= 1.1 and κ(A) = 3 the iteration stops at the projection of A (methods.md 8.4, T5)."""
    target = factors([3.0, 2.0, 1.0], seed=30)
    A, nearest = matrix(target), matrix(target._replace(S=spectrum.clip_condition_number(target.S, 1.1)))
    W = factors([1.0, 1.0, 1.0], seed=60)
    for _ in range(600):
        W, _ = optim.lowrank_step(W, factor_gradients(W, matrix(W) - A), zeros(W), lr=0.1, max_cond=1.1)
    assert (matrix(W) - nearest).norm() < 1e-6


def test_momentum_is_heavy_ball_where_the_manifold_is_flat():
    """At full rank of a square weight only S moves, and U S Vᵀ follows torch.optim.SGD on the dense weight."""
    torch.manual_seed(0)
    dense = nn.Linear(5, 5, bias=False, dtype=DOUBLE)
    layer = layers.LowRankLinear.from_dense(dense, 5)
    options = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.05}
    pair = [
        (dense, torch.optim.SGD(dense.parameters(), **options)),
        (layer, LowRankSGD(optim.param_groups(layer), **options)),
    ]
    for step in range(8):
        x, y = randn(4, 5, seed=step), randn(4, 5, seed=50 + step)
        for model, optimizer in pair:
            optimizer.zero_grad()
            (model(x) - y).square().sum().mul(0.05).backward()
            optimizer.step()
        torch.testing.assert_close(layer.weight, dense.weight, rtol=0, atol=1e-10)


def test_momentum_acts_on_the_bases():
    moved = {}
    for beta in (0.0, 0.9):
        layer = lowrank_layer(dtype=DOUBLE)
        optimizer = LowRankSGD(optim.param_groups(layer), lr=1e-4, momentum=beta)
        start = layer.U.detach().clone()
        for _ in range(10):
            for k, p in enumerate(layer.parameters()):
                p.grad = randn(*p.shape, seed=k)
            optimizer.step()
        moved[beta] = (layer.U - start).norm().item()
    # Σ_k Σ_{j<=k} 0.9^j = 41.4 after ten steps of a constant gradient, against 10
    assert moved[0.9] / moved[0.0] == pytest.approx(4.14, rel=0.05)


def test_weight_decay_is_that_of_the_matrix():
    """One step at G = 0 multiplies W by 1 - h wd; with G it is the projected gradient of L + wd/2 ‖W‖²."""
    W = factors([1.5, 1.0, 0.8])
    decayed, h = 0.3, 1e-6
    for gradient in (torch.zeros_like(G), G):
        parameters = [nn.Parameter(p.clone()) for p in W]
        optimizer = LowRankSGD([{"params": parameters, "kind": "lowrank", "weight_decay": decayed}], lr=h)
        for p, g in zip(parameters, factor_gradients(W, gradient), strict=True):
            p.grad = g
        optimizer.step()
        moved = (matrix(Factors(*(p.detach() for p in parameters))) - matrix(W)) / h
        expected = -tangent_projection(W, gradient + decayed * matrix(W))
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-4)  # the step's second-order term is h ‖G‖²


def test_bases_survive_a_core_that_is_singular_in_working_precision():
    """The regularized solve keeps the step finite and the bases orthonormal where (SSᵀ)⁻¹ does not exist."""
    U, S, V = (p.float() for p in factors([1.0, 1e-4, 0.0]))
    W = Factors(U, S, V)
    grad = Factors(*(g.float() for g in factor_gradients(factors([1.0, 1e-4, 0.0]), G)))
    new, _ = optim.lowrank_step(W, grad, zeros(W), lr=0.1)
    assert all(p.isfinite().all() for p in new)
    assert max(stiefel.orthogonality_error(new.U), stiefel.orthogonality_error(new.V)) < 1e-5


# ------------------------------------------------------------------------------------------------------------ stiefel


@pytest.mark.parametrize("retraction", stiefel.RETRACTIONS)
def test_stiefel_steps_stay_on_the_manifold_for_a_thousand_steps(retraction):
    X = orthonormal(20, 6, 1).float()
    momentum = torch.zeros_like(X)
    gradients = randn(1000, 20, 6, dtype=torch.float32, seed=3)
    for gradient in gradients:
        X, momentum = stiefel_step(X, gradient, momentum, lr=0.05, beta=0.9, retraction=retraction)
    assert stiefel.orthogonality_error(X) <= 1e-5
    inner = X.mT @ stiefel_step(X, gradients[0], momentum, lr=0.05, beta=0.9, retraction=retraction)[1]
    assert (inner + inner.mT).abs().max() < 1e-4  # the momentum is tangent: entries of size 10 in float32


@pytest.mark.parametrize("retraction", stiefel.RETRACTIONS)
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_stiefel_momentum_accumulates(retraction, beta):
    """For h -> 0 and a constant gradient, K steps move by h P_X(G) Σ_k Σ_{j<=k} β^j."""
    X, g, h, K = orthonormal(9, 4, 2), randn(9, 4, seed=5), 1e-7, 6
    Y, momentum = X, torch.zeros_like(X)
    for _ in range(K):
        Y, momentum = stiefel_step(Y, g, momentum, lr=h, beta=beta, retraction=retraction)
    weight = sum(beta**j for k in range(K) for j in range(k + 1))
    XtG = X.mT @ g
    torch.testing.assert_close((Y - X) / h, -weight * (g - X @ (XtG + XtG.mT) / 2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("retraction", stiefel.RETRACTIONS)
def test_stiefel_steps_solve_the_procrustes_problem(retraction):
    """Minimizing ‖X - A‖² over frames ends at the polar factor of A."""
    A = randn(9, 4, seed=6)
    P, _, Qt = np.linalg.svd(A.numpy(), full_matrices=False)
    momentum = torch.zeros_like(A)
    X = torch.linalg.qr(A + 0.5 * randn(9, 4, seed=8))[0]
    X = X * torch.sign((X * A).sum(0))
    for _ in range(500):
        X, momentum = stiefel_step(X, X - A, momentum, lr=0.1, beta=0.5, retraction=retraction)
    np.testing.assert_allclose(X.numpy(), P @ Qt, atol=1e-8)


@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [
        *((shape, torch.contiguous_format) for shape in ((4, 3, 3, 3), (30, 2, 3, 3), (6, 9), (9, 6))),
        *((shape, torch.channels_last) for shape in ((4, 3, 3, 3), (30, 2, 3, 3))),
    ],
)
def test_stiefel_group_keeps_rows_or_columns_orthonormal(shape, memory_format):
    """Also where the matricized weight is a copy, not a view, of the parameter; and it does move."""
    weight = nn.Parameter(randn(*shape).to(memory_format=memory_format))
    orthonormalize(weight)
    reference = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    start = weight.detach().clone()
    for p in (weight, reference):
        optimizer = LowRankSGD([{"params": [p], "kind": "stiefel", "retraction": "cayley"}], lr=0.1, momentum=0.9)
        for step in range(3):
            p.grad = randn(*shape, seed=step)
            optimizer.step()
    W = weight.detach().reshape(shape[0], -1)
    gram = W @ W.mT if W.shape[0] <= W.shape[1] else W.mT @ W
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=DOUBLE), rtol=0, atol=1e-12)
    torch.testing.assert_close(weight, reference, rtol=0, atol=1e-12)
    assert (weight - start).norm() > 0.1
    assert weight.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("kind", optim.UPDATES)
def test_a_stack_of_layers_takes_the_step_of_each(kind):
    """With a leading dimension: the same numbers, up to the rounding of batched products, and no other coupling."""
    max_cond = 1.0 if kind == "lowrank_published_mean" else 1.5
    members = [[nn.Parameter(p) for p in factors([0.9 + k, 0.7, 0.6], seed=40 * k)] for k in range(3)]
    if kind == "stiefel":
        shapes = ((4, 3, 2, 2), (9, 6), (5, 5))  # rows, columns, square
        members = [[nn.Parameter(randn(*shape, seed=k)) for shape in shapes] for k in range(3)]
        for weight in (p for member in members for p in member):
            orthonormalize(weight)
    stack = [nn.Parameter(torch.stack(list(copies)).detach()) for copies in zip(*members, strict=True)]
    options = {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.01, "kind": kind, "max_cond": max_cond}
    alone = [LowRankSGD([{"params": member}], **options) for member in members]
    together = LowRankSGD([{"params": stack}], stacked=True, **options)
    for step in range(5):
        for j, p in enumerate(stack):
            p.grad = randn(*p.shape, seed=100 * step + j)
            for k, member in enumerate(members):
                member[j].grad = p.grad[k].clone()
        for optimizer in (*alone, together):
            optimizer.step()
    for j, p in enumerate(stack):
        for k, member in enumerate(members):
            torch.testing.assert_close(p[k], member[j].data, rtol=0, atol=1e-11)


def test_orthonormalize_is_the_nearest_matrix():
    for shape in ((3, 7), (7, 3)):
        weight = nn.Parameter(randn(*shape))
        P, _, Qt = np.linalg.svd(weight.detach().numpy(), full_matrices=False)
        orthonormalize(weight)
        np.testing.assert_allclose(weight.detach().numpy(), P @ Qt, atol=1e-12)


# -------------------------------------------------------------------------------------------------- a torch optimizer


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 5))


def groups_of(kind):
    """A network with every group kind in UPDATES, and the groups of its optimizer."""
    model = network()
    if kind == "euclidean":
        return model, model.parameters()
    if kind == "stiefel":
        weights = [model[0].weight, model[2].weight]
        for weight in weights:
            orthonormalize(weight)
        rest = [model[0].bias, model[2].bias]
        return model, [{"params": weights, "kind": "stiefel", "retraction": "cayley"}, {"params": rest}]
    model = optim.constrain(convert.factorize(model, rank=3), 1.5)
    return model, optim.param_groups(model, kind=kind, max_cond=1.5)


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        (model(randn(6, 7, seed=step, dtype=torch.float32)) - 1).square().mean().backward()
        optimizer.step()


def saved(thing):
    file = io.BytesIO()
    torch.save(thing.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("kind", optim.UPDATES)
def test_resuming_is_bit_identical(kind):
    model, groups = groups_of(kind)
    optimizer = LowRankSGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)
    train(model, optimizer, range(3))
    state, weights = saved(optimizer), saved(model)
    train(model, optimizer, range(3, 6))

    resumed, groups = groups_of(kind)
    optimizer = LowRankSGD(groups, lr=0.7)  # the loaded options replace these
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(state)
    train(resumed, optimizer, range(3, 6))
    for name, p in model.named_parameters():
        assert torch.equal(resumed.get_parameter(name), p), name


@pytest.mark.parametrize("kind", optim.UPDATES)
def test_training_lowers_the_loss(kind):
    model, groups = groups_of(kind)
    x = randn(6, 7, dtype=torch.float32)
    optimizer = LowRankSGD(groups, lr=0.05, momentum=0.5)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_euclidean_groups_are_torch_sgd_exactly(momentum, weight_decay):
    ours, theirs = network(), network()
    options = {"lr": 0.1, "momentum": momentum, "weight_decay": weight_decay}
    train(ours, LowRankSGD(ours.parameters(), **options), range(6))
    train(theirs, torch.optim.SGD(theirs.parameters(), **options), range(6))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


def test_parameters_without_gradients_stay_where_they_are():
    model = network()
    frozen = model[0].requires_grad_(False)
    before = copy.deepcopy(frozen.state_dict())
    train(model, LowRankSGD(model.parameters(), momentum=0.9, weight_decay=0.1), range(2))
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())


def test_schedulers_reach_every_group():
    """MultiStepLR multiplies the learning rates, and a step is proportional to them."""
    model, groups = groups_of("lowrank")
    groups[0]["lr"] = 0.2
    optimizer = LowRankSGD(groups, lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2], gamma=0.5)
    train(model, optimizer, [0])
    for expected in (0.5, 0.25, 0.25):
        scheduler.step()
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.2 * expected] + 2 * [0.1 * expected])


def test_a_closure_is_evaluated_with_gradients():
    model = network()
    optimizer = LowRankSGD(model.parameters())

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(1, 7)).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) > optimizer.step(closure)


def test_param_groups_cover_every_parameter_once():
    model = nn.Sequential(
        layers.LowRankLinear(7, 9, 3), nn.BatchNorm1d(9), layers.LowRankLinear(9, 9, 2, core=False), nn.Linear(9, 5)
    )
    groups = optim.param_groups(model, max_cond=1.1, retraction="polar")
    assert [(g["kind"], len(g["params"])) for g in groups] == [("lowrank", 3), ("euclidean", 8)]
    assert [g.get("max_cond") for g in groups] == [1.1, None]
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(map(id, model.parameters()))


def test_constrain_leaves_what_has_no_core():
    model = nn.Sequential(layers.LowRankLinear(7, 9, 3), layers.LowRankLinear(9, 5, 3, core=False), nn.Linear(5, 5))
    with torch.no_grad():
        model[0].S.copy_(matrix_with([5.0, 2.0, 1.0]))
    before = copy.deepcopy(model.state_dict())
    assert optim.constrain(model, 1.1) is model
    assert spectrum.condition_number(model[0].S) <= 1.1 * (1 + 1e-5)
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])] == ["0.S"]


BAD_OPTIONS = [
    ({"kind": "lowrnk"}, "kind = 'lowrnk': unknown; did you mean 'lowrank'"),
    ({"retraction": "qqr"}, "retraction = 'qqr': unknown; did you mean 'qr'"),
    ({"rule": "nearst"}, "rule = 'nearst': unknown; did you mean 'nearest'"),
    ({"momentum": 1.0}, r"momentum = 1.0: must be in \[0, 1\)"),
    ({"momentum": -0.1}, r"momentum = -0.1: must be in \[0, 1\)"),
    ({"lr": -0.1}, "lr = -0.1: must be >= 0"),
    ({"lr": math.nan}, "lr = nan: must be >= 0"),
    ({"weight_decay": -1.0}, "weight_decay = -1.0: must be >= 0"),
    ({"max_cond": 0.9}, "max_cond = 0.9: must be a number >= 1"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=lambda value: str(value)[:20])
def test_bad_options_are_refused_wherever_they_are_given(options, message):
    parameter = nn.Parameter(torch.ones(3, 3))
    with pytest.raises(ValueError, match=message):
        LowRankSGD([parameter], **options)
    with pytest.raises(ValueError, match=message):
        LowRankSGD([{"params": [parameter], **options}])
    optimizer = LowRankSGD([nn.Parameter(torch.ones(3, 3))])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [parameter], **options})


def test_a_lowrank_group_needs_three_factors():
    with pytest.raises(ValueError, match=r"params = '1 tensors': must be \[U, S, V\]"):
        LowRankSGD([nn.Parameter(torch.ones(3, 3))], kind="lowrank")


@pytest.mark.parametrize("optimizer", [LowRankSGD, wc.LowRankAdamW])
@pytest.mark.parametrize("factor", "UV")
def test_factors_without_orthonormal_columns_are_refused(optimizer, factor):
    """The first step would give them such columns, and W another value, however small its length."""
    layer = wc.factorize(nn.Linear(6, 5), rank=3)
    with torch.no_grad():
        getattr(layer, factor).mul_(2)
    W = layer.matrix().detach()
    with pytest.raises(ValueError, match=rf"params = \"{factor} of ''\": must be orthonormal columns"):
        optimizer(wc.param_groups(layer), lr=1e-12)
    layer.set_matrix(layer.matrix())  # as the message says
    torch.testing.assert_close(layer.matrix(), W)
    optimizer(wc.param_groups(layer))


def test_a_learning_rate_of_zero_is_a_step_of_zero():
    layer = wc.factorize(nn.Linear(6, 5), rank=3)
    W = layer.matrix().detach()
    layer(torch.ones(1, 6)).sum().backward()
    LowRankSGD(wc.param_groups(layer), lr=0.0).step()
    torch.testing.assert_close(layer.matrix().detach(), W)
