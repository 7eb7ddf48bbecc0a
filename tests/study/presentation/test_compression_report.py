"""What is drawn and tabulated of compressed networks is what the tables say."""

import math

import numpy as np
import pandas as pd
import pytest

from study.presentation import compression as compression_report
from study.presentation.compression import (
    area_table,
    areas,
    at_size,
    compare_areas,
    compare_at_size,
    compressed,
    plot_compression,
    references,
    robustness_at_size,
    sweep_table,
)
from study.presentation.style import mean_std
from study.results.store import AFTERWARDS, COLUMNS, Results
from study.results.tables import framed
from study.settings import SETTINGS
from study.statistics.frames import matching
from wellcond.compression import compressors as compress

DENSE, AMOUNTS = 1000, (0.5, 0.9)


def run(method, seed, **settings):
    name = "-".join([method, *(f"{key}{value}" for key, value in settings.items()), f"s{seed}"])
    return {
        "run_id": name,
        "method": method,
        "label": method,
        "seed": seed,
        "status": "done",
        "n_test": 200,
        "n_params_dense": DENSE,
        "n_params_deployed": round(DENSE * (1 - settings.get("ratio", 0))),
        "n_correct": 190,
        "flops_dense": 4000,
        "flops_deployed": 2000,
        **dict.fromkeys(SETTINGS),
        **settings,
    }


def row(run_id, amount, n_correct, *, attack="clean", eps=0.0, **how):
    kept = {"n_params_deployed": round(DENSE * (1 - amount)), "flops_deployed": round(4000 * (1 - amount))}
    return {
        "run_id": run_id,
        "compressor": "svd",
        "amount": amount,
        "phases": 1,
        "epochs": 0,
        "lr": math.nan,
        "reestimated": False,
        **kept,
        "kappa": 1 / (1 - amount),
        "attack": attack,
        "norm": "",
        "eps": eps,
        "options": "",
        "n_examples": 200,
        "n_correct": n_correct,
        "device": "cpu",
        "commit": "0",
        **how,
    }


@pytest.fixture
def results():
    runs = [
        *(run("dense", seed) for seed in (0, 1)),
        *(run("fw_nuclear", seed, scale=30.0) for seed in (0, 1)),
        *(run("condlr", seed, ratio=ratio, max_cond=1.1) for ratio in AMOUNTS for seed in (0, 1)),
    ]
    rows = []
    for seed in (0, 1):
        rows += [row(f"dense-s{seed}", 0.5, 180 - seed), row(f"dense-s{seed}", 0.9, 100 - seed)]
        rows += [
            row(f"fw_nuclear-scale30.0-s{seed}", 0.5, 186),
            row(f"fw_nuclear-scale30.0-s{seed}", 0.9, 170 + 2 * seed),
        ]
        rows += [row(f"dense-s{seed}", amount, 184, reestimated=True) for amount in AMOUNTS]
        rows += [row(f"dense-s{seed}", 0.9, 90, attack="fgsm", eps=eps) for eps in (0.1, 0.2)]
        rows += [
            row(f"dense-s{seed}", 0.9, 181, epochs=1, lr=0.01),
            row(f"dense-s{seed}", 0.9, 60, compressor="magnitude"),
        ]
    norms = [
        {"run_id": f"dense-s{seed}", "layer": layer, "index": i, "norm": 2.0 - i}
        for seed in (0, 1)
        for layer in ("conv", "fc")
        for i in range(2)
    ]
    frames = {table: framed(table, ()) for table in (*COLUMNS, *AFTERWARDS)}
    sigmas = [
        {"run_id": r["run_id"], "epoch": 2, "layer": layer, "index": i, "singular_value": value}
        for r in runs
        for layer, values in {"conv": (4.0, 3.0, 2.0, 1.0), "fc": (9.0, 0.1)}.items()
        for i, value in enumerate(values)
    ]
    frames |= {"spectra": pd.DataFrame(sigmas), "compressions": pd.DataFrame(rows), "filters": pd.DataFrame(norms)}
    frames["runs"] = framed("runs", runs)
    return Results(frames, provenance={})


@pytest.fixture
def empty():
    return Results({table: framed(table, ()) for table in (*COLUMNS, *AFTERWARDS)})


FW = "fw_nuclear"


def test_every_compressor_has_a_name():
    assert compression_report.COMPRESSORS.keys() == compress.COMPRESSORS.keys()


def test_sizes_and_rates_are_those_of_the_rows(results):
    frame = compressed(results, "svd")
    assert len(frame) == 8  # neither fine-tuned, attacked, re-estimated, nor by another compressor
    assert set(np.round(frame["share"], 9)) == set(np.round(frame["flops"], 9)) == {50.0, 10.0}
    assert frame[frame["name"] == "dense"].query("amount == 0.9")["rate"].tolist() == [50.0, 49.5]
    assert (frame["low"] < frame["rate"]).all()
    assert (frame["error"] == 100 - frame["rate"]).all()


def test_attacks_are_taken_at_their_largest_radius(results):
    assert (results.compressions.query("attack == 'fgsm'")["eps"].max()) == 0.2
    frame = compressed(results, "svd", "fgsm")
    assert len(frame) == 2
    assert set(frame["rate"]) == {45.0}


def test_training_after_compression_is_another_row(results):
    assert set(compressed(results, "svd", epochs=1)["rate"]) == {90.5}
    assert set(compressed(results, "magnitude")["rate"]) == {30.0}
    assert compressed(results, "filters_l1").empty


