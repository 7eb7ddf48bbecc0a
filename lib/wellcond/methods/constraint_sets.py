"""Convex sets of tensors that linear functions are easily minimized over: the feasible sets of Frank-Wolfe.

A set bounds a norm of the coordinates x(W) >= 0 of a tensor W: the moduli of its N entries, the l2 norms of its N = n
rows (the filters of a kernel), or its N = min(n, m) singular values. Kernels are matricized, (C_out, C_in·kh·kw).

    C = {W : ‖x(W)‖ <= R}
    lmo(G)          = argmin_{V in C} <G, V> = -R Σ v_i d_i,    v = argmax_{‖v‖ <= 1} <v, x(G)>,  G = Σ x_i(G) d_i
    support(G)      = max_{V in C} <G, V> = R ‖x(G)‖_*
    gauge(W)        = ‖x(W)‖/R,    so that W is in C where it is <= 1, and <G, W> <= gauge(W) support(G)
    shift_inside(W) = W/max(1, gauge(W))
    diameter        = max_{V, W in C} ‖V - W‖_F = 2R max_{‖v‖ <= 1} ‖v‖_2

    name                  coordinates        norm ‖x‖                            C is the convex hull of
    l1, l2, linf, lp      entries            (Σ x_i^p)^(1/p), 1 <= p <= inf
    k_sparse              entries            max(‖x‖_inf, ‖x‖_1/k)               {0, ±R}^N with k nonzeros
    k_support             entries            the k-support norm                  k-sparse tensors with ‖V‖_F <= R
    group_k_support       rows               the k-support norm                  those with k nonzero rows, ‖V‖_F <= R
    nuclear               singular values    ‖x‖_1                               rank 1, ‖V‖_F <= R
    spectral_k_sparse     singular values    max(‖x‖_inf, ‖x‖_1/k)               R U Vᵀ of rank k, U and V orthonormal
    spectral_k_support    singular values    the k-support norm                  rank k, ‖V‖_F <= R

Entries need no shape, so their sets also hold for several tensors as one vector. Rows and singular values are those of
one matrix.

Sources: Argyriou, Foygel, Srebro, NeurIPS 2012 (k-support norm); McDonald, Pontil, Stamos, JMLR 17 (2016) (spectral);
Rao, Dudík, Harchaoui, MLSP 2017 (group); arXiv:2205.11921 (in deep learning). Its diameter of the l_p ball, 2R
N^(1/2 - 1/p), is that of p >= 2 only: for p <= 2 it is 2R.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from wellcond.errors import invalid, unknown
from wellcond.linalg import Triplets, leading_triplets, upcast

# ------------------------------------------------------------------------ norms of nonnegative vectors (N,)


class Norm(Protocol):
    """A symmetric gauge function: a norm that depends neither on signs nor on the order of the N = size entries."""

    @property
    def k(self) -> int:
        """The maximizer depends on the k largest entries alone."""

    @property
    def width(self) -> float:
        """max_{‖v‖ <= 1} ‖v‖_2."""

    def value(self, x: Tensor) -> Tensor:
        """‖x‖ of x >= 0 (N,), with largest entry 1 so that powers neither overflow nor vanish."""

    def maximizer(self, g: Tensor) -> Tensor:
        """argmax_{‖v‖ <= 1} <v, g> for g >= 0, its largest entry about 1."""


@dataclass(frozen=True)
class Lp:
    """(Σ x_i^p)^(1/p), p in [1, inf]."""

    size: int
    p: float

    def __post_init__(self) -> None:
        if not self.p >= 1:
            raise invalid("p", self.p, "in [1, inf]")

    @property
    def k(self) -> int:
        return self.size

    @property
    def width(self) -> float:
        return float(max(1.0, self.size ** (1 / 2 - 1 / self.p)))

    def value(self, x: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(x, self.p)
        return norm

    def maximizer(self, g: Tensor) -> Tensor:
        """g^(1/(p-1)), normalized: equality in Hölder's inequality. For p = 1 the largest entry, tied ones alike."""
        v = (g / g.amax()) ** (math.inf if self.p == 1 else 1 / (self.p - 1))
        normalized: Tensor = v / torch.linalg.vector_norm(v, self.p)
        return normalized


@dataclass(frozen=True)
class _Sparse:
    """Norms whose unit balls are convex hulls of vectors with k nonzeros; of tied entries, any k."""

    size: int
    k: int

    def __post_init__(self) -> None:
        if not (self.k == int(self.k) and 1 <= self.k <= self.size):
            raise invalid("k", self.k, f"a whole number in 1..{self.size}")

    def _largest(self, g: Tensor) -> Tensor:
        """g with all but its k largest entries set to zero."""
        values, indices = g.topk(int(self.k))
        return torch.zeros_like(g).scatter(0, indices, values)


