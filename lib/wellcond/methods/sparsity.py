"""Norms that make singular values, or whole filters, exactly zero when they are minimized: pure functions of matrices.

A penalty is added to the loss; a proximal map follows the step of the optimizer instead (proximal gradient descent),
and is what produces exact zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wellcond.errors import invalid
from wellcond.precision import svd


def nuclear_norm(W: Tensor) -> Tensor:
    """||W||_* = Σ σ_i of W (..., n, m), shape (...), in the units of W.

    The gradient is P Qᵀ of the thin SVD W = P diag(σ) Qᵀ over the nonzero singular values: the subgradient of least
    norm, and 0 at W = 0. Repeated singular values do no harm, since P Qᵀ is unique.
    Source: Fazel, Hindi, Boyd, ACC 2001, for minimizing it in place of the rank; Watson, 1992, for the subgradient.
    """
    tall = W if W.shape[-2] >= W.shape[-1] else W.mT
    P, sigma, Qt = svd(tall.detach())
    smallest = tall.shape[-2] * torch.finfo(sigma.dtype).eps * sigma[..., :1]  # as torch.linalg.matrix_rank
    polar = (P * (sigma > smallest).to(P.dtype).unsqueeze(-2)) @ Qt
    norm: Tensor = (tall * polar.to(W.dtype)).sum((-2, -1))
    return norm


def group_lasso(W: Tensor) -> Tensor:
    """Σ_f ||w_f||_2 over the rows w_f, the filters, of W (..., n, m), shape (...), in the units of W.

    The gradient is w_f/||w_f||_2, and 0 at w_f = 0.
    Source: Yuan, Lin, 2006; Wen et al., NeurIPS 2016, for the filters of a convolution.
    """
    norms: Tensor = torch.linalg.vector_norm(W, dim=-1)
    return norms.sum(-1)


@torch.no_grad()
def singular_value_threshold(W: Tensor, threshold: float) -> Tensor:
    """argmin_X ||X - W||_F²/2 + t ||X||_* = P diag(max(σ - t, 0)) Qᵀ for W = P diag(σ) Qᵀ (..., n, m).

    t = threshold >= 0, in the units of σ. After a gradient step of length lr on the loss, t = lr·λ makes it a proximal
    gradient step on loss + λ ||W||_*. Raises ValueError if threshold < 0.
    Source: Cai, Candès, Shen, 2010, Theorem 2.1.
    """
    if not threshold >= 0:
        raise invalid("threshold", threshold, ">= 0, in the units of the singular values")
    tall = W if W.shape[-2] >= W.shape[-1] else W.mT
    P, sigma, Qt = svd(tall)
    nearest = (P * (sigma - threshold).clamp(min=0).unsqueeze(-2) @ Qt).to(W.dtype)
    return nearest if tall is W else nearest.mT
