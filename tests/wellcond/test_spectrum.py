"""Singular values and the projections onto κ(S) <= c, against scalar searches that share nothing with the library."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import DOUBLE, matrix_with, randn
from wellcond import spectrum
from wellcond.linalg import svd
from wellcond.methods import centred_clipping

RULES = list(spectrum.CLIP_RULES)
BOUNDS = [1.0, 1.1, 1.5, 3.0, 100.0]

# zero, repeated, tiny and large values turn up often
values = st.sampled_from([0.0, 1e-8, 0.5, 1.0, 1.0, 2.0, 1e4]) | st.floats(1e-100, 10)  # squares do not underflow
spectra = st.lists(values, min_size=1, max_size=8)
bounds = st.sampled_from(BOUNDS) | st.floats(1, 50)


def nearest_by_bisection(sigma, c):
    """The root of g(μ) = Σ max(μ - σ, 0) - c Σ max(σ - cμ, 0) by bisection, then σ clipped to [μ, cμ]."""
    sigma = np.asarray(sigma, dtype=float)
    if sigma.max() <= c * sigma.min():
        return sigma
    low, high = 0.0, sigma.max()
    for _ in range(200):
        middle = (low + high) / 2
        g = np.maximum(middle - sigma, 0).sum() - c * np.maximum(sigma - c * middle, 0).sum()
        low, high = (low, middle) if g > 0 else (middle, high)
    return np.clip(sigma, low, c * low)


def apply(rule, sigma, c):
    return spectrum.CLIP_RULES[rule](torch.tensor(sigma, dtype=DOUBLE), c).numpy()


@pytest.mark.parametrize("rule", RULES)
@given(sigma=spectra, c=bounds)
def test_every_rule_bounds_the_condition_number(rule, sigma, c):
    clipped = apply(rule, sigma, c)
    assert clipped.max() <= c * clipped.min() * (1 + 1e-12)
    assert clipped.min() > 0 or max(sigma) == 0  # only the zero spectrum stays singular


@given(sigma=spectra, c=bounds)
def test_nearest_agrees_with_bisection(sigma, c):
    np.testing.assert_allclose(apply("nearest", sigma, c), nearest_by_bisection(sigma, c), rtol=1e-9, atol=1e-9)


@given(sigma=spectra, c=bounds)
def test_nearest_of_one_spectrum_is_that_of_a_batch(sigma, c):
    """One spectrum on a CPU goes another way than batches do."""
    batch = torch.tensor([sigma, sigma], dtype=DOUBLE)
    np.testing.assert_allclose(apply("nearest", sigma, c), spectrum.nearest_rule(batch, c)[1], rtol=1e-14, atol=1e-300)


@given(sigma=spectra, c=bounds)
def test_nearest_beats_every_band_on_a_grid_and_the_other_rules(sigma, c):
    """Any feasible vector lies in some band [μ, cμ], and clipping is nearest within a band: the grid is exhaustive."""
    sigma = np.array(sigma)
    distance = np.linalg.norm(apply("nearest", sigma, c) - sigma)
    for mu in np.linspace(0, sigma.max(), 301):
        assert distance <= np.linalg.norm(np.clip(sigma, mu, c * mu) - sigma) + 1e-9 * sigma.max()
    for rule in ("mean", "rms"):
        assert distance <= np.linalg.norm(apply(rule, sigma, c) - sigma) + 1e-9 * sigma.max()


@given(sigma=spectra, c=bounds)
def test_nearest_is_idempotent(sigma, c):
    once = apply("nearest", sigma, c)
    np.testing.assert_allclose(apply("nearest", once, c), once, rtol=1e-14)


@pytest.mark.parametrize("rule", RULES)
@given(sigma=spectra, c=bounds, scale=st.floats(1e-3, 1e3), data=st.data())
def test_rules_are_homogeneous_and_symmetric(rule, sigma, c, scale, data):
    permutation = data.draw(st.permutations(range(len(sigma))))
    clipped = apply(rule, sigma, c)
    np.testing.assert_allclose(apply(rule, np.array(sigma) * scale, c), scale * clipped, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(apply(rule, np.array(sigma)[permutation], c), clipped[permutation], rtol=1e-9)


def test_mean_rule_is_not_idempotent():
    """(10, 1, 1, 1) at c = 2: repetition moves the mean and the condition number goes on falling towards 1.5."""
    sigma, kappas = torch.tensor([10.0, 1, 1, 1], dtype=DOUBLE), []
    for _ in range(60):
        sigma = centred_clipping.mean_rule(sigma, 2.0)
        kappas.append((sigma.max() / sigma.min()).item())
    assert kappas[:3] == pytest.approx([2, 5 / 3, 14 / 9], rel=1e-12)
    assert kappas[-1] == pytest.approx(1.5, abs=1e-6)


def test_mean_rule_moves_a_feasible_spectrum():
    """(1.1, 1 x9) at c = 1.1 is feasible, yet its top value becomes mean · (1 + 1/21) = 1.0581 (methods.md 3.3)."""
    sigma = [1.1] + 9 * [1.0]
    assert apply("mean", sigma, 1.1) == pytest.approx([1.01 * 22 / 21] + 9 * [1.0])
    assert (apply("nearest", sigma, 1.1) == sigma).all()


def test_rules_at_one_keep_the_mean_or_the_norm():
    sigma = [3.0, 1.0, 0.5]
    assert apply("nearest", sigma, 1.0) == pytest.approx(3 * [1.5])
    assert apply("mean", sigma, 1.0) == pytest.approx(3 * [1.5])
    assert np.linalg.norm(apply("rms", sigma, 1.0)) == pytest.approx(np.linalg.norm(sigma))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("c", BOUNDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_clipped_matrices_are_feasible(rule, c, dtype):
    """A batch with repeated, zero and widely spread singular values, in each precision."""
    cases = ([1, 1, 1, 1], [5, 5, 1, 1], [1, 0, 0, 0], [3, 2, 1, 0], [1, 1e-3, 1e-6, 1e-9], [4, 3, 2, 1])
    S = torch.stack([matrix_with(sigma, seed=k, dtype=dtype) for k, sigma in enumerate(cases)])
    clipped = spectrum.clip_condition_number(S, c, rule)
    assert clipped.dtype == dtype
    sigma = np.linalg.svd(clipped.double().numpy(), compute_uv=False)
    # the SVD's factors are orthogonal to several eps and the product is rounded: σ moves by a multiple of r · eps
    assert (sigma[:, 0] <= c * sigma[:, -1] + 20 * c * torch.finfo(dtype).eps * sigma[:, 0]).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_nearest_at_extreme_scales_in_float32(scale):
    """No squares are taken, so float32 neither overflows nor flushes to zero."""
    sigma = torch.tensor([4.0, 2.0, 1.0]) * scale
    clipped = spectrum.nearest_rule(sigma, 1.5)
    expected = nearest_by_bisection([4.0, 2.0, 1.0], 1.5)
    np.testing.assert_allclose(clipped.double() / scale, expected, rtol=1e-5)


@given(c=bounds, low=st.floats(1e-3, 1e3), inside=st.lists(st.floats(0, 1), max_size=6))
def test_feasible_spectra_come_back_bit_for_bit(c, low, inside):
    """Up to the bound itself, where max = c min."""
    sigma = [low, c * low, *(min(low + t * (c * low - low), c * low) for t in inside)]  # which rounding may exceed
    assert (apply("nearest", sigma, c) == sigma).all()


@given(c=bounds, seed=st.integers(0, 1000), r=st.integers(1, 6))
def test_feasible_matrices_come_back_bit_for_bit(c, seed, r):
    sigma = np.linspace(1 + (c - 1) * 0.999, 1, r)  # κ just inside the bound
    S = matrix_with(sigma, seed=seed)
    found = spectrum.clip_condition_number(S, c)
    if r == 1 or c > 1 + 1e-11:  # the margin (c - 1)/1000 is above the rounding of the singular values
        assert torch.equal(found, S)
    torch.testing.assert_close(found, S, rtol=0, atol=1e-10)


@given(seed=st.integers(0, 1000), c=bounds)
def test_matrix_projection_is_orthogonally_equivariant_and_optimal(seed, c):
    """clip(P S Q) = P clip(S) Q, and no feasible competitor is nearer in the Frobenius norm."""
    S = randn(4, 4, seed=seed)
    P, Q = (torch.linalg.qr(randn(4, 4, seed=seed + k))[0] for k in (1, 2))
    clipped = spectrum.clip_condition_number(S, c)
    torch.testing.assert_close(spectrum.clip_condition_number(P @ S @ Q, c), P @ clipped @ Q, rtol=0, atol=1e-10)
    distance = (clipped - S).norm()
    sigma = nearest_by_bisection(np.linalg.svd(S.numpy(), compute_uv=False), c)
    assert distance.item() == pytest.approx(np.linalg.norm(sigma - np.linalg.svd(S.numpy())[1]), abs=1e-10)
    for k in range(5):
        near = S + 10.0**-k * randn(4, 4, seed=seed + 3 + k)
        competitor = spectrum.clip_condition_number(near, c, "mean")
        assert distance <= (competitor - S).norm() + 1e-10


@given(seed=st.integers(0, 1000), r=st.integers(1, 6))
def test_bound_one_gives_the_nearest_scaled_orthogonal_matrix(seed, r):
    """a Q with QᵀS symmetric positive semidefinite and a = tr(QᵀS)/r: the least-squares conditions."""
    S = randn(r, r, seed=seed)
    R = spectrum.nearest_scaled_orthogonal(S)
    torch.testing.assert_close(spectrum.clip_condition_number(S, 1.0), R, rtol=0, atol=1e-12)
    a = torch.linalg.matrix_norm(R) / math.sqrt(r)
    Q = R / a
    torch.testing.assert_close(Q.mT @ Q, torch.eye(r, dtype=DOUBLE), rtol=0, atol=1e-10)
    H = Q.mT @ S
    torch.testing.assert_close(H, H.mT, rtol=0, atol=1e-10)
    assert torch.linalg.eigvalsh(H).min() > -1e-10
    assert a.item() == pytest.approx(H.trace().item() / r, abs=1e-10)


def test_zero_matrix_and_single_values_are_feasible():
    assert torch.equal(spectrum.clip_condition_number(torch.zeros(3, 3), 1.1), torch.zeros(3, 3))
    S = torch.tensor([[[-2.0]], [[0.0]], [[1e-20]]])
    assert torch.equal(spectrum.clip_condition_number(S, 1.0), S)


def test_no_bound_returns_its_argument():
    S = matrix_with([1.0, 0.0])
    assert spectrum.clip_condition_number(S, math.inf) is S


def test_a_batch_is_clipped_matrix_by_matrix():
    S = torch.stack([matrix_with([3.0, 1, 1], seed=1), matrix_with([1.05, 1, 1], seed=2)]).reshape(2, 1, 3, 3)
    clipped = spectrum.clip_condition_number(S, 1.1)
    for one, alone in zip(clipped[:, 0], S[:, 0], strict=True):
        torch.testing.assert_close(one, spectrum.clip_condition_number(alone, 1.1), rtol=0, atol=1e-14)
    assert torch.equal(clipped[1], S[1])


@pytest.mark.parametrize("sigma", [[1, 1, 1, 1], [3, 2, 1, 1], [5, 5, 1, 1], [1e4, 1, 1e-4, 0], [0, 0, 0, 0]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_svd_is_one_in_working_precision(sigma, dtype):
    """Orthonormal factors and the product: by the Gram matrix where κ <= 4 in float32, else in double precision."""
    A = torch.cat([matrix_with(sigma), torch.zeros(2, 4, dtype=DOUBLE)])[torch.tensor([4, 0, 1, 5, 2, 3])].to(dtype)
    P, s, Qt = svd(torch.stack([A, 2 * A]))
    eps = 10 * torch.finfo(P.dtype).eps  # half precision is factorized in float32
    eye = torch.eye(4, dtype=P.dtype).expand(2, 4, 4)
    torch.testing.assert_close(P.mT @ P, eye, rtol=0, atol=3 * eps)
    torch.testing.assert_close(Qt @ Qt.mT, eye, rtol=0, atol=eps)
    for k in (0, 1):
        product = P[k] * s[k] @ Qt[k]
        torch.testing.assert_close(product, (k + 1) * A.to(P.dtype), rtol=0, atol=3 * eps * max(sigma))
    assert (s.diff() <= 0).all()
    exact = np.linalg.svd(A.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(s[0].double(), exact, rtol=3 * eps, atol=eps * max(sigma) / 10)


def test_svd_does_without_the_gram_matrix_where_its_factorization_fails(monkeypatch):
    """As LAPACK's does now and then on a matrix with subnormal entries."""

    def fails(*args):
        raise torch.linalg.LinAlgError

    A = randn(6, 4, dtype=torch.float32)
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    P, sigma, Qt = svd(A)
    torch.testing.assert_close((P * sigma) @ Qt, A, rtol=0, atol=1e-6)
    torch.testing.assert_close(sigma, torch.linalg.svdvals(A), rtol=1e-6, atol=0)


