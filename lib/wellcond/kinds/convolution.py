"""Convolutions in one to three dimensions, in groups or not: r-channel convolution by Vᵀ, then 1 x 1 by U S.

A kernel (C_out, C_in, k_1, ..., k_d) is matricized row-major to n = C_out, m = C_in·k_1···k_d. Stride, padding and
dilation are torch's own, and no patches are unfolded. A convolution in g groups is a stack of g matrices, U (g, n, r).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from wellcond.layers import (
    LowRankLayer,
    as_stored,
    filled,
    in_sequence,
    low_rank_layers,
    matricize,
    register_kind,
    restored,
)

GEOMETRY = ("stride", "padding", "dilation", "groups", "padding_mode")
CONVOLUTION = (*GEOMETRY, "kernel_size", "in_channels", "out_channels")
"""What forward code may read of a convolution."""


def convolution_arguments(layer: nn.Module) -> dict[str, Any]:
    return {name: getattr(layer, name) for name in GEOMETRY}


class LowRankConv(LowRankLayer):
    """Convolution in d dimensions whose matricized kernel (C_out, C_in·k_1···k_d) is U S Vᵀ; in g groups, a stack of g
    such matrices (C_out/g, C_in/g·k_1···k_d), of one rank.

    Shape: x (B, C_in, ...) -> y (B, C_out, ...) as of the torch layer with the same kernel_size, stride, padding,
    dilation, groups and padding_mode. recomputes: see `recompute`. Raises ValueError if rank is out of range.
    """

    dense: ClassVar[type[Any]]
    convolve: ClassVar[Callable[..., Tensor]]
    recomputes = False
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        rank: int,
        *,
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        **kwargs: Any,
    ) -> None:
        geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        shell = self.dense(
            in_channels, out_channels, kernel_size, **geometry, padding_mode=padding_mode, bias=False, device="meta"
        )
        m = in_channels // groups * math.prod(shell.kernel_size)
        super().__init__(out_channels // groups, m, rank, groups=groups, outputs=out_channels, **kwargs)
        for name in CONVOLUTION:
            setattr(self, name, getattr(shell, name))
        self.margins = [] if padding_mode == "zeros" else list(shell._reversed_padding_repeated_twice)

    @property
    def weight(self) -> Tensor:
        """The dense kernel (C_out, C_in/g, k_1, ..., k_d)."""
        return self.matrix().reshape(self.out_channels, -1, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        if self.margins:
            x = F.pad(x, self.margins, mode=self.padding_mode)
        if self._merges(x.numel() // (self.in_channels * math.prod(self.stride))):
            return self._convolved(x, self.weight, self.bias)
        if self.recomputes and torch.is_grad_enabled():
            y: Tensor = checkpoint(self._by_factors, x, use_reentrant=False, preserve_rng_state=False)
            return y
        return self._by_factors(x)

    def _convolved(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        padding = 0 if self.margins else self.padding
        y: Tensor = type(self).convolve(x, kernel, bias, self.stride, padding, self.dilation, self.groups)
        return y

    def _by_factors(self, x: Tensor) -> Tensor:
        basis = self.V.mT.reshape(self.groups * self.rank, -1, *self.kernel_size)
        mix = self.left().reshape(self.out_channels, self.rank, *(1 for _ in self.kernel_size))
        return type(self).convolve(self._convolved(x, basis, None), mix, self.bias, groups=self.groups)

    @classmethod
    def refuses(cls, layer: Any) -> str:
        return "a depthwise convolution, one row a group" if layer.out_channels == layer.groups > 1 else ""

    @classmethod
    def matrix_of(cls, layer: Any) -> Tensor:
        g: int = layer.groups
        return matricize(layer.weight) if g == 1 else layer.weight.reshape(g, layer.out_channels // g, -1)

    @classmethod
    def from_dense(cls, layer: Any, rank: int, *, core: bool = True) -> Self:
        """The factorized layer with the best rank-r approximation of the kernel of `layer`, and its bias."""
        how = {"core": core, **convolution_arguments(layer), **as_stored(layer)}
        return filled(cls(layer.in_channels, layer.out_channels, layer.kernel_size, rank, **how), layer)

    def to_dense(self) -> Any:
        """A convolution of torch with the kernel U S Vᵀ and the same bias."""
        shape = (self.in_channels, self.out_channels, self.kernel_size)
        return restored(self.dense(*shape, **convolution_arguments(self), **as_stored(self)), self)

    def plain_layers(self) -> nn.Sequential:
        """Vᵀ as a convolution to r channels a group, then U S as a 1 x 1 convolution with the bias."""
        like, middle = as_stored(self), self.groups * self.rank
        geometry = {**convolution_arguments(self), **like, "bias": False}
        first = self.dense(self.in_channels, middle, self.kernel_size, **geometry)
        last = self.dense(middle, self.out_channels, 1, groups=self.groups, **like)
        return in_sequence(self, {first: self.V.mT, last: self.left()}, CONVOLUTION)

    def extra_repr(self) -> str:
        shape = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        groups = f", groups={self.groups}" if self.groups > 1 else ""
        return f"{shape}, padding={self.padding}, dilation={self.dilation}{groups}, {self._describe()}"


class LowRankConv1d(LowRankConv):
    """x (B, C_in, L) -> y (B, C_out, L'); see LowRankConv."""

    dense, convolve, norm = nn.Conv1d, F.conv1d, nn.BatchNorm1d


class LowRankConv2d(LowRankConv):
    """x (B, C_in, H, W) -> y (B, C_out, H', W'); see LowRankConv."""

    dense, convolve, norm = nn.Conv2d, F.conv2d, nn.BatchNorm2d


class LowRankConv3d(LowRankConv):
    """x (B, C_in, D, H, W) -> y (B, C_out, D', H', W'); see LowRankConv."""

    dense, convolve, norm = nn.Conv3d, F.conv3d, nn.BatchNorm3d


def recompute(model: nn.Module, on: bool = True) -> nn.Module:
    """Have the factorized convolutions of `model` forget the r-channel tensor Vᵀ * x between their factors, and compute
    it again in the backward pass; returns the model, changed in place.

    A factorized convolution keeps one tensor more for the backward pass than the dense one. Without it a training step
    needs no more memory than that of the dense network, for one more convolution by Vᵀ: a tenth to a quarter of the
    time of a step. The gradients are the same bit for bit. on: False undoes it. Inference is not affected.
    Source: Chen, Xu, Zhang, Guestrin, arXiv:1604.06174 (checkpointing).
    """
    for layer in low_rank_layers(model).values():
        if isinstance(layer, LowRankConv):
            layer.recomputes = on
    return model


for kind in (LowRankConv1d, LowRankConv2d, LowRankConv3d):
    register_kind(kind.dense, kind)
