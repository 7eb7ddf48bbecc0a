"""Tables and figures against values computed by hand from small invented results."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib import colors
from matplotlib import pyplot as plt

import study
import wellcond as wc
from helpers import with_tables
from study.presentation import figures, tables
from study.presentation import style as report
from study.results.store import AFTERWARDS, COLUMNS, Results
from study.results.tables import framed
from study.settings import SETTINGS, title
from study.statistics import frames as analysis
from study.statistics.comparison import Gap, wilson

CONDLR = "CondLR, τ = 0.1, ratio 0.8"
COUNTS = {"n_params_dense": 1000, "n_params_trained": 400, "n_params_deployed": 250, "rank_fraction": 0.2}
FLOPS = {"flops_dense": 5000, "flops_deployed": 500}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def cell(method, seed, n_correct, *, label=None, ratio=math.nan, max_cond=math.nan, kappa=2.0, layers=("a", "b")):
    """The rows of one cell; n_correct is None for one that diverged. A layer has the singular values κ and 1."""
    settings = "".join(f"-{k}{v:g}" for k, v in (("r", ratio), ("c", max_cond)) if not math.isnan(v))
    run_id = f"{method}{settings}-s{seed}"
    label = label or title(wc.methods.METHODS[method].label, wc.methods.METHODS[method].uses, {"max_cond": max_cond})
    about = {"dataset": "mnist", "model": "lenet5", "method": method, "label": label, "ratio": ratio}
    about |= {"run_id": run_id, "max_cond": max_cond, "seed": seed, "device": "cpu", "spec_hash": "0"}
    if n_correct is None:
        return {"runs": [{**about, "status": "diverged"}]}
    bounded = {"kappa_max": kappa, "orth_error_max": 1e-6} if max_cond >= 1 else {}
    measured = {"n_test": 1000, "n_correct": n_correct, "wall_s": 10.0, "status": "done"}
    fgsm = [(eps, n_correct - round(1000 * eps)) for eps in (0.0, 0.1, 0.2, 0.3)]
    attacked = [("fgsm", "linf", eps, 1000, n) for eps, n in fgsm] + [("pgd_l2", "l2", 1.0, 100, 50 + seed)]
    names = ("attack", "norm", "eps", "n_examples", "n_correct")
    epochs = [(epoch, layer, 1 + (kappa - 1) * epoch / 2) for epoch in range(3) for layer in layers]
    return {
        "runs": [{**about, **measured, **COUNTS, **FLOPS, **bounded}],
        "robustness": [{"run_id": run_id, **dict(zip(names, row, strict=True))} for row in attacked],
        "curves": [
            {"run_id": run_id, "epoch": e, "layer": name, "quantity": "kappa", "value": v} for e, name, v in epochs
        ],
        "spectra": [
            {"run_id": run_id, "epoch": 2, "layer": name, "index": i, "singular_value": value}
            for name in layers
            for i, value in enumerate((kappa, 1.0))
        ],
    }


def results_of(*cells, missing=()):
    frames = {
        table: framed(table, [row for c in cells for row in c.get(table, [])]) for table in (*COLUMNS, *AFTERWARDS)
    }
    return Results(frames, provenance={}, missing=tuple(missing))


@pytest.fixture
def three_seeds():
    """Dense and CondLR at three seeds, CondLR's first, as they come from the runner: in no particular order."""
    return results_of(
        *(cell("condlr", s, n, ratio=0.8, max_cond=1.1, kappa=1.1) for s, n in enumerate((970, 974, 981))),
        *(cell("dense", s, n, kappa=20.0) for s, n in enumerate((980, 982, 984))),
    )


