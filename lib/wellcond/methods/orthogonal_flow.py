"""A layer whose weights flow on the orthogonal group: an ODE for the features, driven by an ODE on O(d).

    x'(t) = φ(W(t) x(t) + b),        W'(t) = W(t) Ω(t, W(t)),  Ω skew,  W(0) in O(d),        0 <= t <= T

While |φ'| <= 1, every singular value of ∂x(T)/∂x(t) is within e^{±(T-t)}, whatever Ω, because ||W(t)||_2 = 1: gradients
neither vanish nor explode with the depth. Of k steps of length h < 1 of Euler's method, which the layer takes, they are
within [(1 - h)^k, (1 + h)^k], which are e^{±kh} up to O(kh²). A field Ω is a module (t, W) -> skew matrix; two
are here. It has no rank to remove and no weight to keep, so that it is a layer of one's own network, not a method.

Sources: Choromanski et al., NeurIPS 2020 (ODEtoODE); Brockett, Linear Algebra Appl. 146 (1991); for the integrators
Iserles, Munthe-Kaas, Nørsett and Zanna, Acta Numerica 9 (2000).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from wellcond.errors import invalid, unknown
from wellcond.stiefel import random_stiefel, retract

Field = Callable[[float, Tensor], Tensor]
"""(t, W) -> Ω, skew (d, d)."""

# ------------------------------------------------------------------------ integrators: W(t) -> W(t + h)


def bracket(A: Tensor, B: Tensor) -> Tensor:
    """[A, B] = AB - BA."""
    return A @ B - B @ A


def cayley(W: Tensor, Omega: Tensor) -> Tensor:
    """W (I - Ω/2)^-1 (I + Ω/2) = W exp(Ω) + O(Ω³), orthogonal."""
    return retract(W, W @ Omega, "cayley")


def exponential(W: Tensor, Omega: Tensor) -> Tensor:
    """W exp(Ω)."""
    moved: Tensor = W @ torch.linalg.matrix_exp(Omega)
    return moved


def euler_step(W: Tensor, field: Field, t: float, h: float) -> Tensor:
    """Explicit Euler and the QR retraction: qf(W + hWΩ). Order 1."""
    return retract(W, h * W @ field(t, W), "qr")


def _midpoint(chart: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Field, float, float], Tensor]:
    def step(W: Tensor, field: Field, t: float, h: float) -> Tensor:
        half = chart(W, h / 2 * field(t, W))
        return chart(W, h * field(t + h / 2, half))

    return step


def munthe_kaas_step(W: Tensor, field: Field, t: float, h: float) -> Tensor:
    """Runge-Kutta-Munthe-Kaas: W exp(σ(h)) with σ' = dexp⁻¹_{-σ}(Ω), σ(0) = 0, by the classical scheme. Order 4.

    dexp⁻¹_{-σ}(Ω) = Ω + [σ, Ω]/2 + [σ, [σ, Ω]]/12 + ...; the terms beyond do not change the order.
    """

    def slope(s: float, sigma: Tensor) -> Tensor:
        Omega = field(t + s, exponential(W, sigma))
        inner = bracket(sigma, Omega)
        return Omega + inner / 2 + bracket(sigma, inner) / 12

    k_1 = field(t, W)
    k_2 = slope(h / 2, h / 2 * k_1)
    k_3 = slope(h / 2, h / 2 * k_2)
    k_4 = slope(h, h * k_3)
    return exponential(W, h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4))


INTEGRATORS: dict[str, Callable[[Tensor, Field, float, float], Tensor]] = {
    "euler": euler_step,
    "cayley": _midpoint(cayley),
    "exponential": _midpoint(exponential),
    "munthe_kaas": munthe_kaas_step,
}
"""One step (W, field, t, h) -> W(t + h) on O(d), of order 1, 2, 2 and 4."""

# ------------------------------------------------------------------------ fields


def skew(angles: Tensor, width: int) -> Tensor:
    """The skew (d, d) matrix with `angles` (d(d-1)/2,) above its diagonal, by rows."""
    above = torch.triu_indices(width, width, 1, device=angles.device).unbind()
    upper = angles.new_zeros(width, width).index_put(above, angles)
    return upper - upper.mT


class GatedField(nn.Module):
    """Ω(t) = Σ_k g_k(t) B_k with `count` learned skew matrices and gates g_k(t) = tanh(a_k t + c_k)."""

    def __init__(self, width: int, count: int = 4) -> None:
        super().__init__()
        if count < 1:
            raise invalid("count", count, ">= 1")
        self.width = width
        self.angles = nn.Parameter(torch.randn(count, width * (width - 1) // 2) / math.sqrt(width))
        self.gates = nn.Parameter(torch.randn(count, 2))

    def forward(self, t: float, W: Tensor) -> Tensor:
        gates = torch.tanh(self.gates[:, 0] * t + self.gates[:, 1])
        return skew(gates @ self.angles, self.width)


class IsospectralField(nn.Module):
    """Ω(W) = [X, N], X = WᵀQW, with a learned symmetric Q and a learned diagonal N.

    X then follows Brockett's double bracket flow X' = [X, [X, N]]: its spectrum is that of Q, tr(XN) grows, and X tends
    to a diagonal matrix whose entries are in the order of those of N.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.Q = nn.Parameter(torch.randn(width, width) / math.sqrt(width))  # its symmetric part counts
        self.N = nn.Parameter(torch.linspace(-1, 1, width))

    def X(self, W: Tensor) -> Tensor:
        """WᵀQW for the symmetric part of Q."""
        return W.mT @ (self.Q + self.Q.mT) @ W / 2

    def forward(self, t: float, W: Tensor) -> Tensor:
        X = self.X(W)
        return X * self.N - self.N[:, None] * X


