"""Working precision of the factorizations: float32 at least, and a singular value decomposition that does not fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from wellcond.products import matmul

GRAM_CONDITION = 4.0  # below it AᵀA loses at most a digit: its relative error in σ is about eps κ²


def upcast(A: Tensor) -> Tensor:
    """A in float32 if it is in half precision, else A itself: LAPACK has no bfloat16."""
    return A.float() if A.dtype in (torch.float16, torch.bfloat16) else A


@contextmanager
def full_float32() -> Iterator[None]:
    """Float32 products in float32, whatever torch.set_float32_matmul_precision allows the network (TF32, bfloat16)."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)


def svd(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD A = P diag(σ) Qᵀ of A (..., n, r), n >= r: P (..., n, r), σ descending, Qᵀ (..., r, r).

    Clipping a spectrum makes singular values repeat, and LAPACK's divide and conquer then sometimes fails to converge
    in float32. So a well-conditioned float32 matrix goes through the eigenvectors Q of AᵀA, with P = A Q/σ; anything
    else is factorized in float64, where the rounding of the input keeps the values apart.
    Raises torch.linalg.LinAlgError if A is not finite.
    """
    A = upcast(A)
    if A.dtype == torch.float32:
        gram = matmul(A.mT, A)
        # entries beyond 1e19 overflow here, not in float64, and LAPACK may fail on a Gram matrix with subnormal entries
        with suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
            eigenvalues, Q = torch.linalg.eigh(gram)
            if bool((eigenvalues[..., 0] * GRAM_CONDITION**2 > eigenvalues[..., -1]).all()):
                sigma, Q = eigenvalues.sqrt().flip(-1), Q.flip(-1)
                return matmul(A, Q) / sigma.unsqueeze(-2), sigma, Q.mT
    P, sigma, Qt = torch.linalg.svd(A.double(), full_matrices=False)
    return P.to(A.dtype), sigma.to(A.dtype), Qt.to(A.dtype)
