"""Orthonormal frames: projections and retractions against their defining properties and against geodesics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import DOUBLE, generator, order, randn
from wellcond import stiefel

SHAPES = [(7, 3), (4, 4), (5, 1), (2, 3, 8, 3)]
TIGHT = 1e-12  # float64 rounding, a few hundred operations deep

sizes = st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
seeds = st.integers(0, 2**31)


def frame(*shape, seed=0, dtype=DOUBLE):
    """A random frame that no function of wellcond has touched."""
    return torch.linalg.qr(randn(*shape, seed=seed))[0].to(dtype)


def unit_tangent(X, seed=1):
    """XΩ + (I - XXᵀ)Z with a random skew Ω, of norm 1."""
    Omega = randn(*X.shape[:-2], X.shape[-1], X.shape[-1], seed=seed).to(X.dtype)
    Z = randn(*X.shape, seed=seed + 1).to(X.dtype)
    xi = X @ (Omega - Omega.mT) + Z - X @ (X.mT @ Z)
    return xi / torch.linalg.matrix_norm(xi)[..., None, None]


def gap(X):
    """Largest entry of XᵀX - I."""
    return (X.mT @ X - torch.eye(X.shape[-1], dtype=X.dtype)).abs().max().item()


@pytest.mark.parametrize("method", stiefel.RETRACTIONS)
@pytest.mark.parametrize("shape", SHAPES)
class TestRetraction:
    def test_zero_is_the_identity(self, method, shape):
        X = frame(*shape)
        assert (stiefel.retract(X, torch.zeros_like(X), method) - X).abs().max() < TIGHT

    def test_first_order_agreement_with_the_tangent(self, method, shape):
        X = frame(*shape)
        xi = unit_tangent(X)
        slope = order(lambda h: (stiefel.retract(X, h * xi, method) - X - h * xi).norm().item())
        assert slope == pytest.approx(2, abs=0.1)

    def test_order_of_agreement_with_the_geodesic(self, method, shape):
        X = frame(*shape)
        xi = unit_tangent(X)
        geodesic = canonical_geodesic if method == "cayley" else euclidean_geodesic
        slope = order(lambda h: (stiefel.retract(X, h * xi, method) - geodesic(X, h * xi)).norm().item())
        # a frame of one vector moves along a circle, where the normalized sum is of third order too
        assert slope == pytest.approx(2 if method == "qr" and shape[-1] > 1 else 3, abs=0.15)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
    def test_low_precision(self, method, shape, dtype, tolerance):
        """The result has the input's type and is the float64 result up to its rounding (eps = 1.2e-7, 7.8e-3)."""
        X = frame(*shape, dtype=dtype)
        xi = (0.3 * unit_tangent(X.double())).to(dtype)
        Y = stiefel.retract(X, xi, method)
        assert Y.dtype == dtype
        assert (Y.double() - stiefel.retract(X.double(), xi.double(), method)).abs().max() < tolerance


@pytest.mark.parametrize("method", stiefel.RETRACTIONS)
@given(size=sizes, seed=seeds, scale=st.floats(0, 100))
def test_retraction_stays_on_the_manifold(method, size, seed, scale):
    """For tangents of any length, also where the map is far from the geodesic."""
    X = frame(*size, seed=seed)
    Z = scale * randn(*size, seed=seed + 1)
    xi = stiefel.project_tangent(X, Z)
    # rounding relative to the tangent's length: X + ξ cancels, and Cayley solves a system of condition ~ |ξ|²
    assert gap(stiefel.retract(X, xi, method)) < TIGHT * (1 + scale) ** 2


def euclidean_geodesic(X, xi):
    """Edelman, Arias and Smith (1998), equation 2.42: the embedded metric, by a matrix exponential."""
    r = X.shape[-1]
    A, S = X.mT @ xi, xi.mT @ xi
    eye = torch.eye(r, dtype=X.dtype).expand_as(A)
    block = torch.cat([torch.cat([A, -S], -1), torch.cat([eye, A], -1)], -2)
    return torch.cat([X, xi], -1) @ torch.linalg.matrix_exp(block)[..., :r] @ torch.linalg.matrix_exp(-A)