# ------------------------------------------------------------------------ the layer


class OrthogonalFlow(nn.Module):
    """x (..., d) -> x(T) (..., d): x <- x + h φ(W_k x + b), k = 0, ..., steps - 1, h = T/steps, W_k on O(d).

    width: d >= 2; field: a module (t, W) -> Ω, GatedField(width) by default; integrator: a key of INTEGRATORS;
    activation: φ with |φ'| <= 1. Learned are W(0), as torch's orthogonal parametrization of `start`, b, and the field.
    Raises ValueError for a width, a number of steps, a time or an integrator that is not one.
    """

    def __init__(
        self,
        width: int,
        field: nn.Module | None = None,
        *,
        steps: int = 10,
        time: float = 1.0,
        integrator: str = "cayley",
        activation: Callable[[Tensor], Tensor] = torch.abs,
    ) -> None:
        super().__init__()
        if width < 2:
            raise invalid("width", width, ">= 2")
        if steps < 1:
            raise invalid("steps", steps, ">= 1")
        if not 0 < time < math.inf:
            raise invalid("time", time, "> 0 and finite")
        if integrator not in INTEGRATORS:
            raise unknown("integrator", integrator, INTEGRATORS)
        self.field = GatedField(width) if field is None else field
        self.steps, self.time, self.integrator, self.activation = steps, time, integrator, activation
        self.start = nn.Parameter(random_stiefel(width, width))
        orthogonal(self, "start", orthogonal_map="matrix_exp")
        self.bias = nn.Parameter(torch.zeros(width))

    def weights(self) -> list[Tensor]:
        """W_0, ..., W_{steps-1}, each (d, d); they do not depend on x, so that a batch shares them."""
        step, h = INTEGRATORS[self.integrator], self.time / self.steps
        W: list[Tensor] = [self.start]
        for k in range(self.steps - 1):
            W.append(step(W[-1], self.field, k * h, h))
        return W

    def forward(self, x: Tensor) -> Tensor:
        for W in self.weights():
            x = x + self.time / self.steps * self.activation(x @ W.mT + self.bias)
        return x
