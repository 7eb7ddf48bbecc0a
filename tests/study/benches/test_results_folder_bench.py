"""The bench of the folder of results measures each operation at each size."""

import pandas as pd

from study.benches import results_folder
from study.benches.tables import measure


def test_every_operation_is_timed_at_every_size(monkeypatch):
    monkeypatch.setattr(results_folder, "SIZES", (2, 4))
    frame = pd.DataFrame(measure("results_folder", repeats=2))
    assert frame["cells"].tolist() == [2, 4]
    seconds = frame.filter(like="_s")
    assert len(seconds.columns) == 5
    assert (seconds > 0).all(axis=None)
