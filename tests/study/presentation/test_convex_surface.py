"""Surfaces of convex bodies: closed, oriented, and of the volume and the edges that geometry says."""

import numpy as np
import pytest

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
from study.presentation.unit_balls import MATRICES, VECTORS, unit_ball


def ball(name, space, mesh, **parameter):
    """The boundary of the unit ball of a set of the library, on this mesh."""
    return unit_ball(name, space._replace(mesh=lambda: mesh), **parameter).surface


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
    surface = ball(name, VECTORS, octahedron(4), **parameter)
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
    surface = ball(name, MATRICES, globe(20), **parameter)
    assert volume(surface) == pytest.approx(expected, rel=5e-3)
    assert lengths(surface, creases(surface)) == pytest.approx(edges, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "space", "parameter"),
    [
        ("l1", VECTORS, {}),
        ("k_sparse", VECTORS, {"k": 2}),
        ("k_support", VECTORS, {"k": 2}),
        ("nuclear", MATRICES, {}),
        ("spectral_k_sparse", MATRICES, {"k": 2}),
        ("spectral_k_support", MATRICES, {"k": 2}),
    ],
)
def test_linear_minimizers_lie_on_the_boundary(name, space, parameter):
    """The gauge and the linear minimization of a set are two functions."""
    body = unit_ball(name, space._replace(mesh=lambda: globe(2)), n=40, **parameter)
    np.testing.assert_allclose(body.gauge(body.extreme), 1)
    assert len(np.unique(body.extreme.round(6), axis=0)) >= 6


def test_the_l2_ball_has_no_creases():
    surface = ball("l2", VECTORS, octahedron(30))
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