@dataclass(frozen=True)
class KSparse(_Sparse):
    """max(‖x‖_inf, ‖x‖_1/k), the gauge of conv{v in {0, ±1}^N with k nonzeros}; dual: the sum of the k largest."""

    @property
    def width(self) -> float:
        return math.sqrt(self.k)

    def value(self, x: Tensor) -> Tensor:
        return torch.maximum(x.amax(), x.sum() / self.k)

    def maximizer(self, g: Tensor) -> Tensor:
        return self._largest(g).sign()


@dataclass(frozen=True)
class KSupport(_Sparse):
    """The k-support norm, the gauge of conv{‖v‖_2 <= 1 with k nonzeros}; dual: the l2 norm of the k largest."""

    @property
    def width(self) -> float:
        return 1.0

    def value(self, x: Tensor) -> Tensor:
        """[Σ_{i<k-t} x_i² + (Σ_{i>=k-t} x_i)²/(t + 1)]^(1/2) for x descending, from i = 1, with the one t in 0..k-1 for
        which x_{k-t-1} > (Σ_{i>=k-t} x_i)/(t + 1) >= x_{k-t}, x_0 = inf."""
        k = int(self.k)
        x = x.sort(descending=True).values
        last = torch.arange(k - 1, -1, -1, device=x.device)  # k - t - 1: how many entries are apart from the tail
        tail = x.flip(0).cumsum(0).flip(0)[last]
        mean = tail / (k - last)
        before = torch.where(last > 0, x[last - 1], math.inf)
        # where one t fails the left inequality the next one satisfies the right: the first that holds is the one
        t = (before > mean).int().argmax()
        head = torch.cat([x.new_zeros(1), x.square().cumsum(0)])[last]
        return (head[t] + tail[t] * mean[t]).sqrt()

    def maximizer(self, g: Tensor) -> Tensor:
        largest = self._largest(g)
        normalized: Tensor = largest / torch.linalg.vector_norm(largest)
        return normalized


# ------------------------------------------------------------------------ coordinates of a tensor

Split = tuple[Tensor, Callable[[Tensor], Tensor]]
"""x(W) (N,) and the map v -> Σ v_i d_i, where W = Σ x_i(W) d_i."""


def _split_entries(W: Tensor) -> Split:
    return W.abs().flatten(), lambda v: W.sign() * v.reshape(W.shape)


def _split_rows(W: Tensor) -> Split:
    A = W.flatten(1)
    norms: Tensor = torch.linalg.vector_norm(A, dim=1)
    directions = A / norms.clamp_min(torch.finfo(A.dtype).tiny).unsqueeze(1)
    return norms, lambda v: (v.unsqueeze(1) * directions).reshape(W.shape)


def split_triplets(triplets: Triplets, shape: Sequence[int]) -> Split:
    """The coordinates σ of U diag(σ) Vᵀ, a tensor of this shape when it is not matricized."""
    U, sigma, V = triplets
    return sigma, lambda v: (U * v @ V.mT).reshape(*shape)


def _split_singular_values(W: Tensor) -> Split:
    A = W.flatten(1)
    return split_triplets(leading_triplets(A, min(A.shape)), W.shape)


class Coordinates(NamedTuple):
    """size: N of a shape; split: x(W) and the directions; matrix: whether they are those of one matrix."""

    size: Callable[[Sequence[int]], int]
    split: Callable[[Tensor], Split]
    matrix: bool


ENTRIES = Coordinates(math.prod, _split_entries, matrix=False)
ROWS = Coordinates(lambda shape: shape[0], _split_rows, matrix=True)
SINGULAR_VALUES = Coordinates(lambda shape: min(shape[0], math.prod(shape[1:])), _split_singular_values, matrix=True)


class Family(NamedTuple):
    """coordinates; norm: made from N and the parameter; parameter: "k" or "p", if there is one."""

    coordinates: Coordinates
    norm: Callable[..., Norm]
    parameter: str | None = None


FAMILIES: dict[str, Family] = {
    "l1": Family(ENTRIES, lambda size: Lp(size, 1)),
    "l2": Family(ENTRIES, lambda size: Lp(size, 2)),
    "linf": Family(ENTRIES, lambda size: Lp(size, math.inf)),
    "lp": Family(ENTRIES, Lp, "p"),
    "k_sparse": Family(ENTRIES, KSparse, "k"),
    "k_support": Family(ENTRIES, KSupport, "k"),
    "group_k_support": Family(ROWS, KSupport, "k"),
    "nuclear": Family(SINGULAR_VALUES, lambda size: KSparse(size, 1)),
    "spectral_k_sparse": Family(SINGULAR_VALUES, KSparse, "k"),
    "spectral_k_support": Family(SINGULAR_VALUES, KSupport, "k"),
}
"""The table of this module."""


