"""Factorized layers: nn.Linear and nn.Conv2d with the weight matrix stored as W = U S Vᵀ.

    W (n, m) = U (n, r) · S (r, r) · Vᵀ (r, m),      n = outputs, m = inputs, r = rank,

UᵀU = VᵀV = I while the manifold integrator trains them; S is full. Without a core (``core=False``) the layer is
W = U Vᵀ. A convolution kernel (C_out, C_in, kh, kw) is matricized row-major to n = C_out, m = C_in·kh·kw and
applied as an r-channel kh x kw convolution by Vᵀ followed by a 1 x 1 convolution by U S, so that stride, padding
and dilation are torch's own and no patches are unfolded. At a rank so high that the factors cost more than W, W is
formed and applied instead: a factorized layer never does more work than the dense one and its own merging.

U, S and V are ordinary nn.Parameters: deepcopy, ``.to()``, ``state_dict`` and ``torch.save`` work as for any module.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from wellcond.errors import invalid
from wellcond.linalg import upcast
from wellcond.spectrum import singular_values
from wellcond.stiefel import random_stiefel

L = TypeVar("L", bound="LowRankLayer")
D = TypeVar("D", nn.Linear, nn.Conv2d)

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""The attributes of a module that hold its hooks; each other one of `_HOOK_OPTIONS` says how they are called."""
_HOOK_OPTIONS = (
    *("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs"),
    "_is_full_backward_hook",
)
SMALL = 2**16  # entries of U and V up to which printing a layer computes its condition number
INTERMEDIATE = 1.2  # the r-channel tensor between the factors is written and read: worth a fifth of their multiply-adds


def matricize(weight: Tensor) -> Tensor:
    """(n, ...) -> (n, m): a kernel (C_out, C_in, kh, kw) becomes (C_out, C_in·kh·kw), row-major."""
    return weight.reshape(weight.shape[0], -1)


def full_rank(layer: nn.Module) -> int:
    """min(n, m) of the weight matrix of a layer."""
    if isinstance(layer, LowRankLayer):
        return min(layer.matrix_shape)
    assert isinstance(layer.weight, Tensor)
    return min(matricize(layer.weight).shape)


