"""Leading singular triplets against LAPACK, and the convergence of block power iteration."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import DOUBLE, randn
from wellcond.linalg import block_power_iteration, leading_triplets


def with_spectrum(sigma, n, m, seed=0):
    P, _ = torch.linalg.qr(randn(n, len(sigma), seed=seed))
    Q, _ = torch.linalg.qr(randn(m, len(sigma), seed=seed + 1))
    return P * torch.tensor(sigma, dtype=DOUBLE) @ Q.mT


def product(triplets):
    return triplets.U * triplets.sigma @ triplets.V.mT


@given(n=st.integers(1, 6), m=st.integers(1, 6), data=st.data(), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_leading_triplets_are_the_best_approximation(n, m, data, seed):
    k = data.draw(st.integers(1, min(n, m)))
    A = randn(n, m, seed=seed)
    triplets = leading_triplets(A, k)
    sigma = np.linalg.svd(A.numpy(), compute_uv=False)
    assert [tuple(t.shape) for t in triplets] == [(n, k), (k,), (m, k)]
    np.testing.assert_allclose(triplets.sigma, sigma[:k], atol=1e-12)
    error = np.linalg.norm(A.numpy() - product(triplets).numpy())  # Eckart and Young
    assert error == pytest.approx(np.linalg.norm(sigma[k:]), abs=1e-7)


@pytest.mark.parametrize(("n", "m"), [(12, 7), (7, 12)])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_block_power_iteration_converges_to_the_svd(n, m, k):
    A = with_spectrum([5.0, 4.0, 3.0, 1.0, 0.5, 0.2, 0.1], n, m)
    found, exact = block_power_iteration(A, k, iterations=30), leading_triplets(A, k)
    torch.testing.assert_close(found.sigma, exact.sigma, rtol=0, atol=1e-12)
    torch.testing.assert_close(product(found), product(exact), rtol=0, atol=1e-10)


@pytest.mark.parametrize("oversampling", [0, 2])
def test_the_error_of_the_values_falls_at_the_stated_rate(oversampling):
    sigma, k = [1.0, 0.9, 0.75, 0.6, 0.55, 0.2], 2
    A = with_spectrum(sigma, 12, 9)
    steps = np.arange(9, 15)
    found = [block_power_iteration(A, k, iterations=int(q), oversampling=oversampling).sigma for q in steps]
    errors = [float(sigma[k - 1] - s[-1]) for s in found]
    expected = 4 * np.log(sigma[k + oversampling] / sigma[k - 1])
    assert np.polyfit(steps, np.log(errors), 1)[0] == pytest.approx(expected, rel=0.1)


def test_one_column_is_the_power_iteration():
    A, v = randn(8, 5), randn(5, 1, seed=3)
    found = block_power_iteration(A, 1, v, iterations=4, oversampling=0)
    for _ in range(4):
        v = A.mT @ (A @ v)
        v = v / v.norm()
    torch.testing.assert_close(found.V @ found.V.mT, v @ v.mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("A", [torch.zeros(6, 4), randn(6, 1) @ randn(1, 4), 1e-18 * randn(6, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_factors_are_orthonormal_after_any_number_of_iterations(A, dtype):
    for iterations in (1, 3):
        U, sigma, V = block_power_iteration(A.to(dtype), 3, iterations=iterations)
        for X in (U, V):
            torch.testing.assert_close(X.mT @ X, torch.eye(3, dtype=dtype), rtol=0, atol=1e-5)
        assert (sigma[:-1] >= sigma[1:]).all()


@given(seed=st.integers(0, 99), iterations=st.integers(1, 3))
@settings(max_examples=30)
def test_values_are_never_above_the_exact_ones(seed, iterations):
    A = randn(7, 6, seed=seed)
    found = block_power_iteration(A, 3, iterations=iterations, oversampling=0).sigma
    assert (found <= leading_triplets(A, 3).sigma + 1e-12).all()


def test_a_direction_that_the_start_lacks_is_found():
    A = torch.diag(torch.tensor([10.0, 2.0, 1.0, 0.5, 0.1, 0.05], dtype=DOUBLE))
    start = torch.eye(6, dtype=DOUBLE)[:, 1:3]  # an invariant subspace without the first direction
    assert block_power_iteration(A, 2, start, iterations=10, oversampling=0).sigma[0] == pytest.approx(2)
    assert block_power_iteration(A, 2, start, iterations=10).sigma[0] == pytest.approx(10)


@pytest.mark.parametrize("options", [{"k": 0}, {"k": 5}, {"iterations": 0}, {"oversampling": -1}])
def test_bad_options_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name} = "):
        block_power_iteration(randn(4, 6), **{"k": 2, **options})