EMPTY = results_of(missing=["dense-s0", "condlr-r0.8-c1.1-s0", "cayley_sgd-s0"])
SITUATIONS = {
    "nothing at all": results_of(),
    "all waiting": EMPTY,
    "one seed": results_of(cell("dense", 0, 980), missing=["condlr-r0.8-c1.1-s0"]),
    "all diverged": results_of(cell("condlr", 0, None, ratio=0.8, max_cond=1.1)),
    "infinite and absent κ": results_of(cell("usv", 0, 900, ratio=0.5, kappa=math.inf), cell("uv", 0, 900, ratio=0.5)),
    "a network of many layers": results_of(cell("dense", 0, 980, layers=[f"layer{i}" for i in range(20)])),
    "an unknown method": results_of(cell("mine", 0, 980, label="my method")),
}
PLOTS = ["accuracy_compression", "condition_growth", "spectra"]
TABLES = ["accuracy_table", "conditioning_table", "headline_table", "robustness_table"]


# --- numbers


@pytest.mark.parametrize(
    ("values", "text"),
    [([98.0, 99.0, 100.0], "99.00 ± 1.00"), ([98.0, math.nan], "98.00"), ([], "–"), ([math.nan], "–")],
)
def test_mean_and_sample_standard_deviation(values, text):
    assert report.mean_std(values) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.1, "1.10"), (43.567, "43.57"), (12_300, "12,300"), (3.4e7, "3.4e7"), (2.3e-6, "2.3e-6"), (0, "0.00")],
)
def test_numbers_are_short(value, text):
    assert report.number(value) == text
    assert (report.number(math.nan), report.number(math.inf), report.percent(math.nan)) == ("–", "∞", "–")


def test_gap_is_paired_and_has_the_student_interval(three_seeds):
    gap = analysis.compare(three_seeds, CONDLR, "dense SGD")
    # differences -1.0, -0.8, -0.3 points: mean -0.7, standard deviation sqrt(0.13), t(2; 0.975) = 4.302653
    assert gap.difference == pytest.approx(-0.7)
    assert gap.margin == pytest.approx(4.302653 * math.sqrt(0.13) / math.sqrt(3))
    assert not gap.clear
    assert str(gap) == "−0.7 ± 0.9"
    assert str(Gap(1.0, 0.5, 3)) == "+1.0 ± 0.5*"


def test_gap_says_what_it_cannot_know():
    one = analysis.compare(SITUATIONS["one seed"], "dense SGD", "dense SGD")
    assert (one.seeds, one.clear) == (1, False)
    none = analysis.compare(SITUATIONS["one seed"], "dense SGD", CONDLR)
    assert (none.seeds, none.clear, str(none)) == (0, False, "–")


# --- frames


def test_summary_has_exact_means_counts_and_ratios(three_seeds):
    dense, condlr = (row for _, row in analysis.summary(three_seeds).iterrows())  # in the order of LOOKS
    assert (dense["name"], condlr["name"]) == ("dense SGD", CONDLR)
    assert dense["accuracy"] == pytest.approx(98.2)
    assert dense["accuracy_std"] == pytest.approx(0.2)
    assert condlr["done"] == ["0", "1", "2"]
    assert condlr["n_params_trained_ratio"] == pytest.approx(0.4)
    assert condlr["n_params_deployed_ratio"] == pytest.approx(0.25)
    assert condlr["flops_deployed_ratio"] == pytest.approx(0.1)
    assert (dense["kappa_start"], dense["kappa"], condlr["kappa_max"]) == pytest.approx((1.0, 20.0, 1.1))
    assert math.isnan(dense["kappa_max"])


def test_rates_come_from_the_counts_of_their_own_row(three_seeds):
    rates = analysis.rates(three_seeds).set_index(["run_id", "attack", "eps"])
    row = rates.loc[("dense-s2", "pgd_l2", 1.0)]
    assert row["rate"] == pytest.approx(52.0)
    assert (row["low"], row["high"]) == pytest.approx([100 * bound for bound in wilson(52, 100)])
    assert rates.loc[("dense-s0", "clean", 0.0), "rate"] == pytest.approx(98.0)


