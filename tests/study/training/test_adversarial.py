"""Adversarial training: the adversary's optimum and the losses in closed form, and what one step of training does."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from helpers import DOUBLE, Tiny, generator, randn
from study.data import Images
from study.networks import Normalize
from study.training import adversarial
from study.training.adversarial import STEPS, Adversary
from study.training.loop import Recipe, fit
from wellcond.methods.registry import find
from wellcond.methods.settings import Settings

SHAPE, RADIUS = (1, 4, 4), 0.1
OBJECTIVES = [("mix", 1.0), ("mix", 0.5), ("trades", 6.0)]
every_objective = pytest.mark.parametrize(("objective", "weight"), OBJECTIVES)


class TwoClasses(nn.Module):
    """Logits (0, wᵀx)."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(math.prod(SHAPE), 1, bias=False, dtype=DOUBLE)
        self.linear.weight.data.copy_(randn(1, math.prod(SHAPE), seed=3))

    def forward(self, x):
        z = self.linear(x.flatten(1))
        return torch.cat([torch.zeros_like(z), z], 1)


def inner(n=20):
    """Images whose balls lie within the pixel range. (The attack rounds ε to float32.)"""
    x = RADIUS + (1 - 2 * RADIUS) * torch.rand(n, *SHAPE, generator=generator(1), dtype=DOUBLE)
    return x, torch.arange(n) % 2


def crafted(adversary, model, x, y, seed=0):
    start = adversary.start(x, generator(seed))
    return start, adversary.images(model, x, y, start)


# ----------------------------------------------------------------------------------------------------- the closed forms


@pytest.mark.parametrize("mix", [0.3, 0.5, 1.0])
def test_mixed_loss_of_a_linear_model_is_that_of_the_worst_case(mix):
    """The worst x' is x ± ε sign(w): it moves the logit by ε ||w||₁ against the label."""
    adversary, model, (x, y) = Adversary("mix", mix, RADIUS), TwoClasses(), inner()
    _, found = crafted(adversary, model, x, y)
    w = model.linear.weight.detach().view(SHAPE)
    against = (1.0 - 2 * y)[:, None, None, None]
    torch.testing.assert_close(found, x + RADIUS * against * w.sign(), rtol=0, atol=1e-8)
    z = model(x)[:, 1] * (1 - 2 * y)
    expected = (1 - mix) * F.softplus(z).mean() + mix * F.softplus(z + RADIUS * w.abs().sum()).mean()
    torch.testing.assert_close(adversary.loss(model, x, found, y), expected, rtol=1e-6, atol=0)


def test_trades_loss_of_a_linear_model_is_that_of_an_end_of_the_ball():
    """KL(p ‖ p') is convex in the logit, least at x: the ascent goes to the end on whose side it started."""
    adversary, model, (x, y) = Adversary("trades", 6.0, RADIUS), TwoClasses(), inner()
    start, found = crafted(adversary, model, x, y)
    w = model.linear.weight.detach().view(SHAPE)
    side = (start * w).sum((1, 2, 3)).sign()
    assert {-1.0, 1.0} == set(side.tolist())
    torch.testing.assert_close(found, x + RADIUS * side[:, None, None, None] * w.sign(), rtol=0, atol=1e-8)
    z = model(x)[:, 1]
    p, q = z.sigmoid(), (z + RADIUS * side * w.abs().sum()).sigmoid()
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    expected = F.softplus(z * (1 - 2 * y)).mean() + 6 * divergence.mean()
    torch.testing.assert_close(adversary.loss(model, x, found, y), expected, rtol=1e-6, atol=0)


def test_divergence_is_that_from_the_clean_to_the_adversarial_distribution():
    clean, moved = 3 * randn(7, 5, seed=1), 3 * randn(7, 5, seed=2)
    forward, backward = (
        kl_divergence(Categorical(logits=a), Categorical(logits=b)).sum() for a, b in ((clean, moved), (moved, clean))
    )
    assert abs(forward - backward) > 0.1 * forward
    torch.testing.assert_close(adversarial.divergence(clean, moved), forward, rtol=1e-12, atol=0)
    # a class that is impossible after the attack costs without bound, one that was impossible before costs nothing
    certain, even = torch.tensor([[0.0, -200.0]]), torch.zeros(1, 2)
    assert adversarial.divergence(even, certain) > 90
    assert adversarial.divergence(certain, even).item() == pytest.approx(math.log(2))


