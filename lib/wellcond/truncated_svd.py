"""The k leading singular triplets of a matrix, exactly or by block power iteration.

A (n, m) ≈ U diag(σ) Vᵀ,    U (n, k), V (m, k) with orthonormal columns,  σ (k,) descending,  k <= min(n, m)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wellcond.errors import invalid
from wellcond.precision import svd, upcast


class Triplets(NamedTuple):
    """U (n, k), σ (k,) and V (m, k), float32 at least."""

    U: Tensor
    sigma: Tensor
    V: Tensor


def _check_rank(A: Tensor, k: int) -> None:
    if not 1 <= k <= min(A.shape):
        raise invalid("k", k, f"in 1..{min(A.shape)} for a {A.shape[0]} x {A.shape[1]} matrix")


def leading_triplets(A: Tensor, k: int) -> Triplets:
    """The k leading singular triplets of A (n, m), from its full SVD. Raises ValueError if k is out of range."""
    _check_rank(A, k)
    if A.shape[0] < A.shape[1]:
        V, sigma, U = leading_triplets(A.mT, k)
        return Triplets(U, sigma, V)
    P, sigma, Qt = svd(A)
    return Triplets(P[:, :k], sigma[:k], Qt[:k].mT)


def _random_columns(m: int, count: int, like: Tensor) -> Tensor:
    # the same draw at every call: a step is a function of its arguments
    return torch.randn(m, count, generator=torch.Generator().manual_seed(0), dtype=like.dtype).to(like.device)


def block_power_iteration(
    A: Tensor, k: int, start: Tensor | None = None, *, iterations: int = 10, oversampling: int = 2
) -> Triplets:
    """The k leading singular triplets of A (n, m) approximately, by block power iteration:

        U <- qf(A V),  V R <- Aᵀ U (QR)      `iterations` times,
        U <- U P,      V <- V Q              once, with UᵀA V = Rᵀ = P diag(σ) Qᵀ.

    V starts from `start` (m, any number of columns), such as the V of a matrix close to A, followed by random columns:
    k + oversampling in all, at most min(n, m). The random columns let directions in that `start` lacks. With k = 1 and
    no oversampling this is the power iteration. U and V are orthonormal after any number of iterations, and the σ are
    singular values of UᵀA, so never above the exact ones; the error in σ_i shrinks by (σ_{p+1}/σ_i)⁴ an iteration,
    p = k + oversampling. Raises ValueError unless 1 <= k <= min(n, m), iterations >= 1 and oversampling >= 0.
    Source: Halko, Martinsson, Tropp, SIAM Review 53 (2011), algorithm 4.4.
    """
    _check_rank(A, k)
    if iterations < 1:
        raise invalid("iterations", iterations, ">= 1")
    if oversampling < 0:
        raise invalid("oversampling", oversampling, ">= 0")
    A = upcast(A)
    columns = min(k + oversampling, *A.shape)
    V = A.new_empty(A.shape[1], 0) if start is None else start[:, :columns].to(A.dtype)
    V = torch.cat([V, _random_columns(A.shape[1], columns - V.shape[1], A)], dim=1)
    for _ in range(iterations):
        # written from the left: with fewer than 16 columns, Aᵀ U takes a processor up to 20 times as long
        U, _ = torch.linalg.qr((V.mT @ A.mT).mT)
        V, R = torch.linalg.qr((U.mT @ A).mT)
    P, sigma, Qt = svd(R.mT)
    return Triplets(U @ P[:, :k], sigma[:k], V @ Qt[:k].mT)