def canonical_geodesic(X, xi):
    """exp(A) X with the n x n generator A = [X X⊥] [[Ω, -Kᵀ], [K, 0]] [X X⊥]ᵀ of ξ = XΩ + X⊥K."""
    n, r = X.shape[-2:]
    full = torch.linalg.qr(X, mode="complete")[0]
    basis = torch.cat([X, full[..., r:]], -1)
    block = torch.zeros(*X.shape[:-2], n, n, dtype=X.dtype)
    block[..., :, :r] = basis.mT @ xi
    block[..., :r, r:] = -block[..., r:, :r].mT
    return basis @ torch.linalg.matrix_exp(block)[..., :r]


@pytest.mark.parametrize("geodesic", [euclidean_geodesic, canonical_geodesic])
def test_oracles_are_geodesics_of_unit_speed(geodesic):
    X = frame(7, 3)
    xi = unit_tangent(X)
    assert gap(geodesic(X, 2 * xi)) < TIGHT
    assert order(lambda h: (geodesic(X, h * xi) - X - h * xi).norm().item()) == pytest.approx(2, abs=0.1)


@given(size=sizes, seed=seeds)
def test_polar_is_the_nearest_frame(size, seed):
    """A = X H with H symmetric positive semidefinite characterizes it; and it beats frames near and far."""
    A = randn(*size, seed=seed)
    X = stiefel.polar(A)
    H = X.mT @ A
    assert gap(X) < TIGHT
    # relative to |A|; A may be nearly singular, where X is determined but ill-conditioned
    torch.testing.assert_close(X @ H, A, rtol=0, atol=1e-10)
    torch.testing.assert_close(H, H.mT, rtol=0, atol=1e-10)
    assert torch.linalg.eigvalsh(H).min() > -1e-10
    others = [frame(*size, seed=seed + 1), *(torch.linalg.qr(X + 0.1 * frame(*size, seed=seed + k))[0] for k in (2, 3))]
    for other in others:
        signs = torch.sign((other * X).sum(0))  # torch's QR may have turned columns around
        assert (A - X).norm() <= (A - other * signs).norm() + TIGHT


