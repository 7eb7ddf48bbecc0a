"""Boundaries of convex bodies in R³ as triangles, what of them is seen from far away, and layers that are cut.

A body with 0 inside and gauge g has the boundary {u/g(u)}: one point on each ray from 0. A mesh is such a surface for
some body of which everything is known; scaled by 1/g it is the boundary of any other, and lies on it exactly at its
points. Creases come out sharp where edges of the mesh follow them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation
from numpy.typing import NDArray

from study.presentation.style import WIDTH, finish, panels, style
from wellcond.errors import invalid

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


class Surface(NamedTuple):
    """points (P, 3); triangles (T, 3), indices of points, counterclockwise from outside."""

    points: Floats
    triangles: Indices

    def scaled(self, factors: Floats) -> Surface:
        """With each point multiplied by its factor (P,) > 0, such as 1/g(point)."""
        return self._replace(points=self.points * factors[:, None])


def _joined(corners: Floats) -> Surface:
    """The surface of triangles (T, 3, 3) around 0: common corners become one point, triangles without area none."""
    points, indices = np.unique(corners.reshape(-1, 3).round(12) + 0.0, axis=0, return_inverse=True)
    triangles = indices.reshape(-1, 3)
    a, b, c = triangles.T
    triangles = triangles[(a != b) & (b != c) & (c != a)]
    inward = np.linalg.det(points[triangles]) < 0
    triangles[inward] = triangles[inward, ::-1]
    return Surface(points, triangles)


def _check(n: int) -> None:
    if n < 1:
        raise invalid("n", n, ">= 1")


def octahedron(n: int) -> Surface:
    """{‖x‖_1 = 1} with each face in n² triangles: edges along all planes x_i = 0 and |x_i| = j/n, on the surface.

    Raises ValueError unless n >= 1.
    """
    _check(n)
    up = [[(i, j), (i + 1, j), (i, j + 1)] for i in range(n) for j in range(n - i)]
    down = [[(i + 1, j), (i, j + 1), (i + 1, j + 1)] for i in range(n - 1) for j in range(n - 1 - i)]
    ij = np.array(up + down, dtype=np.float64) / n
    face = np.stack([ij[..., 0], ij[..., 1], 1 - ij.sum(-1)], axis=-1)
    signs = np.array(np.meshgrid(*3 * [[-1.0, 1.0]])).reshape(3, -1).T
    return _joined((face * signs[:, None, None]).reshape(-1, 3, 3))


def globe(n: int) -> Surface:
    """The unit sphere with poles ±e_3: 4n meridians, and 2n circles of latitude from pole to pole, ±45° for even n.

    Raises ValueError unless n >= 1.
    """
    _check(n)
    angles = [np.linspace(-np.pi / 2, np.pi / 2, 2 * n + 1), np.linspace(-np.pi, np.pi, 4 * n + 1)]
    latitude, longitude = np.meshgrid(*angles, indexing="ij")
    x = np.stack([*(np.cos(latitude) * f(longitude) for f in (np.cos, np.sin)), np.sin(latitude)], axis=-1)
    a, b, c, d = x[:-1, :-1], x[1:, :-1], x[1:, 1:], x[:-1, 1:]
    return _joined(np.stack([a, b, c, a, c, d], axis=-2).reshape(-1, 3, 3))


def camera(azimuth: float, elevation: float) -> Floats:
    """Orthonormal rows (3, 3): right, up, and towards the viewer, who is at these angles in degrees; up is e_3 seen."""
    a, e = np.radians([azimuth, elevation])
    right = [-np.sin(a), np.cos(a), 0]
    up = [-np.sin(e) * np.cos(a), -np.sin(e) * np.sin(a), np.cos(e)]
    return np.array([right, up, np.cross(right, up)])


def normals(surface: Surface) -> Floats:
    """Outer unit normals of the triangles (T, 3)."""
    a, b, c = surface.points[surface.triangles].transpose(1, 0, 2)
    outer = np.cross(b - a, c - a)
    return outer / np.linalg.norm(outer, axis=1, keepdims=True)


def creases(surface: Surface, angle: float = 20.0) -> Indices:
    """The edges (E, 2), pairs of points, across which the normal turns by more than an angle in degrees."""
    edges = np.sort(surface.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    order = np.lexsort(edges.T)  # each edge twice: once for either side
    first, second = normals(surface)[order // 3].reshape(-1, 2, 3).transpose(1, 0, 2)
    turned = (first * second).sum(axis=1) < np.cos(np.radians(angle))
    return edges[order[::2][turned]]


# --- figures ---------------------------------------------------------------------------------------------------------


class Body(NamedTuple):
    """A boundary, the gauge of points (P, 3), some extreme points (E, 3), and the names of the axes."""

    surface: Surface
    gauge: Callable[[Floats], Floats]
    extreme: Floats
    axes: Sequence[str]


FRAME = camera(azimuth=36, elevation=20)
LIGHT = FRAME.T @ np.array([-0.4, 0.6, 0.7])


def _draw(ax: Axes, body: Body) -> None:
    """The front, its creases, the extreme points that are not hidden, and the axes where they leave the body."""
    surface, gauge = body.surface, body.gauge
    outer = normals(surface)
    seen = outer @ FRAME[2] > 0
    x, y, _ = FRAME @ surface.points.T
    shade = np.clip(outer @ LIGHT, 0, None)[seen]
    look: Any = {"cmap": "Blues_r", "vmin": -0.9, "vmax": 1.25, "edgecolors": "face", "linewidth": 0.15}
    ax.tripcolor(Triangulation(x, y, surface.triangles[seen]), shade, **look)

    def front(points: Floats) -> NDArray[np.bool_]:
        return gauge(points * (1 - 1e-3) + 0.01 * FRAME[2]) > 1  # the way to the viewer leads out

    if len(edges := surface.points[creases(surface)]):
        visible = front(edges.reshape(-1, 3)).reshape(-1, 2).all(axis=1)
        ax.add_collection(LineCollection(list((edges @ FRAME[:2].T)[visible]), color="#1B3A57", linewidth=0.9))
    dots: Any = {"color": "#E69F00", "markersize": 3, "markeredgecolor": "black", "markeredgewidth": 0.3}
    ax.plot(*(FRAME[:2] @ body.extreme[front(body.extreme)].T), "o", **dots)
    reach = np.linalg.norm(surface.points, axis=1).max() + 0.6
    arrow: Any = {"arrowstyle": "-|>", "color": "#444444", "lw": 0.9, "shrinkA": 0, "shrinkB": 0}
    for e, label in zip(np.eye(3), body.axes, strict=True):
        ax.annotate(
            "", FRAME[:2] @ e * reach, FRAME[:2] @ e / gauge(e[None])[0], arrowprops=arrow, annotation_clip=False
        )
        x, y = FRAME[:2] @ e * (reach + 0.2)
        ax.text(x, y, label, ha="center", va="center", fontsize=9, color="#444444")
    ax.set(aspect="equal", xlim=(-1.6, 1.85), ylim=(-1.45, 2.15))
    ax.axis("off")


def plot_bodies(bodies: Mapping[str, Body]) -> Figure:
    """Bodies by their titles, three in a row, as a viewer far away sees them."""
    style()
    rows = -(-len(bodies) // 3)
    fig, axes = plt.subplots(rows, 3, squeeze=False, figsize=(WIDTH, 2.1 * rows))
    for ax, (title, body) in zip(axes.flat, bodies.items(), strict=False):
        _draw(ax, body)
        ax.set_title(title, fontsize=9.5, loc="center")
    return fig


def plot_cuts(
    spectra: Mapping[str, Sequence[float]], errors: Mapping[str, Sequence[float]], ranks: Sequence[int]
) -> Figure:
    """Singular values of a layer after several trainings, and the test error (%) when it is cut to each rank."""
    fig, (left, right) = panels(["singular values, over the largest", "test error after the cut, %"], 2, 2.4, "none")
    for (name, sigma), look in zip(spectra.items(), ("C6o-", "C3s-", "C1^-", "C0D-"), strict=True):
        left.plot(range(1, len(sigma) + 1), np.array(sigma) / sigma[0], look, label=name, markevery=3, markersize=3.6)
        right.plot(ranks, errors[name], look, markersize=3.6)
    left.set(yscale="log", xlabel="index")
    right.set(xlabel="rank r", ylim=(0, None))
    right.set_xscale("log", base=2)
    finish(fig, x_ticks=False)
    right.set_xticks(ranks[::2], [f"{rank}" for rank in ranks[::2]])
    return fig
