"""Scores of logits against closed forms, loops, and simulated networks whose calibration is known."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import DOUBLE, Tiny, generator, randn
from study.data import Images
from study.measurement import calibration
from study.measurement.accuracy import zero_gradients
from study.measurement.calibration import SCORES, confidence_rows, expected_calibration_error, logit_margin

N, CLASSES = 40, 5


def predictions(n=N, scale=2.0):
    return scale * randn(n, CLASSES, seed=1), torch.randint(0, CLASSES, (n,), generator=generator(2))


def values(model, images):
    return {row["quantity"]: row["value"] for row in confidence_rows(model, images)}


# --- calibration


def test_calibration_error_equals_a_loop_over_the_bins():
    z, y = predictions()
    p = z.softmax(1)
    expected = 0.0
    for b in range(15):
        inside = [i for i in range(N) if b / 15 < p[i].max() <= (b + 1) / 15]
        right = sum(float(p[i].argmax() == y[i]) for i in inside)
        expected += abs(right - sum(p[i].max().item() for i in inside)) / N
    assert expected_calibration_error(z, y) == pytest.approx(expected)


@pytest.mark.parametrize("n", [2_000, 20_000])
def test_a_calibrated_network_has_the_error_of_counting_alone(n):
    """Labels drawn from the predicted probabilities. Over 50 draws, the mean error is the known bias; its standard
    error is about 3 % of it, and a(1 - a) is taken at one point a bin."""
    z = 1.5 * randn(n, CLASSES, seed=3)
    p, rng = z.softmax(1), generator(4)
    found = [expected_calibration_error(z, torch.multinomial(p, 1, generator=rng).squeeze(1)) for _ in range(50)]
    confidence = p.amax(1)
    bins = [confidence[(confidence * 15).ceil() == b + 1] for b in range(15)]
    bias = sum(math.sqrt(2 * c.mean() * (1 - c.mean()) * len(c) / math.pi) for c in bins if len(c)) / n
    assert sum(found) / 50 == pytest.approx(bias, rel=0.12)


@pytest.mark.parametrize(("confidence", "n_correct"), [(0.9, 700), (0.6, 950), (0.8, 800)])
def test_a_wrong_confidence_is_the_gap_to_the_accuracy(confidence, n_correct):
    z = torch.tensor([math.log(confidence / (1 - confidence)), 0.0], dtype=DOUBLE).expand(1000, 2)
    y = (torch.arange(1000) >= n_correct).long()
    assert expected_calibration_error(z, y) == pytest.approx(abs(confidence - n_correct / 1000), abs=1e-12)


def test_sharpening_calibrated_predictions_costs_by_every_score():
    z = randn(20_000, CLASSES, seed=4)
    y = torch.multinomial(z.softmax(1), 1, generator=generator(5)).squeeze(1)
    for name in ("ece", "nll", "brier"):
        assert SCORES[name](3 * z, y) > SCORES[name](z, y)
        assert SCORES[name](z / 3, y) > SCORES[name](z, y)


# --- closed forms


def test_scores_of_a_network_that_knows_nothing():
    z, (_, y) = torch.zeros(N, CLASSES), predictions()
    accuracy = (y == z.argmax(1)).double().mean().item()
    found = {name: score(z, y) for name, score in SCORES.items()}
    assert found == pytest.approx(
        {
            "ece": abs(accuracy - 1 / CLASSES),
            "nll": math.log(CLASSES),
            "brier": 1 - 1 / CLASSES,
            "confidence": 1 / CLASSES,
            "logit_scale": 0,
            "saturated": 0,
        },
        abs=1e-12,
    )


def test_scores_equal_loops_over_the_images():
    z, y = predictions()
    p = [torch.exp(row) / torch.exp(row).sum() for row in z]
    nll = sum(-math.log(p[i][y[i]]) for i in range(N)) / N
    brier = sum(float((p[i][k] - float(k == y[i])) ** 2) for i in range(N) for k in range(CLASSES)) / N
    scale = sorted(float((row - row.mean()).abs().max()) for row in z)
    assert SCORES["nll"](z, y) == pytest.approx(nll)
    assert SCORES["brier"](z, y) == pytest.approx(brier)
    assert SCORES["confidence"](z, y) == pytest.approx(sum(row.max().item() for row in p) / N)
    assert SCORES["logit_scale"](z, y) == scale[(N - 1) // 2]  # torch's median is the lower of the two
    assert logit_margin(z).tolist() == [sorted(row)[-1] - sorted(row)[-2] for row in z.tolist()]


@pytest.mark.parametrize("name", SCORES)
def test_a_constant_added_to_the_logits_of_an_image_changes_nothing(name):
    z, y = predictions()
    shifted = z + 10 * randn(N, 1, seed=6)
    assert SCORES[name](shifted, y) == pytest.approx(SCORES[name](z, y), abs=1e-12)
    assert torch.allclose(logit_margin(shifted), logit_margin(z))


def test_margin_and_scale_grow_with_the_logits():
    z, y = predictions()
    assert torch.allclose(logit_margin(7 * z), 7 * logit_margin(z))
    assert SCORES["logit_scale"](7 * z, y) == pytest.approx(7 * SCORES["logit_scale"](z, y))


def test_a_saturated_image_has_lost_the_gradient_of_its_label():
    """In float32: two images beyond log 2²⁴ = 16.6, one within, and one that is misclassified."""
    z = torch.tensor([[17.5, 0.0], [40.0, 0.0], [15.0, 0.0], [0.0, 40.0]], requires_grad=True)
    y = torch.zeros(4, dtype=torch.long)
    assert SCORES["saturated"](z.detach(), y) == 0.5
    (gradient,) = torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), z)
    assert (gradient[:, 0] == 0).tolist() == [True, True, False, False]
    assert (gradient[:, 1] > 0).all()


# --- the rows of a model


def images(n=23, classes=3, shape=(1, 28, 28)):
    x = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator(4))
    return Images(x, torch.randint(0, classes, (n,), generator=generator(5)))


def test_gradients_of_a_linear_model_have_their_closed_form(monkeypatch):
    """∇_x L = Wᵀ(p - e_y), image by image, whatever the chunk."""
    monkeypatch.setattr(calibration, "CHUNK", 7)
    torch.manual_seed(0)
    data, model = images(shape=(1, 4, 4)), nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        z = model(data.pixels(slice(None)))
        gradient = (z.softmax(1) - F.one_hot(data.labels, 3)).double() @ model[1].weight.double()
    found = values(model, data)
    for name, norm in (("gradient_l1", gradient.abs().sum(1)), ("gradient_l2", gradient.norm(dim=1))):
        for q in (5, 25, 50, 75, 95):
            assert found[f"{name}_q{q:02d}"] == pytest.approx(torch.quantile(norm, q / 100).item(), rel=1e-5)
    assert found["logit_margin_q50"] == pytest.approx(logit_margin(z).median().item())
    for name, score in SCORES.items():
        assert found[name] == pytest.approx(score(z, data.labels), rel=1e-6)


def test_rows_name_each_quantity_once_and_leave_the_model_as_it_was():
    model, data = nn.Sequential(Tiny(num_classes=3), nn.BatchNorm1d(3)).train(), images()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rows = confidence_rows(model, data)
    assert len({row["quantity"] for row in rows}) == len(rows)
    assert all(row["n_examples"] == 23 and math.isfinite(row["value"]) for row in rows)
    assert all(m.training for m in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Scaled(nn.Module):
    """A network whose logits are multiplied by a constant."""

    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x):
        return self.factor * self.model(x)


def test_vanished_gradients_are_counted_as_elsewhere():
    torch.manual_seed(1)
    data, model = images(), Scaled(Tiny(num_classes=3), 1e4)
    found = values(model, data)
    assert 0 < found["zero_gradient"] == zero_gradients(model, data) / len(data) < 1
    assert found["gradient_l1_q05"] == 0
    assert values(model.model, data)["zero_gradient"] == 0


# --- bad input


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("shape", [(4,), (4, 1), (3, 2), (0, 2)])
def test_logits_of_another_shape_are_refused(name, shape):
    with pytest.raises(ValueError, match=r"^logits = \("):
        SCORES[name](torch.zeros(shape), torch.zeros(4 if shape[0] else 0, dtype=torch.long))


def test_other_bad_input_is_named():
    with pytest.raises(ValueError, match=r"^bins = 0: must be >= 1$"):
        expected_calibration_error(*predictions(), bins=0)
    with pytest.raises(ValueError, match=r"^images = '0 images': must be at least one$"):
        confidence_rows(Tiny(), images().first(0))
