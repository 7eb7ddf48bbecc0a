"""Each set against its definition: extreme points enumerated or searched for, atomic norms by linear programs."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from helpers import DOUBLE, randn
from wellcond.linalg import block_power_iteration
from wellcond.methods import constraint_sets
from wellcond.methods.constraint_sets import FAMILIES, constraint_set, count, lmo_error, split_triplets

SHAPE = (3, 4)
PARAMETERS = {"k": [{"k": 1}, {"k": 2}, {"k": 3}], "p": [{"p": 1.0}, {"p": 1.3}, {"p": 3.0}, {"p": math.inf}]}
CASES = [(name, options) for name, family in FAMILIES.items() for options in PARAMETERS.get(family.parameter, [{}])]
POLYTOPES = [("l1", {}), ("linf", {}), ("k_sparse", {"k": 1}), ("k_sparse", {"k": 2}), ("k_sparse", {"k": 4})]
every_set = pytest.mark.parametrize(("name", "options"), CASES, ids=str)
seeds = st.integers(0, 10_000)
radii = st.sampled_from([1e-3, 1.0, 30.0])


def inner(A, B):
    return float((A * B).sum())


def make(name, options, radius=1.0, shape=SHAPE):
    return constraint_set(name, shape, radius=radius, **options)


# ------------------------------------------------------------------------ oracles


def vertices(name, options, size):
    """All extreme points of a polytope of radius 1."""
    k = {"l1": 1, "linf": size}.get(name) or options["k"]
    for support in itertools.combinations(range(size), k):
        for signs in itertools.product([-1.0, 1.0], repeat=k):
            v = np.zeros(size)
            v[list(support)] = signs
            yield v


def atomic_gauge(atoms, x):
    """min Σ c_a with Σ c_a a = x, c >= 0, by a linear program."""
    atoms = np.array(list(atoms))
    return linprog(np.ones(len(atoms)), A_eq=atoms.T, b_eq=x, bounds=(0, None)).fun


def k_support_squared(x, k):
    """min{Σ x_i²/θ_i : 0 < θ <= 1, Σ θ <= k}, the variational form, at θ = min(1, c |x|) by bisection for c."""
    x = np.abs(x[x != 0])
    if len(x) <= k:
        return float((x**2).sum())
    low, high = 0.0, len(x) / x.min()
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if np.minimum(1, c * x).sum() < k else (low, c)
    return float((x**2 / np.minimum(1, low * x)).sum())


def oracle_norm(name, options, W):
    """‖x(W)‖ from numpy alone."""
    x = {
        "group_k_support": lambda: np.linalg.norm(W.reshape(len(W), -1), axis=1),
        **dict.fromkeys(
            ("nuclear", "spectral_k_sparse", "spectral_k_support"),
            lambda: np.linalg.svd(W.reshape(len(W), -1), compute_uv=False),
        ),
    }.get(name, lambda: np.abs(W).ravel())()
    if name.endswith("k_support"):
        return math.sqrt(k_support_squared(x, options["k"]))
    if name.endswith("k_sparse"):
        return max(x.max(), x.sum() / options["k"])
    return np.linalg.norm(x, {"l1": 1, "l2": 2, "linf": np.inf, "nuclear": 1}.get(name) or options["p"])


# ------------------------------------------------------------------------ the minimum over extreme points


@pytest.mark.parametrize(("name", "options"), POLYTOPES, ids=str)
@given(seed=seeds)
@settings(max_examples=15)
def test_lmo_of_a_polytope_is_its_best_vertex(name, options, seed):
    G = randn(4, seed=seed)
    V = make(name, options, shape=(4,)).lmo(G).numpy()
    corners = list(vertices(name, options, 4))
    assert any(np.array_equal(V, corner) for corner in corners)
    assert G.numpy() @ V == pytest.approx(min(G.numpy() @ corner for corner in corners))


@pytest.mark.parametrize(("name", "options"), POLYTOPES, ids=str)
@given(seed=seeds)
@settings(max_examples=10)
def test_gauge_of_a_polytope_is_its_atomic_norm(name, options, seed):
    W = randn(4, seed=seed)
    expected = atomic_gauge(vertices(name, options, 4), W.numpy())
    assert float(make(name, options, shape=(4,)).gauge(W)) == pytest.approx(expected)


@pytest.mark.parametrize("p", [1.0, 1.2, 2.0, 3.5, 50.0, math.inf])
@given(seed=seeds)
@settings(max_examples=10)
def test_lmo_of_an_lp_ball_is_its_best_boundary_point(p, seed):
    G = randn(2, seed=seed).numpy()
    angle = np.linspace(0, 2 * np.pi, 200_001)
    boundary = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    boundary /= np.linalg.norm(boundary, p, axis=1, keepdims=True)
    V = make("lp", {"p": p}, shape=(2,)).lmo(torch.tensor(G)).numpy()
    assert np.linalg.norm(V, p) == pytest.approx(1)
    assert np.dot(G, V) == pytest.approx((boundary @ G).min(), rel=1e-4)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("name", ["k_support", "group_k_support"])
@given(seed=seeds)
@settings(max_examples=15)
def test_lmo_of_a_support_ball_is_the_best_over_all_supports(name, k, seed):
    shape = (4, 2) if name == "group_k_support" else (4,)
    G = randn(*shape, seed=seed)
    V = make(name, {"k": k}, shape=shape).lmo(G)
    best = max(float(G[list(support)].norm()) for support in itertools.combinations(range(4), k))
    assert inner(G, V) == pytest.approx(-best)
    assert float(V.norm()) == pytest.approx(1)
    assert int(V.reshape(4, -1).any(dim=1).sum()) == k


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("name", ["spectral_k_sparse", "spectral_k_support"])
def test_lmo_of_a_spectral_set_is_the_best_that_a_search_finds(name, k):
    """Over products of frames, or A Bᵀ of length 1, with k columns: from random starts, by a quasi-Newton method."""
    n, m = 3, 4
    G = randn(n, m, seed=8).numpy()

    def frame(A):
        P, _, Qt = np.linalg.svd(A, full_matrices=False)
        return P @ Qt

    def value(factors):
        A, B = factors[: n * k].reshape(n, k), factors[n * k :].reshape(m, k)
        if name == "spectral_k_sparse":
            return np.sum(G * (frame(A) @ frame(B).T))
        return np.sum(G * (A @ B.T)) / np.linalg.norm(A @ B.T)

    starts = [randn((n + m) * k, seed=s).numpy() for s in range(6)]
    found = [minimize(value, start).fun for start in starts]
    V = make(name, {"k": k}, shape=(n, m)).lmo(torch.tensor(G))
    assert np.linalg.matrix_rank(V.numpy()) == k
    assert np.sum(G * V.numpy()) == pytest.approx(min(found), rel=1e-6)


# ------------------------------------------------------------------------ what holds for every set


@every_set
@given(seed=seeds, radius=radii, scale=st.sampled_from([1e-200, 1.0, 1e200]))
@settings(max_examples=8)
def test_lmo_is_on_the_boundary_and_attains_the_support_function(name, options, seed, radius, scale):
    C, G = make(name, options, radius), scale * randn(*SHAPE, seed=seed)
    V = C.lmo(G)
    assert V.shape == G.shape
    assert float(C.gauge(V)) == pytest.approx(1)
    assert inner(G, V) < 0
    assert float(C.support(G)) == pytest.approx(-inner(G, V))
    torch.testing.assert_close(C.lmo(-G), -V)
    assert float(V.norm()) <= C.diameter / 2 * (1 + 1e-12)


@every_set
@given(seed=seeds, radius=radii)
@settings(max_examples=8)
def test_gauge_is_the_norm_over_the_radius(name, options, seed, radius):
    W = randn(*SHAPE, seed=seed)
    W[0, 0] = W[1, 1] = W[2, 3]  # ties
    expected = oracle_norm(name, options, W.numpy()) / radius
    assert float(make(name, options, radius).gauge(W)) == pytest.approx(expected)


@every_set
@given(seed=seeds)
@settings(max_examples=8)
def test_gauge_and_support_are_dual(name, options, seed):
    """<G, W> <= gauge(W) support(G), and the G that attains it is found by ascent: each is the other's dual."""
    C, W, G = make(name, options), randn(*SHAPE, seed=seed), randn(*SHAPE, seed=seed + 1)
    assert inner(G, W) <= float(C.gauge(W) * C.support(G)) * (1 + 1e-12)
    V = C.lmo(G)
    assert inner(G, -V) == pytest.approx(float(C.gauge(V) * C.support(G)))