class LowRankLayer(nn.Module):
    """U, S, V and a bias, for a weight matrix of shape (n, m); the subclasses say how it acts on an input."""

    convolves = False
    """Whether it acts on images (B, C, H, W), and has the attributes of a convolution."""

    U: nn.Parameter
    S: nn.Parameter | None
    V: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        n: int,
        m: int,
        rank: int,
        *,
        bias: bool = True,
        core: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= rank <= min(n, m):
            raise invalid("rank", rank, f"in 1..{min(n, m)} for a {n} x {m} weight matrix")
        kwargs: dict[str, Any] = {"device": device or "cpu", "dtype": dtype or torch.get_default_dtype()}
        # Haar frames; every singular value 1/sqrt(m), so that a unit-variance input gives outputs of variance r/m
        scale = m**-0.5
        if core:
            self.U = nn.Parameter(random_stiefel(n, rank, **kwargs))
            self.S = nn.Parameter(scale * torch.eye(rank, **kwargs))
            self.V = nn.Parameter(random_stiefel(m, rank, **kwargs))
        else:
            self.U = nn.Parameter(scale**0.5 * random_stiefel(n, rank, **kwargs))
            self.register_parameter("S", None)
            self.V = nn.Parameter(scale**0.5 * random_stiefel(m, rank, **kwargs))
        self.bias = nn.Parameter(torch.zeros(n, **kwargs)) if bias else None

    @property
    def rank(self) -> int:
        return self.U.shape[1]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(n, m) of the weight matrix."""
        return self.U.shape[0], self.V.shape[0]

    @property
    def n_deployed(self) -> int:
        """The number of weights when the factors are merged: r(n + m), or nm where that is less."""
        n, m = self.matrix_shape
        return min(self.rank * (n + m), n * m)

    @classmethod
    def truncated(cls, layer: nn.Linear | nn.Conv2d, rank_of: Callable[[int], int], *, core: bool = True) -> Self:
        """The factorized form of `layer` at rank rank_of(full rank), by truncated SVD; core: as in `factorize`."""
        return cls.from_dense(layer, rank_of(full_rank(layer)), core=core)

    @classmethod
    def from_dense(cls, layer: Any, rank: Any, *, core: bool = True) -> Self:
        """The factorized layer with the best approximation of the weights of `layer` at this rank, and its bias."""
        raise NotImplementedError

    def to_dense(self) -> nn.Linear | nn.Conv2d:
        """The dense layer of the same function."""
        raise NotImplementedError

    def plain_layers(self) -> nn.Sequential:
        """The same function as plain layers, one a factor, the last with the bias. Sizes, stride and the like, which
        forward code may read, stay readable on it."""
        raise NotImplementedError

    def merge_core_(self) -> None:
        """Replace U by U S, in place, so that a forward pass has two factors to apply."""
        self.U.copy_(self.left())
        self.S = None
        self.V.data = self.V.mT.contiguous().mT  # as a kernel, Vᵀ is then a view and not a copy at every call

    def core_matrix(self) -> Tensor | None:
        """The core as a matrix, whose condition number is that of the layer: S, or None."""
        return self.S

    def left(self) -> Tensor:
        """U S (n, r), or U where there is no core."""
        return self.U if self.S is None else self.U @ self.S

    def matrix(self) -> Tensor:
        """W = U S Vᵀ (n, m)."""
        return self.left() @ self.V.mT

    def _merges(self, positions: int) -> bool:
        """Whether forming W once is cheaper than applying its factors at every position (B·H'·W'); not where torch.fx
        traces the code, and the number is not known."""
        if isinstance(positions, fx.Proxy):
            return False
        n, r, m = self.U.shape[0], self.rank, self.V.shape[0]
        return n * m * positions + n * r * m < INTERMEDIATE * r * (n + m) * positions

    def singular_values(self) -> Tensor:
        """The r singular values of W, descending, from the triangular factors of U and V; W is not formed. float64."""
        _, R = torch.linalg.qr(self.left().detach().double())
        _, T = torch.linalg.qr(self.V.detach().double())
        return singular_values(R @ T.mT)

    @torch.no_grad()
    def set_matrix(self, W: Tensor) -> None:
        """Make this the best rank-r approximation of W (n, m): the truncated SVD (Eckart and Young, 1936)."""
        P, sigma, Qt = torch.linalg.svd(upcast(W.detach()), full_matrices=False)
        P, sigma, Q = P[:, : self.rank], sigma[: self.rank], Qt[: self.rank].mT
        if self.S is None:  # balanced: both factors carry sqrt(σ)
            self.U.copy_(P * sigma.sqrt())
            self.V.copy_(Q * sigma.sqrt())
        else:
            self.U.copy_(P)
            self.S.copy_(torch.diag(sigma))
            self.V.copy_(Q)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """The rank is data: a state with factors of another rank gives this layer that rank."""
        new = {name: state_dict.get(prefix + name) for name in "USV" if getattr(self, name) is not None}
        found = {name: factor for name, factor in new.items() if factor is not None}
        if found.keys() == new.keys() and self._fit(found):  # if not, torch says what does not
            for name, factor in found.items():
                own = getattr(self, name)
                resize_(own, factor.shape)
                if own.stride() != factor.stride():  # products round by strides: what is resumed has those it had
                    own.data = torch.empty_like(factor, dtype=own.dtype, device=own.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _fit(self, new: Mapping[str, Tensor]) -> bool:
        """Whether factors U, S and V belong together and to a weight of this shape, at whatever rank."""
        U, V = new["U"], new["V"]
        if any(X.ndim != 2 or len(X) != len(own) or X.shape[1] > len(X) for X, own in ((U, self.U), (V, self.V))):
            return False
        ranks = (U.shape[1], V.shape[1])
        if self.S is None or self.S.ndim == 2:
            return ranks[0] == ranks[1] and (self.S is None or new["S"].shape == ranks)
        return new["S"].shape == (*ranks, *self.S.shape[2:])  # a Tucker core, whose modes have their own ranks

    def _describe(self) -> str:
        form = "U Vᵀ" if self.S is None else "U S Vᵀ"
        if self.U.numel() + self.V.numel() > SMALL:
            return f"rank={self.rank}, form={form}, bias={self.bias is not None}"
        try:
            sigma = self.singular_values()
            kappa = (sigma[0] / sigma[-1]).item()
        except RuntimeError:  # LAPACK refuses NaN, and a diverged network is one that somebody will print
            kappa = math.nan
        return f"rank={self.rank}, form={form}, kappa={kappa:.4g}, bias={self.bias is not None}"


class LowRankLinear(LowRankLayer):
    """y = W x + b with W = U S Vᵀ.

    Shape: x (..., in_features) -> y (..., out_features). Raises ValueError if rank is not in 1..min(in, out).
    """

    def __init__(self, in_features: int, out_features: int, rank: int, **kwargs: Any) -> None:
        super().__init__(out_features, in_features, rank, **kwargs)
        self.in_features, self.out_features = in_features, out_features

    @property
    def weight(self) -> Tensor:
        """The dense weight (out_features, in_features), for code that reads ``layer.weight``."""
        return self.matrix()

    def forward(self, x: Tensor) -> Tensor:
        if self._merges(x.numel() // self.in_features):
            return F.linear(x, self.matrix(), self.bias)
        z = x @ self.V  # (..., r)
        if self.S is not None:
            z = z @ self.S.mT
        return F.linear(z, self.U, self.bias)

    @classmethod
    def from_dense(cls, layer: nn.Linear, rank: int, *, core: bool = True) -> Self:
        """The factorized layer with the best rank-r approximation of the weights of `layer`, and its bias."""
        like: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        new = cls(layer.in_features, layer.out_features, rank, bias=layer.bias is not None, core=core, **like)
        return filled(new, layer)

    def to_dense(self) -> nn.Linear:
        """An nn.Linear with weight U S Vᵀ and the same bias."""
        like: dict[str, Any] = {"device": self.U.device, "dtype": self.U.dtype}
        dense = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, **like)
        return _restored(dense, self)

    def plain_layers(self) -> nn.Sequential:
        """Vᵀ (r, m), then U S (n, r) with the bias."""
        like: dict[str, Any] = {"device": self.U.device, "dtype": self.U.dtype}
        first = nn.Linear(self.in_features, self.rank, bias=False, **like)
        last = nn.Linear(self.rank, self.out_features, bias=self.bias is not None, **like)
        return in_sequence(self, {first: self.V.mT, last: self.left()}, ("in_features", "out_features"))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._describe()}"


class LowRankConv2d(LowRankLayer):
    """2-d convolution whose matricized kernel (C_out, C_in·kh·kw) is U S Vᵀ.

    Shape: x (B, C_in, H, W) -> y (B, C_out, H', W') as nn.Conv2d with the same kernel_size, stride, padding, dilation.
    recomputes: see `recompute`. Raises ValueError if rank is out of range, groups > 1, or padding_mode is not "zeros".
    """

    convolves = True
    recomputes = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        rank: int,
        *,
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        **kwargs: Any,
    ) -> None:
        if groups != 1:
            raise invalid("groups", groups, "1: a grouped convolution has no single weight matrix to factorize")
        if padding_mode != "zeros":
            raise invalid("padding_mode", padding_mode, "'zeros'")
        kh, kw = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
        super().__init__(out_channels, in_channels * kh * kw, rank, **kwargs)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, (kh, kw)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    @property
    def weight(self) -> Tensor:
        """The dense kernel (C_out, C_in, kh, kw)."""
        return self.matrix().reshape(self.out_channels, self.in_channels, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        geometry: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        strides = self.stride if isinstance(self.stride, tuple) else (self.stride, self.stride)
        if self._merges(x.numel() // (self.in_channels * math.prod(strides))):
            return F.conv2d(x, self.weight, self.bias, **geometry)
        if self.recomputes and torch.is_grad_enabled():
            y: Tensor = checkpoint(self._by_factors, x, use_reentrant=False, preserve_rng_state=False)
            return y
        return self._by_factors(x)

    def _by_factors(self, x: Tensor) -> Tensor:
        basis = self.V.mT.reshape(-1, self.in_channels, *self.kernel_size)
        z = F.conv2d(x, basis, stride=self.stride, padding=self.padding, dilation=self.dilation)  # (B, r, H', W')
        return F.conv2d(z, self.left()[:, :, None, None], self.bias)

    @classmethod
    def from_dense(cls, layer: nn.Conv2d, rank: int, *, core: bool = True) -> Self:
        """The factorized layer with the best rank-r approximation of the kernel of `layer`, and its bias."""
        kh, kw = layer.kernel_size
        new = cls(
            layer.in_channels,
            layer.out_channels,
            (kh, kw),
            rank,
            **convolution_arguments(layer),
            groups=layer.groups,
            padding_mode=layer.padding_mode,
            bias=layer.bias is not None,
            core=core,
            device=layer.weight.device,
            dtype=layer.weight.dtype,
        )
        return filled(new, layer)

    def to_dense(self) -> nn.Conv2d:
        """An nn.Conv2d with the kernel U S Vᵀ and the same bias."""
        dense = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            **convolution_arguments(self),
            bias=self.bias is not None,
            device=self.U.device,
            dtype=self.U.dtype,
        )
        return _restored(dense, self)

    def plain_layers(self) -> nn.Sequential:
        """Vᵀ as a convolution to r channels, then U S as a 1 x 1 convolution with the bias."""
        like: dict[str, Any] = {"device": self.U.device, "dtype": self.U.dtype}
        geometry = {**convolution_arguments(self), "bias": False, **like}
        first = nn.Conv2d(self.in_channels, self.rank, self.kernel_size, **geometry)
        last = nn.Conv2d(self.rank, self.out_channels, 1, bias=self.bias is not None, **like)
        return in_sequence(self, {first: self.V.mT, last: self.left()}, CONVOLUTION)

    def extra_repr(self) -> str:
        shape = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{shape}, padding={self.padding}, dilation={self.dilation}, {self._describe()}"


CONVOLUTION = ("kernel_size", "stride", "padding", "dilation", "in_channels", "out_channels")
"""What forward code may read of a convolution."""


def resize_(p: Tensor, shape: Iterable[int]) -> None:
    """Give a parameter a shape, in place; where it is another one, values and gradient are lost."""
    if p.shape == (shape := tuple(shape)):
        return
    p.grad = None
    new = p.data.new_empty(shape)
    # while an old graph is alive, autograd remembers the shape of p in it; a change of type makes it forget
    p.data = new.new_empty(0, dtype=torch.float16 if p.dtype != torch.float16 else torch.float32)
    p.data = new


def inherit(new: nn.Module, old: nn.Module) -> nn.Module:
    """Give `new`, which takes the place of `old`, its hooks, its mode, and what of its weight and bias is frozen."""
    for name in (*HOOKS, *_HOOK_OPTIONS):
        setattr(new, name, copy.copy(getattr(old, name)))
    for of_bias in (False, True):
        theirs, ours = (
            [p for name, p in module.named_parameters() if ("bias" in name.split(".")) == of_bias]
            for module in (old, new)
        )
        for p in ours:
            p.requires_grad_(any(q.requires_grad for q in theirs) or not theirs)
    return new.train(old.training)


def in_sequence(
    layer: LowRankLayer, factors: Mapping[nn.Linear | nn.Conv2d, Tensor], attributes: Iterable[str]
) -> nn.Sequential:
    """Plain layers filled with these factors, in the place of `layer`: with its bias at the end, and its attributes."""
    whole = nn.Sequential(*factors)
    for part, factor in factors.items():
        part.weight.data.copy_(factor.reshape(part.weight.shape))
        if part.bias is not None and layer.bias is not None:
            part.bias.data.copy_(layer.bias)
    for name in attributes:
        setattr(whole, name, getattr(layer, name))
    return whole


def convolution_arguments(layer: nn.Module) -> dict[str, Any]:
    return {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}


def filled(new: L, dense: nn.Linear | nn.Conv2d) -> L:
    new.set_matrix(matricize(dense.weight))
    if new.bias is not None and dense.bias is not None:
        new.bias.data.copy_(dense.bias.data)
    return new.train(dense.training)


def _restored(dense: D, layer: LowRankLayer) -> D:
    dense.weight.data.copy_(layer.matrix().data.reshape(dense.weight.shape))
    if dense.bias is not None and layer.bias is not None:
        dense.bias.data.copy_(layer.bias.data)
    dense.train(layer.training)
    return dense


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLayer]:
    """The factorized layers of a model by module name, in module order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLayer)}


def recompute(model: nn.Module, on: bool = True) -> nn.Module:
    """Have the factorized convolutions of `model` forget the r-channel tensor Vᵀ * x between their factors, and compute
    it again in the backward pass; returns the model, changed in place.

    A factorized convolution keeps one tensor more for the backward pass than the dense one. Without it a training step
    needs no more memory than that of the dense network, for one more convolution by Vᵀ: a tenth to a quarter of the
    time of a step. The gradients are the same bit for bit. on: False undoes it. Inference is not affected.
    Source: Chen, Xu, Zhang, Guestrin, arXiv:1604.06174 (checkpointing).
    """
    for layer in low_rank_layers(model).values():
        if isinstance(layer, LowRankConv2d):
            layer.recomputes = on
    return model


def weight_layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d | LowRankLayer]:
    """Every linear and convolution layer of a model, dense or factorized, by module name."""
    kinds = (nn.Linear, nn.Conv2d, LowRankLayer)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
