"""The schedule of short trainings: the rate rises linearly for a quarter of the steps, then falls to zero."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def triangular(optimizer: Optimizer, steps: int) -> LambdaLR:
    """min(4 (k + 1), 4/3 (n - k)) / n times the rate at the start, in step k of n."""
    return LambdaLR(optimizer, lambda k: min(4 * (k + 1), 4 / 3 * (steps - k)) / steps)