def test_statistics_of_batch_normalization_are_kept_or_computed_again(results):
    again = compressed(results, "svd", reestimated=True)
    assert len(again) == 4
    assert set(again["rate"]) == {92.0}
    assert not compressed(results, "svd")["rate"].isin([92.0]).any()
    assert compressed(results, "magnitude", reestimated=True).empty
    swept = sweep_table(results, reestimated=[False, True]).data
    assert swept["training"].value_counts().to_dict() == {"dense": 2, FW: 2}
    by = swept.set_index(["training", "batch normalization"])
    assert by.loc[("dense", "as trained"), "90 %"] == "49.75 ± 0.35"
    assert by.loc[("dense", "computed again")].tolist() == ["95.00 ± 0.00", "92.00 ± 0.00", "92.00 ± 0.00"]
    assert by.loc[(FW, "computed again"), "90 %"] == "–"  # not measured
    area = area_table(results, ["svd"], reestimated=["svd"]).data.set_index("training")
    assert area.loc["dense"].tolist() == [mean_std([70, 69.5]), "92.00 ± 0.00"]
    assert "computed again" in area.columns[1]
    drawn = plot_compression(results, "svd", reestimated=True).axes[0].get_lines()
    np.testing.assert_allclose(next(line for line in drawn if line.get_label() == "dense SGD").get_ydata(), [8, 8])


def test_references_are_at_their_own_size(results):
    frame = references(results)
    assert frame.groupby("amount")["share"].first().round(9).to_dict() == {0.5: 50.0, 0.9: 10.0}
    assert len(set(frame["name"])) == 1  # the ratio is no part of it


def test_an_area_is_the_mean_over_the_logarithm_of_the_size(results):
    frame = compressed(results, "svd")
    found = areas(frame).set_index("run_id")["area"]
    assert found["dense-s0"] == pytest.approx((90 + 50) / 2)  # one segment
    gap = compare_areas(frame, FW, "dense")
    assert gap.difference == pytest.approx(np.mean([(93 + 85) / 2 - 70, (93 + 86) / 2 - (89.5 + 49.5) / 2]))


def test_an_area_is_taken_between_the_sizes_that_all_have():
    frame = pd.DataFrame(
        [
            {"run_id": run_id, "method": run_id, "name": run_id, "seed": 0, "share": share, "rate": rate}
            for run_id, points in {"a": ((1, 0), (100, 100)), "b": ((10, 40), (100, 40))}.items()
            for share, rate in points
        ]
    )
    found = areas(frame).set_index("run_id")["area"]
    assert found["a"] == pytest.approx(75)  # from 10 % (50) to 100 % (100)
    assert found["b"] == pytest.approx(40)


def test_areas_without_a_common_interval_are_unknown():
    frame = pd.DataFrame(
        [{"run_id": r, "method": r, "name": r, "seed": 0, "share": s, "rate": 1.0} for r, s in (("a", 1), ("b", 2))]
    )
    assert areas(frame)["area"].isna().all()


def test_gaps_at_a_size_are_paired_by_seed(results):
    trained = references(results)
    gap = compare_at_size(compressed(results, "svd"), FW, trained, trained["name"].iloc[0], 10)
    assert gap.difference == pytest.approx(np.mean([85 - 95, 86 - 95]))


def test_a_rate_between_two_sizes_is_interpolated_and_beyond_them_unknown(results):
    frame = compressed(results, "svd")
    assert at_size(frame, "dense", 10).to_dict() == pytest.approx({0: 50.0, 1: 49.5})
    assert at_size(frame, "dense", math.sqrt(500))[0] == pytest.approx(70)
    assert at_size(frame, "dense", 60).isna().all()


def test_tables_say_what_was_measured(results):
    sizes = robustness_at_size(results, "svd", ["clean"]).data
    assert list(sizes.columns[2:]) == ["50 % of the size", "10 % of the size"]
    assert sizes.set_index("training").loc["dense"].iloc[-1] == "49.8 ± 0.4"
    swept = sweep_table(results).data.set_index("training")
    assert swept.loc[FW].tolist() == ["95.00 ± 0.00", "93.00 ± 0.00", "85.50 ± 0.71"]
    area = area_table(results, ["svd"]).data
    assert area["training"].tolist() == [FW, "dense"]  # best first
    assert "10.0 to 50 %" in area.columns[1]


def test_figures_have_a_curve_a_training_and_a_marker_a_size(results):
    (ax,) = plot_compression(results, "svd").axes
    lines = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_allclose(lines["dense SGD"].get_xdata(), [10, 50])
    np.testing.assert_allclose(lines["dense SGD"].get_ydata()[1], math.sqrt(10 * 10.5))
    np.testing.assert_allclose(lines["CondLR, trained at its size"].get_xdata(), [50, 10])
    assert lines["other trainings"].get_color() == compression_report.OTHERS.color  # fw_nuclear


def test_several_results_have_a_panel_each(results, empty):
    left, right = plot_compression({"one": results, "other": empty}, "svd").axes
    assert (left.get_title("left"), right.get_title("left")) == ("one", "other")
    assert left.get_lines()
    assert not right.get_lines()


@pytest.mark.parametrize(
    "show",
    [
        lambda r: plot_compression(r, "svd"),
        lambda r: area_table(r, ["svd", "magnitude"]),
        lambda r: robustness_at_size(r, "svd", ["clean", "fgsm"]),
        sweep_table,
        lambda r: sweep_table(r, reestimated=[False, True]),
        lambda r: area_table(r, ["svd"], reestimated=["svd"]),
    ],
)
def test_what_has_not_been_computed_is_shown_as_such(empty, show):
    assert show(empty) is not None


def test_a_part_of_results_is_chosen_by_patterns(results):
    assert set(matching(results, "dense-*", "condlr-ratio0.9-*").runs["method"]) == {"dense", "condlr"}
    assert matching(results, "uv-*").runs.empty
