"""A figure is cut into its panels so that every pixel of it is shown, and every panel has its labels."""

import io

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

import panels
from study.presentation import style
from study.presentation.curves import name_ends

LINE = [1, 2, 3], [0.2, 30.0, 45.0]


def drawn(fig):
    """The picture that a notebook would show."""
    file = io.BytesIO()
    fig.savefig(file, format="png", bbox_inches="tight")
    plt.close(fig)
    return np.asarray(Image.open(file).convert("RGB"))


def shared(n=2, legend=True):
    """Panels with the labels of the first one, above a legend."""
    fig, axes = style.panels([f"panel {k}" for k in range(n)], n, 2.6)
    for ax in axes:
        ax.plot(*LINE, "o-", label="a curve")
        ax.set(xlabel="x")
    axes[0].set_ylabel("accuracy, %")
    if legend:
        fig.legend(loc="outside lower center")
    return drawn(fig)


def own():
    """Panels with labels of their own, and names at the ends of their curves."""
    fig, axes = style.panels(["left", "right"], 2, 2.6, "none")
    for ax in axes:
        ax.plot(*LINE)
        ax.set(xlabel="x", ylabel="y")
    fig.draw_without_rendering()
    for ax, name in zip(axes, ("a long name", "short"), strict=True):
        name_ends(ax, {name: (3, 45)}, {name: "#0072B2"})
    return drawn(fig)


@pytest.mark.parametrize(("draw", "n", "below"), [(shared, 2, 1), (lambda: shared(3, legend=False), 3, 0), (own, 2, 0)])
def test_every_pixel_is_in_one_piece_and_stays_in_its_row(draw, n, below):
    views = panels.cut(picture := draw())
    assert [view.top == 0 for view in views] == [True] * n + [False] * below
    times = np.zeros(picture.shape[:2], dtype=int)
    for view in views:
        assert {piece.at + piece.right - piece.left <= view.width and piece.at >= 0 for piece in view.pieces} == {True}
        for piece in {piece for piece in view.pieces if view is views[0] or piece.left or view.top}:
            times[piece.top : piece.bottom, piece.left : piece.right] += 1
    assert times[picture.min(axis=2) < panels.WHITE].min() == 1
    assert times.max() == 1


def axes(view):
    """The piece with the axes."""
    return max((piece for piece in view.pieces if piece.left), key=lambda piece: piece.bottom - piece.top)


def test_labels_of_the_first_panel_are_shown_at_each_where_they_hold_for_all():
    first, second, _ = panels.cut(shared())
    (strip,) = (piece for piece in second.pieces if piece.left == 0)
    assert (strip.right, strip.top) == (axes(second).at, axes(second).top)  # labels, then the panel
    assert strip.right == first.pieces[0].left  # all that the first title has at its left
    assert all(piece.left for view in panels.cut(own())[1:] for piece in view.pieces)


def test_names_at_the_ends_of_curves_stay_with_their_panel():
    first, second = panels.cut(own())
    title, below = first.pieces[0], second.pieces[0]
    assert axes(first).right > title.right  # its name
    assert axes(first).left < title.left - 20  # ticks, and "y"
    assert axes(first).right < axes(second).left < below.left - 20


def test_a_single_panel_and_a_common_title_are_left_whole():
    assert panels.cut(shared(1)) == []
    fig, _ = style.panels(["one", "other"], 2, 2.6)
    fig.suptitle("a title of both of the panels")
    assert panels.cut(drawn(fig)) == []
    assert panels.cut(np.full((50, 50, 3), 255, dtype=np.uint8)) == []


def test_ticks_have_the_grey_of_the_style():
    assert style.STYLE["ytick.color"] == f"#{panels.TICKS:02X}{panels.TICKS:02X}{panels.TICKS:02X}"
