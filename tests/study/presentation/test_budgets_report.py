"""The figure of ranks from a budget, from a table whose answers are known."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from study.presentation import budgets

LOST = {"one ratio": 40, "energy": 10, "sensitivity": 20, "initial": 30}  # of 200 images, at half the rank


def measured(net="resnet8", seeds=3):
    """Each seed one image better than the one before; at 0.8 twice the loss."""
    rows = []
    for seed in range(seeds):
        for ratio, times, share in ((0.5, 1, 0.6), (0.8, 2, 0.25)):
            for ranks, lost in LOST.items():
                right = 190 - times * lost + seed
                row = {
                    "net": net,
                    "seed": seed,
                    "n_test": 200,
                    "dense": 190,
                    "ranks": ranks,
                    "ratio": ratio,
                    "share": share,
                }
                row["truncated"] = row["fine_tuned"] = np.nan if ranks == "initial" else right
                rows.append({**row, "condlr": np.nan if ranks == "sensitivity" else right})
    return pd.DataFrame(rows)


def test_gaps_are_paired_by_seed():
    frame = measured()
    found = budgets.gap(frame, "resnet8", "energy", "truncated", 0.5)
    assert (found.difference, found.seeds) == (pytest.approx(15), 3)
    assert found.margin == pytest.approx(0, abs=1e-9)  # every seed has the same difference
    assert budgets.gap(frame, "resnet8", "sensitivity", "condlr", 0.5).seeds == 0
    assert budgets.gap(frame, "resnet8", "energy", "truncated", 0.7).seeds == 0


def test_the_figure_has_two_named_curves_in_each_panel():
    fig = budgets.plot_budgets(pd.concat([measured(), measured("lenet5")]))
    assert len(fig.axes) == 6
    for ax in fig.axes:
        dense, budget, ratio = ax.lines
        assert dense.get_ydata()[0] == pytest.approx(95)
        np.testing.assert_allclose(budget.get_ydata(), [90.5, 85.5])
        np.testing.assert_allclose(ratio.get_ydata(), [75.5, 55.5])
        np.testing.assert_allclose(ratio.get_xdata(), [60, 25])
        names = ax.texts[-2:]
        assert [text.get_text() for text in names] == ["budget", "one ratio"]
        assert [text.get_color() for text in names] == [budget.get_color(), ratio.get_color()]
    plt.close(fig)


def test_nothing_measured_is_said():
    fig = budgets.plot_budgets(pd.DataFrame())
    assert fig.axes[0].texts[0].get_text() == "waiting: nothing is computed"
    plt.close(fig)
