"""Intervals against published values, scipy, and what they promise over many samples."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, ttest_rel

from study.statistics.comparison import student, wilson


@pytest.mark.parametrize(
    ("n_correct", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_has_the_published_values(n_correct, n, low, high):
    assert wilson(n_correct, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_rate_and_stays_in_the_unit_interval(counts):
    k, n = counts
    low, high = wilson(k, n)
    assert 0 <= low <= k / n + 1e-12
    assert k / n - 1e-12 <= high <= 1


def test_wilson_interval_of_nothing_is_unknown():
    assert all(map(math.isnan, wilson(0, 0)))


@pytest.mark.parametrize(("n", "p"), [(100, 0.05), (100, 0.5), (1000, 0.9), (1000, 0.99)])
def test_wilson_interval_covers_as_often_as_it_says(n, p):
    """The exact coverage, a sum over all counts; it oscillates with n and p, within two points at these."""
    bounds = np.array([wilson(k, n) for k in range(n + 1)])
    covered = (bounds[:, 0] <= p) & (p <= bounds[:, 1])
    assert binom.pmf(np.arange(n + 1), n, p)[covered].sum() == pytest.approx(0.95, abs=0.02)


# --- seeds


def test_seeds_are_compared_by_their_differences():
    rng = np.random.default_rng(1)
    first, second = 80 + rng.random(4), 70 + rng.random(4)
    found = student(first - second)
    low, high = ttest_rel(first, second).confidence_interval(0.95)
    assert (found.difference, found.seeds) == (pytest.approx((low + high) / 2), 4)
    assert found.margin == pytest.approx((high - low) / 2)


def test_a_single_seed_has_no_spread():
    assert student([1.5]).difference == 1.5
    assert math.isnan(student([1.5]).margin)
    assert not student([1.5]).clear
    assert (student([]).seeds, math.isnan(student([]).difference)) == (0, True)


# --- families
