"""Accuracy against robustness over strengths: means by hand, and a curve in the order of its strengths."""

import math

import pytest
from matplotlib import pyplot as plt

from study.presentation import trade_off
from study.results.store import Results
from study.results.tables import AFTERWARDS, COLUMNS, framed

SETTINGS = {"uv": {}, "condlr": {"max_cond": "c"}, "soft_orthogonal_uv": {"beta": "b"}}


def results(*cells):
    """Cells (method, strength as in its run_id, seed, right of 1,000 clean, right under PGD, κ)."""
    rows = {"runs": [], "robustness": [], "spectra": []}
    for method, strength, seed, clean, robust, kappa in cells:
        settings = dict.fromkeys(SETTINGS[method], strength)
        part = "".join(f"-{letter}{strength:g}" for letter in SETTINGS[method].values())
        run_id = f"{method}-r0.8{part}-s{seed}"
        about = {"run_id": run_id, "method": method, "label": f"{method} {strength}", "ratio": 0.8, "seed": seed}
        counts = {"status": "done", "n_test": 1000, "n_params_dense": 1, "n_correct": clean}
        rows["runs"].append({**about, **settings, **counts})
        attacked = {"run_id": run_id, "attack": "pgd_linf", "n_examples": 1000}
        rows["robustness"] += [{**attacked, "eps": 0.1, "n_correct": robust}, {**attacked, "eps": 0.2, "n_correct": 1}]
        values = enumerate((kappa, 1.0))
        rows["spectra"] += [
            {"run_id": run_id, "epoch": 1, "layer": "a", "index": k, "singular_value": sigma} for k, sigma in values
        ]
    frames = {table: framed(table, rows.get(table, [])) for table in (*COLUMNS, *AFTERWARDS)}
    return Results(frames, provenance={}, missing=())


FOUND = results(
    ("uv", None, 0, 990, 600, 5.0),
    ("soft_orthogonal_uv", 0.1, 0, 970, 800, 2.0),
    ("soft_orthogonal_uv", 0.01, 0, 980, 700, 3.0),
    ("soft_orthogonal_uv", 0.01, 1, 984, 720, 4.0),
    ("condlr", 1.5, 0, 988, 780, 1.5),
)


def test_a_strength_is_beta_or_tau_and_rates_are_means_over_seeds():
    rows = trade_off.strengths(FOUND, "pgd_linf", 0.1).set_index(["method", "strength"])
    penalty = rows.loc["soft_orthogonal_uv", 0.01]
    assert (penalty["clean"], penalty["robust"], penalty["kappa"]) == pytest.approx((98.2, 71.0, 4.0))
    assert penalty["gain"] == pytest.approx(math.sqrt(12))
    assert penalty["robust_std"] == pytest.approx(math.sqrt(2))
    assert rows.loc["condlr", 0.5]["robust"] == pytest.approx(78.0)
    assert math.isnan(rows.loc["uv"].index[0])


def test_a_curve_follows_its_strengths_whose_strongest_is_written():
    fig = trade_off.plot_trade_off(FOUND, "pgd_linf", 0.1)
    curves = [curve.lines[0].get_data() for curve in fig.axes[0].containers]
    (clean, robust) = next(curve for curve in curves if len(curve[0]) == 2)
    assert (list(clean), list(robust)) == (pytest.approx([98.2, 97.0]), pytest.approx([71.0, 80.0]))
    assert {text.get_text() for text in fig.axes[0].texts} == {"β = 0.1"}
    plt.close(fig)


def test_nothing_measured_is_an_empty_figure():
    plt.close(trade_off.plot_trade_off(results(), "pgd_linf", 0.1))
