"""The nearest matrix with κ <= c from matrix products alone: the polar factor and the sign by Newton and Schulz.

`spectrum.clip_condition_number` needs eigenvectors. On a GPU they are slow to compute, layer by layer, and stop the
queue; what follows is batched over leading dimensions, takes the same products whatever the values are, and never
reads one back. It is meant for the usual case, a matrix that was feasible one small step ago, and for c <= MAX_COND.

With S = O H, O orthogonal and H symmetric positive semidefinite, the nearest matrix is O clip(H, μ, cμ), where

    2 clip(H, μ, cμ) = |H - μI| - |H - cμI| + (1 + c) μ I,    |X| = X sign(X),

and μ is the root of g(μ) = tr max(μI - H, 0) - c tr max(H - cμI, 0), as in `spectrum.nearest_rule`. The sign resolves
eigenvalues only down to a fraction of the norm, but one that it misses is itself small: the error in |x| is
|x| (1 - |s(x)|). An inexact μ costs nearness alone, since [μ, cμ] is feasible for every μ.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wellcond.linalg import upcast

MAX_COND = 10.0  # above it the first μ is so bad that eight steps of Newton no longer suffice
POLAR_LOWER = 1e-2  # singular values of S below this fraction of the norm bound get a polar factor of norm < 1
SIGN_LOWER = 3e-5  # the same for H - μI: max |x|(1 - |s(x)|)/2 is then 1.3e-6 of the norm bound
CUSHION = 0.03  # keeps the cubics positive up to 1.01, so that rounding of the norm bound does no harm


def newton_schulz_scales(lower: float) -> tuple[float, ...]:
    """α_k such that the composition of p_k(x) = α_k x (3 - α_k² x²)/2 maps [lower, 1] to [1 - 1e-5, 1].

    α_k = √(3/(1 + l + l²)) makes p_k(l) = p_k(1), the best cubic on [l, 1]; then l <- p_k(l). Every p_k maps [0, 1]
    into itself, so that nothing diverges below `lower` either. Source: Chen and Chow, A stable scaling of
    Newton-Schulz for improving the sign function computation of a Hermitian matrix, Argonne preprint P5059 (2014).
    """
    scales = []
    while lower < 1 - 1e-5:
        k = max(lower, CUSHION)
        scales.append(math.sqrt(3 / (1 + k + k * k)))
        lower = scales[-1] * lower * (3 - (scales[-1] * lower) ** 2) / 2
    return tuple(scales)


def _eye_times(scalar: Tensor, like: Tensor) -> Tensor:
    return scalar[..., None, None] * torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def _trace(A: Tensor) -> Tensor:
    return A.diagonal(dim1=-2, dim2=-1).sum(-1)


def _symmetric(A: Tensor) -> Tensor:
    return (A + A.mT) / 2


def _safe(scale: Tensor) -> Tensor:
    return scale.clamp_min(torch.finfo(scale.dtype).tiny)  # 0/0 = 0


def _norm_bound(gram: Tensor) -> Tensor:
    """An upper bound (...) of ||A||_2 from G = AᵀA (..., r, r), at most r^(1/8) too large; one product.

    λ_max(G) <= m + (tr (G - mI)⁴)^(1/4), m = tr G/r.
    """
    mean = _trace(gram) / gram.shape[-1]
    centred = gram - _eye_times(mean, gram)
    bound: Tensor = (mean + torch.linalg.matrix_norm(centred @ centred).sqrt()).sqrt()
    return bound


def polar_factor(A: Tensor, lower: float) -> Tensor:
    """P s(Σ) Qᵀ for A = P Σ Qᵀ (..., r, r), with 1 - 1e-5 <= s <= 1 where σ >= lower ||A|| and 0 <= s <= 1 below.

    This is the polar factor of A, and sign(A) for symmetric A, by the scaled iteration X <- α X (3I - α² XᵀX)/2 of
    Newton and Schulz; 2k + 1 products for k = len(newton_schulz_scales(lower)). The zero matrix gives 0.
    """
    X = A / _safe(A.abs().amax((-2, -1), keepdim=True))  # so that no square over- or underflows
    gram = X.mT @ X
    norm = _safe(_norm_bound(gram))[..., None, None]
    X, gram = X / norm, gram / norm / norm  # the square of a tiny norm would be 0
    for k, alpha in enumerate(newton_schulz_scales(lower)):
        if k > 0:
            gram = X.mT @ X
        X = 1.5 * alpha * X - 0.5 * alpha**3 * (X @ gram)
    return X


def clip_nearly_feasible(S: Tensor, max_cond: float) -> Tensor:
    """The Frobenius-nearest matrix to S (..., r, r) with κ <= max_cond, in float32, from products alone.

    For κ(S) <= 3 max_cond and max_cond <= MAX_COND: κ of the result is below max_cond (1 + 1e-4), its distance from
    the nearest matrix below 1e-4 ||S||_F, and a feasible S moves by less than 1e-5 ||S||_F. 370 products r³, 490 for
    max_cond > 2, 17 for max_cond = 1; inf returns S, and 0 gives 0. Singular values below POLAR_LOWER times the
    largest (κ(S) beyond 100) come out too small: the result is finite but not feasible, and only the exact projection
    will do. An S that is not finite gives nan and no error. Products in TF32 would spoil the accuracy.
    """
    if max_cond == math.inf:
        return S
    r = S.shape[-1]
    scale = upcast(S).abs().amax((-2, -1), keepdim=True)
    A = upcast(S) / _safe(scale)
    orthogonal = polar_factor(A, POLAR_LOWER)
    if max_cond == 1:
        return ((orthogonal * A).sum((-2, -1), keepdim=True) / r * orthogonal * scale).to(S.dtype)
    H = _symmetric(orthogonal.mT @ A)
    mean = _trace(H) / r
    low, high = mean / max_cond, mean * max_cond  # they bracket the root of g
    mu = 2 * mean / (1 + max_cond)  # the mean is in the middle of [μ, cμ]
    for _ in range(6 if max_cond <= 2 else 8):  # of Newton
        level = mu
        shifts = torch.stack([level, max_cond * level], -1)  # a tensor made from numbers would be a copy to the GPU
        X = H[..., None, :, :] - _eye_times(shifts, H)  # H - μI and H - cμI, (..., 2, r, r)
        sign = polar_factor(X, SIGN_LOWER)
        absolute, trace, count = (X * sign).sum((-2, -1)), _trace(X), _trace(sign)
        below, above = (absolute - trace)[..., 0] / 2, (absolute + trace)[..., 1] / 2
        g, slope = below - max_cond * above, (r - count[..., 0] + max_cond**2 * (r + count[..., 1])) / 2
        low, high = torch.where(g < 0, level, low), torch.where(g > 0, level, high)
        newton = level - g / slope.clamp_min(0.5)  # one clipped value makes the slope 1
        mu = torch.where((newton < low) | (newton > high), (low + high) / 2, newton)
    absolute = _symmetric(X @ sign)
    core = (absolute[..., 0, :, :] - absolute[..., 1, :, :] + _eye_times((1 + max_cond) * level, H)) / 2
    feasible = (below + above <= 1e-5 * level)[..., None, None]
    return torch.where(feasible, S, (orthogonal @ core * scale).to(S.dtype))
