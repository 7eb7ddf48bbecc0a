"""Flows on O(d): they stay there, have the orders of their integrators, and carry gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import DOUBLE, matrix_with, order, randn
from wellcond.methods.orthogonal_flow import (
    INTEGRATORS,
    GatedField,
    IsospectralField,
    OrthogonalFlow,
    bracket,
    skew,
)
from wellcond.stiefel import orthogonality_error, random_stiefel

D = 6
ORDERS = {"euler": 1, "cayley": 2, "exponential": 2, "munthe_kaas": 4}


def frame(width=D, seed=0):
    return random_stiefel(width, width, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def isospectral(width=D, seed=0):
    torch.manual_seed(seed)
    return IsospectralField(width).double()


def integrate(name, field, W, steps, time=1.0):
    h = time / steps
    for k in range(steps):
        W = INTEGRATORS[name](W, field, k * h, h)
    return W


@pytest.mark.parametrize("name", ["euler", "cayley", "exponential"])
@torch.no_grad()
def test_a_thousand_steps_stay_orthogonal(name):
    torch.manual_seed(0)
    W = integrate(name, GatedField(16).double(), frame(16), 1000, time=20.0)
    assert orthogonality_error(W) <= 1e-12
    assert (W - frame(16)).norm() > 1


@pytest.mark.parametrize(("name", "expected"), ORDERS.items())
@torch.no_grad()
def test_order(name, expected):
    """Ω(t) = e^{-tA} B e^{tA} has W(t) = W₀ e^{t(B-A)} e^{tA}; the double bracket flow is compared with itself at many
    steps of order four."""
    A, B = skew(randn(D * (D - 1) // 2), D), skew(randn(D * (D - 1) // 2, seed=1), D)

    def turning(t, W):
        rotation = torch.linalg.matrix_exp(t * A)
        return rotation.mT @ B @ rotation

    exact = frame() @ torch.linalg.matrix_exp(B - A) @ torch.linalg.matrix_exp(A)
    steps = 2.0 ** -np.arange(3, 7)
    slope = order(lambda h: float((integrate(name, turning, frame(), round(1 / h)) - exact).norm()), steps)
    assert slope == pytest.approx(expected, abs=0.15)

    field = isospectral()
    fine = integrate("munthe_kaas", field, frame(), 256)
    slope = order(lambda h: float((integrate(name, field, frame(), round(1 / h)) - fine).norm()), steps)
    assert slope == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("name", ["euler", "cayley", "exponential"])
@torch.no_grad()
def test_the_spectrum_is_conserved_and_brocketts_flow_sorts(name):
    field = isospectral()
    field.Q.copy_(matrix_with([1.0, 2, 3, 4, 5, 6]))
    field.N.copy_(torch.tensor([3.0, -1.0, 2.0, 0.0, -2.0, 1.0]))
    before = torch.linalg.eigvalsh(field.X(frame()))
    X = field.X(integrate(name, field, frame(), 1000, time=50.0))
    torch.testing.assert_close(torch.linalg.eigvalsh(X), before, rtol=0, atol=1e-11)
    torch.testing.assert_close(X, before[field.N.argsort().argsort()].diag(), rtol=0, atol=1e-6)


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_the_double_bracket_is_the_flow_of_x_and_raises_its_trace_with_n(seed):
    field, W = isospectral(seed=seed), frame(seed=seed)
    X, N, h = field.X(W), field.N.diag(), 1e-5
    with torch.no_grad():
        moved = field.X(integrate("munthe_kaas", field, W, 1, time=h))
        torch.testing.assert_close((moved - X) / h, bracket(X, bracket(X, N)), rtol=0, atol=1e-2)
        assert (moved * N).sum() > (X * N).sum()


@settings(max_examples=20)
@given(st.integers(2, 7), st.integers(0, 1000))
def test_fields_are_skew(width, seed):
    torch.manual_seed(seed)
    for field in (GatedField(width, 3).double(), IsospectralField(width).double()):
        Omega = field(0.3, frame(width, seed))
        torch.testing.assert_close(Omega, -Omega.mT, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", INTEGRATORS)
@pytest.mark.parametrize("field", [GatedField, IsospectralField])
def test_gradients(name, field):
    torch.manual_seed(0)
    flow = OrthogonalFlow(3, field(3), steps=3, integrator=name, activation=torch.tanh).double()
    names = [key for key, _ in flow.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in flow.parameters()]
    x = randn(2, 3).requires_grad_()

    def function(x, *values):
        return torch.func.functional_call(flow, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *values))


@pytest.mark.parametrize("steps", [10, 100, 400])
def test_the_jacobian_is_within_e_whatever_the_depth(steps):
    """(1 - h)^N <= σ(∂x(T)/∂x(0)) <= (1 + h)^N: the theorem, with its o(1)."""
    torch.manual_seed(0)
    flow = OrthogonalFlow(D, steps=steps).double()
    sigma = torch.linalg.svdvals(torch.func.jacrev(flow)(randn(D)))
    h = 1 / steps
    assert (1 - h) ** steps <= sigma.min() <= sigma.max() <= (1 + h) ** steps


def test_it_is_a_module_like_any_other():
    flow = OrthogonalFlow(8, steps=5)
    other = OrthogonalFlow(8, steps=5)
    other.load_state_dict(flow.state_dict())
    x = torch.randn(4, 8)
    torch.testing.assert_close(other(x), flow(x))
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        flow(x).square().mean().backward()
        optimizer.step()
    assert (flow(x) - other(x)).norm() > 0.1
    assert all(orthogonality_error(W) < 1e-5 for W in flow.weights())
    counts = {name: p.numel() for name, p in flow.named_parameters()}
    assert counts["field.angles"] == 4 * 28


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 1}, "width = 1: must be >= 2"),
        ({"width": 4, "steps": 0}, "steps = 0"),
        ({"width": 4, "time": math.inf}, "time = inf"),
        ({"width": 4, "integrator": "caley"}, "integrator = 'caley': unknown; did you mean 'cayley'?"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        OrthogonalFlow(**arguments)


def test_a_field_of_ones_own():
    class Still(nn.Module):
        def forward(self, t, W):
            return torch.zeros_like(W)

    flow = OrthogonalFlow(4, Still(), steps=3)
    assert all(torch.allclose(W, flow.start, atol=1e-6) for W in flow.weights())


@pytest.mark.parametrize("steps", [1, 2, 10, 40])
@pytest.mark.parametrize("activation", [torch.tanh, lambda x: x])
def test_gradients_are_within_the_bound_of_the_steps_taken(steps, activation):
    """Of Euler's method it is (1 ± h)^k; the lower end, 0 for one step of length one, is below that of the flow."""
    torch.manual_seed(0)
    layer, h = OrthogonalFlow(6, steps=steps, time=1.0, activation=activation).double(), 1 / steps
    sigma = torch.linalg.svdvals(torch.autograd.functional.jacobian(layer, randn(6, seed=1)))
    assert sigma.max() <= (1 + h) ** steps * (1 + 1e-9)
    assert sigma.min() >= (1 - h) ** steps * (1 - 1e-9)
