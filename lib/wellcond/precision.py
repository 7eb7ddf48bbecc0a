"""Working precision of the factorizations: float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor


def upcast(A: Tensor) -> Tensor:
    """A in float32 if it is in half precision, else A itself: LAPACK has no bfloat16."""
    return A.float() if A.dtype in (torch.float16, torch.bfloat16) else A
