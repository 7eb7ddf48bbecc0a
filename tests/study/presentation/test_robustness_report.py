"""The report of the attack suite from tables made by hand: who survives, what is compared, what is waiting."""

import math
import operator

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from helpers import with_tables
from study import paths
from study.attacks.registry import ATTACKS
from study.experiments.cells import load
from study.experiments.specification import Experiment
from study.presentation import frontier
from study.presentation import robustness_figures as figures
from study.presentation import robustness_tables as robustness
from study.presentation import style as report
from study.presentation.sliders import Slider
from study.results.outcomes import pack, unpack
from study.results.store import AFTERWARDS, COLUMNS, Results
from study.results.tables import framed
from study.statistics import frames as analysis
from study.statistics import threat_model
from study.statistics.comparison import wilson
from study.statistics.threat_model import Threat

N = 40


def bits(*fallen, n=N):
    """All survive but these."""
    alive = np.ones(n, dtype=bool)
    alive[list(fallen)] = False
    return alive


def row(run_id, attack, eps, alive, norm="linf", options=""):
    about = {"run_id": run_id, "attack": attack, "norm": norm, "eps": eps, "options": options, "n_examples": len(alive)}
    return {**about, "n_attacked": len(alive), "n_correct": int(alive.sum()), "outcomes": pack(alive), "wall_s": 1.0}


def run(run_id, method, label, seed, **settings):
    counts = {"n_params_dense": 100, "n_params_trained": 50, "n_params_deployed": 40, "rank_fraction": 0.4}
    about = {"run_id": run_id, "method": method, "label": label, "seed": seed, "dataset": "mnist", "model": "lenet5"}
    measured = {"n_test": 100, "n_correct": 95, "flops_dense": 10, "flops_deployed": 5, "status": "done"}
    return {**about, **counts, **measured, **settings}


def results_of(missing=(), **tables):
    frames = {table: framed(table, tables.get(table, [])) for table in (*COLUMNS, *AFTERWARDS)}
    return Results(frames, provenance={}, missing=tuple(missing))


DENSE, USV = "dense SGD", "projected U S Vᵀ, ratio 0.8"


def test_every_attack_has_a_name():
    assert report.ATTACKS.keys() >= {"clean", *ATTACKS}
    assert len({*report.ATTACKS.values()}) == len(report.ATTACKS)


@pytest.fixture
def study():
    """Dense loses images 0 to 3 + seed to PGD and one more to FGSM at a smaller radius; U S Vᵀ loses 0 and 1."""
    runs, attacks = [], []
    for seed in (0, 1):
        dense, usv = f"dense-s{seed}", f"usv-r0.8-s{seed}"
        runs += [run(dense, "dense", "dense SGD", seed), run(usv, "usv", "projected U S Vᵀ", seed, ratio=0.8)]
        for run_id, felled in ((dense, range(4 + seed)), (usv, range(2))):
            attacks.append(row(run_id, "clean", 0.0, bits(), norm=""))
            attacks.append(row(run_id, "fgsm", 0.05, bits(*([20] if run_id == dense else []))))
            attacks.append(row(run_id, "fgsm", 0.1, bits(0)))
            attacks.append(row(run_id, "pgd_linf", 0.1, bits(*felled), options="restarts=5 steps=100"))
            attacks.append(row(run_id, "pgd_linf", 0.1, bits(*felled, 9, n=10), options="restarts=1 steps=500"))
        attacks.append(row(dense, "pgd_linf_scaled", 0.1, bits(*range(6))))
    return results_of(runs=runs, attacks=attacks, missing=["uv-r0.8-s0"])


STRONG = Threat("gradient attacks", ("fgsm", "pgd_linf"), 0.1, N)


def test_survivors_survive_every_attack_at_this_radius_and_at_smaller_ones(study):
    found = threat_model.survivors(study, STRONG)
    assert found["dense-s1"].tolist() == bits(0, 1, 2, 3, 4, 20).tolist()
    assert found["usv-r0.8-s0"].tolist() == bits(0, 1).tolist()
    frame = threat_model.strongest(study, STRONG).set_index("run_id")
    assert frame.loc["dense-s1", ["rate", "name"]].tolist() == [85.0, DENSE]
    assert frame.loc["dense-s1", "low"] == pytest.approx(100 * wilson(34, 40)[0])


