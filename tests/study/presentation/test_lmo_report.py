"""Tables and figures of linear minimizations, from tables whose answers are known."""

import numpy as np
import pandas as pd
import pytest
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
ERRORS = {("l2", "closed_form"): -2e-7, ("nuclear", "svd"): 1e-8, ("nuclear", "power_warm"): 3.4e-4}


def rows(net, passes=99.0):
    return [
        {
            "net": net, "method": method, "engine": engine, "step_s": seconds, "passes_s": passes,
            "step_ratio": seconds, "training_ratio": (passes + seconds) / (passes + 1),
            "lmo_error": ERRORS.get((method, engine), np.nan),
        }
        for (method, engine), seconds in SECONDS.items()
    ]  # fmt: skip


FRAME = pd.DataFrame([*rows("lenet5"), *rows("vgg16", passes=999.0)])


def test_every_step_that_is_measured_has_a_name_and_every_engine_a_line():
    assert [method for method, _ in lmo_bench.CONTENDERS] == sorted(
        (method for method, _ in lmo_bench.CONTENDERS), key=list(lmo_report.METHODS).index
    )
    assert lmo_report.METHODS.keys() == {method for method, _ in lmo_bench.CONTENDERS}
    assert lmo_report.METHODS.keys() - set(lmo_report.RIVALS) == lmo_bench.SETS.keys()
    assert lmo_report.ENGINES.keys() == lmo_bench.ENGINES.keys()
    assert set(lmo_report.GROWTH) == set(lmo_bench.QUANTITIES)


def test_table():
    shown = lmo_report.lmo_table(FRAME).data.set_index(["step", "by"])
    assert list(shown.columns) == ["LeNet5", "VGG16", "error, LeNet5", "error, VGG16"]
    assert shown.loc[("nuclear ball", "exact SVD")].tolist() == ["2.98 (199)", "1.20 (199)", "rounding", "rounding"]
    assert shown.loc[("nuclear ball", "power, 1 iteration, warm"), "error, LeNet5"] == "3.4e-4"
    assert shown.loc[("ℓ₂ ball", "no singular values"), "error, VGG16"] == "rounding"
    assert shown.loc[("nuclear-norm penalty", "–")].tolist() == ["3.08 (209)", "1.21 (209)", "–", "–"]


def test_a_network_that_lacks_a_row_has_blanks():
    frame = FRAME[(FRAME["net"] == "lenet5") | (FRAME["engine"] != "svd")]
    shown = lmo_report.lmo_table(frame).data.set_index(["step", "by"])
    assert shown.loc[("nuclear ball", "exact SVD"), ["VGG16", "error, VGG16"]].tolist() == ["–", "–"]


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


def test_slopes_are_the_exponents():
    fitted = lmo_report.lmo_slopes(growth(EXPONENTS))
    for row in fitted.to_dict("records"):
        assert row["slope"] == pytest.approx(EXPONENTS[row["quantity"]][row["sweep"] == "size"], abs=1e-9)
    theory = {(row["sweep"], row["quantity"]): row["theory"] for row in fitted.to_dict("records")}
    assert (theory["k", "svd_s"], theory["size", "svd_s"]) == (0, 3)
    assert (theory["k", "power_warm_s"], theory["size", "power_warm_s"]) == (1, 2)
    shown = lmo_report.lmo_slopes_table(growth(EXPONENTS)).data
    assert shown["exact SVD"].tolist() == ["0.00 ± 0.00 (0)", "3.00 ± 0.00 (3)"]


def test_growth_is_drawn():
    fig = lmo_report.plot_lmo_growth(growth(EXPONENTS))
    assert [ax.get_xlabel() for ax in fig.axes] == ["k", "n"]
    assert fig.axes[0].get_title(loc="left") == "Rank k, n = m = 64"
    assert all(len(ax.lines) == len(lmo_report.GROWTH) for ax in fig.axes)
    plt.close("all")
