"""The problems of the checks: random matrices of rank 4 with a given spectrum, for several seeds at once, and a field.

A stack holds the seeds of one case, then those of the next (see `flows`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from study.theory.flows import Field
from wellcond import stiefel
from wellcond.integrator import Factors

N, M, RANK = 24, 20, 4
ROTATION = 1.05  # κ of the rotating spectrum: inside the bound 1 + TAU


class Draw(NamedTuple):
    """Random frames, core bases, rotations of norm one, and a matrix of norm one, for each of k seeds."""

    U: Tensor
    V: Tensor
    P: Tensor
    Q: Tensor
    left: Tensor
    right: Tensor
    unit: Tensor


def draw(seeds: int, first: int = 0, n: int = N, m: int = M, rank: int = RANK) -> Draw:
    """The same for every check, and the first k of it for every k; first: the first seed."""

    def one(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        options: Any = {"generator": generator, "dtype": torch.float64}
        frames = [stiefel.random_stiefel(rows, rank, **options) for rows in (n, m, rank, rank)]
        skew = [A - A.mT for A in (torch.randn(rows, rows, **options) for rows in (n, m))]
        unit = torch.randn(n, m, **options)
        return *frames, *(A / torch.linalg.matrix_norm(A, 2) for A in skew), unit / unit.norm()

    return Draw(*map(torch.stack, zip(*map(one, range(first, first + seeds)), strict=True)))


def geometric(kappa: float, rank: int = RANK) -> Tensor:
    """Singular values from 1 down to 1/κ."""
    return torch.logspace(0, -math.log10(kappa), rank, dtype=torch.float64)


def point(random: Draw, sigma: Tensor) -> Factors:
    """U P diag(σ) Qᵀ Vᵀ for each seed; the core is full, as in training."""
    return Factors(random.U, random.P * sigma @ random.Q.mT, random.V)


def lengths(points: int, longest: float = 0.2) -> list[float]:
    """Step sizes, each half of the one before."""
    return [longest * 2.0**-k for k in range(points)]


def norms(A: Tensor, seeds: int) -> list[list[float]]:
    """The Frobenius norms of a stack whose seeds vary fastest: a list for each case."""
    return A.norm(dim=(-2, -1)).reshape(-1, seeds).tolist()


def repeated(A: Tensor, cases: int) -> Tensor:
    """The stack of all seeds, once for each case."""
    return A.repeat(cases, 1, 1)


def rotating(random: Draw, cases: int = 1) -> Field:
    """ΩW - WΩ': it turns both frames and leaves the singular values alone, so it is tangent to every constraint."""
    left, right = repeated(random.left, cases), repeated(random.right, cases)
    return lambda W, k: left @ W - W @ right