# -------------------------------------------------------------------------------------------------------- the adversary


class Network(nn.Module):
    """Batch normalization and dropout; counts its passes in each mode."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.dropout = nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.linear = nn.Linear(36, 3)
        self.passes = {True: 0, False: 0}

    def forward(self, x):
        self.passes[self.training] += 1
        return self.linear(self.dropout(torch.tanh(self.norm(self.conv(x)))).flatten(1))


@every_objective
@pytest.mark.parametrize("radius", [1e-3, 0.3, 2.0])
def test_images_stay_in_the_ball_and_in_the_pixel_range(objective, weight, radius):
    torch.manual_seed(0)
    x = torch.rand(9, *SHAPE, generator=generator(1))
    x[0], x[1] = 0, 1
    adversary = Adversary(objective, weight, radius)
    start, found = crafted(adversary, Network(), x, torch.arange(9) % 3)
    for moved in (x + start, found):
        assert moved.min() >= -1e-7
        assert moved.max() <= 1 + 1e-7
        assert 0 < (moved - x).abs().max() <= radius + 1e-6
    assert not found.requires_grad


@every_objective
def test_the_model_is_left_as_it_was_found(objective, weight):
    """Also its gradients: those of the attack are not accumulated."""
    torch.manual_seed(0)
    model, x, y = Network().train(), torch.rand(6, *SHAPE), torch.arange(6) % 3
    model.conv.bias.requires_grad_(False)
    model(x).sum().backward()

    def state():
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        flags = [p.requires_grad for p in model.parameters()] + [m.training for m in model.modules()]
        return [v.clone() for v in model.state_dict().values()], grads, flags, [torch.get_rng_state(), x.clone()]

    before = state()
    crafted(Adversary(objective, weight, 0.1), model, x, y)
    for old, new in zip(before, state(), strict=True):
        for a, b in zip(old, new, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mixed", 1.0, 0.1), "objective = 'mixed': unknown; did you mean 'mix'"),
        (("mix", 1.0, -0.1), "radius = -0.1: must be >= 0"),
        (("mix", 1.0, math.nan), "radius = nan: must be >= 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Adversary(*arguments)


# ------------------------------------------------------------------------------------------------------------- training


def images(n=50):
    labels = torch.randint(0, 3, (n,), generator=generator(1))
    return Images(torch.randint(0, 256, (n, 1, 28, 28), generator=generator(2)).to(torch.uint8), labels)


METHODS = [("condlr", Settings(ratio=0.5, max_cond=1.1)), ("dlrt_adaptive", Settings(ratio=0.5, tolerance=0.1))]
every_method = pytest.mark.parametrize(("method", "settings"), METHODS, ids=[name for name, _ in METHODS])


def trained(method, settings, adversary, *, seed=0, network=Tiny, **options):
    """The losses and the parameters after two epochs of three batches."""
    torch.manual_seed(0)
    method = find(method)
    model = method.prepare(network(3), settings)
    optimizer = method.optimizer(method.groups(model, settings), lr=0.05, momentum=0.3)
    losses = []
    fit(
        model,
        optimizer,
        images(),
        Recipe(epochs=2, batch_size=20, **options),
        seed=seed,
        adversary=adversary,
        on_epoch=lambda _, loss: losses.append(loss),
    )
    return losses, [p.detach() for p in model.parameters()]


@pytest.fixture
def float64():
    torch.set_default_dtype(DOUBLE)
    yield
    torch.set_default_dtype(torch.float32)


@every_method
@every_objective
def test_without_a_radius_it_is_plain_training(float64, method, settings, objective, weight):
    losses, parameters = trained(method, settings, Adversary(objective, weight, 0.0))
    expected_losses, expected = trained(method, settings, None)
    assert losses == pytest.approx(expected_losses, rel=1e-12)
    for p, q in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-10)


@every_method
@every_objective
def test_seeds_alone_choose_the_starts(method, settings, objective, weight):
    adversary = Adversary(objective, weight, 0.1)
    _, first = trained(method, settings, adversary)
    torch.rand(3)
    _, again = trained(method, settings, adversary)
    assert all(map(torch.equal, first, again))
    _, other = trained(method, settings, adversary, seed=1)
    assert not all(p.shape == q.shape and torch.equal(p, q) for p, q in zip(first, other, strict=True))


class Counting(Tiny):
    passes: dict[bool, int]

    def forward(self, x):
        self.passes[self.training] += 1
        return super().forward(x)


# passes of the adversary: one a step, and one more for the distribution that TRADES starts from
PASSES = {("mix", 1.0): (STEPS, 1), ("mix", 0.5): (STEPS, 2), ("trades", 6.0): (STEPS + 1, 2)}


@every_method
@every_objective
def test_the_images_of_a_batch_are_made_once(method, settings, objective, weight):
    """Also where the optimizer evaluates the loss twice; and in evaluation mode, while the loss is in training mode."""
    Counting.passes = {True: 0, False: 0}
    trained(method, settings, Adversary(objective, weight, 0.1), network=Counting)
    attacks, evaluations = PASSES[objective, weight]
    assert Counting.passes == {False: 6 * attacks, True: 6 * evaluations * (2 if method == "dlrt_adaptive" else 1)}


@pytest.mark.parametrize("mix", [0.5, 1.0])
def test_the_first_step_is_that_of_the_loss_at_the_worst_images(float64, mix):
    """Which are known for a linear model: x' = x ± ε sign(w₁ - w₀), within the pixel range."""
    torch.manual_seed(0)
    part = Images(images().images, images().labels % 2)
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(784, 2)), part.pixels(slice(None)), part.labels
    w = model[1].weight.detach()
    worst = (x + RADIUS * (1 - 2 * y)[:, None, None, None] * (w[1] - w[0]).sign().view(28, 28)).clamp(0, 1)
    loss = (1 - mix) * F.cross_entropy(model(x), y) + mix * F.cross_entropy(model(worst), y)
    (gradient,) = torch.autograd.grad(loss, [model[1].weight])
    expected = w - 0.5 * gradient
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    fit(model, optimizer, part, Recipe(epochs=1, batch_size=50), adversary=Adversary("mix", mix, RADIUS))
    torch.testing.assert_close(model[1].weight.detach(), expected, rtol=0, atol=1e-7)


