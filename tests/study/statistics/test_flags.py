"""Each flag rises on a table made for it and on no healthy one; masked networks are caught, unmasked ones are not."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest
from torch import nn
from torch.nn import functional as F

from study.attacks.registry import ATTACKS, frozen, perturb
from study.data import load
from study.measurement.calibration import confidence_rows
from study.results.outcomes import pack
from study.statistics.flags import (
    ATTACK_COLUMNS,
    AUTOATTACK_TOLERATED,
    CONFIDENCE_COLUMNS,
    FLAGS,
    GREY_RADIUS,
    LARGEST_CLASS,
    SIGNIFICANCE,
    TOLERATED,
    clearly_above,
    flags_of,
    symbols,
)

N = 1000


def standing(share, shift=0, n=N):
    """The outcomes of n images, the first share·n of which stand, all moved by `shift`."""
    return np.roll(np.arange(n) < round(share * n), shift)


def row(attack, eps, alive, norm="linf", options="", run_id="a"):
    norm = "l2" if attack.endswith("_l2") else norm
    values = (run_id, attack, norm, eps, options, len(alive), pack(alive))
    return dict(zip(ATTACK_COLUMNS, values, strict=True))


def attacks(*rows):
    return pd.DataFrame(rows, columns=list(ATTACK_COLUMNS))


def confidence(run_id="a", n=N, **shares):
    rows = [(run_id, name, value, n) for name, value in shares.items()]
    return pd.DataFrame(rows, columns=list(CONFIDENCE_COLUMNS))


def healthy(run_id="a"):
    """Stronger attacks fell a little more, larger radii much more, and at 1/2 only some images of one class stand."""
    few, many = "restarts=1 steps=20", "restarts=5 steps=100"
    return [
        {**row("clean", 0.0, standing(0.98), norm="", run_id=run_id), "norm": None, "options": None},
        *(
            row(attack, eps, standing(share), options=options, run_id=run_id)
            for eps, base in ((0.1, 0.6), (0.5, 0.1))
            for attack, options, share in (
                ("fgsm", "", 0.8 if eps < 0.5 else 0.3),
                ("fgsm_scaled", "", 0.8 if eps < 0.5 else 0.3),
                ("pgd_linf", few, base),
                ("pgd_linf", many, base - 0.004),
                ("pgd_linf_scaled", many, base - 0.005),
                ("mim_linf", "steps=20", base - 0.006),
                ("square_linf", "queries=1000", base - 0.006),
                ("autoattack_linf", "", base - 0.03),
            )
        ),
        row("pgd_l2", 2.0, standing(0.3), options=few, run_id=run_id),
        row("pgd_l2", 2.0, standing(0.3), options=many, run_id=run_id),
        row("square_l2", 2.0, standing(0.3), run_id=run_id),
        row("gaussian_noise", 5.0, standing(0.9), norm="corruption", run_id=run_id),
    ]


CALM = confidence(zero_gradient=0.001, saturated=0.002, ece=0.02)


def raised(rows, about=CALM):
    return {(f.flag, f.attack, f.eps): f.evidence for f in flags_of(attacks(*rows), about).itertuples()}


def test_a_healthy_run_has_no_flag():
    assert raised(healthy()) == {}


PGD = row("pgd_linf", 0.1, standing(0.6))
SITUATIONS = {
    # what is added to the healthy run or replaces parts of it, and the flag with its number and evidence
    "zero_gradient": (
        [PGD],
        confidence(zero_gradient=0.02),
        {("zero_gradient", "pgd_linf", 0.1): "2.0 % of 1,000 images have no gradient"},
    ),
    "fgsm_stronger": (
        [PGD, row("fgsm", 0.1, standing(0.7, shift=20))],
        CALM,
        {("fgsm_stronger", "pgd_linf", 0.1): "20 of 1,000 images survive pgd_linf, not fgsm"},
    ),
    "square_stronger": (
        [PGD, row("square_linf", 0.1, standing(0.55))],
        CALM,
        {("square_stronger", "pgd_linf", 0.1): "50 of 1,000 images survive pgd_linf, not square_linf"},
    ),
    "square_stronger in l2": (
        [row("pgd_l2", 1.0, standing(0.6)), row("square_l2", 1.0, standing(0.58))],
        CALM,
        {("square_stronger", "pgd_l2", 1.0): "20 of 1,000 images survive pgd_l2, not square_l2"},
    ),
    "keeps_more_than_a_class": (
        [row("autoattack_linf", 0.5, standing(0.2)), row("fgsm", 0.5, standing(0.5)), row("pgd_l2", 10, standing(0.5))],
        CALM,
        {
            ("keeps_more_than_a_class", "autoattack_linf", 0.5): "200 of 1,000 images survive where all could be made "
            "the same grey"
        },
    ),
    "more_steps_help": (
        [
            row("pgd_linf", 0.1, standing(0.6), options="restarts=1 steps=20"),
            row("pgd_linf", 0.1, standing(0.58), options="restarts=1 steps=100"),
            row("pgd_linf", 0.1, standing(0.57), options="restarts=5 steps=100"),
        ],
        CALM,
        {
            ("more_steps_help", "pgd_linf", 0.1): "from restarts=1 steps=20 to restarts=5 steps=100, 30 more of 1,000 "
            "images fall"
        },
    ),
    "autoattack_stronger": (
        [PGD, row("autoattack_linf", 0.1, standing(0.45))],
        CALM,
        {("autoattack_stronger", "pgd_linf", 0.1): "150 of 1,000 images survive pgd_linf, not autoattack_linf"},
    ),
    "logit_scale": (
        [PGD, row("pgd_linf_scaled", 0.1, standing(0.5)), row("fgsm", 0.1, standing(0.7))],
        confidence(saturated=0.4),
        {
            ("logit_scale", "pgd_linf", 0.1): "on scaled logits 100 more of 1,000 images fall",
            ("logit_scale", "fgsm", 0.1): "40.0 % of 1,000 images have a loss of exactly 0",
        },
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_flag_rises_where_it_should_and_alone(situation):
    rows, about, expected = SITUATIONS[situation]
    assert raised(rows, about) == expected


def test_every_flag_has_its_situation():
    assert {flag for _, _, expected in SITUATIONS.values() for flag, *_ in expected} == FLAGS.keys()


def test_zero_gradients_concern_the_attacks_that_need_them():
    found = {attack for flag, attack, _ in raised(healthy(), confidence(zero_gradient=0.3)) if flag == "zero_gradient"}
    assert found == {"fgsm", "fgsm_scaled", "pgd_linf", "pgd_linf_scaled", "mim_linf", "pgd_l2"}


def test_a_measured_scale_counts_more_than_saturated_losses():
    """Where the attack on scaled logits fells no more, saturation did no harm."""
    rows = [PGD, row("pgd_linf_scaled", 0.1, standing(0.6)), row("mim_linf", 0.1, standing(0.598))]
    rows += [row("fgsm", 0.1, standing(0.8)), row("pgd_l2", 1.0, standing(0.6))]
    found = raised(rows, confidence(saturated=0.4))
    assert set(found) == {("logit_scale", "fgsm", 0.1), ("logit_scale", "pgd_l2", 1.0)}


def test_images_lost_by_chance_are_set_against_those_won():
    """A second run from other random starts loses as many images as it wins: more steps do not help."""
    few = row("pgd_linf", 0.1, standing(0.6), options="steps=20")
    assert raised([few, row("pgd_linf", 0.1, standing(0.6, shift=30), options="steps=100")]) == {}
    assert raised([few, row("pgd_linf", 0.1, standing(0.57, shift=30), options="steps=100")]) != {}


def test_only_common_images_are_compared():
    """The first 200 stand both times; what FGSM does to the others is not known of PGD."""
    rows = [row("pgd_linf", 0.1, standing(1, n=200)), row("fgsm", 0.1, standing(0.2))]
    assert raised(rows) == {}
    rows = [row("pgd_linf", 0.1, standing(1, n=200)), row("fgsm", 0.1, standing(0.15))]
    assert set(raised(rows)) == {("fgsm_stronger", "pgd_linf", 0.1)}


def test_one_image_is_no_flag_and_radius_zero_none_either():
    for n in (10, 100, N):
        alive = standing(1, n=n)
        rows = [row("pgd_linf", 0.1, alive), row("square_linf", 0.1, alive & (np.arange(n) > 0))]
        assert raised(rows) == {}
    assert raised([row("pgd_linf", 0.0, standing(0.9))], confidence(zero_gradient=0.5)) == {}


@pytest.mark.parametrize("share", [TOLERATED, AUTOATTACK_TOLERATED, LARGEST_CLASS])
@pytest.mark.parametrize("n", [50, N, 10_000])
def test_a_count_is_judged_by_the_exact_test(n, share):
    for k in range(0, n // 5, max(1, n // 500)):
        expected = binomtest(k, n, share, alternative="greater").pvalue < SIGNIFICANCE
        assert clearly_above(k, n, share) == expected


def test_runs_are_judged_apart_and_numbers_get_their_symbols():
    rows = [*healthy("a"), row("pgd_linf", 0.1, standing(0.6), run_id="b")]
    rows += [row("square_linf", 0.1, standing(0.3), run_id="b"), row("fgsm", 0.1, standing(0.4), run_id="b")]
    about = pd.concat([CALM, confidence("b", zero_gradient=0.2, saturated=0.2)])
    found = flags_of(attacks(*rows), about)
    assert set(found["run_id"]) == {"b"}
    assert symbols(found, "b", "pgd_linf", 0.1 + 1e-12) == "ZFSL"
    assert symbols(found, "b", "fgsm", 0.1) == "ZL"
    assert symbols(found, "b", "square_linf", 0.1) == symbols(found, "a", "pgd_linf", 0.1) == ""


def test_tables_without_rows_have_no_flags():
    found = flags_of(attacks(), confidence())
    assert found.empty
    assert symbols(found, "a", "fgsm", 0.1) == ""


def test_tables_of_another_form_are_refused():
    with pytest.raises(ValueError, match=r"^columns = .* must be including norm$"):
        flags_of(attacks(PGD).drop(columns="norm"), CALM)
    with pytest.raises(ValueError, match=r"^outcomes = "):
        flags_of(attacks({**PGD, "n_examples": 10}), CALM)


# --- the page of the book

PAGE = (Path(__file__).resolve().parents[3] / "book" / "flags.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.+?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))


def prose(text):
    return " ".join(text.split())


@pytest.mark.parametrize("name", FLAGS)
def test_the_page_explains_the_flag_in_its_own_words_and_says_what_to_do(name):
    flag = FLAGS[name]
    section = prose(SECTIONS[f"{flag.symbol}: {flag.title}"])
    assert section.startswith(flag.meaning)
    assert f"**What to do.** {flag.remedy}" in section
    assert "**How it arises.**" in section
    assert "**Example.**" in section


@pytest.mark.parametrize(
    ("section", "thresholds"),
    [
        ("What is counted", [f"{100 * TOLERATED:g} %", f"{100 * SIGNIFICANCE:g} %"]),
        (
            "G: Right about grey images",
            [f"{GREY_RADIUS['linf']:g} in", f"{GREY_RADIUS['l2']:g} in", f"{100 * LARGEST_CLASS:g} %"],
        ),
        ("A: AutoAttack much stronger than PGD", [f"{100 * AUTOATTACK_TOLERATED:g} %"]),
    ],
)
def test_the_page_names_the_thresholds(section, thresholds):
    for threshold in thresholds:
        assert threshold in prose(SECTIONS[section])


def test_the_page_names_the_smallest_counts_that_raise_a_flag():
    least = [next(k for k in range(n) if clearly_above(k, n, TOLERATED)) for n in (100, 1000, 10_000)]
    assert "{} images of 100, {} of 1,000 or {} of 10,000".format(*least) in prose(SECTIONS["What is counted"])


def test_symbols_tell_the_flags_apart():
    assert len({flag.symbol for flag in FLAGS.values()}) == len(FLAGS)
    assert all(flag.meaning.endswith(".") and flag.remedy.endswith(".") for flag in FLAGS.values())


# --- real networks

RADII = (0.05, 0.5)


class Masked(nn.Module):
    """A network behind a mask: of its pixels on the way in, of its logits on the way out."""

    def __init__(self, model, pixels=None, factor=1.0):
        super().__init__()
        self.model, self.pixels, self.factor = model, pixels or nn.Identity(), factor

    def forward(self, x):
        return self.factor * self.model(self.pixels(x))


class Steps(nn.Module):
    """Sixteen grey levels: the derivative is zero wherever there is one."""

    def forward(self, x):
        return (15 * x).round() / 15


@pytest.fixture(scope="module")
def digits():
    """A small network that knows the digits, and 100 images."""
    data = load("digits", n_test=100)
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(196, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(10):
        for x, y in data.train.batches(64, seed=0, epoch=epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model, data.test


@torch.no_grad()
def random_search(model, x, y, eps, tries=60):
    """Uses logits only, as Square does: bright or dark squares at the border of the ball, kept where margins fall."""
    rng = torch.Generator().manual_seed(0)

    def margin(x):
        z = model(x)
        own = z.gather(1, y[:, None])
        return (own - z.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True)).squeeze(1)

    def sign(*shape):
        return 2.0 * torch.randint(0, 2, shape, generator=rng) - 1

    best = (x + eps * sign(len(x), 1, 1, x.shape[3])).clamp(0, 1)  # stripes
    least = margin(best)
    for _ in range(tries):
        top, left = torch.randint(0, 20, (2,), generator=rng).tolist()
        patch = (slice(None), slice(None), slice(top, top + 8), slice(left, left + 8))
        candidate = best.clone()
        candidate[patch] = (x[patch] + eps * sign(len(x), 1, 1, 1)).clamp(0, 1)
        found = margin(candidate)
        better = found < least
        best[better], least[better] = candidate[better], found[better]
    return best


def outcomes(model, images, attack, eps, **options):
    """Which images are classified correctly as they are and after the attack."""
    x, y = images.pixels(slice(None)), images.labels
    adversarial = attack(model, x, y, eps, **options)
    with torch.no_grad(), frozen(model):
        return ((model(x).argmax(1) == y) & (model(adversarial).argmax(1) == y)).numpy()


def measured(model, images):
    """The tables of a model under FGSM, PGD with few and more steps, and the random search on the survivors of PGD."""
    rows = []
    for eps in RADII:
        alive = {}
        for attack, steps in (("fgsm", 0), ("pgd_linf", 10), ("pgd_linf", 40)):
            call = lambda m, x, y, eps, kind=ATTACKS[attack], **o: perturb(kind, m, x, y, eps, **o)  # noqa: E731
            options = {"steps": steps} if steps else {}
            alive[attack] = outcomes(model, images, call, eps, **options)
            text = " ".join(f"{name}={value}" for name, value in options.items())
            rows.append(row(attack, eps, alive[attack], options=text))
        searched = alive["pgd_linf"] & outcomes(model, images, random_search, eps)
        rows.append(row("square_linf", eps, searched))
    about = pd.DataFrame([{"run_id": "a", **quantity} for quantity in confidence_rows(model, images)])
    return attacks(*rows), about


def test_a_network_without_a_mask_has_no_flag(digits):
    table, about = measured(*digits)
    assert flags_of(table, about).empty
    values = about.set_index("quantity")["value"]
    assert values["nll"] < 0.5  # it has learned something


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ({"factor": 1e4}, {"zero_gradient", "square_stronger", "keeps_more_than_a_class", "logit_scale"}),
        ({"pixels": Steps()}, {"zero_gradient", "square_stronger", "keeps_more_than_a_class"}),
    ],
    ids=["logits times 10,000", "grey levels"],
)
def test_a_mask_on_the_same_network_is_flagged(digits, mask, expected):
    """The accuracy under PGD looks far better, and every trace of the failure is found."""
    model, images = digits
    masked, (plain, _) = Masked(model, **mask), measured(model, images)
    table, about = measured(masked, images)
    counts = [
        frame.assign(alive=frame["outcomes"].map(lambda text: bin(int(text, 16)).count("1")))
        .groupby(["attack", "eps"])["alive"]
        .min()
        for frame in (table, plain)
    ]
    assert counts[0]["pgd_linf", 0.5] > 50 + counts[1]["pgd_linf", 0.5]
    found = flags_of(table, about)
    assert expected <= set(found.loc[found["attack"].isin(["pgd_linf", "fgsm"]), "flag"])
    assert symbols(found, "a", "pgd_linf", 0.5)
