"""Counts against naive loops, one image at a time, and reports against numpy."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from experiments import GRADIENT_ATTACKS
from helpers import Tiny, generator
from study import networks as models
from study.attacks.registry import ATTACKS, perturb
from study.data import Images
from study.measurement import accuracy as evaluate
from study.measurement.accuracy import robustness_curve
from wellcond import convert, diagnostics, layers
from wellcond.kinds.convolution import LowRankConv2d


def random_images(n=23, classes=3, shape=(1, 28, 28)):
    images = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator(4))
    return Images(images, torch.randint(0, classes, (n,), generator=generator(5)))


def network():
    torch.manual_seed(0)
    return nn.Sequential(Tiny(num_classes=3), nn.BatchNorm1d(3))


class Constant(nn.Module):
    """Always predicts the class `winner`; the gradient with respect to the input is exactly zero."""

    def __init__(self, winner):
        super().__init__()
        self.register_buffer("logits", F.one_hot(torch.tensor(winner), 3).float())

    def forward(self, x):
        return self.logits + 0 * x.flatten(1).sum(1, keepdim=True)


@pytest.fixture
def chunks(monkeypatch):
    """A chunk size that divides neither 23 images nor the survivors."""
    monkeypatch.setattr(evaluate, "CHUNK", 7)
    monkeypatch.setattr(evaluate, "ATTACKED", 5)


def one_by_one(images):
    return [(images.pixels(slice(i, i + 1)), images.labels[i : i + 1]) for i in range(len(images))]


@pytest.mark.parametrize("n", [23, 7, 14, 1])
@pytest.mark.usefixtures("chunks")
def test_counts_equal_a_naive_loop(n):
    """Where the number of images is no multiple of the chunk, the last, short chunk counts by its own size."""
    images, model = random_images(n), network().eval()
    correct, loss = 0, 0.0
    for x, y in one_by_one(images):
        logits = model(x)
        correct += int(logits.argmax() == y)
        loss += F.cross_entropy(logits, y).item()
    score = evaluate.count_correct(model, images)
    assert (score.n, score.n_correct) == (n, correct)
    assert score.loss_sum == pytest.approx(loss, rel=1e-5)


@pytest.mark.usefixtures("chunks")
def test_counting_leaves_the_model_as_it_was():
    """Evaluation uses running statistics, updates none, and puts the training mode back."""
    model = network().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    score = evaluate.count_correct(model, random_images())
    assert all(m.training for m in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert evaluate.count_correct(model.eval(), random_images()) == score


def test_no_images_are_counted_as_none():
    score = evaluate.count_correct(network(), random_images().first(0))
    assert (score.n, score.n_correct, score.loss_sum) == (0, 0, 0.0)


@pytest.mark.usefixtures("chunks")
class TestRobustnessCurve:
    epsilons = (0.0, 0.02, 0.05, 0.1, 0.2)

    def test_radius_zero_is_the_clean_count(self):
        model, images = network().eval(), random_images()
        for attack in ATTACKS:
            row = robustness_curve(model, images, attack, [0.0])[0]
            assert row["n_correct"] == evaluate.count_correct(model, images).n_correct
            assert row["n_examples"] == 23

    def test_survivors_only_equals_attacking_every_image(self):
        """FGSM is deterministic: correct as it is and after the attack, image by image."""
        model, images = network().eval(), random_images()
        rows = robustness_curve(model, images, "fgsm", self.epsilons)
        for eps, row in zip(self.epsilons, rows, strict=True):
            expected = 0
            for x, y in one_by_one(images):
                adversarial = perturb(ATTACKS["fgsm"], model, x, y, eps)
                expected += int(model(x).argmax() == y and model(adversarial).argmax() == y)
            assert row["n_correct"] == expected
        assert len({row["n_correct"] for row in rows}) > 2  # the radii tell the images apart

    def test_linear_model_against_its_closed_form(self):
        """Two linear classes: an image falls once ε times the dual norm of w exceeds its margin."""
        images = random_images(classes=2, shape=(1, 4, 4))
        images = Images(images.images // 2 + 64, images.labels)  # pixels in [1/4, 3/4]: no clipping at ε <= 0.2
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        w = (model[1].weight[1] - model[1].weight[0]).detach()
        middle = (images.pixels(slice(None)).flatten(1) @ w).sort().values[11:13].mean()
        with torch.no_grad():  # half the images on each side of the boundary
            model[1].bias[1] = model[1].bias[0] - middle
        margins = torch.stack([(model(x)[0, y] - model(x)[0, 1 - y]).squeeze().detach() for x, y in one_by_one(images)])
        for attack, dual in (("fgsm", w.abs().sum()), ("pgd_linf", w.abs().sum()), ("pgd_l2", w.norm())):
            critical = (margins / dual).sort().values
            # only radii where no image is nearly critical: the l2 ascent reaches all but a few per cent of its optimum
            radii = [r for r in torch.linspace(0, 0.2, 41).tolist() if not ((critical / r - 1).abs() < 0.05).any()]
            rows = robustness_curve(model, images, attack, radii)
            assert [row["n_correct"] for row in rows] == [int((critical > r).sum()) for r in radii]
            assert len({row["n_correct"] for row in rows}) > 2

    @pytest.mark.parametrize(("attack", "scale"), [("pgd_linf", 1), ("pgd_l2", 20)])
    def test_nested_attacks_never_recover(self, attack, scale):
        radii = [scale * eps for eps in self.epsilons]
        rows = robustness_curve(network().eval(), random_images(), attack, radii, steps=3)
        counts = [row["n_correct"] for row in rows]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] > counts[-1]

    @pytest.mark.parametrize(
        ("attack", "options", "expected"), [("fgsm", {}, [1, 0, 1]), ("pgd_linf", {"steps": 1}, [1, 0, 0])]
    )
    def test_an_image_that_recovers_at_a_larger_radius(self, attack, options, expected):
        """It does so under a single step, reported at each radius on its own; where balls are nested it has fallen."""

        class Hill(nn.Module):
            """Wrong where the mean pixel is near 0.6: a long step from 0.5 leaps over."""

            def forward(self, x):
                height = 1 - 100 * (x.flatten(1).mean(1) - 0.6).square() / 0.6
                return torch.stack([torch.zeros_like(height), height], 1)

        images = Images(torch.full((1, 1, 4, 4), 127, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
        rows = robustness_curve(Hill(), images, attack, [0.0, 0.1, 0.3], **options)
        assert [row["n_correct"] for row in rows] == expected

    @pytest.mark.parametrize("attack", GRADIENT_ATTACKS)
    def test_rows_are_sorted_and_complete(self, attack):
        options = {"steps": 3} if ATTACKS[attack].options else {}
        rows = robustness_curve(network().eval(), random_images(), attack, [0.1, 0.0], **options)
        assert [row["eps"] for row in rows] == [0.0, 0.1]
        columns = {"attack", "norm", "eps", "options", "n_examples", "n_correct", "n_zero_gradient"}
        for row in rows:
            assert row.keys() == columns
            assert (row["attack"], row["norm"]) == (attack, ATTACKS[attack].norm)
            assert ("steps=3" in row["options"].split()) == bool(options)

    @pytest.mark.parametrize("attack", GRADIENT_ATTACKS)
    def test_when_nothing_survives(self, attack):
        """A model that is always wrong, and one whose last image falls at the first radius."""
        images, radius = random_images(), {"linf": 0.5, "l2": 10.0}[ATTACKS[attack].norm]
        wrong = Images(images.images, torch.zeros_like(images.labels))
        assert [r["n_correct"] for r in robustness_curve(Constant(1), wrong, attack, [0.0, 0.1, 0.2])] == [0, 0, 0]
        fragile = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
        nn.init.normal_(fragile[1].weight, std=0.1, generator=generator(0))
        rows = robustness_curve(fragile, images, attack, [0.0, radius, 2 * radius])
        assert rows[0]["n_correct"] > 0
        assert [r["n_correct"] for r in rows[1:]] == [0, 0]

    @pytest.mark.parametrize("attack", GRADIENT_ATTACKS)
    def test_a_constant_model_is_flagged_by_its_zero_gradients(self, attack):
        """It looks perfectly robust; the count of zero gradients says why."""
        images = random_images()
        rows = robustness_curve(Constant(1), images, attack, [0.0, 0.3])
        expected = int((images.labels == 1).sum())
        assert [(r["n_correct"], r["n_zero_gradient"]) for r in rows] == [(expected, 23)] * 2
        assert evaluate.zero_gradients(network().eval(), images) == 0

    def test_no_images(self):
        rows = robustness_curve(network(), random_images().first(0), "fgsm", [0.0, 0.1])
        assert [(r["n_examples"], r["n_correct"], r["n_zero_gradient"]) for r in rows] == [(0, 0, 0)] * 2

    @pytest.mark.parametrize(
        ("attack", "options", "message"),
        [
            ("pdg_l2", {}, "attack = 'pdg_l2': unknown; did you mean 'pgd_l2'"),
            ("pgd_l2", {"step": 3}, "option of pgd_l2 = 'step': unknown; did you mean 'steps'"),
            ("fgsm", {"steps": 3}, "option of fgsm = 'steps': unknown"),
        ],
    )
    def test_unknown_attacks_and_options(self, attack, options, message):
        with pytest.raises(ValueError, match=message):
            robustness_curve(network(), random_images(), attack, [0.1], **options)


def test_layer_reports_against_numpy():
    """Dense layers by their matricized weight, U S Vᵀ by S, U Vᵀ by the product; in float64 from float32 numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.Linear(4, 3), layers.LowRankLinear(9, 8, 4), LowRankConv2d(2, 6, 3, 3, core=False)
    )
    with torch.no_grad():
        for p in model[2:].parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator(1)))
    reports = diagnostics.layer_reports(model)
    as_numpy = [p.detach().numpy().astype(np.float64) for p in (model[0].weight, model[1].weight, model[2].S)]
    U, V = (p.detach().numpy().astype(np.float64) for p in (model[3].U, model[3].V))
    expected = [as_numpy[0].reshape(5, -1), *as_numpy[1:], U @ V.T]
    assert list(reports) == ["0", "1", "2", "3"]
    for report, W in zip(reports.values(), expected, strict=True):
        sigma = np.linalg.svd(W, compute_uv=False)[: len(report.spectrum)]
        np.testing.assert_allclose(report.spectrum.numpy(), sigma, rtol=1e-10)
        assert report.kappa == pytest.approx(sigma[0] / sigma[-1], rel=1e-9)
    assert [len(report.spectrum) for report in reports.values()] == [5, 3, 4, 3]
    U, V = (p.detach().numpy().astype(np.float64) for p in (model[2].U, model[2].V))
    error = max(np.linalg.norm(X.T @ X - np.eye(4), 2) for X in (U, V))
    assert reports["2"].orthogonality == pytest.approx(error, rel=1e-9)
    assert all(math.isnan(reports[name].orthogonality) for name in "013")


def test_reports_of_a_whole_network_name_every_weight_layer():
    model = models.WideResNet(blocks=1, widen=1)
    assert list(diagnostics.layer_reports(convert.factorize(model, rank=2))) == list(layers.weight_layers(model))
