"""Claims as a table, and the figures of related systems from the committed rows."""

import math

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from study.presentation import related as report
from study.theory import related


@pytest.mark.parametrize(
    ("value", "margin", "text"),
    [
        (0.4448, 0.0737, "0.445 ± 0.074"),
        (-1.843, 0.343, "−1.84 ± 0.34"),
        (7.0, 0.0, "7.0 ± 0.0"),
        (0.5, 3e-14, "0.50 ± 0.00"),
        (3.4e-5, 1.1e-5, "3.4e−05 ± 1.1e−05"),
        (0.5, math.nan, "0.50"),
    ],
)
def test_values_have_the_digits_of_their_margin(value, margin, text):
    assert report.value_text(value, margin) == text


def test_the_table_says_what_was_claimed_and_what_was_found():
    numbers = {"value": 0.44, "margin": 0.07, "seeds": 3, "verdict": "reproduced"}
    about = {"system": "unrolled", "claim": "small", "measured": "a number"}
    claims = pd.DataFrame(
        [{**about, "low": 0, "high": math.inf, **numbers}, {**about, "low": -1, "high": 1, **numbers}]
    )
    rows = report.claims_table(claims).data
    assert list(rows["claimed"]) == ["≥ 0", "−1 to 1"]
    assert list(rows["system"]) == ["Descending unrolled networks"] * 2
    assert "system" not in report.claims_table(claims, "unrolled").data
    assert set(report.SYSTEMS) == set(related.SYSTEMS)


@pytest.mark.parametrize(
    ("system", "plot", "lines"),
    [
        ("orthogonal_flow", report.plot_gradients, [5, 2]),
        ("convex_landscape", report.plot_landscape, [1, 2, 4]),
        ("unrolled", report.plot_unrolled, [5, 5, 6]),
        ("undertraining", report.plot_undertraining, [5, 5]),
        ("federated", report.plot_federated, [5, 12]),
        ("kernel_pooling", report.plot_pooling, [5, 5, 5]),
        ("large_batches", report.plot_batches, [4, 4, 9]),
        ("rewiring", report.plot_rewiring, [5, 5]),
        ("surf", report.plot_surf, [5, 2, 3]),
    ],
)
def test_every_line_is_drawn(system, plot, lines):
    rows = related.load(system)
    if rows.empty:
        pytest.skip("not computed yet")
    fig = plot(rows)
    assert [len(ax.lines) for ax in fig.axes] == lines
    plt.close(fig)


@pytest.mark.parametrize("plot", [value for name, value in vars(report).items() if name.startswith("plot_")])
def test_without_results_a_figure_is_empty(plot):
    plt.close(plot(related.load("of no system")))
