"""Curves, spectra over training and matched sizes against values computed by hand from small invented results."""

import math

import pytest
from matplotlib import colors
from matplotlib import pyplot as plt

import wellcond as wc
from study.presentation import dynamics
from study.presentation import style as report
from study.results.store import AFTERWARDS, COLUMNS, Results
from study.results.tables import framed
from study.settings import SETTINGS, suffix, title
from study.statistics.comparison import wilson

LAYERS = ("a", "b")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def network(method, seed, *, correct=980, deployed=500, ranks=(4, 4), kappa=4.0, sigma=2.0, status="done", **settings):
    """The rows of a network of two layers over two epochs. Layer a ends at κ, layer b at κ/2; both ranks go from the
    first to the second; half of 100 validation images are wrong before training, and 20 and 4 after the epochs."""
    run_id = f"{method}{suffix(settings)}-s{seed}"
    about = {"run_id": run_id, "dataset": "digits", "model": "lenet5", "method": method, "seed": seed, "status": status}
    about |= {
        "label": title(wc.methods.METHODS[method].label, wc.methods.METHODS[method].uses, settings),
        "spec_hash": "0",
        **dict.fromkeys(SETTINGS),
        **settings,
    }
    if status != "done":
        return {"runs": [about]}
    counts = {"n_test": 1000, "n_correct": correct, "n_params_dense": 1000, "n_params_deployed": deployed}
    pgd = {"run_id": run_id, "attack": "pgd_linf", "norm": "linf", "n_examples": 100}
    curves = [
        *((epoch, "", "validation_n", 100) for epoch in range(3)),
        *((epoch, "", "validation_n_correct", 100 - wrong) for epoch, wrong in enumerate((50, 20, 4))),
        *((epoch, "", "train_loss", 1 / epoch) for epoch in (1, 2)),
        *((epoch, "", "n_params_deployed", n) for epoch, n in enumerate((800, 600, deployed))),
    ]
    for i, layer in enumerate(LAYERS):
        curves += [(epoch, layer, "rank", ranks[epoch > 0]) for epoch in range(3)]
        curves += [(epoch, layer, "kappa", 1 + (kappa / (1 + i) - 1) * epoch / 2) for epoch in range(3)]
        curves += [(epoch, layer, "sigma_max", sigma) for epoch in range(3)]
    spectra = [(epoch, "a", i, sigma / (1 + epoch) ** i) for epoch in (0, 2) for i in range(ranks[epoch > 0])]
    rows = ("run_id", "epoch", "layer", "quantity", "value"), ("run_id", "epoch", "layer", "index", "singular_value")
    return {
        "runs": [{**about, **counts}],
        "robustness": [{**pgd, "eps": eps, "n_correct": n} for eps, n in ((0.05, 70), (0.1, 50 + seed))],
        "curves": [dict(zip(rows[0], (run_id, *row), strict=True)) for row in curves],
        "spectra": [dict(zip(rows[1], (run_id, *row), strict=True)) for row in spectra],
    }


def results_of(*networks, missing=()):
    frames = {
        table: framed(table, [row for n in networks for row in n.get(table, [])]) for table in (*COLUMNS, *AFTERWARDS)
    }
    return Results(frames, provenance={}, missing=tuple(missing))


GROWTH = results_of(
    *(network("dlrt", s, rank=4, decay=a, kappa=k) for s, k in ((0, 4.0), (1, 9.0)) for a in (1.0, 10.0)),
    *(network("uv", s, rank=4, decay=a, kappa=100.0) for s in (0, 1) for a in (1.0, 10.0)),
)
ADAPTIVE = {"tolerance": 0.1, "ratio": 0.5, "ranks": (8, 3)}
SIZES = results_of(
    network("dense", 0, deployed=1000),
    network("uv", 0, ratio=0.5, deployed=600, correct=960),
    network("uv", 0, ratio=0.8, deployed=310, correct=950),
    network("uv", 1, ratio=0.8, deployed=310, correct=955),
    network("condlr", 0, ratio=0.8, max_cond=1.1, deployed=310, correct=970),
    network("dlrt_adaptive", 0, **ADAPTIVE, deployed=280, correct=960),
    network("dlrt_adaptive", 1, **ADAPTIVE, deployed=320, correct=985),
    network("robust_dlrt", 0, ratio=0.5, tolerance=0.2, beta=0.0, deployed=100, ranks=(8, 1)),
)
SITUATIONS = {
    "nothing at all": results_of(),
    "all waiting": results_of(missing=["dlrt-k4-a10-s0", "dlrt_adaptive-r0.5-t0.1-s0", "dense-s0"]),
    "all diverged": results_of(network("uv", 0, status="diverged", ratio=0.8)),
    "one network": results_of(network("dense", 0), missing=["dlrt-k4-a10-s0"]),
    "infinite κ": results_of(network("uv", 0, rank=4, decay=10.0, kappa=math.inf)),
    "an adaptive network alone": results_of(network("dlrt_adaptive", 0, **ADAPTIVE)),
    "starts": GROWTH,
    "sizes": SIZES,
}
FIGURES = {
    "training": lambda results: dynamics.plot_training(results, ["kappa", "train_loss", "error", "accuracy"]),
    "size": dynamics.plot_accuracy_size,
}


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def titles(figure):
    return [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()]


