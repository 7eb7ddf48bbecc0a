"""Unit balls of the sets of `wellcond.methods.constraint_sets` in space: vectors, and symmetric 2 x 2 matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from study.presentation.convex_bodies import Body, Floats, Surface, globe, octahedron
from wellcond.methods.constraint_sets import constraint_set


class Space(NamedTuple):
    """point: a linear isometry from R³, Euclidean, to the space, Frobenius; mesh: of the sphere, with edges where balls
    of the space have theirs; axes: the names of the coordinates."""

    point: Callable[[Tensor], Tensor]
    mesh: Callable[[], Surface]
    axes: Sequence[str]


def symmetric(u: Tensor) -> Tensor:
    """[[c + a, b], [b, c - a]]/√2 for u = (a, b, c)."""
    a, b, c = u / 2**0.5
    return torch.stack([torch.stack([c + a, b]), torch.stack([b, c - a])])


VECTORS = Space(lambda u: u, partial(octahedron, 32), ("x₁", "x₂", "x₃"))
MATRICES = Space(symmetric, partial(globe, 24), "abc")


def unit_ball(name: str, space: Space, n: int = 600, seed: int = 0, **options: Any) -> Body:
    """The boundary u/gauge(u) of a set by name, of radius one, and lmo(G) for n random G.

    options: those of the set, such as k. Raises ValueError as `constraint_set` does.
    """
    C = constraint_set(name, tuple(space.point(torch.zeros(3)).shape), radius=1.0, **options)
    gauges = torch.vmap(lambda u: C.gauge(space.point(u)))

    def gauge(points: Floats) -> Floats:
        values: Floats = gauges(torch.from_numpy(points)).numpy()
        return values

    mesh = space.mesh()
    directions = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 3)))
    basis = torch.stack([space.point(e).flatten() for e in torch.eye(3, dtype=torch.float64)])
    extreme = torch.stack([C.lmo(space.point(g)).flatten() for g in directions]) @ basis.mT
    return Body(mesh.scaled(1 / gauge(mesh.points)), gauge, extreme.numpy(), space.axes)
