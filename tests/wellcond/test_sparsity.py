"""Sparsity-inducing norms against closed forms and finite differences; the proximal map against its optimality."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import DOUBLE, matrix_with, randn
from wellcond.methods.penalties import group_lasso, nuclear_norm
from wellcond.methods.proximal import singular_value_threshold

SHAPES = [(4, 4), (3, 7), (7, 3), (2, 5, 4)]


@given(sigma=st.lists(st.floats(0, 5), min_size=1, max_size=6))
def test_nuclear_norm_is_the_sum_of_the_singular_values(sigma):
    W = matrix_with(sigma)
    assert nuclear_norm(W).item() == pytest.approx(sum(sigma), abs=1e-12)
    assert nuclear_norm(torch.cat([W, torch.zeros_like(W)], 1)).item() == pytest.approx(sum(sigma), abs=1e-12)


def test_group_lasso_sums_the_norms_of_the_rows():
    W = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])
    assert group_lasso(W) == 7
    assert group_lasso(torch.stack([W, 2 * W])).tolist() == [7, 14]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("penalty", [nuclear_norm, group_lasso])
def test_gradient_against_finite_differences(penalty, shape):
    W, E, h = randn(*shape), randn(*shape, seed=1), 1e-6
    W.requires_grad_()
    (gradient,) = torch.autograd.grad(penalty(W).sum(), W)
    difference = (penalty(W + h * E) - penalty(W - h * E)).sum() / (2 * h)
    torch.testing.assert_close((gradient * E).sum(), difference, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
def test_where_the_norms_have_no_derivative_the_smallest_subgradient_is_taken(dtype):
    zero = torch.zeros(4, 6, dtype=dtype, requires_grad=True)
    (nuclear_norm(zero) + group_lasso(zero)).backward()
    assert not zero.grad.any()
    Q = torch.linalg.qr(randn(6, 2))[0]
    W = (3 * Q @ Q.mT).to(dtype).requires_grad_()  # σ = (3, 3, 0, 0, 0, 0): repeated and zero
    nuclear_norm(W).backward()
    torch.testing.assert_close(W.grad, (Q @ Q.mT).to(dtype), rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.5, 100.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_threshold_satisfies_the_optimality_condition(shape, threshold):
    """(W - X)/t is a subgradient of ||.||_* at X: of spectral norm at most 1, with inner product ||X||_* with X."""
    W = randn(*shape)
    X = singular_value_threshold(W, threshold)
    assert X.shape == W.shape
    assert torch.linalg.svdvals(W - X).max() <= threshold + 1e-12
    torch.testing.assert_close(((W - X) * X).sum((-2, -1)), threshold * nuclear_norm(X), rtol=0, atol=1e-11)
    expected = (torch.linalg.svdvals(W) - threshold).clamp(min=0)
    torch.testing.assert_close(torch.linalg.svdvals(X), expected, rtol=0, atol=1e-12)


def test_the_threshold_beats_every_perturbation_of_it():
    W, t = randn(5, 7), 2.0
    X = singular_value_threshold(W, t)

    def objective(Y):
        return (Y - W).square().sum() / 2 + t * torch.linalg.svdvals(Y).sum()

    assert 0 < torch.linalg.matrix_rank(X) < 5
    for seed in range(20):
        for size in (1e-3, 1e-1):
            assert objective(X + size * randn(5, 7, seed=seed)) > objective(X)


def test_the_threshold_keeps_type_and_graph():
    W = randn(3, 5, dtype=torch.bfloat16).requires_grad_()
    X = singular_value_threshold(W, 0.5)
    assert X.dtype == torch.bfloat16
    assert not X.requires_grad


@pytest.mark.parametrize("threshold", [-0.1, float("nan")])
def test_a_threshold_out_of_range(threshold):
    with pytest.raises(ValueError, match=r"^threshold = (-0.1|nan): must be >= 0"):
        singular_value_threshold(randn(2, 2), threshold)