@given(size=sizes, seed=seeds)
def test_qr_has_a_positive_diagonal(size, seed):
    """A = Q R with R upper triangular and diag R > 0, which makes Q unique."""
    A = randn(*size, seed=seed)
    Q = stiefel.qr(A)
    R = Q.mT @ A
    assert gap(Q) < TIGHT
    torch.testing.assert_close(Q @ R, A, rtol=0, atol=TIGHT * 100)
    assert torch.tril(R, -1).abs().max() < TIGHT * 100
    assert (R.diagonal() > 0).all()


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_cayley_is_the_transform_of_the_skew_generator(shape, scale):
    """The r x r elimination against (I - A/2)⁻¹ (I + A/2) X with the n x n skew A = Pξ Xᵀ - X (Pξ)ᵀ."""
    X = frame(*shape)
    xi = scale * unit_tangent(X)
    P_xi = xi - X @ (X.mT @ xi) / 2
    A = P_xi @ X.mT - X @ P_xi.mT
    eye = torch.eye(shape[-2], dtype=DOUBLE)
    expected = torch.linalg.solve(eye - A / 2, (eye + A / 2) @ X)
    torch.testing.assert_close(stiefel.retract(X, xi, "cayley"), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("method", stiefel.RETRACTIONS)
def test_rounding_errors_of_the_point_do_not_accumulate(method):
    """From a point that is off the manifold by 1e-4, a step ends on it to second order, 1e-8."""
    X = frame(9, 4) + 1e-4 * randn(9, 4, seed=5) / 6
    Y = stiefel.retract(X, 0.1 * unit_tangent(frame(9, 4)), method)
    assert 1e-5 < stiefel.orthogonality_error(X) < 2e-4
    assert stiefel.orthogonality_error(Y) < 2e-8


def dimension(n, r, projection):
    return n * r - (r * (r + 1) // 2 if projection is stiefel.project_tangent else r * r)


@pytest.mark.parametrize("projection", [stiefel.project_tangent, stiefel.project_horizontal])
@given(size=sizes, seed=seeds)
def test_projections_are_orthogonal_projections_on_the_right_space(projection, size, seed):
    """Idempotent and self-adjoint, with the right kernel condition, and onto: the rank is the space's dimension."""
    n, r = size
    X = frame(n, r, seed=seed)
    basis = torch.eye(n * r, dtype=DOUBLE).reshape(n * r, n, r)
    images = projection(X, basis)
    matrix = images.reshape(n * r, n * r)
    torch.testing.assert_close(matrix, matrix.mT, rtol=0, atol=TIGHT)
    torch.testing.assert_close(matrix @ matrix, matrix, rtol=0, atol=TIGHT)
    assert matrix.trace().item() == pytest.approx(dimension(n, r, projection), abs=1e-10)
    inner = X.mT @ images
    condition = inner if projection is stiefel.project_horizontal else inner + inner.mT
    assert condition.abs().max() < TIGHT


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        found = result if isinstance(result, tuple | list) else [result]
        self.numel = max([self.numel, *(t.numel() for t in found if isinstance(t, torch.Tensor))])
        return result


@pytest.mark.parametrize("method", stiefel.RETRACTIONS)
def test_no_square_matrix_of_the_long_side_is_formed(method):
    n, r = 3000, 4
    X, Z = frame(n, r, dtype=torch.float32), randn(n, r, dtype=torch.float32)
    with Largest() as largest:
        xi = stiefel.project_tangent(X, stiefel.project_horizontal(X, Z))
        stiefel.orthogonality_error(stiefel.retract(X, xi, method))
    assert n * r <= largest.numel < n * n / 100


def test_random_frames_are_haar_distributed():
    """E[X] = 0 and E[XXᵀ] = (r/n) I. LAPACK's Q without the sign convention fails the first: E[X₁₁] < 0."""
    n, r, count = 4, 2, 20_000
    X = stiefel.random_stiefel(n, r, batch=(count,), generator=generator(3), dtype=DOUBLE)
    assert X.shape == (count, n, r)
    assert gap(X) < TIGHT
    deviation = 5 * math.sqrt(1 / n / count)  # five standard errors of one entry
    assert X.mean(0).abs().max() < deviation
    assert (X @ X.mT).mean(0).sub(r / n * torch.eye(n)).abs().max() < deviation


def test_random_frames_follow_their_generator():
    draw = [stiefel.random_stiefel(5, 2, generator=generator(s)) for s in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert draw[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("factor", [stiefel.qr, stiefel.polar])
def test_factorizations_in_low_precision(factor, dtype):
    A = randn(9, 4).to(dtype)
    Q = factor(A)
    assert Q.dtype == dtype
    assert gap(Q.double()) < 10 * torch.finfo(dtype).eps


def test_orthogonality_error_is_the_spectral_norm():
    lengths = torch.tensor([1.0, 1.5, 0.8], dtype=DOUBLE)
    X = frame(6, 3) * lengths
    assert stiefel.orthogonality_error(X).item() == pytest.approx(1.25, rel=1e-12)  # 1.5² - 1
    batch = torch.stack([X, frame(6, 3)])
    torch.testing.assert_close(stiefel.orthogonality_error(batch), torch.tensor([1.25, 0], dtype=DOUBLE))


def test_orthogonality_error_measures_the_stored_numbers():
    """A float32 frame has errors near 1e-7; a float32 Gram matrix could not tell 1e-8 from them."""
    X = frame(40, 10, dtype=torch.float32)
    exact = X.numpy().astype(np.float64)
    expected = np.linalg.norm(exact.T @ exact - np.eye(10), 2)
    assert stiefel.orthogonality_error(X).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("factor", [stiefel.qr, stiefel.polar])
@pytest.mark.parametrize("shape", [(2, 3), (4,)])
def test_a_wide_matrix_is_refused(factor, shape):
    with pytest.raises(ValueError, match=r"shape = \(.*\): must be \(..., n, r\) with n >= r"):
        factor(torch.ones(shape))


def test_unknown_retraction_suggests_the_nearest():
    X = frame(3, 2)
    with pytest.raises(ValueError, match="did you mean 'cayley'"):
        stiefel.retract(X, X, "caley")
