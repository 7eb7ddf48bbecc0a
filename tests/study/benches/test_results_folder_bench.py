"""The bench of the folder of results measures each operation at each size."""

import pandas as pd
from matplotlib import pyplot as plt

from study.benches import results_folder
from study.benches.tables import measure
from study.presentation.costs import OPERATIONS, plot_results_folder


def test_every_operation_is_timed_at_every_size(monkeypatch):
    monkeypatch.setattr(results_folder, "SIZES", (2, 4))
    frame = pd.DataFrame(measure("results_folder", repeats=2))
    assert frame["cells"].tolist() == [2, 4]
    assert (frame[[*OPERATIONS, "merge_s"]] > 0).all(axis=None)
    figure = plot_results_folder(frame)
    assert {line.get_label() for line in figure.axes[0].lines} == {label for label, _, _ in OPERATIONS.values()}
    plt.close(figure)


def test_nothing_measured_is_said():
    assert plot_results_folder(pd.DataFrame()).axes[0].texts[0].get_text() == "waiting: nothing is computed"
