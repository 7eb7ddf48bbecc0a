"""The table of adapted networks."""

import pandas as pd

from study.benches.tables import load_or_measure
from study.presentation.adaptation import COLUMNS, LABELS, adaptation_table


def rows(method, new):
    return [
        {"method": method, "n_test": 200, "new_correct": n, "old_correct": 100, "fgsm_correct": 50, "pgd_correct": 40}
        | {"kappa_update": float("nan") if method == "before" else 2.5, "n_trained": float("nan")}
        for n in new
    ]


def test_means_over_seeds_in_the_order_of_the_labels():
    table = adaptation_table(pd.DataFrame(rows("lora", [180, 184]) + rows("before", [20]))).data
    assert list(table["method"]) == ["before", "LoRA"]
    assert table.loc[1, "new task, %"].startswith("91.0")
    assert table.loc[1, "old task, %"].startswith("50.0")
    assert list(table["κ of the update"]) == ["", "2.50"]


def test_the_committed_table_is_shown_whole():
    table = adaptation_table(load_or_measure("adaptation")).data
    assert list(table["method"]) == list(LABELS.values())
    assert set(COLUMNS.values()) < set(table.columns)
    assert adaptation_table(pd.DataFrame()).data.empty
