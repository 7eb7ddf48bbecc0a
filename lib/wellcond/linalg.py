"""Singular value decompositions: in float32 at least, one that does not fail, and the k leading triplets of a matrix.

A (n, m) ≈ U diag(σ) Vᵀ,    U (n, k), V (m, k) with orthonormal columns,  σ (k,) descending,  k <= min(n, m)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

import torch
from torch import Tensor

from wellcond.errors import invalid

MATMULS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
GRAM_CONDITION = 4.0  # below it AᵀA loses at most a digit: its relative error in σ is about eps κ²


def upcast(A: Tensor) -> Tensor:
    """A in float32 if it is in half precision, else A itself: LAPACK has no bfloat16."""
    return A.float() if A.dtype in (torch.float16, torch.bfloat16) else A


@contextmanager
def full_float32() -> Iterator[None]:
    """Float32 products in float32, whatever torch's precision settings allow the network (TF32, bfloat16), and whatever
    region of torch.autocast is open."""
    reduced = [m for m in MATMULS if m.fp32_precision not in ("none", "ieee")]
    allowed = [m.fp32_precision for m in reduced]
    try:
        for matmul in reduced:
            matmul.fp32_precision = "ieee"
        with ExitStack() as stack:
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        for matmul, precision in zip(reduced, allowed, strict=True):
            matmul.fp32_precision = precision


def svd(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD A = P diag(σ) Qᵀ of A (..., n, r), n >= r: P (..., n, r), σ descending, Qᵀ (..., r, r).

    Clipping a spectrum makes singular values repeat, and LAPACK's divide and conquer then sometimes fails to converge
    in float32. So a well-conditioned float32 matrix goes through the eigenvectors Q of AᵀA, with P = A Q/σ; anything
    else is factorized in float64, where the rounding of the input keeps the values apart.
    Raises torch.linalg.LinAlgError if A is not finite.
    """
    A = upcast(A)
    if A.dtype == torch.float32:
        gram = A.mT @ A
        # entries beyond 1e19 overflow here, not in float64, and LAPACK may fail on a Gram matrix with subnormal entries
        with suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
            eigenvalues, Q = torch.linalg.eigh(gram)
            if bool((eigenvalues[..., 0] * GRAM_CONDITION**2 > eigenvalues[..., -1]).all()):
                sigma, Q = eigenvalues.sqrt().flip(-1), Q.flip(-1)
                return (A @ Q) / sigma.unsqueeze(-2), sigma, Q.mT
    return svd_in_double(A)


def svd_in_double(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD A = P diag(σ) Qᵀ of A (..., n, m), computed in float64 and returned in the type of A: of matrices of any
    shape and condition, with repeated singular values too."""
    P, sigma, Qt = torch.linalg.svd(A.double(), full_matrices=False)
    return P.to(A.dtype), sigma.to(A.dtype), Qt.to(A.dtype)


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
    generator = torch.Generator().manual_seed(0)
    return torch.randn(m, count, generator=generator, dtype=like.dtype, device="cpu").to(like.device)


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
