"""Singular values of a matrix, and the constraint κ(S) = σ_max/σ_min <= max_cond.

The papers write max_cond = 1 + τ. Nothing here is differentiated: clipping creates repeated singular values,
where the derivative of the SVD does not exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor
from torch.nn import functional as F

from wellcond import matrix_sign
from wellcond.errors import invalid, unknown
from wellcond.linalg import svd, upcast


def singular_values(A: Tensor) -> Tensor:
    """Singular values of A (..., n, m), descending, shape (..., min(n, m)); float32 at least."""
    sigma: Tensor = torch.linalg.svdvals(upcast(A.detach()))
    return sigma


def condition_number(A: Tensor) -> Tensor:
    """κ(A) = σ_max/σ_min over the min(n, m) singular values, shape (...); inf if A is singular or zero."""
    return spread(singular_values(A))


def spread(sigma: Tensor) -> Tensor:
    """σ_max/σ_min of descending singular values (..., r), shape (...); inf where σ_min = 0."""
    return torch.where(sigma[..., -1] > 0, sigma[..., 0] / sigma[..., -1], math.inf)


def nearest_rule(sigma: Tensor, max_cond: float) -> Tensor:
    """The nearest vector to σ >= 0 (..., r) in the 2-norm with max <= c min, c = max_cond: σ clipped to [μ, cμ].

    μ is the root of the increasing, piecewise linear g(μ) = Σ max(μ - σ_i, 0) - c Σ max(σ_i - cμ, 0), found
    exactly: g is evaluated at its breakpoints σ_i and σ_i/c and interpolated between the two that bracket the root.
    A feasible σ is returned unchanged. By Mirsky's theorem the matrix with the clipped singular values is then the
    Frobenius-nearest one (Vᵀ and U are kept).
    """
    c = max_cond
    ascending = sigma.double().sort(dim=-1).values  # double: the sums below cancel
    knots = torch.cat([ascending, ascending / c], dim=-1).sort(dim=-1).values
    sums = F.pad(ascending.cumsum(-1), (1, 0))  # sums[k] = sum of the k smallest
    r = sigma.shape[-1]
    low = torch.searchsorted(ascending, knots)
    high = torch.searchsorted(ascending, c * knots, right=True)
    below = low * knots - sums.gather(-1, low)
    above = (sums[..., -1:] - sums.gather(-1, high)) - (r - high) * (c * knots)  # integer * float is float32
    g = below - c * above  # (..., 2r), ascending; g <= 0 at the first knot and >= 0 at the last
    right = (g < 0).sum(-1, keepdim=True).clamp(1, g.shape[-1] - 1)
    left = right - 1
    g0, g1 = g.gather(-1, left), g.gather(-1, right)
    k0, k1 = knots.gather(-1, left), knots.gather(-1, right)
    weight = torch.where(g1 > g0, -g0 / (g1 - g0), 0.0).clamp(0, 1)
    mu = k0 + weight * (k1 - k0)
    clipped = torch.minimum(torch.maximum(sigma, mu.to(sigma.dtype)), (c * mu).to(sigma.dtype))
    feasible = ascending[..., -1:] <= c * ascending[..., :1]
    return torch.where(feasible, sigma, clipped)


CLIP_RULES: dict[str, Callable[[Tensor, float], Tensor]] = {"nearest": nearest_rule}
"""Maps (σ, max_cond) -> σ with max <= max_cond * min; a file of methods/ may add its own."""


def check_max_cond(max_cond: float) -> None:
    """Raise ValueError unless max_cond >= 1 (1 + τ with τ >= 0; inf means no constraint)."""
    if not (isinstance(max_cond, Real) and max_cond >= 1):
        raise invalid("max_cond", max_cond, "a number >= 1 (the papers' 1 + tau, tau >= 0), or inf for no constraint")


def clip_condition_number(S: Tensor, max_cond: float, rule: str = "nearest") -> Tensor:
    """P diag(rule(σ)) Qᵀ for S = P diag(σ) Qᵀ (..., r, r), so that κ <= max_cond up to rounding.

    rule: a key of CLIP_RULES. With "nearest" this is the Frobenius-nearest matrix in {σ_max <= max_cond σ_min}, and a
    feasible S is returned bit for bit. max_cond = 1 gives the nearest scaled orthogonal matrix. The zero matrix is
    feasible. Raises ValueError if max_cond < 1 or the rule is unknown.
    """
    return clip_spectrum(S, max_cond, rule)[0]


def clip_after_step(S: Tensor, max_cond: float, rule: str = "nearest") -> Tensor:
    """clip_condition_number(S, max_cond, rule) for an S that was feasible one small step ago.

    On a GPU the nearest matrix comes from products alone where these are accurate enough (`matrix_sign`): eigenvectors
    would take longer, layer by layer, and stop the queue. A matrix far from feasible needs clip_condition_number.
    """
    check_max_cond(max_cond)
    fast = S.is_cuda and S.dtype != torch.float64 and rule == "nearest" and max_cond <= matrix_sign.MAX_COND
    return matrix_sign.clip_nearly_feasible(S, max_cond) if fast else clip_condition_number(S, max_cond, rule)


def clip_spectrum(S: Tensor, max_cond: float, rule: str = "nearest") -> tuple[Tensor, Tensor | None]:
    """clip_condition_number(S, max_cond, rule) and its singular values (None if max_cond = inf: not computed)."""
    check_max_cond(max_cond)
    if rule not in CLIP_RULES:
        raise unknown("rule", rule, CLIP_RULES)
    if max_cond == math.inf:
        return S, None
    P, sigma, Qt = svd(S)
    clipped = CLIP_RULES[rule](sigma, max_cond)
    unchanged = (clipped == sigma).all(-1)[..., None, None]
    return torch.where(unchanged, S, (P * clipped.unsqueeze(-2) @ Qt).to(S.dtype)), clipped


def nearest_scaled_orthogonal(S: Tensor) -> Tensor:
    """mean(σ) P Qᵀ, the Frobenius-nearest matrix to S = P diag(σ) Qᵀ (..., r, r) of the form a·orthogonal."""
    P, sigma, Qt = svd(S)
    nearest: Tensor = (sigma.mean(-1)[..., None, None] * (P @ Qt)).to(S.dtype)
    return nearest
