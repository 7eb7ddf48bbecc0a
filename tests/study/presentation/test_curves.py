"""Curves that are named where they end."""

import itertools

import pytest
from matplotlib import pyplot as plt

from study.presentation.curves import GREY, _apart, curves


def test_labels_are_moved_apart_and_no_farther_than_needed():
    assert _apart([0.0, 20.0], 10) == [0.0, 20.0]
    assert _apart([0.0, 4.0], 10) == [-3.0, 7.0]
    moved = _apart([0.0, 1.0, 2.0, 30.0], 10)
    assert moved == [-9.0, 1.0, 11.0, 30.0]


def test_a_label_has_one_colour_and_is_written_where_its_last_curve_ends():
    x = [1, 2, 4]
    left, right = {"a": (x, [1, 2, 4]), "b": (x, [1, 1, 1])}, {"a": (x, [4, 2, 1])}
    one, other = curves({"left": left, "right": right}, "x", "y", grey=["b"]).axes
    assert one.lines[0].get_color() == other.lines[0].get_color() != GREY
    assert [text.get_text() for text in one.texts] == ["b"]
    assert one.texts[0].get_color() == GREY
    assert [(text.get_text(), text.xy) for text in other.texts] == [("a", (4, 1.0))]
    assert (one.get_xscale(), one.get_ylabel(), other.get_title(loc="left")) == ("log", "y", "right")
    plt.close("all")


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [1.0, 1.01, 1.02]])
def test_names_do_not_overlap(values):
    shown = {str(k): ([1, 2], [1, value]) for k, value in enumerate(values)}
    fig = curves({"": shown, "marks": {"0": ([1, 2], [1, 2], "o")}}, "x", log="")
    fig.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in fig.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == 2 or len(boxes) == 3
    assert all(below.y1 <= above.y0 + 1 for below, above in itertools.pairwise(boxes))
    plt.close("all")
