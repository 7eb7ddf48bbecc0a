"""Tucker-2 convolutions: the kernel factorized in its two channel modes.

    W(o, i, a, b) = Σ_pq U(o, p) S(p, q, a, b) V(i, q),      U (C_out, r_o), S (r_o, r_i, kh, kw), V (C_in, r_i),

UᵀU = I, VᵀV = I. It is applied as a 1 x 1 convolution by Vᵀ, a kh x kw convolution by the core, which carries stride,
padding and dilation, and a 1 x 1 convolution by U. The modes have their own ranks. A 1 x 1 kernel is U S Vᵀ itself.

Sources: Tucker, Psychometrika 31 (1966); Kim et al., ICLR 2016, for convolutions; arXiv:2505.08022 for training it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wellcond.convert import factorize
from wellcond.errors import invalid
from wellcond.kinds.convolution import CONVOLUTION, LowRankConv2d, convolution_arguments
from wellcond.layers import LowRankLayer, filled, in_sequence, matricize
from wellcond.methods.dynamical_low_rank import BUG, bug_groups
from wellcond.methods.method import Method, decayed, last_layer, register
from wellcond.methods.penalties import robustness_penalty
from wellcond.methods.settings import Settings
from wellcond.spectrum import singular_values
from wellcond.stiefel import random_stiefel


class Tucker2Conv2d(LowRankLayer):
    """2-d convolution with a kernel in Tucker-2 form.

    ranks: (r_o, r_i), in 1..C_out and 1..C_in. Shape: x (B, C_in, H, W) -> y (B, C_out, H', W') as nn.Conv2d with the
    same kernel_size, stride, padding, dilation. Raises ValueError if a rank is out of range.
    """

    dense, norm = nn.Conv2d, nn.BatchNorm2d
    S: nn.Parameter

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        ranks: tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        for rank, channels in zip(ranks, (out_channels, in_channels), strict=True):
            if not 1 <= rank <= channels:
                raise invalid("ranks", ranks, f"(r_o, r_i) in 1..{out_channels}, 1..{in_channels}")
        kh, kw = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
        kwargs: dict[str, Any] = {
            "device": device or torch.get_default_device(),
            "dtype": dtype or torch.get_default_dtype(),
        }
        self.U = nn.Parameter(random_stiefel(out_channels, ranks[0], **kwargs))
        # variance 1/(r_i kh kw): an input of unit variance gives outputs of variance about r_o/C_out
        self.S = nn.Parameter(torch.randn(*ranks, kh, kw, **kwargs) / math.sqrt(ranks[1] * kh * kw))
        self.V = nn.Parameter(random_stiefel(in_channels, ranks[1], **kwargs))
        self.bias = nn.Parameter(torch.zeros(out_channels, **kwargs)) if bias else None
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, (kh, kw)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups, self.padding_mode = 1, "zeros"

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(C_out, C_in·kh·kw)."""
        return self.out_channels, self.in_channels * math.prod(self.kernel_size)

    @property
    def n_deployed(self) -> int:
        """C_out r_o + C_in r_i + r_o r_i kh kw, or the size of the kernel where that is less."""
        return min(self.U.numel() + self.S.numel() + self.V.numel(), math.prod(self.matrix_shape))

    @property
    def weight(self) -> Tensor:
        """The dense kernel (C_out, C_in, kh, kw)."""
        kernel: Tensor = torch.einsum("op,pqab,iq->oiab", self.U, self.S, self.V)
        return kernel

    def matrix(self) -> Tensor:
        """The matricized kernel (C_out, C_in·kh·kw)."""
        return matricize(self.weight)

    def left(self) -> Tensor:
        """U: the core is applied by itself."""
        return self.U

    def core_matrix(self) -> Tensor:
        """The core unfolded along its output mode, (r_o, r_i·kh·kw): what the robustness regularizer acts on."""
        return matricize(self.S)

    def singular_values(self) -> Tensor:
        """The min(r_o, r_i·kh·kw) singular values of the matricized kernel, descending. float64."""
        R, T = (torch.linalg.qr(X.detach().double())[1] for X in (self.U, self.V))
        return singular_values(matricize(torch.einsum("ip,pqab,jq->ijab", R, self.S.detach().double(), T)))

    @torch.no_grad()
    def set_matrix(self, W: Tensor) -> None:
        """Make this the truncated higher-order SVD of the matricized kernel W (C_out, C_in·kh·kw)."""
        kernel = W.detach().double().reshape(self.out_channels, self.in_channels, *self.kernel_size)
        U, V = (
            torch.linalg.svd(kernel.movedim(mode, 0).flatten(1), full_matrices=False)[0][:, :rank]
            for mode, rank in ((0, self.U.shape[1]), (1, self.V.shape[1]))
        )
        self.U.copy_(U)
        self.S.copy_(torch.einsum("op,oiab,iq->pqab", U, kernel, V))
        self.V.copy_(V)

    def forward(self, x: Tensor) -> Tensor:
        z = F.conv2d(x, self.V.mT[:, :, None, None])  # (B, r_i, H, W)
        z = F.conv2d(z, self.S, stride=self.stride, padding=self.padding, dilation=self.dilation)  # (B, r_o, H', W')
        return F.conv2d(z, self.U[:, :, None, None], self.bias)

    @classmethod
    def from_dense(cls, layer: nn.Conv2d, rank: tuple[int, int], *, core: bool = True) -> Self:
        """The truncated higher-order SVD of the kernel of `layer`, with its bias."""
        kh, kw = layer.kernel_size
        how: dict[str, Any] = {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}
        how |= {"bias": layer.bias is not None, "device": layer.weight.device, "dtype": layer.weight.dtype}
        return filled(cls(layer.in_channels, layer.out_channels, (kh, kw), rank, **how), layer)

    @classmethod
    def truncated(cls, layer: nn.Module, rank_of: Callable[[int], int], *, core: bool = True) -> Self:
        """The ranks are those of the two channel modes, whose unfoldings may have fewer columns than there are
        channels; there is always a core."""
        assert isinstance(layer, nn.Conv2d)
        n_o, n_i, positions = layer.out_channels, layer.in_channels, math.prod(layer.kernel_size)
        return cls.from_dense(layer, (rank_of(min(n_o, n_i * positions)), rank_of(min(n_i, n_o * positions))))

    to_dense = LowRankConv2d.to_dense

    @classmethod
    def refuses(cls, layer: nn.Conv2d) -> str:
        """Groups, which have no common modes, and padding other than zeros."""
        return "groups, or padding other than zeros" if layer.groups > 1 or layer.padding_mode != "zeros" else ""

    def plain_layers(self) -> nn.Sequential:
        """Vᵀ, the core and U, the first and the last as 1 x 1 convolutions."""
        like: dict[str, Any] = {"device": self.U.device, "dtype": self.U.dtype}
        r_o, r_i = self.S.shape[:2]
        first = nn.Conv2d(self.in_channels, r_i, 1, bias=False, **like)
        middle = nn.Conv2d(r_i, r_o, self.kernel_size, **convolution_arguments(self), bias=False, **like)
        last = nn.Conv2d(r_o, self.out_channels, 1, bias=self.bias is not None, **like)
        return in_sequence(self, {first: self.V.mT, middle: self.S, last: self.U}, CONVOLUTION)

    def merge_core_(self) -> None:
        """The core carries stride and padding: it is applied by itself."""

    def extra_repr(self) -> str:
        shape = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        ranks = f"ranks=({self.U.shape[1]}, {self.V.shape[1]})"
        return f"{shape}, padding={self.padding}, dilation={self.dilation}, {ranks}, bias={self.bias is not None}"


def _tucker(model: nn.Module, settings: Settings) -> nn.Module:
    return decayed(factorize(model, **settings.size(), skip=last_layer(model), convolution=Tucker2Conv2d), settings)


register(
    Method(
        "robust_dlrt_tucker",
        "RobustDLRT, Tucker",
        "RobustDLRT with the convolutions in Tucker-2 form.",
        _tucker,
        bug_groups("augmented", 9),
        frozenset({"ratio", "tolerance", "beta"}),
        optimizer=BUG,
        penalty=robustness_penalty,
    )
)
