"""What a network says of images, refused where it is not what a classifier says: it must never be counted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wellcond.errors import invalid


def logits_of(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f(x) (B, K) for images x (B, C, H, W).

    Raises ValueError unless it is a tensor of B rows, of K >= 2 finite numbers each. NaN compares as false with
    everything: argmax would turn it into a label, and the network would look robust.
    """
    logits = model(x)
    if not isinstance(logits, Tensor):
        raise invalid("logits", type(logits).__name__, "a tensor (images, classes)")
    if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        raise invalid("logits", tuple(logits.shape), f"of shape ({len(x)}, classes), with classes >= 2")
    if not bool(torch.isfinite(logits).all()):
        bad = int((~torch.isfinite(logits)).any(1).sum())
        raise invalid("logits", f"not finite on {bad} of {len(x)} images", "finite: such a network is not measured")
    return logits


def correct(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Which images (B,) are classified as y (B,). Raises ValueError as `logits_of`."""
    return logits_of(model, x).argmax(1) == y
