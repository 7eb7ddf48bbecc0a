"""Factorized layers: the weight matrix is stored as W = U S Vᵀ.

    W (n, m) = U (n, r) · S (r, r) · Vᵀ (r, m),      n = outputs, m = inputs, r = rank,

UᵀU = VᵀV = I while the manifold integrator trains them; S is full. Without a core (``core=False``) the layer is
W = U Vᵀ. A layer may hold a stack of g matrices of one rank: U (g, n, r), S (g, r, r), V (g, m, r). At a rank so high
that the factors cost more than W, W is formed and applied instead: a linear layer or convolution never does more work
than the dense one and its own merging.

What can be factorized is the table KINDS, {type of a layer: its factorized form}. A kind says what the matrix of a
layer is (`matrix_of`), and how its factors act (`forward`); a file of `kinds/`, or of a user, adds one.

U, S and V are ordinary nn.Parameters: deepcopy, ``.to()``, ``state_dict`` and ``torch.save`` work as for any module.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from wellcond.errors import invalid
from wellcond.linalg import upcast
from wellcond.spectrum import singular_values
from wellcond.stiefel import random_stiefel

L = TypeVar("L", bound="LowRankLayer")
D = TypeVar("D", bound=nn.Module)

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


def weight_matrix(layer: nn.Module) -> Tensor:
    """The weight of a dense layer as the matrix (n, m), or stack of them (g, n, m), that its kind says; without a kind,
    matricized."""
    assert isinstance(layer.weight, Tensor)
    kind = kind_of(layer)
    return matricize(layer.weight) if kind is None else kind.matrix_of(layer)


def set_weight_matrix(layer: nn.Module, W: Tensor) -> None:
    """Copy the matrix (n, m), or stack of them, into the weight of a dense layer: the inverse of `weight_matrix`."""
    assert isinstance(layer.weight, Tensor)
    kind = kind_of(layer)
    W = W.mT if kind is not None and kind.transposed else W
    layer.weight.copy_(W.reshape(layer.weight.shape))


def full_rank(layer: nn.Module) -> int:
    """min(n, m) of the weight matrix of a layer."""
    shape = layer.matrix_shape if isinstance(layer, LowRankLayer) else weight_matrix(layer).shape[-2:]
    return min(shape)


class LowRankLayer(nn.Module):
    """U, S, V and a bias, for a weight matrix of shape (n, m), or a stack of `groups` of them; the subclasses say how
    it acts on an input. outputs: the length of the bias, where it is not n."""

    norm: ClassVar[type[nn.Module] | None] = None
    """The batch normalization that reads an image of this layer, channel by channel."""
    transposed: ClassVar[bool] = False
    """Whether the dense layer stores Wᵀ."""

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
        groups: int = 1,
        outputs: int | None = None,
        bias: bool = True,
        core: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(rank, Integral) or isinstance(rank, bool) or not 1 <= rank <= min(n, m):
            raise invalid("rank", rank, f"a whole number in 1..{min(n, m)} for a {n} x {m} weight matrix")
        like = {"device": device or torch.get_default_device(), "dtype": dtype or torch.get_default_dtype()}
        kwargs: dict[str, Any] = {**like, "batch": (groups,) if groups > 1 else ()}
        # Haar frames; every singular value (n/m)^½, so that an input of unit variance gives outputs of variance r/m
        scale = (n / m) ** 0.5
        if core:
            self.U = nn.Parameter(random_stiefel(n, rank, **kwargs))
            self.S = nn.Parameter((scale * torch.eye(rank, **like)).repeat(*kwargs["batch"], 1, 1))
            self.V = nn.Parameter(random_stiefel(m, rank, **kwargs))
        else:
            self.U = nn.Parameter(scale**0.5 * random_stiefel(n, rank, **kwargs))
            self.register_parameter("S", None)
            self.V = nn.Parameter(scale**0.5 * random_stiefel(m, rank, **kwargs))
        self.bias = nn.Parameter(torch.zeros(outputs or n, **like)) if bias else None

    @property
    def rank(self) -> int:
        return self.U.shape[-1]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(n, m) of the weight matrix, or of each of a stack."""
        return self.U.shape[-2], self.V.shape[-2]

    @property
    def n_dense(self) -> int:
        """The number of weights of the dense layer: nm, of all matrices of a stack."""
        return math.prod(self.matrix_shape) * math.prod(self.U.shape[:-2])

    @property
    def n_deployed(self) -> int:
        """The number of weights when the factors are merged: r(n + m), or nm where that is less."""
        return min(self.rank * sum(self.matrix_shape) * math.prod(self.U.shape[:-2]), self.n_dense)

    @classmethod
    def refuses(cls, layer: Any) -> str:
        """Why a dense layer of this kind cannot be factorized; empty if it can."""
        return ""

    @classmethod
    def matrix_of(cls, layer: Any) -> Tensor:
        """The weight of a dense layer of this kind as its matrix (n, m), or a stack of them (g, n, m)."""
        W = matricize(layer.weight)
        return W.mT if cls.transposed else W

    @classmethod
    def truncated(cls, layer: nn.Module, rank_of: Callable[[int], int], *, core: bool = True) -> Self:
        """The factorized form of `layer` at rank rank_of(full rank), by truncated SVD; core: as in `factorize`."""
        return cls.from_dense(layer, rank_of(full_rank(layer)), core=core)

    @classmethod
    def from_dense(cls, layer: Any, rank: Any, *, core: bool = True) -> Self:
        """The factorized layer with the best approximation of the weights of `layer` at this rank, and its bias."""
        raise NotImplementedError

    def to_dense(self) -> nn.Module:
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
        """W = U S Vᵀ (n, m), or a stack of them."""
        return self.left() @ self.V.mT

    @property
    def weight(self) -> Tensor:
        """The weight in the shape that the dense layer has, for code that reads ``layer.weight``."""
        return self.matrix().mT if self.transposed else self.matrix()

    def _merges(self, positions: int) -> bool:
        """Whether forming W once is cheaper than applying its factors at every position (B·H'·W'); not where torch.fx
        traces the code, and the number is not known."""
        if isinstance(positions, fx.Proxy):
            return False
        (n, m), r = self.matrix_shape, self.rank
        return n * m * positions + n * r * m < INTERMEDIATE * r * (n + m) * positions

    def singular_values(self) -> Tensor:
        """The r singular values of W (..., r), descending, from the triangular factors of U and V; W is not formed.
        float64."""
        _, R = torch.linalg.qr(self.left().detach().double())
        _, T = torch.linalg.qr(self.V.detach().double())
        return singular_values(R @ T.mT)

    @torch.no_grad()
    def set_matrix(self, W: Tensor) -> None:
        """Make this the best rank-r approximation of W (n, m): the truncated SVD (Eckart and Young, 1936)."""
        P, sigma, Qt = torch.linalg.svd(upcast(W.detach()), full_matrices=False)
        P, sigma, Q = P[..., : self.rank], sigma[..., : self.rank], Qt[..., : self.rank, :].mT
        if self.S is None:  # balanced: both factors carry sqrt(σ)
            self.U.copy_(P * sigma.sqrt()[..., None, :])
            self.V.copy_(Q * sigma.sqrt()[..., None, :])
        else:
            self.U.copy_(P)
            self.S.copy_(torch.diag_embed(sigma))
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
        if any(X.shape[:-1] != own.shape[:-1] or X.shape[-1] > X.shape[-2] for X, own in ((U, self.U), (V, self.V))):
            return False
        ranks = (U.shape[-1], V.shape[-1])
        if self.S is None or self.S.ndim == U.ndim:
            return ranks[0] == ranks[1] and (self.S is None or new["S"].shape == (*U.shape[:-2], *ranks))
        return new["S"].shape == (*ranks, *self.S.shape[2:])  # a Tucker core, whose modes have their own ranks

    def _describe(self) -> str:
        form = "U Vᵀ" if self.S is None else "U S Vᵀ"
        if self.U.numel() + self.V.numel() > SMALL:
            return f"rank={self.rank}, form={form}, bias={self.bias is not None}"
        try:
            sigma = self.singular_values()
            kappa = (sigma[..., 0] / sigma[..., -1]).max().item()
        except RuntimeError:  # LAPACK refuses NaN, and a diverged network is one that somebody will print
            kappa = math.nan
        return f"rank={self.rank}, form={form}, kappa={kappa:.4g}, bias={self.bias is not None}"


