"""Intervals and tests against published values, scipy, enumeration, and what they promise over many samples."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, ttest_rel

from study.statistics.comparison import Gap, McNemar, holm, mcnemar, over_seeds, student, tally, verdict, wilson

COUNTS = st.tuples(*[st.integers(0, 300)] * 4).map(lambda counts: McNemar(*counts))


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


# --- paired images


def test_mcnemar_is_the_share_of_all_ways_to_split_the_discordant_images():
    """Each discordant image favours either network; as extreme as 1 of 7, or more, are 16 of the 128 ways."""
    splits = [sum(way) for way in itertools.product((0, 1), repeat=7)]
    assert McNemar(5, 6, 1, 5).p_value == pytest.approx(np.mean([min(k, 7 - k) <= 1 for k in splits]))


@given(COUNTS)
def test_exchanging_the_networks_exchanges_the_signs(pair):
    other = McNemar(pair.n11, pair.n01, pair.n10, pair.n00)
    assert other.p_value == pair.p_value
    assert other.difference == pytest.approx(-pair.difference, nan_ok=True)


@given(COUNTS)
def test_exchanging_right_and_wrong_exchanges_the_signs(pair):
    other = McNemar(pair.n00, pair.n01, pair.n10, pair.n11)
    assert other.difference == pytest.approx(-pair.difference, nan_ok=True)


def test_exact_test_rejects_a_true_hypothesis_at_most_as_often_as_it_says():
    """By enumeration over all splits of m discordant images; at m = 20 the size is not far below its level either."""
    for m in range(30):
        ways = binom.pmf(np.arange(m + 1), m, 0.5)
        p_values = np.array([McNemar(0, k, m - k, 0).p_value for k in range(m + 1)])
        assert ways[p_values <= 0.05].sum() <= 0.05
        assert m != 20 or ways[p_values <= 0.05].sum() > 0.04


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_outcomes_are_counted_image_by_image(pairs):
    first, second = np.array(pairs, dtype=bool).reshape(-1, 2).T
    expected = [pairs.count(way) for way in ((True, True), (True, False), (False, True), (False, False))]
    assert mcnemar(first, second) == McNemar(*expected)


def test_without_images_or_discordant_images_nothing_is_shown():
    assert McNemar(7, 0, 0, 3).p_value == McNemar(0, 0, 0, 0).p_value == 1
    assert math.isnan(McNemar(0, 0, 0, 0).difference)


def test_outcomes_of_different_images_are_refused():
    with pytest.raises(ValueError, match=r"^second = '2 images': must be the 3 of the first$"):
        mcnemar(np.ones(3, bool), np.ones(2, bool))


# --- seeds


def test_seeds_are_compared_by_their_differences():
    rng = np.random.default_rng(1)
    first, second = ({seed: rng.random(200) < rate for seed in range(4)} for rate in (0.8, 0.7))
    found = over_seeds({**first, 7: first[0]}, {**second, 8: second[0]})  # what only one of them has does not count
    assert found.images == {seed: mcnemar(first[seed], second[seed]) for seed in range(4)}
    rates = [[100 * outcomes[seed].mean() for seed in range(4)] for outcomes in (first, second)]
    test = ttest_rel(*rates)
    low, high = test.confidence_interval(0.95)
    assert (found.gap.difference, found.gap.seeds) == (pytest.approx((low + high) / 2), 4)
    assert found.gap.margin == pytest.approx((high - low) / 2)


def test_one_network_may_differ_clearly_where_the_methods_do_not():
    """Opposite differences in two seeds, each beyond doubt for its images: over the seeds nothing is shown."""
    good, bad = np.ones(500, bool), np.arange(500) % 5 > 0
    found = over_seeds({0: good, 1: bad}, {0: bad, 1: good})
    assert all(pair.p_value < 1e-20 for pair in found.images.values())
    assert (found.gap.difference, found.gap.clear) == (0, False)


def test_a_single_seed_has_no_spread():
    assert student([1.5]).difference == 1.5
    assert math.isnan(student([1.5]).margin)
    assert not student([1.5]).clear
    assert (student([]).seeds, math.isnan(student([]).difference)) == (0, True)


# --- families


@given(st.lists(st.floats(0, 1), max_size=7))
def test_holm_is_the_closure_of_bonferroni(p_values):
    """A hypothesis is rejected if the Bonferroni test rejects every intersection that it is part of."""
    subsets = [s for size in range(1, len(p_values) + 1) for s in itertools.combinations(range(len(p_values)), size)]
    bonferroni = {s: min(1.0, len(s) * min(p_values[j] for j in s)) for s in subsets}
    expected = [max(p for s, p in bonferroni.items() if i in s) for i in range(len(p_values))]
    assert holm(p_values) == pytest.approx(expected)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_what_is_no_probability_is_refused(value):
    with pytest.raises(ValueError, match=r"^p_values = "):
        holm([0.5, value])


def test_tally_counts_what_can_be_decided():
    gaps = [Gap(1, 0.5, 3), Gap(-1, 0.5, 3), Gap(1, 2, 3), Gap(5, math.nan, 1)]
    assert tally(gaps) == (1, 1, 1)


@pytest.mark.parametrize(
    ("signs", "outcome"),
    [((1, 1, 0), "is supported"), ((-1, -1, 0), "is contradicted"), ((1, 1, -1), "is not supported"), ((0,), "is not")],
)
def test_verdict_needs_most_of_the_comparisons(signs, outcome):
    assert verdict([Gap(sign, 0.5, 3) for sign in signs]).startswith(outcome)
    assert verdict([Gap(1, math.nan, 1)]).startswith("cannot be judged yet")