def test_batch_normalization_counts_training_steps_only():
    torch.manual_seed(0)
    model, part = Network(), Images(images().images[:, :, :4, :4], images().labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, optimizer, part, Recipe(epochs=2, batch_size=20), adversary=Adversary("mix", 1.0, 0.1))
    assert model.norm.num_batches_tracked == 6


@pytest.mark.parametrize("objective", ["mix", "trades"])
def test_it_prefers_robust_features(objective):
    """Four pixels differ between the classes by more than 2ε, all others by less: plain training uses those."""
    labels = torch.arange(60) % 2
    contrast = torch.full((28, 28), 8)
    contrast[13:15, 13:15] = 77
    noise = torch.randint(-5, 6, (60, 1, 28, 28), generator=generator(1))
    x = 128 + (2 * labels - 1)[:, None, None, None] * contrast + noise
    part = Images(x.to(torch.uint8), labels)
    pixels, correct = part.pixels(slice(None)), []
    for adversary in (None, Adversary(objective, {"mix": 1.0, "trades": 6.0}[objective], 0.06)):
        torch.manual_seed(0)
        model = nn.Sequential(Normalize([0.5], [1.0]), nn.Flatten(), nn.Linear(784, 2))
        fit(
            model,
            torch.optim.SGD(model.parameters(), lr=0.5),
            part,
            Recipe(epochs=20, batch_size=20),
            adversary=adversary,
        )
        _, found = crafted(Adversary("mix", 1.0, 0.06), model, pixels, labels, seed=9)
        correct.append((model(found).argmax(1) == labels).sum().item())
    assert correct == [0, 60]