class LowRankLinear(LowRankLayer):
    """y = W x + b with W = U S Vᵀ.

    Shape: x (..., in_features) -> y (..., out_features). Raises ValueError if rank is not in 1..min(in, out).
    """

    dense: ClassVar[type[nn.Linear]] = nn.Linear

    def __init__(self, in_features: int, out_features: int, rank: int, **kwargs: Any) -> None:
        super().__init__(out_features, in_features, rank, **kwargs)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        positions = x.numel() // self.in_features
        if self._merges(positions):
            return F.linear(x, self.matrix(), self.bias)
        z = x @ self.V  # (..., r); then (U S) z or U (S z): S acts on what has fewer rows
        if self.S is None or (not isinstance(positions, fx.Proxy) and positions > self.out_features):
            return F.linear(z, self.left(), self.bias)
        return F.linear(z @ self.S.mT, self.U, self.bias)

    @classmethod
    def from_dense(cls, layer: nn.Linear, rank: int, *, core: bool = True) -> Self:
        """The factorized layer with the best rank-r approximation of the weights of `layer`, and its bias."""
        return filled(cls(layer.in_features, layer.out_features, rank, core=core, **as_stored(layer)), layer)

    def to_dense(self) -> nn.Linear:
        """An nn.Linear with weight U S Vᵀ and the same bias."""
        return restored(self.dense(self.in_features, self.out_features, **as_stored(self)), self)

    def plain_layers(self) -> nn.Sequential:
        """Vᵀ (r, m), then U S (n, r) with the bias."""
        like = as_stored(self)
        first = nn.Linear(self.in_features, self.rank, **{**like, "bias": False})
        last = nn.Linear(self.rank, self.out_features, **like)
        return in_sequence(self, {first: self.V.mT, last: self.left()}, ("in_features", "out_features"))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._describe()}"


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