def test_diverged_and_waiting_cells_are_never_numbers():
    found = results_of(
        cell("uv", 0, 970, ratio=0.8),
        cell("uv", 1, None, ratio=0.8),
        cell("uv", 0, None, ratio=0.9),
        missing=["uv-r0.8-s2", "condlr-r0.8-c1.1-s0", "dense-s0"],
    )
    text = tables.accuracy_table(found).data.set_index(["method", "rank removed"])["test accuracy, % (seeds)"]
    assert dict(text) == {
        ("dense SGD", "–"): "waiting",
        ("U Vᵀ", "80 %"): "97.00 (1; 1 diverged)",
        ("U Vᵀ", "90 %"): "diverged",
        ("CondLR, τ = 0.1", "80 %"): "waiting",
    }


def test_a_run_id_is_read_back():
    cells = study.Experiment.load("mnist_lenet5").cells()
    frame = analysis._settings([c.run_id for c in cells])
    for c, row in zip(cells, frame.itertuples(), strict=True):
        assert (row.method, int(row.seed), row.label) == (c.method, c.seed, c.label)
        for name in ("ratio", "max_cond"):
            value = c.settings.get(name)
            assert pd.isna(getattr(row, name)) if value is None else float(getattr(row, name)) == value


def test_looks_have_the_labels_of_the_methods_and_tell_them_apart():
    assert {name: look.label for name, look in report.LOOKS.items()} == {
        m.name: m.label for m in wc.methods.METHODS.values()
    }
    drawn = [look[1:] for look in report.LOOKS.values()] + [report.look("condlr", bound)[1:] for bound in (1.0, 1.5)]
    assert len(set(drawn)) == len(drawn)
    assert report.look("condlr", 1.1) == report.look("condlr")


def test_configurations_that_look_alike_get_shades():
    scales = {f"fw, w = {scale}": {"method": "fw_nuclear", "scale": scale} for scale in (3.0, 10.0, 30.0)}
    names = {**scales, "dense": {"method": "dense"}, "LoRITa": {"method": "lorita", "depth": 2}}
    rows = [
        {**dict.fromkeys(SETTINGS, math.nan), **about, "name": name, "label": name, "seed": 0, "x": x, "y": 1.0}
        for name, about in names.items()
        for x in (1, 2)
    ]
    ax = plt.figure().add_subplot()
    figures.draw(ax, pd.DataFrame(rows), "x", "y", log=True)
    drawn = {line.get_label(): line.get_color() for line in ax.get_lines()}
    assert drawn["dense"] == report.LOOKS["dense"].color
    assert drawn["LoRITa"] == report.LOOKS["lorita"].color
    usual = report.LOOKS["fw_nuclear"].color
    light, middle, full = (colors.rgb_to_hsv(colors.to_rgb(drawn[name])) for name in scales)
    assert drawn["fw, w = 30.0"] == usual
    np.testing.assert_allclose([light[0], middle[0]], full[0], atol=0.02)  # one hue
    assert light[1] < middle[1] < full[1]


@pytest.mark.parametrize("experiment", ["mnist_lenet5", "mnist_condition_growth"])
def test_configurations_look_different(experiment):
    """But for the ratio and the start, which a figure shows in other ways; and a family has one colour."""
    settings = ("method", "max_cond", "tolerance", "beta")
    frame = analysis._settings([c.run_id for c in study.Experiment.load(experiment).cells()])
    frame = frame[list(settings)].astype(dict.fromkeys(settings[1:], float)).drop_duplicates()
    looks = [report.look(**row) for row in frame.to_dict("records")]
    assert len({look[1:] for look in looks}) == len(looks)
    assert all(look.color == report.LOOKS[method].color for look, method in zip(looks, frame["method"], strict=True))


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (0.001, "0.001"), (20000.0, "20000"), (1e5, "10⁵"), (1e-13, "10⁻¹³"), (2e19, "2·10¹⁹")],
)
def test_ticks_of_logarithmic_axes_are_short(value, text):
    assert report.tick(value) == text


