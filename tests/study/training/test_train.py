"""The training loop: what it minimizes, which batches it sees, its schedule, and how it gives up."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import Tiny, generator
from study.data import Images
from study.training.loop import Diverged, Recipe, fit
from wellcond import convert, optim


def images(n=70):
    """Learnable: the label is the brightest third of the image."""
    labels = torch.randint(0, 3, (n,), generator=generator(1))
    x = torch.randint(0, 120, (n, 1, 28, 28), generator=generator(2))
    for third in range(3):
        x[labels == third, :, 9 * third : 9 * third + 9] += 120
    return Images(x.to(torch.uint8), labels)


def network():
    torch.manual_seed(0)
    return Tiny(num_classes=3)


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


@pytest.mark.parametrize("factorized", [False, True])
def test_the_loss_decreases_and_the_classes_are_learnt(factorized):
    model = network()
    if factorized:
        model = optim.constrain(convert.factorize(model, ratio=0.5), 1.5)
    losses = []
    optimizer = optim.LowRankSGD(optim.param_groups(model, max_cond=1.5), lr=0.1, momentum=0.3)
    fit(model, optimizer, images(), Recipe(epochs=8, batch_size=16), on_epoch=lambda epoch, loss: losses.append(loss))
    assert losses[-1] < 0.5 * losses[0]
    assert (model(images().pixels(slice(None))).argmax(1) == images().labels).float().mean() > 0.9


def test_the_reported_loss_is_the_mean_over_images():
    """Also of the short last batch: 70 images in batches of 16 leave 6."""
    reported, model = [], network()
    fit(model, sgd(model, 1e-12), images(), Recipe(epochs=1, batch_size=16), on_epoch=lambda *row: reported.append(row))
    expected = F.cross_entropy(model(images().pixels(slice(None))), images().labels).item()
    assert reported == [(1, pytest.approx(expected, rel=1e-5))]


class Recorder(nn.Module):
    """Remembers the size of each batch and the mode it came in."""

    def __init__(self):
        super().__init__()
        self.inner, self.seen = network(), []

    def forward(self, x):
        self.seen.append((len(x), self.training))
        return self.inner(x)


def test_every_batch_is_used_in_training_mode():
    model, modes = Recorder(), []
    fit(model, sgd(model), images(), Recipe(epochs=2, batch_size=32), on_epoch=lambda *_: modes.append(model.training))
    assert model.seen == [(32, True), (32, True), (6, True)] * 2
    assert modes == [False, False]
    assert not model.training


def test_one_step_is_that_of_the_penalized_loss():
    model, reference = network(), network()
    penalty = lambda m: 0.1 * sum(p.square().sum() for p in m.parameters())  # noqa: E731
    fit(model, sgd(model), images(), Recipe(epochs=1, batch_size=100), penalty=penalty)
    x, y = images().pixels(slice(None)), images().labels
    (F.cross_entropy(reference(x), y) + penalty(reference)).backward()
    sgd(reference).step()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)  # the images come in another order


def test_the_penalty_is_not_part_of_the_reported_loss():
    losses = []
    for penalty in (None, lambda m: 1e3 + 0 * next(m.parameters()).sum()):
        model = network()
        fit(
            model,
            sgd(model),
            images(),
            Recipe(epochs=1, batch_size=32),
            penalty=penalty,
            on_epoch=lambda _, v: losses.append(v),
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


class Rates(torch.optim.SGD):
    """Remembers the learning rate of each step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rates = []

    def step(self, closure=None):
        self.rates.append(self.param_groups[0]["lr"])
        return super().step(closure)


def test_milestones_are_epochs_after_which_the_rate_falls():
    model = network()
    optimizer = Rates(model.parameters(), lr=1.0)
    fit(model, optimizer, images(), Recipe(epochs=5, batch_size=100, milestones=[2, 4], gamma=0.5))
    assert optimizer.rates == [1, 1, 0.5, 0.5, 0.25]


