"""Penalties against their definitions in singular values, finite differences, and the bound on κ."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from architectures import networks
from helpers import DOUBLE, matrix_with, randn
from wellcond.layers import weight_matrix
from wellcond.methods.penalties import robustness_regularizer, soft_orthogonality
from wellcond.methods.registry import METHODS
from wellcond.methods.settings import Settings

SPECTRA = st.lists(st.floats(0.05, 5), min_size=2, max_size=7)


@given(sigma=SPECTRA)
def test_robustness_regularizer_is_the_spread_of_the_squares(sigma):
    S = matrix_with(sigma)
    squares = torch.tensor(sigma, dtype=DOUBLE).square()
    expected = (len(sigma) * squares.var(correction=0)).sqrt()
    torch.testing.assert_close(robustness_regularizer(S), expected, rtol=1e-8, atol=1e-7)


@given(sigma=SPECTRA)
def test_robustness_regularizer_bounds_the_condition_number(sigma):
    """κ(S) <= exp(R/(√2 σ_min²))."""
    S = matrix_with(sigma)
    bound = robustness_regularizer(S) / (math.sqrt(2) * min(sigma) ** 2)
    assert math.log(max(sigma) / min(sigma)) <= bound.item() * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (2, 4, 4)])
@pytest.mark.parametrize("penalty", [robustness_regularizer, soft_orthogonality])
def test_gradient_against_finite_differences(penalty, shape):
    S, E, h = randn(*shape), randn(*shape, seed=1), 1e-6
    S.requires_grad_()
    (gradient,) = torch.autograd.grad(penalty(S).sum(), S)
    difference = (penalty(S + h * E) - penalty(S - h * E)).sum() / (2 * h)
    torch.testing.assert_close((gradient * E).sum(), difference, rtol=1e-7, atol=0)


def test_gradient_of_the_robustness_regularizer_in_closed_form():
    """2 S (SᵀS - α² I)/R, with <∇R, S> = 2R."""
    S = randn(5, 5).requires_grad_()
    R = robustness_regularizer(S)
    (gradient,) = torch.autograd.grad(R, S)
    mean = S.square().sum() / 5
    torch.testing.assert_close(gradient, 2 * S @ (S.mT @ S - mean * torch.eye(5, dtype=DOUBLE)) / R)
    torch.testing.assert_close((gradient * S).sum(), 2 * R)


def test_zero_with_a_zero_gradient_at_scaled_orthonormal_matrices():
    Q = torch.linalg.qr(randn(6, 4))[0]
    for A in (3 * torch.eye(4, dtype=DOUBLE), torch.zeros(4, 4, dtype=DOUBLE)):
        A.requires_grad_()
        value = robustness_regularizer(A)
        value.backward()
        assert value == 0
        assert not A.grad.any()
    for A in (2.5 * Q, 2.5 * Q.mT):
        assert robustness_regularizer(A) < 1e-14
    for A in (Q, Q.mT):
        assert soft_orthogonality(A) < 1e-28
    assert soft_orthogonality(2 * Q) == pytest.approx(4 * 9)


def test_the_bases_do_not_matter():
    S = randn(4, 4)
    U, V = (torch.linalg.qr(randn(9, 4, seed=s))[0] for s in (1, 2))
    torch.testing.assert_close(robustness_regularizer(U @ S @ V.mT), 9 / 9 * _spread(U @ S @ V.mT))


def _spread(W):
    squares = torch.linalg.svdvals(W).square()
    return (len(squares) * squares.var(correction=0)).sqrt()


def _net(method, **given):
    chosen = Settings(**given)
    torch.manual_seed(0)
    model = METHODS[method].prepare(networks.build("lenet5"), chosen)
    return model, METHODS[method].penalty(chosen)


def test_penalty_of_robust_dlrt_sums_over_all_layers():
    model, penalty = _net("robust_dlrt", ratio=0.8, tolerance=0.0, beta=0.3)
    matrices = [model.conv1.S, model.conv2.S, model.fc1.S, model.fc2.weight]
    torch.testing.assert_close(penalty(model), 0.3 * sum(robustness_regularizer(A) for A in matrices))
    model, penalty = _net("robust_dlrt_tucker", ratio=0.8, tolerance=0.0, beta=0.3)
    matrices = [model.conv1.S.flatten(1), model.conv2.S.flatten(1), model.fc1.S, model.fc2.weight]
    torch.testing.assert_close(penalty(model), 0.3 * sum(robustness_regularizer(A) for A in matrices))
    assert _net("robust_dlrt", ratio=0.8, tolerance=0.0, beta=0.0)[1] is None


def test_penalty_of_soft_orthogonality_acts_on_every_factor():
    model, penalty = _net("soft_orthogonal_uv", ratio=0.8, beta=0.5)
    factors = [X for layer in (model.conv1, model.conv2, model.fc1) for X in (layer.U, layer.V)]
    expected = 0.5 * sum(soft_orthogonality(X) for X in (*factors, model.fc2.weight))
    torch.testing.assert_close(penalty(model), expected)


def test_penalties_on_a_convolution_in_groups_are_those_of_its_matrices():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(8, 2)).double()
    W = weight_matrix(model[0])
    assert W.shape == (2, 4, 36)
    for name, norm in (("nuclear_norm", torch.linalg.svdvals(W).sum()), ("group_lasso", W.norm(dim=-1).sum())):
        torch.testing.assert_close(METHODS[name].penalty(Settings(beta=0.3))(model), 0.3 * norm)


def test_a_network_without_a_layer_to_penalize_is_refused():
    penalty = METHODS["group_lasso"].penalty(Settings(beta=0.3))
    with pytest.raises(ValueError, match=r"^model = 'Sequential': must be a network with a Conv2d before its last"):
        penalty(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
