"""Random numbers that belong to an image, not to its batch: the same in any batch and on any device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def image_generators(index: Tensor, seed: int) -> Iterator[torch.Generator]:
    """A generator on the host for each image: index (B,), the numbers of the images; seeded by (seed, number)."""
    for number in index.tolist():
        yield torch.Generator().manual_seed(1_000_003 * seed + number)
