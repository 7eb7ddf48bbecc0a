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
from study.presentation import robustness_figures as figures
from study.presentation import robustness_tables as robustness
from study.presentation import style as report
from study.results.outcomes import pack, pack_distances, unpack
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


def test_inheritance_is_checked_where_a_smaller_ball_was_attacked_in_full():
    """0.1 first, then 0.05 in full; of the 36 that withstood 0.1, image 20 falls. In l2 the smaller ball came first, on
    the other network the 36 were spared, and a single step says nothing about smaller ones."""
    given = [
        ("a", "clean", 0.0, bits(0), 0, ""),
        ("a", "pgd_linf", 0.1, bits(0, 1, 2, 3), 39, "linf"),
        ("a", "pgd_linf", 0.05, bits(0, 1, 20), 39, "linf"),
        ("a", "pgd_l2", 1.0, bits(0, 1, 2, 3), 38, "l2"),
        ("a", "pgd_l2", 0.5, bits(0, 1), 39, "l2"),
        ("b", "clean", 0.0, bits(0), 0, ""),
        ("b", "pgd_linf", 0.1, bits(0, 1, 2, 3), 39, "linf"),
        ("b", "pgd_linf", 0.05, bits(0, 1), 3, "linf"),
        ("b", "fgsm", 0.1, bits(0), 39, "linf"),
        ("b", "fgsm", 0.05, bits(0, 5), 39, "linf"),
    ]
    rows = [{**row(*about, norm=norm), "n_attacked": attacked} for *about, attacked, norm in given]
    text = robustness.inheritance_text(results_of(attacks=rows), "pgd_linf", "pgd_l2")
    assert text == (
        "Smaller balls were attacked in full all the same (networks: 1): 36 times an image that had withstood the "
        "larger ball, and 1 of them fell."
    )
    assert robustness.inheritance_text(results_of(attacks=[rows[0], *rows[3:]]), "pgd_linf", "pgd_l2") == ""
    assert robustness.inheritance_text(results_of(), "pgd_linf") == ""


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


def test_what_is_covered_and_how_close_the_networks_are_to_those_of_the_grid(study):
    assert robustness.coverage_text(results_of()) == (
        "Networks attacked so far: 0 of 0. Measurements: none yet. What is missing is shown as waiting."
    )
    text = robustness.coverage_text(study)
    assert text.startswith("Networks attacked so far: 4 of 4. Measurements: FGSM 8, PGD ℓ∞ 8, clean 4, ")
    assert "trained again" not in text
    rows = [("dense-s0", 95, 100), ("dense-s1", 93, 100), ("usv-r0.8-s0", 30, 40)]  # the last one on fewer images
    rows = [{"run_id": r, "quantity": "n_correct", "value": k, "n_examples": n} for r, k, n in rows]
    text = robustness.coverage_text(with_tables(study, confidence=pd.DataFrame(rows)))
    assert "of 2, 1 have exactly the clean count" in text
    assert "differ by at most 2 images of 100 " in text


def test_methods_are_compared_image_by_image_and_seed_by_seed(study):
    found = threat_model.compare(study, USV, DENSE, STRONG)
    assert {seed: (pair.n10, pair.n01) for seed, pair in found.images.items()} == {0: (3, 0), 1: (4, 0)}
    assert found.gap.difference == pytest.approx(100 * (3 / 40 + 4 / 40) / 2)
    assert found.gap.seeds == 2
    assert threat_model.compare(study, USV, "U Vᵀ, ratio 0.8", STRONG).gap.seeds == 0


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
    assert robustness.additions_text(without, "autoattack_linf", "square_l2").splitlines() == [
        "- AutoAttack ℓ∞ at ε = 0.05 is left 29 images by the others, on 1 network, and fells none of them.",
        "- AutoAttack ℓ∞ at ε = 0.1 is left 53 images by the others, on 2 networks, and fells 2 more, at most 2 of 25 "
        "on any network.",
    ]


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


def test_p_values_are_adjusted_for_the_whole_table(study):
    html = robustness.comparison_table(study, [(USV, DENSE)], [STRONG]).to_html()
    assert "+8.75" in html
    assert "0.25 each" in html  # 2/2³ and 2/2⁴, twice the smaller one
    assert html.count("− dense SGD") == 1  # the pair, then a row for each threat
    assert html.index("− dense SGD") < html.index(f"\u2003{STRONG.label}")
    assert robustness.p_text(1e-5) == "< 0.001"


def test_the_scale_of_the_logits(study):
    found = robustness.scale_control(study)
    assert found[["run_id", "attack", "more"]].to_numpy().tolist() == [
        ["dense-s0", "pgd_linf", 5.0],
        ["dense-s1", "pgd_linf", 2.5],
    ]


