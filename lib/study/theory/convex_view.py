"""Two-layer ReLU networks as convex programs over activation patterns.

The network f(X) = Σ_j (X u_j)_+ a_j for data X (n, d) and targets y (n,), with

    F(u, a) = ½ ||f(X) - y||² + β/2 Σ_j (||u_j||² + a_j²).

A direction u has the pattern D = diag(1[X u >= 0]), and all directions of a pattern form the cone (2D - I) X u >= 0.
Over patterns D_1, ..., D_P

    p = min ½ ||Σ_i D_i X (v_i - w_i) - y||² + β Σ_i (||v_i|| + ||w_i||),  v_i and w_i in the cone of D_i,

a group Lasso with cones, is the minimum of F over the networks whose neurons have these patterns, by the map
v -> (u, a) = (v/√||v||, √||v||), w -> (w/√||w||, -√||w||). Without the cones it is that of gated ReLU networks.
The dual,

    max ½ ||y||² - ½ ||y - α||²,  |αᵀ D_i X u| <= β for all i and all unit u in the cone of D_i,

bounds p from below; over all u, |αᵀ(Xu)_+| <= β, it bounds F for every network.

Sources: Wang, Lacotte and Pilanci, ICLR 2022 (arXiv 2006.05900); Ergen and Pilanci, arXiv 2312.12657. The solver is
the alternating direction method of multipliers in its usual form, where all cones share one matrix: (2D - I)² = I.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import nnls
from torch import Tensor
from torch.nn import functional as F

from wellcond.errors import invalid


class Problem(NamedTuple):
    """X (n, d) and y (n,) in float64; beta > 0."""

    X: Tensor
    y: Tensor
    beta: float

    def objective(self, u: Tensor, a: Tensor) -> float:
        """F of the network with neurons u (m, d) and output weights a (m,)."""
        f = (self.X @ u.mT).relu() @ a
        return float((f - self.y).square().sum() + self.beta * (u.square().sum() + a.square().sum())) / 2

    def residual(self, u: Tensor, a: Tensor) -> Tensor:
        """y - f(X)."""
        return self.y - (self.X @ u.mT).relu() @ a


class Solution(NamedTuple):
    """V (2, P, d): v and w; upper: F of the network, or with cones=False the value, at V; lower: the dual's value."""

    V: Tensor
    upper: float
    lower: float

    @property
    def gap(self) -> float:
        """|upper - lower| / upper: until V is in the cones, its network may have other patterns, and be below lower."""
        return abs(self.upper - self.lower) / self.upper


def patterns(X: Tensor, u: Tensor) -> Tensor:
    """The different patterns 1[X u >= 0] of directions u (m, d), without the empty one: (P, n) of zeros and ones."""
    found: Tensor = torch.unique((u @ X.mT >= 0).to(X.dtype), dim=0)
    some: Tensor = found[found.sum(1) > 0]
    return some


