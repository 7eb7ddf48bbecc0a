"""Figures of linear minimizations, from tables whose answers are known."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from study.benches import linear_minimization as lmo_bench
from study.presentation import linear_minimization as lmo_report

SECONDS = {
    ("sgd", "closed_form"): 1.0,
    ("l2", "closed_form"): 2.0,
    ("nuclear", "svd"): 199.0,
    ("nuclear", "power_warm"): 11.0,
    ("nuclear_penalty", "svd"): 209.0,
}


def rows(net, passes=99.0):
    return [
        {
            "net": net, "method": method, "engine": engine, "step_s": seconds, "passes_s": passes,
            "step_ratio": seconds, "training_ratio": (passes + seconds) / (passes + 1),
        }
        for (method, engine), seconds in SECONDS.items()
    ]  # fmt: skip


FRAME = pd.DataFrame([*rows("lenet5"), *rows("vgg16", passes=999.0)])


def test_every_step_that_is_measured_has_a_name_and_every_engine_a_line():
    assert [method for method, _ in lmo_bench.CONTENDERS] == sorted(
        (method for method, _ in lmo_bench.CONTENDERS), key=list(lmo_report.METHODS).index
    )
    assert lmo_report.METHODS.keys() == {method for method, _ in lmo_bench.CONTENDERS}
    assert lmo_bench.SETS.keys() < lmo_report.METHODS.keys()
    assert lmo_report.ENGINES.keys() == lmo_bench.ENGINES.keys()
    assert set(lmo_report.GROWTH) == set(lmo_bench.QUANTITIES)


def test_entry():
    assert lmo_report.entry(FRAME, "vgg16", "nuclear", "power_warm", "step_ratio") == 11
    assert np.isnan(lmo_report.entry(FRAME, "wrn16_4", "nuclear", "svd", "step_ratio"))


def test_points_are_shares_of_the_training_step():
    fig = lmo_report.plot_lmo(FRAME)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["LeNet5", "VGG16"]
    names = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    for ax, training in zip(fig.axes, (100, 1000), strict=True):
        drawn = {
            (line.get_label(), names[int(y)], x)
            for line in ax.lines
            for x, y in line.get_xydata()
            if line.get_linestyle() == "None"
        }
        assert drawn == {
            (lmo_report.ENGINES[engine].label, lmo_report.METHODS[method], seconds / training)
            for (method, engine), seconds in SECONDS.items()
        }
    plt.close("all")


def growth(exponents):
    """Times with these slopes against k and against n."""
    cells = [("k", 64, k) for k in (2, 4, 8, 16)] + [("size", n, 4) for n in (16, 32, 64, 128)]
    return pd.DataFrame(
        [
            {"sweep": sweep, "n": n, "k": k, **{q: 1e-6 * k**a * n**b for q, (a, b) in exponents.items()}}
            for sweep, n, k in cells
        ]
    )


EXPONENTS = {
    "svd_s": (0, 3), "single_svd_s": (0, 2.7), "power_cold_s": (0.9, 2), "power_warm_s": (0.5, 1.8),
    "products_s": (1, 2),
}  # fmt: skip


def test_growth_is_drawn():
    fig = lmo_report.plot_lmo_growth(growth(EXPONENTS))
    assert [ax.get_xlabel() for ax in fig.axes] == ["k", "n"]
    assert fig.axes[0].get_title(loc="left") == "Rank k, n = m = 64"
    assert all(len(ax.lines) == len(lmo_report.GROWTH) for ax in fig.axes)
    plt.close("all")


def test_nothing_measured_is_said():
    for plot in (lmo_report.plot_lmo, lmo_report.plot_lmo_growth):
        assert plot(pd.DataFrame()).axes[0].texts[0].get_text() == "waiting: nothing is computed"
    plt.close("all")
