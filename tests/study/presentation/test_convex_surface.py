"""Surfaces of convex bodies: closed, oriented, and of the volume and the edges that geometry says."""

import numpy as np
import pytest
import torch

from study.presentation.convex_bodies import (
    FRAME,
    Body,
    camera,
    creases,
    globe,
    normals,
    octahedron,
    plot_bodies,
    plot_cuts,
)
from wellcond.methods.constraint_sets import constraint_set


def symmetric(u):
    a, b, c = u / 2**0.5
    return torch.stack([torch.stack([c + a, b]), torch.stack([b, c - a])])


def ball(name, mesh, tensor=lambda u: u, **parameter):
    """The unit ball of a set of the library, of vectors or of symmetric 2 x 2 matrices."""
    C = constraint_set(name, (3,) if tensor(torch.zeros(3)).ndim == 1 else (2, 2), radius=1.0, **parameter)
    gauges = torch.stack([C.gauge(tensor(u)) for u in torch.from_numpy(mesh.points)])
    return mesh.scaled(1 / gauges.numpy())


def volume(surface):
    return np.linalg.det(surface.points[surface.triangles]).sum() / 6


def lengths(surface, edges):
    return np.linalg.norm(np.diff(surface.points[edges], axis=1), axis=-1).sum()


@pytest.mark.parametrize("mesh", [octahedron(1), octahedron(6), globe(1), globe(5)], ids=lambda m: len(m.points))
def test_meshes_are_closed_and_oriented(mesh):
    P, T = len(mesh.points), len(mesh.triangles)
    directed = mesh.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    assert len(np.unique(directed, axis=0)) == 3 * T  # no edge twice in one direction,
    assert {tuple(edge) for edge in directed} == {tuple(edge) for edge in directed[:, ::-1]}  # and each in both
    assert P - 3 * T / 2 + T == 2
    assert ((normals(mesh) * mesh.points[mesh.triangles].mean(axis=1)).sum(axis=1) > 0).all()


@pytest.mark.parametrize(
    ("name", "parameter", "expected", "edges"),
    [
        ("l1", {}, 4 / 3, 12 * np.sqrt(2)),
        ("k_sparse", {"k": 2}, 8 - 8 / 6, 24 * np.sqrt(2)),  # the cuboctahedron: a cube without its corners
    ],
)
def test_polytopes_are_exact(name, parameter, expected, edges):
    surface = ball(name, octahedron(4), **parameter)
    assert volume(surface) == pytest.approx(expected)
    assert lengths(surface, creases(surface)) == pytest.approx(edges)


@pytest.mark.parametrize(
    ("name", "parameter", "expected", "edges"),
    [
        ("nuclear", {}, np.sqrt(2) * np.pi / 2, 2 * 2 * np.pi / np.sqrt(2)),
        ("spectral_k_sparse", {"k": 2}, 4 / 3 * np.sqrt(2) * np.pi, 2 * np.sqrt(2) * np.pi),
        ("spectral_k_support", {"k": 2}, 4 / 3 * np.pi, 0.0),
    ],
)
def test_balls_of_symmetric_matrices(name, parameter, expected, edges):
    """In the coordinates of `symmetric`, of which the Euclidean norm is Frobenius', the eigenvalues are c ± r, over √2,
    with r² = a² + b²: the balls are the cylinder |c|, r <= 1/√2, the double cone |c| + r <= √2, and the sphere."""
    surface = ball(name, globe(20), symmetric, **parameter)
    assert volume(surface) == pytest.approx(expected, rel=5e-3)
    assert lengths(surface, creases(surface)) == pytest.approx(edges, rel=2e-3)


def test_the_l2_ball_has_no_creases():
    surface = ball("l2", octahedron(30))
    assert volume(surface) == pytest.approx(4 / 3 * np.pi, rel=5e-3)
    assert len(creases(surface)) == 0


@pytest.mark.parametrize(("azimuth", "elevation"), [(0, 0), (30, 25), (-100, 80)])
def test_camera(azimuth, elevation):
    frame = camera(azimuth, elevation)
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(frame) == pytest.approx(1)
    a, e = np.radians([azimuth, elevation])
    np.testing.assert_allclose(frame[2], [np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], atol=1e-12)
    assert frame[0, 2] == pytest.approx(0)
    assert frame[1, 2] > 0


@pytest.mark.parametrize("mesh", [octahedron, globe])
def test_bad_sizes_are_named(mesh):
    with pytest.raises(ValueError, match=r"^n = 0"):
        mesh(0)


def test_a_body_is_drawn_with_the_extreme_points_of_its_front():
    front = FRAME[2]
    body = Body(globe(4), lambda points: np.linalg.norm(points, axis=1), np.array([front, -front]), "abc")
    figure = plot_bodies({"ball": body})
    drawn = figure.axes[0].get_lines()[0]
    np.testing.assert_allclose(drawn.get_xydata(), [[0, 0]], atol=1e-12)  # the other one is behind
    assert figure.axes[0].get_title(loc="center") == "ball"


def test_cuts_have_a_curve_for_each_training():
    names = "abcd"
    figure = plot_cuts({n: [4.0, 2.0] for n in names}, {n: [50.0, 10.0] for n in names}, [1, 2])
    left, right = figure.axes
    assert left.get_lines()[0].get_ydata().tolist() == [1, 0.5]
    assert len(left.get_lines()) == len(right.get_lines()) == 4
