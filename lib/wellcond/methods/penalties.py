"""Penalties on the singular values of weights: pure, differentiable functions of matrices.

The gradients are products of matrices; no singular value is computed, so that repeated ones do no harm.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _small_gram(A: Tensor) -> Tensor:
    """A Aᵀ or AᵀA, whichever is smaller: its eigenvalues are the squares of all min(n, m) singular values."""
    return A @ A.mT if A.shape[-2] <= A.shape[-1] else A.mT @ A


def robustness_regularizer(S: Tensor) -> Tensor:
    """R(S) = ||SᵀS - α² I||_F, α² = ||S||_F²/r, for S with r = min(n, m) singular values; shape (...).

    R² = r·Var(σ_i²): it is zero exactly for multiples of orthonormal matrices, whatever their scale, and
    κ(S) <= exp(R(S)/(√2 σ_min²)). The gradient is 2 S (SᵀS - α² I)/R, and zero at R = 0. Since R is invariant under
    orthogonal factors, R(U S Vᵀ) = R(S): it does not act on the bases. Units: those of σ².
    Source: arXiv:2505.08022, Definition 1 and Propositions 1 to 3.
    """
    gram = _small_gram(S)
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    eye = torch.eye(gram.shape[-1], dtype=S.dtype, device=S.device)
    distance: Tensor = torch.linalg.matrix_norm(gram - mean[..., None, None] * eye)
    return distance


def soft_orthogonality(W: Tensor) -> Tensor:
    """||WᵀW - I||_F² over the smaller side of W (..., n, m): zero exactly for orthonormal rows or columns; shape (...).

    Source: Bansal, Chen, Wang, NeurIPS 2018.
    """
    gram = _small_gram(W)
    eye = torch.eye(gram.shape[-1], dtype=W.dtype, device=W.device)
    return (gram - eye).square().sum((-2, -1))