def balanced(u: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The same network with ||u_j|| = |a_j|, where the penalty is least; neurons that are zero are left out."""
    size = u.norm(dim=1)
    kept = (size > 0) & (a != 0)
    scale = (a[kept].abs() / size[kept]).sqrt()
    return u[kept] * scale[:, None], a[kept] / scale


def network(V: Tensor) -> tuple[Tensor, Tensor]:
    """The neurons (m, d) and output weights (m,) of V (2, P, d)."""
    v = V.flatten(0, 1)
    sign = torch.ones(V.shape[:2], dtype=V.dtype)
    sign[1] = -1
    return balanced(v, sign.flatten())  # (v, 1) is the same network as (v/√||v||, √||v||), not balanced


def support(problem: Problem, D: Tensor, alpha: Tensor, cones: bool = True) -> Tensor:
    """max ± αᵀ D_i X u over unit u in the cone of D_i (or all unit u), as (2, P).

    It is the norm of the projection of c = ± XᵀD_iα on the cone, min over μ >= 0 of ||c + Xᵀ(2D_i - I)μ||.
    """
    c = (D * alpha) @ problem.X
    if not cones:
        size: Tensor = c.norm(dim=1)
        return size.expand(2, -1)
    rays = problem.X.mT[None] * (2 * D - 1)[:, None]  # (P, d, n)
    return torch.tensor([[nnls(A.numpy(), -s * b.numpy())[1] for A, b in zip(rays, c, strict=True)] for s in (1, -1)])


def solve(problem: Problem, D: Tensor, *, cones: bool = True, tolerance: float = 1e-5, most: int = 20_000) -> Solution:
    """The optimum over the patterns D (P, n), to a relative duality gap of `tolerance` or after `most` iterations.

    Raises ValueError unless D has rows of the length of y.
    """
    X, y, beta = problem
    if D.ndim != 2 or D.shape[1] != len(y):
        raise invalid("D", tuple(D.shape), f"(P, {len(y)})")
    P, d = len(D), X.shape[1]
    K = F.normalize(X) * cones  # a cone does not depend on the lengths of the rows; nothing to hold without cones
    side = 2 * D - 1
    G_inverse = torch.linalg.inv(torch.eye(d, dtype=X.dtype) + K.mT @ K)
    overlap = 2 * (X @ G_inverse @ X.mT) * (D.mT @ D)
    sign = torch.tensor([1.0, -1.0], dtype=X.dtype)[:, None, None]
    rho = float(beta)
    U, T = torch.zeros(2, P, d, dtype=X.dtype), torch.zeros(2, P, len(y), dtype=X.dtype)
    dual_U, dual_T = torch.zeros_like(U), torch.zeros_like(T)
    factor = torch.linalg.cholesky(torch.eye(len(y), dtype=X.dtype) + overlap / rho)
    best = Solution(U, float(y @ y) / 2, 0.0)  # the network that is zero

    def to_data(V: Tensor) -> Tensor:
        return ((V[0] - V[1]) @ X.mT * D).sum(0)

    for k in range(1, most + 1):
        pulled = sign * ((D * y) @ X) + rho * (U - dual_U + (side * (T - dual_T)) @ K)
        free = pulled @ G_inverse / rho
        z = torch.cholesky_solve(to_data(free)[:, None], factor)[:, 0]
        V = free - sign * ((D * z) @ X) @ G_inverse / rho
        inside = side * (V @ K.mT)
        relaxed_V, relaxed_T = 1.6 * V - 0.6 * U, 1.6 * inside - 0.6 * T
        before = U
        U = relaxed_V + dual_U
        U = U * (1 - beta / rho / U.norm(dim=2, keepdim=True)).clamp(min=0).nan_to_num()
        T = (relaxed_T + dual_T).clamp(min=0)
        dual_U, dual_T = dual_U + relaxed_V - U, dual_T + relaxed_T - T
        if k % 100 == 0:
            primal = ((V - U).square().sum() + (inside - T).square().sum()).sqrt()
            change = rho * (U - before).norm()
            balance = float((primal / change.clamp(min=1e-300)).sqrt().clamp(0.5, 2))
            if not 0.7 < balance < 1.4 and k < most / 2:
                rho *= balance
                dual_U, dual_T = dual_U / balance, dual_T / balance
                factor = torch.linalg.cholesky(torch.eye(len(y), dtype=X.dtype) + overlap / rho)
        if k % 500 == 0 or k == most:
            best = min(best, _certified(problem, D, U, cones), key=lambda found: found.gap)
            if best.gap <= tolerance:
                break
    return best


def _certified(problem: Problem, D: Tensor, V: Tensor, cones: bool) -> Solution:
    """Both bounds at V: the dual point is the residual, scaled into the constraints."""
    X, y, beta = problem
    if cones:
        u, a = network(V)
        upper, alpha = problem.objective(u, a), problem.residual(u, a)
    else:
        alpha = y - ((V[0] - V[1]) @ X.mT * D).sum(0)
        upper = float(alpha.square().sum() / 2 + beta * V.norm(dim=2).sum())
    scale = min(1.0, beta / float(support(problem, D, alpha, cones).max()))
    # the best multiple of the residual within the constraints
    scale = min(scale, max(0.0, float(alpha @ y / alpha.square().sum())))
    lower = float(scale * alpha @ y - scale**2 * alpha.square().sum() / 2)
    return Solution(V, upper, lower)


def violated(problem: Problem, alpha: Tensor, *, tries: int = 2000, most: int = 30) -> Tensor:
    """Patterns (P, n) of unit u with |αᵀ(Xu)_+| > β, at most `most`: local maxima found from random directions.

    The step u <- XᵀD_uα/||·|| never decreases αᵀ(Xu)_+ while α >= 0 on the pattern, and stops in a few iterations.
    None found means that F at the network whose residual is α cannot be improved by a neuron that was tried.
    """
    found = []
    for s in (1, -1):
        u = F.normalize(torch.randn(tries, problem.X.shape[1], dtype=problem.X.dtype))
        best, value = u, s * (u @ problem.X.mT).relu() @ alpha
        for _ in range(20):
            u = F.normalize(s * ((u @ problem.X.mT >= 0) * alpha) @ problem.X)
            now = s * (u @ problem.X.mT).relu() @ alpha
            best, value = torch.where((now > value)[:, None], u, best), torch.maximum(now, value)
        order = value.argsort(descending=True)
        order = order[value[order] > problem.beta * 1.001]
        found.append(best[order[: 10 * most]])
    return patterns(problem.X, torch.cat(found))[:most]