def test_pick_keeps_what_has_no_such_setting(three_seeds):
    more = results_of(
        cell("uv", 0, 970, ratio=0.5), cell("dense", 0, 980), missing=["condlr-r0.5-c1.1-s0", "condlr-r0.8-c1.5-s0"]
    )
    half = analysis.pick(more, ["dense", "uv", "condlr"], ratios=[0.5], bounds=[1.1])
    assert set(half.runs["run_id"]) == {"dense-s0", "uv-r0.5-s0"}
    assert half.missing == ("condlr-r0.5-c1.1-s0",)
    assert set(half.curves["run_id"]) == set(half.runs["run_id"])
    assert set(analysis.pick(three_seeds, ["dense"]).robustness["run_id"]) == {"dense-s0", "dense-s1", "dense-s2"}
    assert len(analysis.pick(three_seeds).runs) == 6


# --- tables


def test_formulas_of_a_table_stay_on_one_line():
    frame = pd.DataFrame({"configuration": ["CondLR, τ = 0.1, ratio 0.8", "projected U S Vᵀ", "U Vᵀ", "50 % PGD-AT"]})
    html = report.table(frame).to_html()
    whole = (
        "CondLR, τ\u00a0=\u00a00.1, ratio\u00a00.8",
        "projected U\u00a0S\u00a0Vᵀ",
        ">U\u00a0Vᵀ",
        "50\u00a0% PGD-AT",
    )
    assert all(text in html for text in whole)
    assert (report.signed(-0.916), report.signed(0.33, 1)) == ("−0.92", "+0.3")


def test_prose_in_a_table_is_broken_into_lines():
    rates = "98.9 ± 0.1<br>98.8 ± 0.2<br>97.1"
    html = report.table(pd.DataFrame({"claim": ["a"], "numbers": ["of this, " * 5], "rates": [rates]})).to_html()
    assert re.findall(r" td\.col(\d) {\s*text-align: left;\s*white-space: normal", html) == ["0", "1"]


def test_a_table_of_many_columns_is_set_in_smaller_type():
    few, many = (pd.DataFrame({str(i): ["x"] for i in range(n)}) for n in (7, 8))
    assert "font-size: 0.85em" in report.table(few).to_html()
    assert "font-size: 0.8em" in report.table(many).to_html()


def test_accuracy_table_shows_all_counts(three_seeds):
    row = tables.accuracy_table(three_seeds).data.iloc[1]
    assert list(row) == [
        *("CondLR, τ = 0.1", "80 %", "97.50 ± 0.56 (3)", "20.0 %"),
        *("400 (40.0 %)", "250 (25.0 %)", "10.0 %"),
    ]


def test_conditioning_table_measures_the_excess_over_the_bound():
    found = results_of(cell("condlr", 0, 970, ratio=0.8, max_cond=1.1, kappa=1.1 * (1 + 2e-6)))
    row = tables.conditioning_table(found).data.iloc[0]
    assert (row["largest κ(S)"], row["relative excess"], row["orthogonality error"]) == ("1.10", "2.0e-6", "1.0e-6")


def test_robustness_table_has_the_largest_radii_and_an_interval_for_one_seed(three_seeds):
    data = tables.robustness_table(three_seeds, radii=2).data
    assert [re.sub("\u00a0", " ", column) for column in data.columns[3:]] == [
        *("FGSM ε = 0.1", "FGSM ε = 0.3"),
        "PGD ℓ₂ ε = 1",
    ]
    assert data.iloc[0]["FGSM ε\u00a0=\u00a00.3"] == "68.2 ± 0.2"
    low, high = wilson(50, 100)
    one = tables.robustness_table(SITUATIONS["one seed"]).data
    assert one.iloc[0, -1] == f"50.0 [{100 * low:.1f}, {100 * high:.1f}]"
    assert list(one.iloc[1, 3:]) == ["–"] * 4


def test_comparison_table_names_a_common_ratio_once(three_seeds):
    data = tables.comparison_table(three_seeds, [(CONDLR, "dense SGD"), (CONDLR, "U Vᵀ, ratio 0.8")]).data
    assert list(data["difference in points"]) == [f"{CONDLR} − dense SGD", "CondLR, τ = 0.1 − U Vᵀ, ratio 0.8"]
    assert data.iloc[0, 1] == str(analysis.compare(three_seeds, CONDLR, "dense SGD"))
    assert set(data.iloc[1, 1:]) == {"–"}
    assert tables.comparison_table(three_seeds, [(CONDLR, "dense SGD")], attacks=()).data.shape == (1, 2)