@pytest.mark.parametrize("k", [1, 2, 4, 7])
@given(x=st.lists(st.sampled_from([0.0, 1.0, 1.0, 2.0]) | st.floats(1e-3, 1e3), min_size=7, max_size=7))
@settings(max_examples=30)
def test_k_support_norm_with_ties_and_zeros(k, x):
    assume(any(x))
    gauge = float(make("k_support", {"k": k}, shape=(7,)).gauge(torch.tensor(x, dtype=DOUBLE)))
    assert gauge == pytest.approx(math.sqrt(k_support_squared(np.array(x), k)))


def test_sets_that_are_the_same():
    G, W = randn(3, 4), randn(3, 4, seed=1)
    pairs = [
        (("k_support", {"k": 12}), ("l2", {})),
        (("k_sparse", {"k": 12}), ("linf", {})),
        (("k_sparse", {"k": 1}), ("l1", {})),
        (("k_support", {"k": 1}), ("l1", {})),
        (("group_k_support", {"k": 3}), ("l2", {})),
        (("spectral_k_support", {"k": 3}), ("l2", {})),
        (("spectral_k_support", {"k": 1}), ("nuclear", {})),
        (("lp", {"p": 2.0}), ("l2", {})),
    ]
    for one, other in pairs:
        C, D = make(*one), make(*other)
        torch.testing.assert_close(C.lmo(G), D.lmo(G))
        assert float(C.gauge(W)) == pytest.approx(float(D.gauge(W)))
        assert C.diameter == pytest.approx(D.diameter)


