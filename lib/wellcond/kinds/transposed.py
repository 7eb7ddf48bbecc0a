"""Transposed convolutions: the kernel (C_in, C_out, k_1, ..., k_d) is W (n, m) with n = C_in, m = C_out·k_1···k_d.

An input is mixed to r channels by (U S)ᵀ, a 1 x 1 convolution, and spread by Vᵀ, a transposed convolution with the
layer's own stride, padding and dilation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from torch.nn import functional as F

from wellcond.kinds.convolution import CONVOLUTION, convolution_arguments
from wellcond.layers import LowRankLayer, as_stored, filled, in_sequence, register_kind, restored, stored


class LowRankConvTranspose(LowRankLayer):
    """Transposed convolution in d dimensions, its kernel matricized to (C_in, C_out·k_1···k_d).

    Shape: x (B, C_in, ...) -> y (B, C_out, ...) as of the torch layer `like`, whose weights are not read; made by
    `from_dense`. Groups are refused.
    """

    dense: ClassVar[type[Any]]
    convolve: ClassVar[Callable[..., Tensor]]
    mix: ClassVar[Callable[..., Tensor]]
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def __init__(self, like: Any, rank: int, **kwargs: Any) -> None:
        m = like.out_channels * math.prod(like.kernel_size)
        super().__init__(like.in_channels, m, rank, outputs=like.out_channels, **kwargs)
        for name in (*CONVOLUTION, "output_padding"):
            setattr(self, name, getattr(like, name))

    @property
    def weight(self) -> Tensor:
        """The dense kernel (C_in, C_out, k_1, ..., k_d)."""
        return self.matrix().reshape(self.in_channels, self.out_channels, *self.kernel_size)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        d = len(self.kernel_size)
        extra = self.output_padding
        if output_size is not None:
            geometry = (self.stride, self.padding, self.kernel_size, d, self.dilation)
            extra = self.dense._output_padding(self, x, output_size, *geometry)
        z = type(self).mix(x, self.left().mT.reshape(self.rank, self.in_channels, *(1 for _ in range(d))))
        basis = self.V.mT.reshape(self.rank, self.out_channels, *self.kernel_size)
        return type(self).convolve(z, basis, self.bias, self.stride, self.padding, extra, 1, self.dilation)

    @classmethod
    def refuses(cls, layer: Any) -> str:
        return "a transposed convolution in groups" if layer.groups > 1 else ""

    @classmethod
    def from_dense(cls, layer: Any, rank: int, *, core: bool = True) -> Self:
        """The best rank-r approximation of the kernel of `layer`, with its bias."""
        return filled(cls(layer, rank, core=core, **as_stored(layer)), layer)

    def to_dense(self) -> Any:
        """A transposed convolution of torch with the kernel U S Vᵀ and the same bias."""
        return restored(self._torch(self.in_channels), self)

    def plain_layers(self) -> nn.Sequential:
        """(U S)ᵀ as a 1 x 1 transposed convolution, then Vᵀ with the bias."""
        first = self.dense(self.in_channels, self.rank, 1, bias=False, **stored(self))
        return in_sequence(
            self, {first: self.left(), self._torch(self.rank): self.V.mT}, (*CONVOLUTION, "output_padding")
        )

    def _torch(self, in_channels: int) -> Any:
        how = {**convolution_arguments(self), "output_padding": self.output_padding, **as_stored(self)}
        return self.dense(in_channels, self.out_channels, self.kernel_size, **how)

    def extra_repr(self) -> str:
        shape = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{shape}, padding={self.padding}, {self._describe()}"


class LowRankConvTranspose1d(LowRankConvTranspose):
    """x (B, C_in, L) -> y (B, C_out, L'); see LowRankConvTranspose."""

    dense, convolve, mix = nn.ConvTranspose1d, F.conv_transpose1d, F.conv1d


class LowRankConvTranspose2d(LowRankConvTranspose):
    """x (B, C_in, H, W) -> y (B, C_out, H', W'); see LowRankConvTranspose."""

    dense, convolve, mix = nn.ConvTranspose2d, F.conv_transpose2d, F.conv2d


class LowRankConvTranspose3d(LowRankConvTranspose):
    """x (B, C_in, D, H, W) -> y (B, C_out, D', H', W'); see LowRankConvTranspose."""

    dense, convolve, mix = nn.ConvTranspose3d, F.conv_transpose3d, F.conv3d


for kind in (LowRankConvTranspose1d, LowRankConvTranspose2d, LowRankConvTranspose3d):
    register_kind(kind.dense, kind)