def test_comparison_table_at_several_radii(three_seeds):
    data = tables.comparison_table(three_seeds, [(CONDLR, "dense SGD")], ["fgsm"], radii=2).data
    radii = sorted(analysis.rates(three_seeds).query("attack == 'fgsm' and eps > 0")["eps"].unique())
    assert len(radii) > 2
    shown = [radii[-1 - -(-len(radii) // 2)], radii[-1]]
    assert list(data.columns[2:]) == [tables.attack_name("fgsm", eps) for eps in shown]
    assert data.iloc[0, 2:].tolist() == [
        str(analysis.compare(three_seeds, CONDLR, "dense SGD", "fgsm", eps)) for eps in shown
    ]


def test_validation_table_counts_at_the_end_of_training(three_seeds):
    right = {run_id: 30 + k for k, run_id in enumerate(three_seeds.runs["run_id"])}
    curves = pd.DataFrame(
        {"run_id": run_id, "epoch": epoch, "layer": "", "quantity": f"validation_{of}", "value": value}
        for run_id, n in right.items()
        for epoch, n_correct in ((1, 20), (2, n))
        for of, value in (("n", 50), ("n_correct", n_correct))
    )
    found = with_tables(three_seeds, curves=curves)
    data = tables.validation_table({"one": found, "other": found.restricted(["dense-s0"])}).data
    assert data["protocol"].tolist() == ["one", "other"]
    of_dense = [right[f"dense-s{seed}"] for seed in range(3)]
    assert data["dense SGD"].tolist() == [f"{100 * sum(of_dense) / 150:.1f}", f"{2 * of_dense[0]:.1f}"]
    assert data.drop(columns=["protocol", "dense SGD"]).iloc[1].isna().all()
    assert tables.validation_table({"none": found.restricted([])}).data.to_numpy().tolist() == [["none"]]


def test_status_table_counts():
    row = {"experiment": "x", "cells": 5, "done": 2, "missing": ["a", "b"], "diverged": ["c"], "failed": []}
    shown = tables.status_table([row]).data.iloc[0]
    assert shown.to_dict() == {"experiment": "x", "cells": 5, "done": 2, "missing": 2, "diverged": 1}  # none failed


def test_machines_are_those_of_all_runs_of_an_experiment():
    one = {"device": "a", "threads": 1, "dtype": "float32", "finished": "2026-11-02T10:00", "versions": {"torch": "2"}}
    other = {**one, "device": "b", "finished": "2026-11-01T10:00", "versions": {"torch": "2", "python": "3"}}
    (row,) = tables.machines_table({"x": {"r": one, "s": other}, "none": {}}).data.to_dict("records")
    assert (row["runs"], row["processor or GPU"], row["Python, PyTorch"]) == (2, "a, b", "3, –; 2")
    assert row["finished"] == "2026-11-01 to 2026-11-02"
    assert tables.machines_table({}).data.empty


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_table_stands_every_situation(name, situation):
    html = getattr(tables, name)(SITUATIONS[situation]).to_html()
    assert "<table" in html
    assert "nan" not in html


# --- figures


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_figure_stands_every_situation(name, situation, recwarn):
    figure = getattr(figures, f"plot_{name}")(SITUATIONS[situation])
    figure.canvas.draw()
    assert [str(warning.message) for warning in recwarn] == []
    if not len(analysis.rates(SITUATIONS[situation])):
        assert any("waiting" in text.get_text() for ax in figure.axes for text in ax.texts)


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_condition_figure_has_a_logarithmic_panel_for_each_layer():
    found = results_of(cell("dense", 0, 980, kappa=4.0), cell("dense", 1, 980, kappa=9.0))
    figure = figures.plot_condition_growth(found)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["a", "b"]
    assert figure.axes[0].get_yscale() == "log"
    line = lines(figure.axes[0])["dense SGD"]
    assert line.get_ydata() == pytest.approx([1, math.sqrt(2.5 * 5), 6])  # geometric means
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((1, 9))


def test_deep_networks_are_shown_by_six_layers_first_and_last_included():
    figure = figures.plot_spectra(SITUATIONS["a network of many layers"])
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()]
    assert (len(titles), titles[0], titles[-1]) == (6, "layer0", "layer19")
    chosen = figures.plot_spectra(SITUATIONS["a network of many layers"], layers=["layer7"])
    assert [ax.get_title(loc="left") for ax in chosen.axes] == ["layer7"]


def test_spectra_end_at_one_over_kappa(three_seeds):
    ends = {label: line.get_ydata()[-1] for label, line in lines(figures.plot_spectra(three_seeds).axes[0]).items()}
    assert ends == pytest.approx({"dense SGD": 1 / 20, "CondLR, τ = 0.1": 1 / 1.1})


def test_compression_figure_shows_errors_and_says_what_the_ratio_means(three_seeds):
    figure = figures.plot_accuracy_compression(three_seeds)
    ax = figure.axes[0]
    drawn = lines(ax)
    assert drawn["dense SGD"].get_ydata() == pytest.approx([1.8])
    assert drawn["CondLR, τ = 0.1"].get_ydata() == pytest.approx([2.5])
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        *("rank removed: 0 %\ntrained: 40 %\ndeployed: 25 %\nFLOPs: 10 %",),
        *("rank removed: 80 %\ntrained: 40 %\ndeployed: 25 %\nFLOPs: 10 %",),
    ]


def test_style_is_readable_on_white():
    report.style()
    figure = plt.figure()
    assert figure.dpi >= 150
    assert colors.same_color(figure.get_facecolor(), "white")
    assert plt.rcParams["font.size"] >= 10
    luminance = [np.dot(colors.to_rgb(look.color), (0.2126, 0.7152, 0.0722)) for look in report.LOOKS.values()]
    assert max(luminance) < 0.75


def adversarial(method, n_correct, **settings):
    """A cell of an adversarially trained network."""
    made = cell(method, 0, n_correct)
    suffix = "".join(f"-{letter}{settings[key]:g}" for key, letter in (("mix", "m"), ("trades", "l"), ("radius", "e")) if key in settings)  # fmt: skip # noqa: E501
    run_id = f"{method}{suffix}-s0"
    return {
        table: [{**row, "run_id": run_id, **(settings if table == "runs" else {})} for row in rows]
        for table, rows in made.items()
    }


def test_trainings_are_told_apart_also_where_they_wait():
    half = adversarial("dense", 900, mix=0.5, radius=0.1)
    found = results_of(cell("dense", 0, 950), half, missing=["dense-l6-e0.1-s0", "dense-m0.5-e0.1-s1"])
    parts = analysis.trainings(found)
    assert list(parts) == ["plain", "50 % PGD-AT, ε = 0.1", "TRADES 6, ε = 0.1"]
    assert [list(part.runs["run_id"]) for part in parts.values()] == [["dense-s0"], ["dense-m0.5-e0.1-s0"], []]
    assert [part.missing for part in parts.values()] == [(), ("dense-m0.5-e0.1-s1",), ("dense-l6-e0.1-s0",)]
    table = tables.training_table(found, "fgsm").data
    assert {"50 % PGD-AT, ε = 0.1", "TRADES 6, ε = 0.1"} < set(table["training"])
    assert "waiting" in set(table["test accuracy, % (seeds)"])
    assert [column for column in table if "ε" in column] == [f"FGSM ε\u00a0=\u00a0{eps}" for eps in (0.1, 0.2, 0.3)]
    fig = figures.plot_trainings(found, "fgsm")
    titles = [ax.get_title(loc="left") for ax in fig.axes if ax.get_visible()]
    assert titles == ["Plain", "50 % PGD-AT, ε = 0.1", "TRADES 6, ε = 0.1"]
    assert fig.axes[1].lines[0].get_ydata()[0] == 90