def test_svd_refuses_what_is_not_finite():
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(torch.linalg.LinAlgError):
            svd(torch.full((3, 3), math.nan, dtype=dtype))


@pytest.mark.parametrize("c", [1.0, 1.1])
def test_repeated_clipping_of_a_large_core_never_fails(c):
    """A 250 x 250 float32 core whose values all repeat: LAPACK's divide and conquer does not always converge there."""
    S = torch.linalg.qr(randn(250, 250, dtype=torch.float32))[0]
    for step in range(3):
        S = spectrum.clip_condition_number(S + 1e-3 * randn(250, 250, seed=step, dtype=torch.float32), c)
        sigma = np.linalg.svd(S.double().numpy(), compute_uv=False)
        assert sigma[0] <= c * sigma[-1] * (1 + 1e-4)


def test_condition_numbers_and_singular_values():
    A = torch.stack([randn(5, 3, seed=1), torch.zeros(5, 3, dtype=DOUBLE), randn(5, 1) @ randn(1, 3)])
    kappa = spectrum.condition_number(A)
    assert kappa[0].item() == pytest.approx(np.linalg.cond(A[0].numpy()), rel=1e-10)
    assert kappa[1] == math.inf
    assert kappa[2] > 1e15  # of rank one: σ₂ is rounding noise, or exactly zero
    np.testing.assert_allclose(spectrum.singular_values(A[0]), np.linalg.svd(A[0].numpy())[1], rtol=1e-12)
    half = torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True)
    assert spectrum.singular_values(half).tolist() == pytest.approx([2, 0], abs=1e-6)


@pytest.mark.parametrize("c", [0.9, 0.0, -1.0, math.nan])
def test_a_bound_below_one_is_refused(c):
    with pytest.raises(ValueError, match=r"max_cond = .*: must be a number >= 1"):
        spectrum.clip_condition_number(torch.eye(2), c)


def test_unknown_rule_suggests_the_nearest():
    with pytest.raises(ValueError, match="rule = 'nearset': unknown; did you mean 'nearest'"):
        spectrum.clip_condition_number(torch.eye(2), 1.5, "nearset")