def test_partial_rank_correlations_against_the_residuals_of_ranks():
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    z = x + 0.5 * rng.normal(size=60)
    y = z + 0.3 * rng.normal(size=60)
    frame = pd.DataFrame({"y": y, "x": x, "z": z})
    ranks = frame.rank()

    def residual(of, given):
        slope, level = np.polyfit(ranks[given], ranks[of], 1)
        return ranks[of] - slope * ranks[given] - level

    found = robustness.partial_rank_correlations(frame, "y", ("x", "z"))
    assert found["x"] == pytest.approx(np.corrcoef(residual("y", "z"), residual("x", "z"))[0, 1])
    assert found["z"] == pytest.approx(np.corrcoef(residual("y", "x"), residual("z", "x"))[0, 1])
    assert abs(found["x"]) < 0.3 < found["z"]
    assert all(math.isnan(value) for value in robustness.partial_rank_correlations(frame[:3], "y", ("x", "z")).values())


def transfers(rates):
    return [
        {**row(source, "pgd_linf", 0.1, bits(*range(N - kept))), "target": target}
        for (source, target), kept in rates.items()
    ]


def spectrum(run_id, *layers):
    return [
        {"run_id": run_id, "epoch": 2, "layer": f"layer{i}", "index": j, "singular_value": value}
        for i, values in enumerate(layers)
        for j, value in enumerate(values)
    ]


def test_what_the_accuracy_follows(study):
    """Four networks, of which one has no spectrum; then rates that fall with the norms, whatever κ is."""
    spectra = [*spectrum("dense-s0", (8, 2), (3, 1)), *spectrum("usv-r0.8-s1", (5, 5), (2, 1))]
    frame = threat_model.exposed(with_tables(study, spectra=pd.DataFrame(spectra)), STRONG)
    assert frame[["run_id", "rate", "kappa", "gain"]].to_numpy().tolist() == [
        ["dense-s0", 87.5, 4.0, 24.0],
        ["usv-r0.8-s1", 95.0, 2.0, 10.0],
    ]
    assert "too few different networks" in robustness.causes_text(frame, "PGD")
    many = pd.DataFrame({"rate": [90, 80, 70, 50, 60], "kappa": [3, 1, 4, 1.5, 2], "gain": [1, 2, 3, 4, 5]})
    text = robustness.causes_text(many, "PGD")
    assert text.startswith("Under PGD, over 5 networks, ")
    assert text.endswith("of the two, it follows the product of the norms.")
    swapped = robustness.causes_text(many.rename(columns={"kappa": "gain", "gain": "kappa"}), "PGD")
    assert swapped.endswith("it follows κ.")


@pytest.mark.parametrize(
    ("foreign", "words"), [(30, "No network is fooled better"), (5, "1 of 2 networks is fooled better by foreign")]
)
def test_transfer_is_judged_by_the_diagonal(study, foreign, words):
    a, b = "dense-s0", "usv-r0.8-s0"
    rows = transfers({(a, a): 10, (b, b): 20, (a, b): 30, (b, a): foreign})
    found = results_of(runs=study.runs.to_dict("records"), transfer=rows)
    text = robustness.transfer_text(found)
    assert words.removesuffix(" by foreign").replace("is fooled", "").split()[0] in text
    assert ("No network" in text) == (foreign == 30)
    fig = figures.plot_transfer(found)
    assert "75.0" in {label.get_text() for label in fig.axes[0].texts}
    plt.close(fig)


def test_distances_are_unpacked_and_pooled(study):
    packed = {"attack": "ddn", "norm": "l2", "options": "steps=5", "n_examples": 3}
    rows = [{**packed, "run_id": "dense-s0", "distances": pack_distances([0.0, 1.0, np.inf])}]
    found = results_of(runs=study.runs.to_dict("records"), distortions=rows)
    assert figures.distances(found)["distance"].tolist() == [0.0, 1.0, np.inf]
    fig = figures.plot_distances(found)
    assert [line.get_label() for line in fig.axes[0].lines] == ["dense SGD, median 1.00"]
    plt.close(fig)


def test_figures_draw_what_there_is(study):
    fig = figures.plot_radii(study, ["fgsm", "pgd_linf"], {"linf": 0.1})
    lines = {line.get_label(): line for line in fig.axes[0].lines}
    assert list(lines["projected U S Vᵀ"].get_ydata()) == [100, 100, 97.5]
    plt.close(fig)
    fig = figures.plot_pareto(study, [STRONG])
    points = {line.get_label(): line.get_xydata()[0] for line in fig.axes[0].lines}
    # the study deploys 40 % of everything: the two stand on either side of it
    assert points["dense SGD"] == pytest.approx((40 / math.sqrt(1.03), 86.25))
    assert points["projected U S Vᵀ"] == pytest.approx((40 * math.sqrt(1.03), 95))
    ranges = [path.vertices[:, 1].tolist() for lines in fig.axes[0].collections for path in lines.get_paths()]
    assert ranges == [pytest.approx([85, 87.5]), pytest.approx([95, 95])]
    plt.close(fig)


