"""The bench of ranks from a budget: one row a seed, ratio and way, and never more parameters than one ratio has."""

import pandas as pd
import pytest

from helpers import Tiny
from study.benches import budgets
from study.benches.tables import measure

PROTOCOL = budgets.Protocol(
    Tiny, "digits", epochs=1, batch_size=50, lr=0.05, momentum=0.5, tuning=1, n_train=100, n_test=50
)


@pytest.fixture(scope="module")
def frame():
    rows = budgets.budget_rows("tiny", [0.5, 0.8], repeats=2, protocols={"tiny": PROTOCOL})
    return pd.DataFrame(rows)


def test_every_way_is_measured_at_every_size(frame):
    ways = ["one ratio", "energy", "sensitivity", "initial"]
    assert frame["ranks"].tolist() == 4 * ways
    assert frame["seed"].tolist() == 8 * [0] + 8 * [1]
    assert (frame["n_test"] == 50).all()
    assert frame["truncated"].notna().tolist() == frame["fine_tuned"].notna().tolist() == 4 * [True, True, True, False]
    assert frame["condlr"].notna().tolist() == 4 * [True, True, False, True]
    counts = frame[["dense", "truncated", "fine_tuned", "condlr"]]
    assert 0 <= counts.min(axis=None) <= counts.max(axis=None) <= 50


def test_a_budget_is_that_of_one_ratio(frame):
    """Within one step: 49 + 6 parameters of the convolution, or 24 + 24 of the linear layer, of about 1,500."""
    for _, rows in frame.groupby(["seed", "ratio"]):
        reference = rows.loc[rows["ranks"] == "one ratio", "share"].item()
        assert (rows["share"] <= reference).all()
        assert (rows["share"] > reference - 55 / 1000).all()


def test_a_run_is_repeated_exactly(frame):
    again = pd.DataFrame(budgets.budget_rows("tiny", [0.5], repeats=1, protocols={"tiny": PROTOCOL}))
    pd.testing.assert_frame_equal(again, frame[(frame["seed"] == 0) & (frame["ratio"] == 0.5)])


def test_bad_input():
    with pytest.raises(ValueError, match=r"^net = 'resnet20': unknown; did you mean 'resnet8'\?"):
        measure("budgets", net="resnet20")
    with pytest.raises(ValueError, match=r"^ratio = 1.0: must be in \[0, 1\), the fraction of the rank"):
        measure("budgets", ratios=[1.0])
