"""Clipping from matrix products alone, against LAPACK in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from helpers import DOUBLE, matrix_with, randn
from wellcond import matrix_sign, spectrum
from wellcond.matrix_sign import clip_nearly_feasible

BOUNDS = [1.0, 1.1, 1.5, 2.0, 5.0, 10.0]


def shapes(r, c):
    """Spectra in [1, 3c]: even, one value far above or below a feasible rest, two values, equal ones, feasible ones,
    and most values on the two bounds."""
    u = torch.linspace(0, 1, r, dtype=DOUBLE)
    bulk = 1 + (c - 1) * (0.01 + 0.98 * u)
    return {
        "even": 1 + (3 * c - 1) * u,
        "one above": torch.where(u == 1, 3.0 * c, bulk),
        "one below": torch.where(u == 0, 1 / 3, bulk),
        "two": torch.where(u < 0.4, 1.0, 3.0 * c),
        "equal": torch.ones(r, dtype=DOUBLE),
        "feasible": bulk,
        "clipped": 1 + (c - 1) * (3 * u - 1).clamp(0, 1),
    }


def instances(r, c):
    """A batch of float32 matrices with these spectra, and a clipped one after a step of 1e-3."""
    S = torch.stack([matrix_with(sigma.tolist(), seed=7 * k) for k, sigma in enumerate(shapes(r, c).values())])
    noise = randn(r, r, seed=1)
    stepped = S[-1] + 1e-3 * S[-1].norm() / noise.norm() * noise
    return torch.cat([S, stepped[None]]).float()


def errors(S, c):
    """κ/c - 1 of the result and its distance from the nearest matrix, relative to ||S||_F."""
    clipped, exact = clip_nearly_feasible(S, c).double(), S.double()
    distance = (clipped - spectrum.clip_condition_number(exact, c)).norm(dim=(-2, -1))
    return spectrum.condition_number(clipped) / c - 1, distance / exact.norm(dim=(-2, -1))


@pytest.mark.parametrize("r", [1, 2, 10, 64])
@pytest.mark.parametrize("c", BOUNDS)
def test_agrees_with_the_exact_projection(r, c):
    excess, distance = errors(instances(r, c), c)
    assert excess.max() < 1e-4
    assert distance.max() < 1e-4


def test_agrees_at_the_size_of_real_cores():
    excess, distance = errors(instances(256, 1.5)[-1], 1.5)
    assert excess < 1e-4
    assert distance < 1e-4


@settings(max_examples=15)
@given(
    sigma=st.lists(st.sampled_from([1.0, 1.1, 3.3]) | st.floats(1, 3.3), min_size=1, max_size=6),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
)
def test_random_spectra_at_any_scale(sigma, scale):
    excess, distance = errors(scale * matrix_with(sigma, dtype=torch.float32), 1.1)
    assert excess < 1e-4
    assert distance < 1e-4


@pytest.mark.parametrize("c", BOUNDS[1:])
def test_a_feasible_matrix_stays(c):
    sigma = list(shapes(20, c).values())
    S = torch.stack([matrix_with(s.tolist(), dtype=torch.float32) for s in sigma[-3:]])
    once = clip_nearly_feasible(S, c)
    assert torch.equal(once[:2], S[:2])  # no value is near a bound
    assert (once - S).norm(dim=(-2, -1)).max() < 1e-5 * S.norm()


def test_special_values():
    S = matrix_with([3.0, 2.0, 1.0], dtype=torch.float32)
    assert clip_nearly_feasible(S, math.inf) is S
    torch.testing.assert_close(clip_nearly_feasible(S, 1.0), spectrum.nearest_scaled_orthogonal(S), rtol=0, atol=1e-5)
    for c in BOUNDS:
        assert torch.equal(clip_nearly_feasible(torch.zeros(3, 3), c), torch.zeros(3, 3))
    assert clip_nearly_feasible(S.bfloat16(), 1.1).dtype == torch.bfloat16


@pytest.mark.parametrize("c", BOUNDS)
@pytest.mark.parametrize("kappa", [30, 1e3, 1e6])
def test_finite_far_from_feasible(c, kappa):
    """Feasible while κ(S) < 0.7/POLAR_LOWER or so; beyond, the smallest singular values come out too small."""
    sigma = torch.logspace(0, -math.log10(kappa), 12).tolist()
    clipped = clip_nearly_feasible(matrix_with(sigma, dtype=torch.float32), c)
    assert clipped.isfinite().all()
    assert kappa > 30 or spectrum.condition_number(clipped) < c * (1 + 1e-3)


def test_batch_is_the_loop():
    S = instances(10, 1.1)
    batch = clip_nearly_feasible(S.reshape(2, 4, 10, 10), 1.1).reshape(S.shape)
    for one, alone in zip(batch, S, strict=True):
        torch.testing.assert_close(one, clip_nearly_feasible(alone, 1.1), rtol=0, atol=1e-4)
    mapped = torch.func.vmap(lambda A: clip_nearly_feasible(A, 1.1))(S)
    torch.testing.assert_close(mapped, batch, rtol=0, atol=1e-4)


def test_nothing_depends_on_the_values():
    """One graph without breaks: no value is read back to the host."""
    S = instances(10, 1.1)
    compiled = torch.compile(lambda A: clip_nearly_feasible(A, 1.1), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(S), clip_nearly_feasible(S, 1.1), rtol=0, atol=1e-6)


def products(c, r=64):
    with FlopCounterMode(display=False) as counter:
        clip_nearly_feasible(matrix_with([1.0] * r, dtype=torch.float32), c)
    return counter.get_total_flops() / (2 * r**3)


def test_cost_in_products():
    assert products(1.0) < 20
    assert products(1.1) < 380
    assert products(10.0) < 500


@pytest.mark.parametrize(("lower", "error"), [(matrix_sign.SIGN_LOWER, 1.4e-6), (matrix_sign.POLAR_LOWER, 5e-4)])
def test_scales_of_newton_and_schulz(lower, error):
    """The composition maps [0, 1.01] into [0, 1], is 1 - 1e-5 from `lower` on, and |x| - x s(x) is small."""
    x = torch.cat([torch.zeros(1, dtype=DOUBLE), torch.logspace(-8, math.log10(1.01), 100_001, dtype=DOUBLE)])
    s = x
    for alpha in matrix_sign.newton_schulz_scales(lower):
        s = alpha * s * (3 - (alpha * s) ** 2) / 2
    assert s.min() >= 0
    assert s.max() <= 1 + 1e-12
    assert s[x >= lower].min() >= 1 - 1e-5
    assert (x * (1 - s) / 2).max() < error


def test_polar_factor_is_the_sign_of_a_symmetric_matrix():
    eigenvalues = torch.tensor([-2.0, -1e-2, 1e-3, 0.5, 1.0], dtype=DOUBLE)
    Q = torch.linalg.qr(randn(5, 5))[0]
    sign = matrix_sign.polar_factor(Q * eigenvalues @ Q.mT, 1e-4)
    torch.testing.assert_close(sign, Q * eigenvalues.sign() @ Q.mT, rtol=0, atol=2e-5)


def test_after_a_step_on_the_cpu_it_is_the_exact_projection():
    S = instances(10, 1.1)
    assert torch.equal(spectrum.clip_after_step(S, 1.1), spectrum.clip_condition_number(S, 1.1))