def test_the_ranking_names_all_configurations_from_the_most_robust_down(study):
    """Above, what keeps more under the first threat, whatever it keeps under the second: dense is as good in l2."""
    other = [row(run_id, "pgd_l2", 1.0, bits(0), norm="l2") for run_id in ("dense-s0", "usv-r0.8-s0")]
    more = with_tables(study, attacks=pd.concat([study.attacks, pd.DataFrame(other)]))
    fig = figures.plot_ranking(more, [STRONG, Threat("PGD ℓ₂", ("pgd_l2",), 1.0, N)])
    left, right = fig.axes
    assert [label.get_text() for label in left.get_yticklabels()] == [DENSE, USV]  # upwards
    marks = [dict(zip(*reversed(line.get_data()), strict=True)) for ax in fig.axes for line in ax.lines]
    assert marks == [pytest.approx(mark) for mark in ({0: 86.25}, {1: 95}, {0: 97.5}, {1: 97.5})]
    ranges = [path.vertices[:, 0].tolist() for lines in left.collections for path in lines.get_paths()]
    assert ranges == [pytest.approx([85, 87.5]), pytest.approx([95, 95])]
    sizes = right.child_axes[0].get_yticklabels()
    assert [label.get_text() for label in sizes] == ["40 %", "40 %"]
    plt.close(fig)


def test_curves_have_the_radii_that_all_configurations_have(study):
    """A curve with a radius of its own would look stronger or weaker there than the straight lines of the others."""
    alone = row("dense-s0", "pgd_linf", 0.05, bits(0), options="restarts=5 steps=100")
    more = with_tables(study, attacks=pd.concat([study.attacks, pd.DataFrame([alone])]))
    fig = figures.plot_radii(more, ["pgd_linf"], {"linf": 0.1})
    assert [list(line.get_xdata()) for line in fig.axes[0].lines] == [[0, 0.1]] * 2
    plt.close(fig)


def test_each_corruption_has_a_scale_of_its_own():
    """Errors of 0, 2.5 and 5 % under noise, of which a logarithmic axis leaves out the first; blur up to 50 %."""
    clean = row("dense-s0", "clean", 0.0, bits(), norm="")
    fallen = {("gaussian_noise", 1): 1, ("gaussian_noise", 2): 2, ("blur", 1): 4, ("blur", 2): 20}
    rows = [row("dense-s0", name, s, bits(*range(n)), "corruption") for (name, s), n in fallen.items()]
    found = results_of(runs=[run("dense-s0", "dense", "dense SGD", 0)], attacks=[clean, *rows])
    noise, blur = figures.plot_corruptions(found, ["gaussian_noise", "blur"]).axes
    assert [ax.get_title(loc="left") for ax in (noise, blur)] == ["Gaussian noise", "blur"]
    assert list(noise.lines[0].get_xdata()) == [0, 1, 2]
    assert list(noise.lines[0].get_ydata())[1:] == pytest.approx([2.5, 5])
    assert list(blur.lines[0].get_ydata())[1:] == pytest.approx([10, 50])
    assert noise.get_yscale() == blur.get_yscale() == "log"
    assert noise.get_ylim()[1] < 10 < blur.get_ylim()[1]
    plt.close("all")


@pytest.mark.parametrize("draw", [
    lambda empty: figures.plot_radii(empty, ["fgsm"], {}),
    lambda empty: figures.plot_corruptions(empty, ["blur"]),
    lambda empty: figures.plot_pareto(empty, [STRONG]),
    lambda empty: figures.plot_ranking(empty, [STRONG]),
    lambda empty: figures.plot_ranking(empty, []),
    lambda empty: figures.plot_causes(empty, STRONG),
    figures.plot_distances,
    figures.plot_transfer,
])  # fmt: skip
def test_figures_of_nothing_say_so(draw):
    fig = draw(results_of())
    assert [text.get_text() for ax in fig.axes for text in ax.texts] == ["waiting: nothing is computed"]
    plt.close(fig)


def test_tables_of_nothing():
    empty = results_of(missing=["dense-s0"])
    assert "waiting" in robustness.trust_table(empty, [("clean", 0)], [STRONG]).to_html()
    assert robustness.flags(empty).empty
    assert robustness.scale_control(empty).empty
    assert robustness.effort(empty, "pgd_linf").empty
    assert robustness.additions_text(empty, "autoattack_linf") == ""
    for text in (robustness.transfer_text(empty), robustness.causes_text(threat_model.exposed(empty, STRONG), "PGD")):
        assert "yet" in text or "too few" in text
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