def test_the_rate_rises_linearly_over_the_warm_up():
    """Step t of T has η (1 + (k - 1) t/T) for batches k times larger; then the milestones count."""
    model, k = network(), 4
    optimizer = Rates(model.parameters(), lr=0.2 * k)
    options = {"warmup": 2, "warmup_start": 1 / k, "milestones": [3], "gamma": 0.5}
    fit(model, optimizer, images(), Recipe(epochs=4, batch_size=16, **options))
    rising = [0.2 * (1 + (k - 1) * t / 10) for t in range(10)]  # five batches an epoch
    assert optimizer.rates == pytest.approx([*rising, *5 * [0.8], *5 * [0.4]])


def test_seed_and_epoch_choose_the_batches():
    weights = []
    for seed in (0, 0, 1):
        model = network()
        fit(model, sgd(model), images(), Recipe(epochs=2, batch_size=16, augment="crop_flip"), seed=seed)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_no_epochs_train_nothing():
    model, before = network().train(), network().state_dict()
    fit(model, sgd(model), images(), Recipe(epochs=0, batch_size=16))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.training


@pytest.mark.filterwarnings("ignore:Detected call of")  # the learning rate is scheduled without a step
@pytest.mark.parametrize("retraction", ["qr", "polar", "cayley"])
def test_divergence_is_reported(retraction):
    """By a dense network, by every retraction of a factorized one (LAPACK refuses NaN), and where there are no data."""
    dense = network()
    with pytest.raises(Diverged, match="epoch 1: training loss nan"):
        fit(dense, sgd(dense, 1e30), images(), Recipe(epochs=3, batch_size=16))
    model = optim.constrain(convert.factorize(network(), ratio=0.5), 1.1)
    groups = optim.param_groups(model, max_cond=1.1, retraction=retraction)
    with pytest.raises(Diverged, match="epoch 1: "):
        fit(model, optim.LowRankSGD(groups, lr=1e30), images(), Recipe(epochs=3, batch_size=16))
    with pytest.raises(Diverged, match="training loss nan"):
        fit(network(), sgd(dense), images().first(0), Recipe(epochs=1, batch_size=16))


def test_gradients_that_are_not_finite_are_a_divergence_too():
    """The loss may still be finite in the step in which LAPACK is given NaN."""
    model = optim.constrain(convert.factorize(network(), ratio=0.5), 1.1)
    optimizer = optim.LowRankSGD(optim.param_groups(model, max_cond=1.1))
    with pytest.raises(Diverged, match="epoch 1"):  # the value 0, the derivative 0/0
        fit(
            model, optimizer, images(), Recipe(epochs=1, batch_size=16), penalty=lambda m: (0 * m.hidden.S.sum()).sqrt()
        )


def test_a_failing_factorization_with_a_finite_loss_is_no_divergence():
    model = network()

    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            raise torch.linalg.LinAlgError("did not converge")

    with pytest.raises(torch.linalg.LinAlgError):
        fit(model, Failing(model.parameters()), images(), Recipe(epochs=1, batch_size=16))


def test_weights_that_are_not_finite_are_found_though_the_loss_is():
    """The last step of an epoch is seen by no forward pass."""
    model = network()

    class Last(torch.optim.SGD):
        def step(self, closure=None):
            loss = super().step(closure)
            model.hidden.bias.data.fill_(math.inf)
            return loss

    with pytest.raises(Diverged):
        fit(model, Last(model.parameters()), images(), Recipe(epochs=1, batch_size=100))


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        *[("epochs", -1, ">= 0"), ("batch_size", 0, ">= 1"), ("warmup", -1, ">= 0")],
        *[("warmup_start", 0.0, r"in \(0, 1\]"), ("warmup_start", 1.5, r"in \(0, 1\]")],
    ],
)
def test_arguments_out_of_range(field, value, accepted):
    with pytest.raises(ValueError, match=f"{field} = {value}: must be {accepted}"):
        Recipe(**{"epochs": 1, "batch_size": 1, field: value})