# ------------------------------------------------------------------------ sets


def unit_scale(G: Tensor) -> Tensor:
    """G/max|G_ij|, in float32 at least: squares of a small gradient would vanish. Zero stays zero."""
    G = upcast(G)
    return G / G.abs().amax().clamp_min(torch.finfo(G.dtype).tiny)


@dataclass(frozen=True)
class ConstraintSet:
    """C = {W : ‖x(W)‖ <= radius}; see this module. Made by `constraint_set`."""

    coordinates: Coordinates
    norm: Norm
    radius: float

    @property
    def spectral(self) -> bool:
        """Whether the coordinates are singular values."""
        return self.coordinates is SINGULAR_VALUES

    @property
    def diameter(self) -> float:
        """max ‖V - W‖_F over C."""
        return 2 * self.radius * self.norm.width

    def vertex(self, magnitudes: Tensor, direct: Callable[[Tensor], Tensor]) -> Tensor:
        """The LMO from the coordinates of G, of which it is enough to have the norm.k largest; G about 1 in size."""
        # every point minimizes <0, V>; zero is the one that depends on no direction
        v = torch.where(magnitudes.amax() > 0, self.norm.maximizer(magnitudes), 0.0)
        return direct(-self.radius * v)

    def lmo(self, G: Tensor) -> Tensor:
        """argmin_{V in C} <G, V>, the linear minimization oracle: an extreme point of C, or 0 if G = 0."""
        return self.vertex(*self.coordinates.split(unit_scale(G))).to(G.dtype)

    def support(self, G: Tensor) -> Tensor:
        """max_{V in C} <G, V> = -<G, lmo(G)>, a float64 scalar."""
        G = G.double()
        return -(G * self.lmo(G)).sum()

    def gauge(self, W: Tensor) -> Tensor:
        """min{s >= 0 : W in sC}, a float64 scalar: at most 1 exactly in C."""
        x, _ = self.coordinates.split(unit_scale(W.double()))
        return W.abs().amax().double() * self.norm.value(x / x.amax().clamp_min(1e-300)) * x.amax() / self.radius

    def shift_inside(self, W: Tensor) -> Tensor:
        """W if it is in C, else W scaled to its boundary. Not the nearest point of C, but in the direction of W."""
        return (W / self.gauge(W).clamp_min(1)).to(W.dtype)


def coordinate_count(name: str, shape: Sequence[int]) -> int:
    """N, the number of coordinates of a tensor of this shape in the family of this name.

    Raises ValueError if the name is unknown, or the family is one of matrices and the shape is not that of one.
    """
    if name not in FAMILIES:
        raise unknown("constraint", name, FAMILIES)
    coordinates = FAMILIES[name].coordinates
    if coordinates.matrix and len(shape) < 2:
        raise invalid("shape", tuple(shape), f"that of one matrix or kernel for {name}")
    return coordinates.size(shape)


def constraint_set(name: str, shape: Sequence[int], *, radius: float, **parameter: Any) -> ConstraintSet:
    """The set of this name for tensors of one shape.

    name: a key of FAMILIES; radius: R > 0, in the units of the weights; parameter: k, a whole number in 1..N, or p in
    [1, inf], where the family has it. Raises ValueError, naming the field, for anything else.
    """
    size = coordinate_count(name, shape)
    coordinates, norm, expected = FAMILIES[name]
    for key in {expected} - {None} - parameter.keys():
        raise invalid(str(key), None, f"given for {name}")
    for key in parameter.keys() - {expected}:
        raise invalid(key, parameter[key], f"absent: {name} has no such parameter")
    if not 0 < radius < math.inf:
        raise invalid("radius", radius, "a number > 0")
    return ConstraintSet(coordinates, norm(size, **parameter), radius)


def count(fraction: float, size: int) -> int:
    """k = max(1, ⌊fraction · N⌋). Raises ValueError unless fraction is in (0, 1]."""
    if not 0 < fraction <= 1:
        raise invalid("fraction", fraction, "in (0, 1]")
    return max(1, math.floor(fraction * size + 1e-9))  # 0.29 · 100 is 28.999999999999996


def lmo_error(C: ConstraintSet, G: Tensor, V: Tensor) -> Tensor:
    """<G, V - V*>/|<G, V*>| with V* = lmo(G): how far V falls short of the minimum, >= 0 if V is in C; a scalar.

    Zero gradients have no error: every point is a minimizer, and the quotient is 0/0 = nan.
    """
    G, V = G.double(), V.double()
    best = C.support(G)
    return ((G * V).sum() + best) / best
