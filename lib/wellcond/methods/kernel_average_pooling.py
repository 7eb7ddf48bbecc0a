"""Kernel average pooling: each channel of a convolution becomes the mean of K neighbouring ones.

    KAP(z)_c = (1/K) Σ_{|j| <= (K-1)/2} z_{c+j},        c = 0, ..., C - 1,  K odd

This is a fixed linear map A of the channels, so that a convolution W with A behind it is the convolution AW:
`pool_kernels` trains W and computes with AW, for the price of a mean over weights; `convert.unparametrized` keeps AW.
With cyclic padding A is a circulant matrix, symmetric, with the Dirichlet kernel as its eigenvalues,

    λ_k = sin(πKk/C)/(K sin(πk/C)),    λ_0 = 1,

so that it keeps the mean over the channels and damps what changes from one to the next. It is singular exactly if K
and C have a common factor. Where it is not, every network without pooling is one with it, and only the training
differs: a step of gradient descent in W moves AW by -h A² ∇, where ∇ is the gradient by AW. It is a preconditioner,
and a smoother start.

Source: Bashivan, Ibrahim, Dehghani and Ren, arXiv 2210.00062, for the mean over the kernel dimension. The padding, one
dimension of channels, stride one, the place directly behind the convolution, and what is said of A are ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from wellcond.errors import invalid, unknown
from wellcond.layers import matricize

PADDINGS = ("cyclic", "zeros")
"""What stands beside the first and the last channel: the other end, or nothing, which pulls both towards zero."""


def kernel_average(z: Tensor, window: int, *, dim: int = 1, padding: str = "cyclic") -> Tensor:
    """The mean of z over `window` neighbours along `dim`; the shape of z.

    dim: that of the channels, 1 of activations (B, C, ...) and 0 of kernels (C, C_in, ...). Raises ValueError unless
    the window is odd and in [1, C], or for a padding that is none of PADDINGS.
    """
    channels, side = z.shape[dim], window // 2
    if not (1 <= window <= channels and window % 2):
        raise invalid("window", window, f"odd, in [1, {channels}], the number of channels")
    if padding not in PADDINGS:
        raise unknown("padding", padding, PADDINGS)
    z = z.movedim(dim, 0)
    beyond = z if padding == "cyclic" else torch.zeros_like(z)
    padded = torch.cat([beyond[channels - side :], z, beyond[:side]])
    return padded.unfold(0, window, 1).mean(-1).movedim(0, dim)


def pooling_matrix(channels: int, window: int, padding: str = "cyclic") -> Tensor:
    """A (C, C), float64, with KAP(z) = A z over the channels. Raises ValueError as `kernel_average`."""
    return kernel_average(torch.eye(channels, dtype=torch.float64), window, dim=0, padding=padding)


def dirichlet_kernel(channels: int, window: int) -> Tensor:
    """λ_k = sin(πKk/C)/(K sin(πk/C)), k = 0, ..., C - 1, as (C,), float64: the eigenvalues of A with cyclic padding."""
    angle = torch.pi * torch.arange(1, channels, dtype=torch.float64) / channels
    damped = torch.sin(window * angle) / (window * torch.sin(angle))
    return torch.cat([torch.ones(1, dtype=torch.float64), damped])


class KernelAveragePool(nn.Module):
    """z -> KAP(z) as a layer, z (B, C, ...); window, dim and padding as in `kernel_average`."""

    def __init__(self, window: int, *, dim: int = 1, padding: str = "cyclic") -> None:
        super().__init__()
        self.window, self.dim, self.padding = window, dim, padding

    def forward(self, z: Tensor) -> Tensor:
        return kernel_average(z, self.window, dim=self.dim, padding=self.padding)

    def extra_repr(self) -> str:
        return f"window={self.window}, dim={self.dim}, padding={self.padding!r}"


def _convolutions(model: nn.Module) -> list[nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)]


def pool_kernels(model: nn.Module, window: int, *, padding: str = "cyclic") -> nn.Module:
    """The model, changed in place, with a KAP behind every convolution: its weight W and bias b act as AW and Ab.

    Trained are W and b, as parametrizations of torch. Transposed convolutions and linear layers are left alone.
    Raises ValueError as `kernel_average`, before anything is changed.
    """
    for layer in _convolutions(model):
        kernel_average(layer.weight, window, dim=0, padding=padding)
    for layer in _convolutions(model):
        for name in ("weight", "bias") if layer.bias is not None else ("weight",):
            register_parametrization(layer, name, KernelAveragePool(window, dim=0, padding=padding))
    return model


def raw_kernels(model: nn.Module) -> list[Tensor]:
    """W (C, C_in, ...) of every convolution, before A."""
    layers: list[Any] = _convolutions(model)
    weights = (layer.parametrizations.weight.original if is_parametrized(layer) else layer.weight for layer in layers)
    return [weight.detach() for weight in weights]


def neighbour_correlation(W: Tensor, permutations: int = 1000) -> float:
    """The mean correlation of kernels W (C, ...) with their cyclic neighbours: how many standard deviations it is above
    its mean over random orders of the kernels."""
    R = torch.corrcoef(matricize(W).double())

    def correlation(orders: Tensor) -> Tensor:
        return R[orders, orders.roll(-1, 1)].mean(1)

    null = correlation(torch.rand(permutations, len(R)).argsort(1))
    return float((correlation(torch.arange(len(R))[None]) - null.mean()) / null.std())