def in_sequence(layer: LowRankLayer, factors: Mapping[Any, Tensor], attributes: Iterable[str]) -> nn.Sequential:
    """Plain layers filled with these factors, in the place of `layer`: with its bias at the end, and its attributes."""
    whole = nn.Sequential(*factors).to_empty(device=layer.U.device)
    for part, factor in factors.items():
        part.weight.data.copy_(factor.reshape(part.weight.shape))
        _copy_bias(part, layer)
    for name in attributes:
        setattr(whole, name, getattr(layer, name))
    return whole


def stored(layer: nn.Module) -> dict[str, Any]:
    """Where and how the weights of a layer are stored. A layer that is made in the place of a factorized one is filled
    at once, by `restored` or `in_sequence`: until then it is nowhere, lest its start moves torch's random numbers."""
    if isinstance(layer, LowRankLayer):
        return {"device": "meta", "dtype": layer.U.dtype}
    assert isinstance(layer.weight, Tensor)
    return {"device": layer.weight.device, "dtype": layer.weight.dtype}


def as_stored(layer: nn.Module) -> dict[str, Any]:
    """Where and how the weights of a layer are stored, and whether it has a bias."""
    return {"bias": layer.bias is not None, **stored(layer)}


def filled(new: L, dense: nn.Module) -> L:
    """A factorized layer with the best approximation of the matrix of a dense one, its bias and mode."""
    new.set_matrix(new.matrix_of(dense))
    _copy_bias(new, dense)
    return new.train(dense.training)


@torch.no_grad()
def restored(dense: D, layer: LowRankLayer) -> D:
    """A dense layer with the weight of a factorized one, its bias and mode."""
    dense.to_empty(device=layer.U.device)
    assert isinstance(dense.weight, Tensor)
    dense.weight.copy_(layer.weight)
    _copy_bias(dense, layer)
    return dense.train(layer.training)


def _copy_bias(new: nn.Module, old: nn.Module) -> None:
    own, theirs = getattr(new, "bias", None), getattr(old, "bias", None)
    if own is not None and theirs is not None:
        own.data.copy_(theirs.data)


KINDS: dict[type[nn.Module] | str, type[LowRankLayer]] = {
    nn.Linear: LowRankLinear,
}
"""{type of a dense layer: its factorized form}. The type of a package that is not imported here stands as a text,
module.name. It is the exact type: a subclass may use its weight in other ways."""


def register_kind(dense: type[nn.Module] | str, kind: type[L]) -> type[L]:
    """Have `factorize` and all else treat layers of the type `dense` as `kind` says; returns `kind`. See KINDS."""
    if not (isinstance(kind, type) and issubclass(kind, LowRankLayer)):
        raise invalid("kind", kind, "a subclass of LowRankLayer")
    KINDS[dense] = kind
    return kind


def kind_of(layer: nn.Module) -> type[LowRankLayer] | None:
    """The factorized form of a dense layer of this exact type; None if there is none."""
    own = type(layer)
    return KINDS.get(own) or KINDS.get(f"{own.__module__}.{own.__qualname__}")


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLayer]:
    """The factorized layers of a model by module name, in module order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLayer)}


def weight_layers(model: nn.Module) -> dict[str, Any]:
    """Every layer of a model with a weight matrix of its own, dense or factorized, by module name."""
    types = (nn.Linear, nn.Conv2d, LowRankLayer)
    return {name: m for name, m in model.named_modules() if isinstance(m, types) or kind_of(m) is not None}
