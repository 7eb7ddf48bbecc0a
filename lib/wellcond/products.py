"""Products of matrices at the speed of the processor.

torch multiplies float32 matrices by its BLAS, which is MKL: on processors that Intel has not made it uses half the
width of the vector units. oneDNN, which computes the convolutions of torch, uses all of it everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if _available else None
"""(x, W, ...) -> x Wᵀ by oneDNN, as compiled networks call it; None where this build of torch has not got it."""
FEWEST = 2**21
"""Multiply-adds from which on oneDNN is the faster one: a call of it costs some 10 µs."""


def _by_onednn(A: Tensor, B: Tensor) -> bool:
    return (
        ONEDNN is not None
        and A.ndim == B.ndim == 2
        and A.numel() * B.shape[1] >= FEWEST
        and A.is_cpu
        and A.dtype == B.dtype == torch.float32
        # stored without gaps: with other strides oneDNN takes a path a thousand times slower
        and all(X.is_contiguous() or X.mT.is_contiguous() for X in (A, B))
        and not (torch.is_grad_enabled() and (A.requires_grad or B.requires_grad))
    )


def matmul(A: Tensor, B: Tensor) -> Tensor:
    """A B for A (..., n, k) and B (..., k, m): what ``A @ B`` is, up to rounding, and stored as A is."""
    if not _by_onednn(A, B):
        return A @ B
    product: Tensor
    if A.is_contiguous():
        product = ONEDNN(A, B.mT, None, "none", [], "")
    else:  # by columns: AB = (BᵀAᵀ)ᵀ
        product = ONEDNN(B.mT.contiguous(), A, None, "none", [], "").mT
    return product


def add_product_(C: Tensor, A: Tensor, B: Tensor, alpha: float) -> None:
    """C <- C + alpha A B for C (..., n, m), A (..., n, k) and B (..., k, m), with at most one leading dimension."""
    if _by_onednn(A, B):
        C.add_(matmul(A, B), alpha=alpha)
    else:
        (C.addmm_ if C.ndim == 2 else C.baddbmm_)(A, B, alpha=alpha)
