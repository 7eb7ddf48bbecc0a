"""Outcomes image by image: those of a linear classifier are known, and survivors-only changes none of them."""

import itertools
import json
import operator

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from experiments import GRADIENT_ATTACKS, check_that_no_journal_is_left, trained_experiment
from helpers import Tiny, generator
from study.attacks.registry import ATTACKS, smallest_perturbation
from study.data import Images
from study.experiments import tasks
from study.experiments import weights as networks
from study.experiments.cells import run_experiment
from study.experiments.failures import Failed
from study.experiments.tasks import assess, progress
from study.measurement import accuracy as evaluate
from study.measurement import attack_suite as suite
from study.measurement import transfer
from study.measurement.attack_suite import Trial, attack_row, clean_row
from study.measurement.distortion import distortion_row
from study.measurement.transfer import transfer_rows
from study.results import store as results
from study.results.outcomes import unpack, unpack_distances
from study.results.tables import records

CLASSES = 10


def linear_problem(n=24):
    """A linear classifier of ten classes, images far from the bounds of the pixels, labels mostly its predictions."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(49, CLASSES))
    nn.init.normal_(model[1].weight, std=0.3, generator=generator(0))
    nn.init.zeros_(model[1].bias)
    pixels = torch.randint(90, 165, (n, 1, 7, 7), dtype=torch.uint8, generator=generator(1))
    labels = model(pixels.float() / 255).argmax(1)
    labels[::7] = (labels[::7] + 1) % CLASSES
    return model, Images(pixels, labels)


def margins(model, images, dual):
    """min_k (z_y - z_k)/‖w_y - w_k‖: the exact distance to the decision boundary in the norm with this dual; negative
    for what is misclassified."""
    weight, logits = model[1].weight.detach(), model(images.pixels(slice(None))).detach()
    own, rows = logits.gather(1, images.labels[:, None]), weight[images.labels]
    gaps = (own - logits) / torch.linalg.vector_norm(rows[:, None] - weight[None], ord=dual, dim=2)
    return gaps.scatter(1, images.labels[:, None], torch.inf).amin(1)


def outcomes(row):
    return unpack(row["outcomes"], row["n_examples"])


def trial(attack, eps, n=None, **options):
    return Trial(attack, eps, n, tuple(sorted(options.items())))


LONG = {"steps": 60, "restarts": 2}


@pytest.mark.parametrize(
    ("attack", "options", "dual"),
    [("pgd_linf", LONG, 1), ("pgd_l2", LONG, 2), ("autoattack_linf", {}, 1), ("autoattack_l2", {}, 2)],
)
def test_the_robust_images_of_a_linear_classifier_are_known(attack, options, dual):
    """Robust iff the radius is below the distance to the boundary; AutoAttack finds each, PGD on the loss most."""
    model, images = linear_problem()
    distance = margins(model, images, dual).numpy()
    radius = float(np.median(distance[distance > 0]))
    row = attack_row(model, images, trial(attack, radius, **options), [clean_row(model, images)])
    clear = np.abs(distance - radius) > 0.02 * radius
    robust = distance > radius
    assert robust[clear].any() and not robust[clear].all()  # noqa: PT018
    assert (outcomes(row) >= robust)[clear].all()  # never fells what cannot fall
    missed = outcomes(row)[clear & ~robust].mean()
    assert missed == 0 if attack.startswith("auto") else missed <= 0.6  # misclassified ones never survive
    assert row["n_correct"] == outcomes(row).sum() <= row["n_attacked"] == (distance > 0).sum()


def test_square_fells_only_what_can_fall():
    model, images = linear_problem()
    distance = margins(model, images, 1).numpy()
    radius = float(np.median(distance[distance > 0]))
    row = attack_row(model, images, trial("square_linf", 1.2 * radius), [clean_row(model, images)])
    assert (outcomes(row) >= (distance > 1.2 * radius)).all()
    assert row["n_correct"] < row["n_attacked"]


def test_the_smallest_perturbation_of_a_linear_classifier_is_known():
    model, images = linear_problem()
    distance = margins(model, images, 2)
    row = distortion_row(model, images, 200)
    found = unpack_distances(row["distances"], row["n_examples"])
    assert (found[distance.numpy() <= 0] == 0).all()
    right = distance.numpy() > 0
    excess = found[right] / distance.numpy()[right]
    assert excess.min() >= 0.98  # pixels of eight bits
    assert np.median(excess) < 1.2  # the gradient of the loss does not point at the nearest class alone
    assert excess.max() < 1.3


def test_no_perturbation_is_infinitely_far():
    class Fixed(nn.Module):
        def forward(self, x):
            return torch.tensor([[0.0, 1.0]]).repeat(len(x), 1) + 0 * x.sum()

    assert smallest_perturbation(Fixed(), torch.full((2, 1, 4, 4), 0.5), torch.ones(2).long(), steps=5).isinf().all()


def network():
    torch.manual_seed(0)
    return Tiny().eval()


def random_images(n=40):
    pixels = torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8, generator=generator(2))
    return Images(pixels, network()(pixels.float() / 255).argmax(1))


@pytest.mark.parametrize("attack", GRADIENT_ATTACKS)
def test_survivors_only_equals_the_full_evaluation(attack, monkeypatch):
    """Attacking what is left of cheaper attacks and smaller balls, in odd chunks, gives the intersection of the
    outcomes of all of them on all images."""
    kind, images, model = ATTACKS[attack], random_images(), network()
    options = {"steps": 4} if kind.options else {}
    scale = {"linf": 1, "l2": 10}[kind.norm]
    radii = [0.01 * scale, 0.02 * scale, 0.04 * scale]
    before = [*kind.follows, attack]
    full = {
        (name, eps): outcomes(attack_row(model, images, trial(name, eps, **options), []))
        for name in before
        for eps in radii
    }
    monkeypatch.setattr(evaluate, "CHUNK", 7)
    monkeypatch.setattr(evaluate, "ATTACKED", 5)
    rows = [clean_row(model, images)]
    for name in before:
        for eps in radii:
            rows.append(attack_row(model, images, trial(name, eps, **options), rows))
    for row in rows[1:]:
        smaller = [eps for eps in radii if eps <= row["eps"]] if ATTACKS[row["attack"]].nested else [row["eps"]]
        names = [*ATTACKS[row["attack"]].follows, row["attack"]]
        expected = np.logical_and.reduce([full[name, eps] for name in names for eps in smaller if (name, eps) in full])
        assert outcomes(row).tolist() == expected.tolist()
    assert (rows[-1]["n_attacked"] < len(images)) == kind.nested
    assert 0 < rows[-1]["n_correct"] < len(images)


@pytest.mark.parametrize("attack", ["pgd_linf", "pgd_l2"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_radii_in_any_order_agree_and_each_decides_between_its_neighbours(attack, order):
    """On a network whose distances to the boundary are known: an image is attacked at a radius only if it has neither
    fallen in a smaller ball nor withstood a larger one, and the outcomes are those of attacking every image."""
    model, images = linear_problem(60)
    images.labels[:] = model(images.pixels(slice(None))).argmax(1)
    distance = margins(model, images, {"pgd_linf": 1, "pgd_l2": 2}[attack]).numpy()
    radii = [float(np.quantile(distance, level)) for level in (0.2, 0.5, 0.8)]
    given = [trial(attack, eps, **LONG) for eps in radii]
    clean = clean_row(model, images)
    full = [outcomes(attack_row(model, images, each, [clean])) for each in given]
    known = {}
    for i in order:
        known[i] = attack_row(model, images, given[i], [clean, *known.values()])
        smaller, larger = ([known[j] for j in known if compare(j, i)] for compare in (operator.lt, operator.gt))
        standing = np.logical_and.reduce([outcomes(row) for row in (clean, *smaller)])
        withstood = np.logical_or.reduce([np.zeros(60, bool), *(outcomes(row) for row in larger)])
        assert known[i]["n_attacked"] == (standing & ~withstood).sum()
        assert (outcomes(known[i]) == full[i]).all()
        assert (outcomes(known[i]) >= (distance > radii[i])).all()
    counts = [known[i]["n_correct"] for i in range(3)]
    assert 60 > counts[0] > counts[1] > counts[2] > 0
    assert any(row["n_attacked"] < 60 for row in known.values())


def test_a_larger_ball_says_nothing_where_balls_are_not_nested_or_the_attack_is_another():
    model, images = network(), random_images()
    rows = [clean_row(model, images)]
    for name, options in (("fgsm", {}), ("pgd_linf", {"steps": 3}), ("pgd_linf", {"steps": 4})):
        for eps in (0.02, 0.01):
            rows.append(attack_row(model, images, trial(name, eps, **options), rows))
    attacked = [row["n_attacked"] for row in rows[1:]]
    assert attacked[:3] == [40, 40, 40]
    assert attacked[4] == 40
    assert attacked[3] == 40 - rows[3]["n_correct"] < 40
    assert attacked[5] == 40 - rows[5]["n_correct"] < 40


def test_fewer_images_build_on_more_and_not_the_other_way_round():
    model, images = network(), random_images()
    few, many = trial("pgd_linf", 0.02, 10, steps=3), trial("pgd_linf", 0.02, 40, steps=3)
    clean = clean_row(model, images)
    wide = attack_row(model, images, many, [clean])
    narrow = attack_row(model, images, trial("pgd_linf", 0.03, 10, steps=3), [clean, wide])
    assert narrow["n_attacked"] == outcomes(wide)[:10].sum()
    again = attack_row(model, images, many, [clean, attack_row(model, images, few, [clean])])
    assert again["n_attacked"] == 40


def test_transfer_to_itself_is_the_white_box_attack():
    model, images = network(), random_images()
    torch.manual_seed(1)
    other = Tiny().eval()
    given = trial("pgd_linf", 0.03, steps=4)
    own, foreign = transfer_rows(model, {"own": model, "other": other}, images, given)
    assert outcomes(own).tolist() == outcomes(attack_row(model, images, given, [clean_row(model, images)])).tolist()
    clean = outcomes(clean_row(other, images))
    assert (outcomes(foreign) <= clean).all()


# ------------------------------------------------------------------------------------------------------ an experiment

TOML = """
method = [{ name = "dense" }, { name = "uv", ratio = [0.5] }]
suite = [
    { name = "fgsm", eps = [0.02, 0.05], n_examples = 30 },
    { name = "pgd_linf", eps = [0.05, 0.02], options = { steps = 3 } },
    { name = "mim_linf", eps = [0.05], n_examples = 20, options = { steps = 3 }, only = ["uv-*"] },
]
confidence = { only = ["uv-*"] }
distortion = { n_examples = 10, steps = 5, only = ["*-s0"] }
transfer = { name = "pgd_linf", eps = [0.05], n_examples = 20, options = { steps = 3 }, only = ["*-s0"] }
"""


@pytest.fixture
def trained(tmp_path, monkeypatch):
    return trained_experiment(TOML, tmp_path, monkeypatch)


def quiet(spec, **options):
    return assess(spec, device="cpu", bar=False, **options)


def test_an_experiment_is_assessed_as_declared(trained):
    assert progress(trained) == (0, 4 * 4 + 2 + 2 + 2 + 2)
    found = quiet(trained)
    assert progress(trained) == (24, 24)
    rows = found.attacks
    assert rows.groupby("run_id").size().to_dict() == {"dense-s0": 6, "dense-s1": 6, "uv-r0.5-s0": 7, "uv-r0.5-s1": 7}
    assert set(rows.query("attack == 'clean'")["n_examples"]) == {30, 40}  # first the 30 of FGSM, then all
    assert all(results.measurement(row).options for row in records(rows.query("attack == 'pgd_linf'")))
    for row in records(rows):
        bits = unpack(row["outcomes"], row["n_examples"])
        assert bits.sum() == row["n_correct"]
    attacked = rows[rows["attack"] != "clean"].set_index(["run_id", "attack", "eps"])
    more = attacked["n_correct"] > attacked["n_attacked"]
    assert set(more[more].index.droplevel("run_id")) == {("pgd_linf", 0.02)}  # after 0.05, which some withstood
    clean = rows.query("attack == 'clean' and n_examples == 40").set_index("run_id")["n_correct"]
    assert clean.to_dict() == found.runs.set_index("run_id")["n_correct"].to_dict()
    sure = found.confidence.query("quantity == 'n_correct'")
    assert sure[["run_id", "value"]].to_numpy().tolist() == [[r, clean[r]] for r in ("uv-r0.5-s0", "uv-r0.5-s1")]
    assert set(found.distortions["run_id"]) == {"dense-s0", "uv-r0.5-s0"}
    assert sorted(zip(found.transfer["run_id"], found.transfer["target"], strict=True)) == [
        (a, b) for a in ("dense-s0", "uv-r0.5-s0") for b in ("dense-s0", "uv-r0.5-s0")
    ]
    record = found.provenance["uv-r0.5-s0"]["attacks"]
    assert record["command"] == "python -m study attack tiny --preset paper"
    assert rows["commit"].iloc[0] == record["commit"]


def test_some_attacks_are_measured_alone(trained):
    found = quiet(trained, attacks=["pgd_*"], only=["*-s0"])
    assert set(found.attacks["attack"]) == {"clean", "pgd_linf"}
    assert set(found.attacks["run_id"]) == {"dense-s0", "uv-r0.5-s0"}
    assert all(getattr(found, table).empty for table in ("confidence", "distortions", "transfer"))
    done, total = progress(trained, attacks=["pgd_*"])
    assert 2 * done == total == progress(trained, attacks=["pgd_linf"])[1]


def test_what_is_measured_is_not_measured_again(trained, monkeypatch):
    quiet(trained, only=["uv-*"])
    done, total = progress(trained)
    assert 0 < done < total

    def unexpected(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(suite, "attack_row", unexpected)
    before = results.read_table(trained.folder(), "attacks")
    quiet(trained, only=["uv-*"])
    pd.testing.assert_frame_equal(results.read_table(trained.folder(), "attacks"), before)
    with pytest.raises(Failed, match="AssertionError"):
        quiet(trained, only=["dense-*"])


def test_networks_that_are_trained_later_become_targets_of_the_earlier_ones(trained):
    whole = quiet(trained).transfer
    file = trained.folder() / "transfer.csv"
    head, *lines = file.read_text().splitlines(keepends=True)
    file.write_text(head + "".join(line for line in lines if line.startswith("dense-s0,dense-s0,")))
    again = quiet(trained).transfer
    key = ["run_id", "target"]
    pd.testing.assert_frame_equal(*(t.sort_values(key, ignore_index=True)[[*key, "outcomes"]] for t in (whole, again)))


def test_rows_that_could_not_be_read_again_are_not_written(trained):
    before = quiet(trained).transfer
    rows = records(before.query("run_id == 'dense-s0'"))
    with pytest.raises(ValueError, match="must be given once"):
        results.add(trained.folder(), "dense-s0", "transfer", [*rows, *rows], {})
    pd.testing.assert_frame_equal(results.read_table(trained.folder(), "transfer"), before)


def test_transfer_at_one_radius_is_not_transfer_at_another(trained):
    rows = records(quiet(trained).transfer.query("run_id == 'dense-s0'"))
    cell = next(cell for cell in trained.cells() if cell.run_id == "dense-s0")
    grid = suite.SuiteGrid(name="pgd_linf", eps=(0.05, 0.02), n_examples=20, options={"steps": 3})
    assert [task.known(rows) for task in transfer.tasks(cell, grid, 40, [cell])] == [True, False]


def test_a_network_is_read_once_for_all_that_is_measured_on_it(trained, monkeypatch):
    read, reading = [], tasks.network_of
    monkeypatch.setattr(tasks, "network_of", lambda cell, *given: read.append(cell.run_id) or reading(cell, *given))
    quiet(trained)
    assert sorted(read) == sorted(cell.run_id for cell in trained.cells())


def test_an_interrupted_assessment_is_continued_with_the_same_outcomes(trained, monkeypatch):
    whole = quiet(trained).attacks.set_index(["run_id", "attack", "eps", "n_examples"])["outcomes"]
    for table in ("attacks", "distortions", "transfer"):
        (trained.folder() / f"{table}.csv").unlink()
    original, calls = suite.attack_row, iter(range(100))

    def interrupted(*args, **kwargs):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(suite, "attack_row", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quiet(trained)
    assert progress(trained)[0] == 2 + 2 + 2 + 5  # the suite comes last
    again = quiet(trained, jobs=2).attacks.set_index(["run_id", "attack", "eps", "n_examples"])["outcomes"]
    assert again.sort_index().to_dict() == whole.sort_index().to_dict()


def test_a_measurement_that_ends_between_its_record_and_its_journal_leaves_no_journal(trained, monkeypatch):
    check_that_no_journal_is_left(lambda: quiet(trained), monkeypatch)


def test_lost_weights_are_trained_again(trained):
    cell = trained.cells()[0]
    networks.weights_file(cell).unlink()
    found = quiet(trained, only=[cell.run_id])
    n_correct = found.runs.set_index("run_id")["n_correct"][cell.run_id]
    assert found.attacks.query("attack == 'clean' and n_examples == 40")["n_correct"].tolist() == [n_correct]


def test_weights_that_are_not_those_of_the_results_are_not_measured(trained):
    """As those of a training on another machine; they are recorded anew, and then measured."""
    spec, (cell, *_) = trained, trained.cells()
    path = networks.weights_file(cell)
    saved = torch.load(path, weights_only=True)
    name = next(iter(saved["model"]))
    saved["model"][name] = saved["model"][name] + 0.5
    saved.pop("digest")
    torch.save(saved, path)
    with pytest.raises(
        Failed, match=r"weights of dense-s0 = '\w{16}': must be those that its results are of, \w{16}; "
    ):
        quiet(spec, only=["dense-s0"])
    assert results.read_table(spec.folder(), "attacks").empty
    table = results.read_table(spec.folder(), "runs")
    table[table["run_id"] != "dense-s0"].to_csv(spec.folder() / "runs.csv", index=False)
    run_experiment(spec, device="cpu", progress=False)
    assert set(quiet(spec, only=["dense-s0"]).attacks["run_id"]) == {"dense-s0"}


@pytest.mark.parametrize("same", [True, False])
def test_what_was_measured_stays_while_the_weights_do_and_goes_when_they_go(trained, same):
    quiet(trained, only=["dense-s0"])
    before = results.read_table(trained.folder(), "attacks")
    table = results.read_table(trained.folder(), "runs")
    table[table["run_id"] != "dense-s0"].to_csv(trained.folder() / "runs.csv", index=False)
    if not same:
        path = trained.folder() / "provenance.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        record["runs"]["dense-s0"]["weights"] = "those of another machine"
        path.write_text(json.dumps(record), encoding="utf-8")
    run_experiment(trained, device="cpu", progress=False)
    after = results.read_table(trained.folder(), "attacks")
    if same:
        pd.testing.assert_frame_equal(after, before)
    else:
        assert "dense-s0" not in set(after["run_id"])


def test_time_that_is_up_leaves_the_rest(trained):
    quiet(trained, max_minutes=1e-9)
    assert progress(trained)[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "jobs = 0: must be >= 1"),
        ({"max_minutes": 0}, "max_minutes = 0: must be > 0"),
        ({"only": ["devse-*"]}, "only = 'devse-.*': unknown"),
        ({"attacks": ["fgms"]}, "attacks = 'fgms': unknown; did you mean 'fgsm'"),
    ],
)
def test_bad_input(trained, options, message):
    with pytest.raises(ValueError, match=message):
        quiet(trained, **options)