def test_a_network_that_misses_an_attack_is_not_counted(study):
    found = threat_model.survivors(study, Threat("", ("pgd_linf", "pgd_linf_scaled"), 0.1, N))
    assert set(found) == {"dense-s0", "dense-s1"}
    assert threat_model.survivors(study, Threat("", ("pgd_linf",), 0.1, N + 1)) == {}
    assert threat_model.survivors(study, Threat("", ("pgd_linf",), 0.3, N)) == {}


def test_a_threat_is_read_off_the_tables(study):
    assert threat_model.threat(study, "a", "fgsm", "pgd_linf") == Threat("a", ("fgsm", "pgd_linf"), 0.1, N)
    nothing = threat_model.threat(study, "b", "fgsm", "square_linf")
    assert nothing.n == 0
    assert math.isnan(nothing.eps)
    assert threat_model.survivors(study, nothing) == {}
    wider = row("dense-s0", "pgd_linf", 0.3, bits(*range(N)))
    more = with_tables(study, attacks=pd.concat([study.attacks, pd.DataFrame([wider])]))
    assert threat_model.threat(more, "c", "pgd_linf").eps == 0.3
    assert threat_model.threat(more, "c", "pgd_linf", at_most=0.2).eps == 0.1


def test_methods_are_compared_seed_by_seed(study):
    found = threat_model.compare(study, USV, DENSE, STRONG)
    assert found.difference == pytest.approx(100 * (3 / 40 + 4 / 40) / 2)
    assert found.seeds == 2
    assert threat_model.compare(study, USV, "U Vᵀ, ratio 0.8", STRONG).seeds == 0


def test_of_an_attack_with_several_options_the_row_on_most_images_is_shown(study):
    frame = analysis.suite_rates(study).query("attack == 'pgd_linf'")
    assert frame["options"].unique().tolist() == ["restarts=5 steps=100"]
    more = robustness.effort(study, "pgd_linf")
    assert more[["n", "more"]].drop_duplicates().to_numpy().tolist() == [[10, 1]]  # image 9


def test_what_an_attack_adds_to_all_others_of_its_norm(study):
    """AutoAttack on 30 images: of dense it fells 4 and 5, which PGD leaves, and 0, which it does not; an l2 attack and
    a larger ball take nothing from what is left for it; one radius is named after the other."""
    new = [
        row("dense-s0", "autoattack_linf", 0.1, bits(0, 4, 5, n=30)),
        row("usv-r0.8-s0", "autoattack_linf", 0.1, bits(0, 1, n=30)),
        row("dense-s0", "autoattack_linf", 0.05, bits(n=30)),
        row("dense-s0", "pgd_l2", 0.1, bits(4), norm="l2"),
        row("dense-s0", "pgd_linf", 0.2, bits(5)),
    ]
    found = with_tables(study, attacks=pd.concat([study.attacks, pd.DataFrame(new)]))
    # dense-s0 has lost 0 to 3, to PGD, 20 to FGSM and 0 to 5 on scaled logits
    unscaled = found.attacks[found.attacks["attack"] != "pgd_linf_scaled"]
    without = with_tables(found, attacks=unscaled)
    added = robustness.additions(without, "autoattack_linf").set_index(["eps", "run_id"])
    assert added.loc[(0.1, "dense-s0")].tolist() == [25, 2]
    assert added.loc[(0.1, "usv-r0.8-s0")].tolist() == [28, 0]
    assert added.loc[(0.05, "dense-s0")].tolist() == [29, 0]  # FGSM alone was run there
    assert robustness.additions(found, "autoattack_linf")["felled"].sum() == 0