@every_set
def test_diameter_is_attained_and_not_exceeded(name, options):
    """At a vertex whose entries, rows or singular values are alike, and at no random one."""
    C = make(name, options, radius=3.0, shape=(3, 3))
    corner = torch.zeros(3, 3, dtype=DOUBLE)
    corner[0, 0] = 1
    candidates = [torch.ones(3, 3, dtype=DOUBLE), torch.eye(3, dtype=DOUBLE), corner]
    lengths = [2 * float(C.lmo(G).norm()) for G in (*candidates, *(randn(3, 3, seed=s) for s in range(30)))]
    assert max(lengths) == pytest.approx(C.diameter)


@every_set
@given(seed=seeds, factor=st.floats(0.1, 10))
@settings(max_examples=8)
def test_shift_inside_scales_to_the_boundary_what_is_outside(name, options, seed, factor):
    C, W = make(name, options, radius=2.0), randn(*SHAPE, seed=seed)
    W = W * factor / C.gauge(W)
    inside = C.shift_inside(W)
    if factor <= 1:
        torch.testing.assert_close(inside, W, rtol=1e-15, atol=0)
    else:
        torch.testing.assert_close(inside, W / factor)
    assert float(C.gauge(inside)) == pytest.approx(min(factor, 1))


@every_set
def test_zero_and_half_precision(name, options):
    C, zero = make(name, options), torch.zeros(SHAPE)
    assert torch.equal(C.lmo(zero), zero)
    assert float(C.gauge(zero)) == 0
    assert torch.equal(C.shift_inside(zero), zero)
    G = randn(*SHAPE)
    V = C.lmo(G.bfloat16())
    assert V.dtype == torch.bfloat16
    torch.testing.assert_close(V.double(), C.lmo(G.bfloat16().double()), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", ["group_k_support", "spectral_k_sparse", "spectral_k_support", "nuclear"])
def test_a_kernel_is_its_matrix(name):
    options = {"k": 2} if FAMILIES[name].parameter else {}
    G, W = randn(4, 2, 3, 3), randn(4, 2, 3, 3, seed=1).to(memory_format=torch.channels_last)
    kernels, matrices = make(name, options, shape=G.shape), make(name, options, shape=(4, 18))
    torch.testing.assert_close(kernels.lmo(G), matrices.lmo(G.reshape(4, 18)).reshape(G.shape))
    assert float(kernels.gauge(W)) == pytest.approx(float(matrices.gauge(W.reshape(4, 18))))


# ------------------------------------------------------------------------ approximate minimizers


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if make(*case).spectral], ids=str)
def test_block_power_iteration_approaches_the_minimum_from_within(name, options):
    C, G = make(name, options, shape=(12, 9)), randn(12, 9, seed=2)
    errors = []
    for iterations in (1, 4, 40):
        triplets = block_power_iteration(G, C.norm.k, iterations=iterations)
        V = C.vertex(*split_triplets(triplets, G.shape))
        assert float(C.gauge(V)) == pytest.approx(1)
        errors.append(float(lmo_error(C, G, V)))
    assert errors[0] > errors[1] > errors[2] > -1e-12
    assert errors[2] < 1e-9


def test_lmo_error_of_known_points():
    C, G = make("spectral_k_sparse", {"k": 2}), randn(*SHAPE)
    V = C.lmo(G)
    assert [float(lmo_error(C, G, s * V)) for s in (1, 0.5, 0, -1)] == pytest.approx([0, 0.5, 1, 2])


# ------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("field", "name", "arguments"),
    [
        ("constraint", "nuklear", {}),
        ("k", "k_sparse", {}),
        ("k", "k_sparse", {"k": 0}),
        ("k", "k_sparse", {"k": 13}),
        ("k", "k_support", {"k": 1.5}),
        ("k", "spectral_k_sparse", {"k": 4}),
        ("k", "nuclear", {"k": 2}),
        ("p", "lp", {}),
        ("p", "lp", {"p": 0.5}),
        ("p", "lp", {"p": math.nan}),
        ("radius", "l2", {"radius": 0.0}),
        ("radius", "l2", {"radius": math.inf}),
        ("shape", "nuclear", {"shape": (4,)}),
        ("shape", "group_k_support", {"shape": (4,), "k": 1}),
    ],
)
def test_bad_arguments_are_named(field, name, arguments):
    with pytest.raises(ValueError, match=f"^{field} = ") as caught:
        constraint_set(name, **{"shape": SHAPE, "radius": 1.0, **arguments})
    assert "\n" not in str(caught.value)


def test_count():
    assert [count(f, n) for f, n in [(0.29, 100), (0.3, 10), (0.01, 10), (1, 7), (0.5, 7)]] == [29, 3, 1, 7, 3]
    for fraction in (0, 1.1, -0.5, math.nan):
        with pytest.raises(ValueError, match=r"^fraction = "):
            count(fraction, 10)
    assert constraint_sets.coordinate_count("nuclear", (6, 2, 2, 1)) == 4
