"""The convex view of two-layer ReLU networks: the map is exact, the optimum is one, and every bound bounds."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from helpers import DOUBLE, randn
from study.theory import convex_landscape
from study.theory.convex_view import Problem, balanced, network, patterns, solve, support, violated


def problem(n=12, d=3, beta=0.3, seed=0):
    return Problem(randn(n, d, seed=seed), randn(n, seed=seed + 100), beta)


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_the_map_back_reproduces_the_objective(seed):
    """Any v and w in their cones give a network with the value of the convex objective."""
    p, u = problem(seed=seed), randn(6, 3, seed=seed + 1)
    v, w = u[:4], u[4:]
    D_v, D_w = ((p.X @ a.mT >= 0).to(DOUBLE) for a in (v, w))
    fit = (D_v * (p.X @ v.mT)).sum(1) - (D_w * (p.X @ w.mT)).sum(1)
    value = float((fit - p.y).square().sum() / 2 + p.beta * u.norm(dim=1).sum())
    V = torch.zeros(2, 4, 3, dtype=DOUBLE)
    V[0], V[1, :2] = v, w
    neurons, a = network(V)
    assert p.objective(neurons, a) == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(neurons.norm(dim=1), a.abs())


def test_balancing_keeps_the_function_and_lowers_the_objective():
    p, u, a = problem(), randn(5, 3), randn(5, seed=1)
    torch.testing.assert_close(p.residual(*balanced(u, a)), p.residual(u, a))
    assert p.objective(*balanced(u, a)) < p.objective(u, a)


@pytest.mark.parametrize("seed", range(2))
def test_without_cones_it_is_the_group_lasso_of_a_proximal_solver(seed):
    p = problem(seed=seed)
    D = patterns(p.X, randn(5, 3, seed=seed))
    found = solve(p, D, cones=False, tolerance=1e-9)
    M = torch.cat([d[:, None] * p.X for d in D], dim=1)
    step = 1 / float(torch.linalg.matrix_norm(M, 2)) ** 2
    z = torch.zeros(M.shape[1], dtype=DOUBLE)
    for _ in range(5000):
        z = (z - step * M.mT @ (M @ z - p.y)).view(len(D), -1)
        z = (z * (1 - step * p.beta / z.norm(dim=1, keepdim=True)).clamp(min=0)).nan_to_num().flatten()
    value = (M @ z - p.y).square().sum() / 2 + p.beta * z.view(len(D), -1).norm(dim=1).sum()
    assert found.upper == pytest.approx(float(value), rel=1e-5)
    assert found.gap < 1e-8


def all_patterns(X):
    """Of points in the plane: one for each angle between two normals."""
    angles = torch.atan2(X[:, 1], X[:, 0])
    edges = torch.cat([angles + math.pi / 2, angles - math.pi / 2]).remainder(2 * math.pi).sort().values
    middle = (edges + torch.cat([edges[1:], edges[:1] + 2 * math.pi])) / 2
    return patterns(X, torch.stack([middle.cos(), middle.sin()], dim=1))


@pytest.mark.parametrize("seed", range(2))
def test_with_all_patterns_no_network_of_many_trained_is_better_and_the_best_is_as_good(seed):
    p = problem(4, 2, 0.1, seed)
    D = all_patterns(p.X)
    assert len(D) in (7, 8)  # two a point, less the empty one
    found = solve(p, D, tolerance=1e-7)
    X, y = p.X.numpy(), p.y.numpy()

    def value(z):
        u, a = z[:16].reshape(8, 2), z[16:]
        H = np.maximum(X @ u.T, 0)
        error = H @ a - y
        gradient = [(((H > 0) * error[:, None] * a).T @ X + p.beta * u).ravel(), error @ H + p.beta * a]
        return (error @ error + p.beta * z @ z) / 2, np.concatenate(gradient)

    rng = np.random.default_rng(seed)
    values = [minimize(value, rng.normal(size=24), jac=True, method="L-BFGS-B").fun for _ in range(100)]
    assert min(values) >= found.lower - 1e-9
    assert min(values) == pytest.approx(found.upper, rel=1e-3)


def test_the_support_of_a_cone_by_brute_force():
    p, alpha = problem(8, 2), randn(8, seed=5)
    D = all_patterns(p.X)
    u = torch.linspace(0, 2 * math.pi, 200_001, dtype=DOUBLE)
    u = torch.stack([u.cos(), u.sin()], dim=1)
    side = p.X @ u.mT
    for i, d in enumerate(D):
        inside = (((2 * d - 1)[:, None] * side) >= 0).all(0)
        values = (d * alpha) @ side[:, inside]
        assert float(support(p, D, alpha)[0, i]) == pytest.approx(max(0, float(values.max())), abs=1e-3)
        assert float(support(p, D, alpha)[1, i]) == pytest.approx(max(0, float(-values.min())), abs=1e-3)


def test_with_cones_against_another_solver():
    cp = pytest.importorskip("cvxpy")
    p = problem(20, 3, 0.5)
    D = patterns(p.X, randn(8, 3, seed=7))
    found = solve(p, D, tolerance=1e-7)
    X, neurons = p.X.numpy(), [(s, d, cp.Variable(3)) for s, d in itertools.product((1, -1), D.numpy())]
    fit = sum(s * cp.multiply(d, X @ v) for s, d, v in neurons)
    cones = [cp.multiply(2 * d - 1, X @ v) >= 0 for _, d, v in neurons]
    size = sum(cp.norm(v) for _, _, v in neurons)
    value = cp.Problem(cp.Minimize(cp.sum_squares(fit - p.y.numpy()) / 2 + p.beta * size), cones).solve("CLARABEL")
    assert found.upper == pytest.approx(value, rel=1e-5)


def test_the_search_finds_what_is_missing_and_nothing_at_the_optimum():
    torch.manual_seed(0)
    p = problem(20, 3, 1.0)
    best = convex_landscape.optimum(p, patterns(p.X, randn(2, 3)))
    poor = solve(p, patterns(p.X, randn(2, 3)))
    assert best.upper < poor.lower
    assert len(violated(p, p.residual(*network(poor.V)))) > 0
    assert len(violated(p, p.residual(*network(best.V)))) == 0


def test_bad_input():
    with pytest.raises(ValueError, match=re.escape("D = (2, 3): must be (P, 12)")):
        solve(problem(), torch.ones(2, 3))


def test_findings(monkeypatch):
    for name, value in {"WIDTHS": (2, 8), "TRACKED": (8,), "STRENGTHS": (0.1,), "STEPS": 800}.items():
        monkeypatch.setattr(convex_landscape, name, value)
    findings, rows = convex_landscape.convex_landscape(2)
    assert set(rows["panel"]) == {"training", "width", "rivals"}
    assert findings[0].verdict == "reproduced"
    assert rows["y"].min() > -1e-3
