"""Conv1D of the package transformers (GPT-2): y = x W + b, a linear layer that stores the transpose of its matrix.

The package is not imported before there is such a layer.
"""

from __future__ import annotations

import sys
from typing import Any, Self

import torch

from wellcond.layers import LowRankLinear, filled, register_kind, restored, stored

CONV1D = "transformers.pytorch_utils.Conv1D"


class LowRankConv1D(LowRankLinear):
    """y = W x + b with W = U S Vᵀ (n, m), whose weight reads as Wᵀ (m, n)."""

    transposed = True

    @classmethod
    def from_dense(cls, layer: Any, rank: int, *, core: bool = True) -> Self:
        """The best rank-r approximation of the transposed weight of `layer`, with its bias."""
        m, n = layer.weight.shape
        return filled(cls(m, n, rank, core=core, **stored(layer)), layer)

    def to_dense(self) -> Any:
        """A Conv1D with the weight (U S Vᵀ)ᵀ and the same bias."""
        module, _, name = CONV1D.rpartition(".")
        with torch.device("meta"):  # as of `stored`
            dense = getattr(sys.modules[module], name)(self.out_features, self.in_features)
        return restored(dense.to(self.U.dtype), self)

    @property
    def nf(self) -> int:
        """The number of outputs, as Conv1D calls it."""
        return self.out_features


register_kind(CONV1D, LowRankConv1D)