def test_tables_name_what_is_waiting_and_carry_flags(study):
    html = robustness.trust_table(study, [("clean", 0), ("pgd_linf", 0.1), ("pgd_l2", 1.0)], [STRONG]).to_html()
    assert "waiting" in html
    assert "88.8 ± 1.8" in html  # 36 and 35 of 40
    assert "PGD ℓ∞ ε\u00a0=\u00a00.1, N\u00a0=\u00a040" in html
    weak = [row("dense-s0", "fgsm", 0.2, bits(*range(20))), row("dense-s0", "pgd_linf", 0.2, bits())]
    attacks = pd.concat([study.attacks, pd.DataFrame(weak)], ignore_index=True)
    flagged = results_of(runs=study.runs.to_dict("records"), attacks=attacks.to_dict("records"))
    html = robustness.trust_table(flagged, [("pgd_linf", 0.2)]).to_html()
    assert "100.0<br>[91.2, 100.0] F" in html
    assert "20 of 40 images survive pgd_linf, not fgsm" in robustness.flag_table(flagged).to_html()


def test_differences_are_those_over_seeds(study):
    frame = robustness.comparison_table(study, [(USV, DENSE), (USV, "CondLR, ratio 0.8")], [STRONG]).data
    assert frame.to_numpy().tolist() == [[f"{USV} − {DENSE}", "+0.00 ± 0.00", "+9 ± 16"]]
    assert "PGD" not in frame.columns[1]
    assert STRONG.label in frame.columns[2]


def test_corruptions_have_a_severity(study):
    blurred = [row("dense-s0", "blur", 5.0, bits(0), "corruption")]
    more = with_tables(study, attacks=pd.concat([study.attacks, pd.DataFrame(blurred)]))
    assert "blur severity\u00a05, N\u00a0=\u00a040" in robustness.trust_table(more, [("blur", 5)]).data.columns


def test_the_scale_of_the_logits(study):
    found = robustness.scale_control(study)
    assert found[["run_id", "attack", "more"]].to_numpy().tolist() == [
        ["dense-s0", "pgd_linf", 5.0],
        ["dense-s1", "pgd_linf", 2.5],
    ]


def test_figures_draw_what_there_is(study):
    fig = figures.plot_radii(study, ["fgsm", "pgd_linf"], {"linf": 0.1})
    lines = {line.get_label(): line for line in fig.axes[0].lines}
    assert list(lines["projected U S Vᵀ"].get_ydata()) == [100, 100, 97.5]
    plt.close(fig)


def test_curves_have_the_radii_that_all_configurations_have(study):
    """A curve with a radius of its own would look stronger or weaker there than the straight lines of the others."""
    alone = row("dense-s0", "pgd_linf", 0.05, bits(0), options="restarts=5 steps=100")
    more = with_tables(study, attacks=pd.concat([study.attacks, pd.DataFrame([alone])]))
    fig = figures.plot_radii(more, ["pgd_linf"], {"linf": 0.1})
    assert [list(line.get_xdata()) for line in fig.axes[0].lines] == [[0, 0.1]] * 2
    plt.close(fig)


def test_a_slider_has_the_rates_of_the_picture_at_every_radius(study):
    data = frontier.by_radius(study, "pgd_linf", 0.1, [frontier.Curve("dense", [DENSE]), frontier.Curve("none", ["?"])])
    (curve,) = data["curves"]
    assert data["radii"][0] == 0.0
    assert data["radii"][data["start"]] == 0.1
    for k, radius in enumerate(data["radii"]):
        rows = frontier.points(study, "pgd_linf" if radius else "clean", radius)
        assert curve["rates"][k] == [pytest.approx(rows.loc[DENSE, "rate"], abs=0.006)]
        assert curve["stds"][k] == [pytest.approx(rows.loc[DENSE, "std"], abs=0.006)]
        assert len(data["others"]["rates"][k]) == len(data["others"]["sizes"])
    assert '"radii"' in Slider("fig", "radii", data)._repr_html_()


def test_the_data_of_a_slider_end_no_script():
    shown = Slider("fig", "radii", {"name": "</script><b>"})._repr_html_()
    assert shown.count("</script>") == 1
    assert shown.endswith("</script>")


