"""Tables and figures of the costs, from tables whose answers are known."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from study.presentation import costs

ROW = {
    "net": "vgg16", "method": "dense", "ratio": np.nan, "layout": "channels_last", "batch": 128, "forward_s": 1.0,
    "backward_s": 2.0, "optimizer_s": 0.0, "step_ratio": 1.0, "optimizer_share": 0.0, "flop_ratio": 1.0,
    "train_flop_ratio": 1.0, "memory_ratio": 1.0, "latency_ratio": 1.0,
}  # fmt: skip
LOW = {**ROW, "ratio": 0.8, "forward_s": 0.3, "backward_s": 0.6, "step_ratio": 0.3, "flop_ratio": 0.25}
TRAINING = pd.DataFrame(
    [
        {**ROW, "layout": "contiguous", "forward_s": 2.0, "step_ratio": 4 / 3},
        ROW,
        {**LOW, "method": "uv"},
        {**LOW, "method": "usv", "step_ratio": 0.35},
        {
            **LOW,
            "method": "condlr",
            "optimizer_s": 0.3,
            "step_ratio": 0.4,
            "optimizer_share": 0.25,
            "latency_ratio": 1.2,
        },
    ]
)


def growth(exponents):
    rows = []
    for sweep, exponent in exponents.items():
        for size in (8, 16, 32, 64):
            cell = {"sweep": sweep, "n": 64, "rank": 8, "layers": 1}
            cell["n" if sweep == "size" else sweep] = size
            seconds = 1e-6 * size**exponent
            rows.append(
                {
                    **cell,
                    "step_s": 2 * seconds,
                    "plain_s": 3 * seconds,
                    "products_s": seconds,
                }
            )
    return pd.DataFrame(rows)


def test_training_table():
    (row,) = costs.training_table(TRAINING).data.to_dict("records")
    assert row["network"] == "VGG16"
    assert row["rank removed"] == "80 %"
    assert (row["step, U Vᵀ"], row["step, CondLR"], row["memory"]) == ("0.30", "0.40", "1.00")
    assert row["latency"] == "0.30"  # 1.2 times the FLOP ratio 0.25


def test_recomputation_has_a_table_and_no_bar():
    (row,) = costs.recompute_table(TRAINING).data.to_dict("records")
    assert (row["memory"], row["step"], row["memory, recomputed"], row["step, recomputed"]) == (
        "1.00",
        "0.40",
        "–",
        "–",
    )
    recomputed = {**LOW, "method": "condlr_recomputed", "memory_ratio": 0.9, "step_ratio": 0.45}
    frame = pd.DataFrame([*TRAINING.to_dict("records"), recomputed])
    (row,) = costs.recompute_table(frame).data.to_dict("records")
    assert (row["memory, recomputed"], row["step, recomputed"]) == ("0.90", "0.45")
    assert len(costs.training_table(frame).data) == 1
    assert len(costs.fastest_dense(frame)) == len(TRAINING) - 1


def test_peers_table():
    """Seconds as they are; the dense network, which has no rank, in the columns of its optimizer; each network by
    itself, with blanks where it was not measured."""
    measured = (("dense", float("nan"), 2.0), ("uv", 0.5, 1.0), ("wellcond", 0.5, 1.25), ("wellcond", 0.8, 0.5))
    rows = [
        {"net": net, "method": m, "optimizer": o, "ratio": r, "step_s": factor * s, "orthonormal": m == "wellcond"}
        for net, factor, some in (("vit", 1, measured), ("resnet18", 10, measured[:3]))
        for m, r, s in some
        for o in ("SGD", "AdamW")
    ]
    table = costs.peers_table(pd.DataFrame(rows)).data.set_index("network and form (*: orthonormal)")
    forms = ["dense", "U Vᵀ, two layers", "wellcond, κ(S) ≤ 1.1 *"]
    assert list(table.index) == [f"{net}, {form}" for net in ("ViT", "ResNet-18") for form in forms]
    assert list(table["SGD, 50 % removed"]) == ["2.00", "1.00", "1.25", "20.00", "10.00", "12.50"]
    assert list(table["AdamW, 80 % removed"]) == ["2.00", "–", "0.50", "20.00", "–", "–"]


def test_integrators_table():
    rows = [{**row, "passes": 2.0 if row["method"] == "usv" else 1.0} for row in TRAINING.to_dict("records")]
    table = costs.integrators_table(pd.DataFrame(rows)).data.set_index("method")
    assert list(table.index) == ["U Vᵀ", "projected U S Vᵀ", "CondLR"]
    assert table.loc["projected U S Vᵀ", "passes"] == "2.00"
    assert table.loc["CondLR", "step, 80 % removed"] == "0.40 (25 %)"


def test_the_slower_layout_of_the_dense_network_is_left_out():
    assert list(costs.fastest_dense(TRAINING)["layout"]) == ["channels_last"] * 4


def test_entry():
    assert costs.entry(TRAINING, "vgg16", 0.8, "condlr") == 0.4
    assert np.isnan(costs.entry(TRAINING, "vgg16", 0.5, "condlr"))


def test_bars_end_at_the_step_ratio():
    (ax,) = costs.plot_split(TRAINING).axes
    ends = {}
    for bar in ax.patches:
        ends[bar.get_y()] = max(ends.get(bar.get_y(), 0), bar.get_x() + bar.get_width())
    assert list(ends.values()) == pytest.approx([1, 0.3, 0.3, 0.4])
    plt.close("all")


@pytest.mark.parametrize("exponents", [{"rank": 2, "size": 1, "layers": 1}, {"rank": 1.5, "size": 0.8, "layers": 0.9}])
def test_slopes_are_the_exponents(exponents):
    fitted = costs.slopes(growth(exponents))
    for row in fitted.to_dict("records"):
        assert row["slope"] == pytest.approx(exponents[row["sweep"]])
        assert row["error"] == pytest.approx(0, abs=1e-6)
    assert set(fitted["theory"]) == {1, 2}


def test_the_error_of_a_slope_is_that_of_least_squares():
    rng, frame = np.random.default_rng(0), growth({"size": 1})
    samples = []
    for _ in range(400):
        noisy = frame.assign(**{c: frame[c] * np.exp(rng.normal(0, 0.05, len(frame))) for c in costs.LINES})
        samples.append(costs.slopes(noisy, largest=4).iloc[0])
    spread, said = np.std([s["slope"] for s in samples]), np.sqrt(np.mean([s["error"] ** 2 for s in samples]))
    assert said == pytest.approx(spread, rel=0.15)


def test_growth_and_ablation_are_drawn_and_tabled():
    frame = growth({"rank": 2, "size": 1, "layers": 1})
    assert [ax.get_xlabel() for ax in costs.plot_growth(frame).axes] == ["r", "n", "layers"]
    plt.close("all")
    assert costs.slopes_table(frame).data["fast step"].tolist() == ["2.00 ± 0.00", "1.00 ± 0.00", "1.00 ± 0.00"]
    ablation = pd.DataFrame(
        [
            {"variant": "dense", "forward_backward_s": 1.0, "optimizer_s": 0.0, "step_ratio": 1.0},
            {"variant": "fast", "forward_backward_s": 0.5, "optimizer_s": 0.1, "step_ratio": 0.6},
        ]
    )
    assert costs.ablation_table(ablation).data["optimizer"].tolist() == ["0.00", "0.10"]


def test_retractions_are_compared_with_the_first_of_their_size():
    rows = [
        {"retraction": name, "n": 64, "rank": rank, "seconds": seconds * rank, "orthogonality": 1e-7, "error": 2e-7}
        for rank in (4, 16)
        for name, seconds in (("QR by Householder", 2.0), ("Cayley", 1.0))
    ]
    shown = costs.retractions_table(pd.DataFrame(rows)).data
    assert shown["time / Householder"].tolist() == ["1.00", "0.50", "1.00", "0.50"]
    assert shown["n × r"].tolist() == ["64 × 4", "64 × 4", "64 × 16", "64 × 16"]


def test_what_was_not_measured_is_empty_and_said():
    empty = pd.DataFrame()
    tables = (costs.training_table, costs.recompute_table, costs.integrators_table, costs.peers_table)
    tables += (costs.architectures_table, costs.slopes_table, costs.retractions_table, costs.ablation_table)
    assert all(tabled(empty).data.empty for tabled in tables)
    for plot in (costs.plot_split, costs.plot_growth):
        assert plot(empty).axes[0].texts[0].get_text() == "waiting: nothing is computed"
    plt.close("all")


def test_architectures_table():
    row = {"architecture": "x", "matrices": 3, "left_dense": 0.25}
    frame = pd.DataFrame([{**row, "dense_parameters": 2000, "deployed_parameters": 500}])
    assert costs.architectures_table(frame).data.to_numpy().tolist() == [["x", 3, "25.0 %", "2,000", "25.0 %"]]
