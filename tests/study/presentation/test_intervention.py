"""Norm and condition number set apart: the table and the figure say which bound a network had."""

import math

import pytest
from matplotlib import pyplot as plt

from study.presentation import intervention
from study.results.outcomes import pack_distances
from study.results.store import Results
from study.results.tables import AFTERWARDS, COLUMNS, framed


def results(*cells):
    """Cells (L, c, seed, right of 1,000 clean, right under PGD)."""
    about = {"method": "usv_band", "label": "band", "status": "done", "n_test": 1000, "n_params_dense": 1}
    runs, attacked = [], []
    for norm, cond, seed, clean, robust in cells:
        run_id = f"usv_band-r0.8-c{cond:g}-g{norm:g}-s{seed}"
        bounds = {"max_norm": norm, "max_cond": cond, "ratio": 0.8, "seed": seed, "run_id": run_id}
        runs.append({**about, **bounds, "n_correct": clean})
        attacked.append({"run_id": run_id, "attack": "pgd_linf", "eps": 0.1, "n_examples": 1000, "n_correct": robust})
    rows = {"runs": runs, "robustness": attacked}
    frames = {table: framed(table, rows.get(table, [])) for table in (*COLUMNS, *AFTERWARDS)}
    return Results(frames, provenance={}, missing=())


FOUND = results((1, 1, 0, 980, 800), (1, 1, 1, 990, 820), (2, 1, 0, 985, 700), (1, math.inf, 0, 981, 790))


def test_rates_are_gathered_by_bounds():
    assert intervention.by_bounds(FOUND, "pgd_linf") == {
        (1.0, 1.0): pytest.approx([80.0, 82.0]),
        (2.0, 1.0): pytest.approx([70.0]),
        (1.0, math.inf): pytest.approx([79.0]),
    }


def test_the_figure_names_each_bound_at_the_end_of_its_line():
    fig = intervention.plot_intervention(FOUND, ("clean", "pgd_linf"))
    assert {text.get_text() for text in fig.axes[1].texts} == {"κ = 1", "κ free"}
    assert [list(line.get_ydata()) for line in fig.axes[1].lines] == [[81.0, 70.0], [79.0]]
    plt.close(fig)
    plt.close(intervention.plot_intervention(results()))


def test_the_table_has_what_is_certified_beside_what_stands():
    found = results((1, 1, 0, 980, 800), (1, 1, 1, 990, 820), (2, math.inf, 0, 985, 700))
    radii = {"s0": [0.0, 0.1, 0.15, 0.3], "s1": [0.0, 0.0, 0.05, 0.3]}
    rows = [
        {"run_id": f"usv_band-r0.8-c1-g1-{seed}", "n_examples": 4, "lipschitz": 1.0, "distances": pack_distances(own)}
        for seed, own in radii.items()
    ]
    found.tables["certified"] = framed("certified", rows)
    first, second = intervention.certified_table(found, (0.09, 0.2)).data.to_dict("records")
    assert first["certified at 0.09"] == "50.0 %"  # 3 and 1 of 4
    assert first["certified at 0.2"] == "25.0 %"
    assert first["under DDN at 0.2"] == second["certified at 0.2"] == "waiting"
    assert (second["bound L on ‖W‖₂"], second["bound c"]) == ("2", "κ free")