def test_a_frontier_names_its_curves_and_leaves_the_rest_grey(study):
    fig = frontier.plot_frontier(study, "pgd_linf", 0.1, [frontier.Curve("dense", [DENSE])])
    (ax,) = fig.axes
    assert [text.get_text() for text in ax.texts] == ["dense"]
    assert ax.lines[0].get_xydata().tolist() == [[40, 95]]  # U S Vᵀ, in grey
    assert ax.get_ylabel().endswith("PGD ℓ∞, ε = 0.1")
    plt.close(fig)


def test_figures_of_nothing_say_so():
    fig = figures.plot_radii(results_of(), ["fgsm"], {})
    assert [text.get_text() for ax in fig.axes for text in ax.texts] == ["waiting: nothing is computed"]
    plt.close(fig)
    plt.close(frontier.plot_frontier(results_of(), "pgd_linf", 0.1, frontier.EQUAL_SIZE))
    assert frontier.by_radius(results_of(), "pgd_linf", 0.1, frontier.EQUAL_SIZE)["curves"] == []


def test_tables_of_nothing():
    empty = results_of(missing=["dense-s0"])
    assert "waiting" in robustness.trust_table(empty, [("clean", 0)], [STRONG]).to_html()
    assert robustness.flags(empty).empty
    assert robustness.scale_control(empty).empty
    assert robustness.effort(empty, "pgd_linf").empty
    assert robustness.comparison_table(empty, [(USV, DENSE)], [STRONG]).data.empty
    for found in (robustness.flag_table(empty), robustness.confidence_table(empty)):
        assert "<tbody>" in found.to_html()


def test_what_was_attacked_is_picked_from_every_table(study):
    extra = run("uv-r0.8-s1", "uv", "U Vᵀ", 1, ratio=0.8)
    found = results_of(runs=[*study.runs.to_dict("records"), extra], attacks=study.attacks.to_dict("records"))
    part = analysis.attacked(found)
    assert set(part.runs["run_id"]) == set(study.runs["run_id"])
    dense = analysis.pick(part, ["dense"])
    assert set(dense.attacks["run_id"]) == {"dense-s0", "dense-s1"}


# -------------------------------------------------------------------------------------------- the committed numbers

COMMITTED = [path.stem for path in sorted(paths.experiments().glob("*.toml")) if (paths.results() / path.stem).exists()]


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_outcomes_are_consistent(name):
    """Counts are those of the bits, survivors were attacked there or in a larger ball, radii are nested, and followers
    keep no fallen image."""
    found = load(Experiment.load(name))
    networks, key = set(found.runs["run_id"]), operator.itemgetter("attack", "options", "n_examples")
    for table in ("attacks", "distortions", "confidence", "transfer"):
        assert set(getattr(found, table)["run_id"]) <= networks
    assert not found.attacks.duplicated(["run_id", "attack", "eps", "options", "n_examples"]).any()
    for run_id, rows in found.attacks.groupby("run_id"):
        records = [(row, unpack(row["outcomes"], int(row["n_examples"]))) for row in rows.to_dict("records")]
        clean = max((alive for row, alive in records if row["attack"] == "clean"), key=len)
        for row, alive in records:
            assert alive.sum() == row["n_correct"], run_id
            assert (alive <= clean[: len(alive)]).all()
            kind = ATTACKS.get(row["attack"])
            if kind is not None:
                assert row["norm"] == kind.norm
                larger = [
                    other
                    for wide, other in records
                    if kind.nested and key(wide) == key(row) and wide["eps"] > row["eps"]
                ]
                withstood = np.logical_or.reduce([np.zeros_like(alive), *larger])
                assert (withstood <= alive).all()
                assert row["n_correct"] <= row["n_attacked"] + withstood.sum()
                assert row["n_attacked"] <= clean[: len(alive)].sum()
    for _, rows in found.transfer.groupby("run_id"):
        assert set(rows["target"]) <= networks
