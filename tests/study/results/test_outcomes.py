"""Outcomes survive the way through text, and text that is not theirs is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.results.outcomes import pack, pack_distances, unpack, unpack_distances


@given(st.lists(st.booleans(), max_size=70))
def test_bits_survive(outcomes):
    text = pack(outcomes)
    assert len(text) == 2 * -(-len(outcomes) // 8)
    assert unpack(text, len(outcomes)).tolist() == outcomes


def test_the_first_image_is_the_highest_bit():
    assert pack([True, False, False, False, False, False, False, False, True]) == "8080"


@given(st.lists(st.floats(1e-4, 6e4), max_size=20))
def test_distances_survive_to_half_precision(distances):
    assert np.allclose(unpack_distances(pack_distances(distances), len(distances)), distances, rtol=5e-4)


def test_no_distance_is_infinite_and_zero_is_zero():
    assert unpack_distances(pack_distances([np.inf, 0.0]), 2).tolist() == [np.inf, 0.0]


@pytest.mark.parametrize(
    ("read", "text", "n"),
    [
        (unpack, "8080", 8),  # too long
        (unpack, "80", 9),
        (unpack, "ff", 7),  # a bit in the padding
        (unpack, "xy", 8),
        (unpack_distances, "AAAA", 1),
        (unpack_distances, "A", 1),
        (unpack_distances, "??", 1),
    ],
)
def test_other_text_is_refused(read, text, n):
    with pytest.raises(ValueError, match=r"^(outcomes|distances) = "):
        read(text, n)