# --- frames


def test_history_has_the_worst_layer_or_the_one_asked_for():
    worst = dynamics.history(GROWTH, "kappa").set_index(["run_id", "epoch"])["value"]
    assert worst["dlrt-k4-a10-s1", 2] == pytest.approx(9.0)
    assert len(worst) == 8 * 3
    layer = dynamics.history(GROWTH, "kappa", "b").set_index(["run_id", "epoch"])["value"]
    assert layer["dlrt-k4-a10-s1", 2] == pytest.approx(4.5)


def test_validation_rates_have_the_intervals_of_their_counts():
    first = dynamics.history(SITUATIONS["one network"], "error").set_index("epoch")
    assert first["value"].tolist() == pytest.approx([50, 20, 4])
    assert tuple(first.loc[2, ["low", "high"]]) == pytest.approx([100 * bound for bound in wilson(4, 100)])
    assert dynamics.history(SITUATIONS["one network"], "accuracy")["value"].tolist() == pytest.approx([50, 80, 96])


def test_deployed_is_a_percentage_of_dense():
    frame = dynamics.history(SIZES, "deployed").set_index(["run_id", "epoch"])["value"]
    assert [frame["dlrt_adaptive-r0.5-t0.1-s0", epoch] for epoch in range(3)] == pytest.approx([80, 60, 28])


# --- tables


def test_decay_table_is_ordered_by_the_start():
    data = dynamics.decay_table(GROWTH).data
    assert data[["method", "α"]].to_numpy().tolist() == [["U Vᵀ", "1"], ["DLRT", "1"], ["U Vᵀ", "10"], ["DLRT", "10"]]
    assert data.iloc[3]["κ before training"] == "1.00"
    assert data.iloc[3]["largest κ"] == "9.00"
    assert data.iloc[3]["test accuracy, % (seeds)"] == "98.00 ± 0.00 (2)"
    assert data.iloc[3]["PGD ℓ∞ ε\u00a0=\u00a00.1"] == "50.50 ± 0.71"


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_table_stands_every_situation(situation):
    html = dynamics.decay_table(SITUATIONS[situation]).to_html()
    assert "<table" in html
    assert "nan" not in html


# --- figures


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_figure_stands_every_situation(name, situation, recwarn):
    figure = FIGURES[name](SITUATIONS[situation])
    figure.canvas.draw()
    assert [str(warning.message) for warning in recwarn] == []
    if SITUATIONS[situation].curves.empty:
        assert any("waiting" in text.get_text() for ax in figure.axes for text in ax.texts)


def test_training_figure_has_a_column_for_each_start_and_a_row_for_each_quantity():
    figure = dynamics.plot_training(GROWTH, ["kappa", "train_loss"])
    assert titles(figure) == ["α = 1", "α = 10", "", ""]
    assert [ax.get_ylabel() for ax in figure.axes] == ["κ", "", "training loss", ""]
    drawn = lines(figure.axes[1])
    assert list(drawn) == ["U Vᵀ", "DLRT"]
    assert drawn["DLRT"].get_ydata() == pytest.approx([1, math.sqrt(2.5 * 5), 6])  # geometric means of 4 and 9
    assert lines(figure.axes[3])["DLRT"].get_xdata() == pytest.approx([1, 2])  # there is no loss before training


def test_accuracy_is_drawn_against_the_mean_size():
    clean, attacked = dynamics.plot_accuracy_size(SIZES).axes
    drawn = lines(clean)
    assert drawn["rank-adaptive DLRT, ϑ = 0.1"].get_xdata() == pytest.approx([30])
    assert drawn["rank-adaptive DLRT, ϑ = 0.1"].get_ydata() == pytest.approx([97.25])
    assert drawn["U Vᵀ"].get_xdata() == pytest.approx([31, 60])
    assert drawn["U Vᵀ"].get_ydata() == pytest.approx([95.25, 96])
    assert lines(attacked)["dense SGD"].get_ydata() == pytest.approx([50])
    assert attacked.get_title(loc="left") == "PGD ℓ∞, ε = 0.1"
    assert colors.same_color(drawn["U Vᵀ"].get_color(), report.LOOKS["uv"].color)
