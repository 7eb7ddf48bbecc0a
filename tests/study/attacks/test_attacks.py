"""Attacks: within the ball and the pixel range, polite to the model, and optimal where the optimum is known."""

import math

import pytest
import torch
from torch import nn

from experiments import GRADIENT_ATTACKS
from helpers import DOUBLE, generator, randn
from study.attacks import registry as attacks
from study.attacks.registry import ATTACKS, perturb

SHAPE = (2, 3, 3)
GRADIENT = {name: ATTACKS[name] for name in GRADIENT_ATTACKS}


class TwoClasses(nn.Module):
    """Logits (0, wᵀx + b): the loss of label 0 increases with wᵀx, that of label 1 decreases."""

    def __init__(self, offset=0.0, scale=1.0):
        super().__init__()
        self.linear = nn.Linear(math.prod(SHAPE), 1, dtype=DOUBLE)
        with torch.no_grad():
            self.linear.weight.copy_(scale * randn(1, math.prod(SHAPE), seed=3))
            self.linear.bias.fill_(offset)

    def forward(self, x):
        z = self.linear(x.flatten(1))
        return torch.cat([torch.zeros_like(z), z], 1)


class Network(nn.Module):
    """Batch normalization and dropout, which behave differently in training."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 2)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(16, 3)

    def forward(self, x):
        return self.linear(self.dropout(torch.tanh(self.norm(self.conv(x))).flatten(1)))


def network():
    torch.manual_seed(0)
    return Network()


def inputs(n=12, dtype=torch.float32, low=0.0, high=1.0):
    x = low + (high - low) * torch.rand(n, *SHAPE, generator=generator(1), dtype=dtype)
    return x, torch.arange(n) % 2


def size(delta, norm):
    flat = delta.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


@pytest.mark.parametrize("eps", [1e-3, 0.1, 0.5, 3.0])
@pytest.mark.parametrize("kind", GRADIENT.values(), ids=GRADIENT)
def test_perturbations_stay_in_the_ball_and_in_the_pixel_range(kind, eps):
    x, y = inputs()
    x[0], x[1] = 0, 1
    adversarial = perturb(kind, network(), x, y, eps)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert size(adversarial - x, kind.norm).max() <= eps + 1e-6  # float32 rounding of x + δ - x
    assert (adversarial != x).flatten(1).any(1).all()
    assert not adversarial.requires_grad


@pytest.mark.parametrize("kind", GRADIENT.values(), ids=GRADIENT)
def test_radius_zero_returns_the_images(kind):
    x, y = inputs()
    adversarial = perturb(kind, network(), x, y, 0)
    assert torch.equal(adversarial, x)
    assert adversarial is not x


@pytest.mark.parametrize("kind", GRADIENT.values(), ids=GRADIENT)
def test_everything_is_left_as_it_was(kind):
    """Modes, requires_grad flags, gradients, running statistics, the images and the global random state."""
    model = network().train()
    model.dropout.eval()
    model.conv.weight.requires_grad_(False)
    model(inputs()[0]).sum().backward()
    x, y = inputs()

    def state():
        return (
            [m.training for m in model.modules()],
            [p.requires_grad for p in model.parameters()],
            [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            [value.clone() for value in model.state_dict().values()],
            [x.clone(), x.grad, x.requires_grad, torch.get_rng_state(), torch.is_grad_enabled()],
        )

    before = state()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            perturb(kind, model, x, y, 0.1, seed=7)
    for old, new in zip(before, state(), strict=True):
        for a, b in zip(old, new, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", GRADIENT.values(), ids=GRADIENT)
def test_the_network_sees_contiguous_images(kind, channels):
    """A network which wants its channels last makes it so itself."""
    strides = set()

    class Watching(nn.Module):
        def forward(self, x):
            strides.add(x.stride())
            return torch.stack([x.mean((1, 2, 3)), x.square().mean((1, 2, 3))], 1)

    x, y = inputs(4)
    perturb(kind, Watching(), x[:, :channels], y, 0.1)
    assert {stride[1:] for stride in strides} == {(9, 3, 1)}


def test_the_model_is_restored_after_an_error():
    model = network().train()
    with attacks.frozen(model):
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
    with pytest.raises(RuntimeError, match="shape"), attacks.frozen(model):
        model(torch.zeros(1, 2, 9, 9))
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_what_was_frozen_before_stays_so():
    model = network().train()
    next(model.children()).eval()
    first, *others = model.parameters()
    first.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    with attacks.frozen(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == modes
    assert [first.requires_grad, *(p.requires_grad for p in others)] == [False, *(True for _ in others)]


EXACT = {"steps": 200, "relative_step": 25}  # long enough for a random start to be forgotten


@pytest.mark.parametrize("offset", [0.0, 30.0, -30.0])
@pytest.mark.parametrize("name", GRADIENT)
def test_the_optimum_on_a_linear_model(name, offset):
    """x ± ε sign(w) or x ± ε w/‖w‖, away from the bounds of the pixels; with ±30 one class is all but certain,
    so that its gradients are as small as e⁻³⁰."""
    kind, eps = ATTACKS[name], 0.05
    model, (x, y) = TwoClasses(offset), inputs(dtype=DOUBLE, low=0.3, high=0.7)
    w = model.linear.weight.detach().view(SHAPE)
    direction = w.sign() if kind.norm == "linf" else w / w.norm()
    expected = x + eps * torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1) * direction
    adversarial = perturb(kind, model, x, y, eps, **(EXACT if kind.options else {}))
    torch.testing.assert_close(adversarial, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 30.0, -30.0])
@pytest.mark.parametrize("name", [name for name, kind in GRADIENT.items() if kind.options])
def test_default_steps_nearly_reach_the_optimum(name, offset):
    """40 steps of 2.5 ε/40 from a random start gain at least 95 % of what the ball allows."""
    kind, eps = ATTACKS[name], 0.05
    model, (x, y) = TwoClasses(offset), inputs(dtype=DOUBLE, low=0.3, high=0.7)
    w = model.linear.weight.detach()
    gain = (model(perturb(kind, model, x, y, eps)) - model(x))[:, 1] * torch.where(y == 0, 1, -1)
    optimum = eps * (w.abs().sum() if kind.norm == "linf" else w.norm())
    assert (gain >= 0.95 * optimum).all()
    assert (gain <= optimum * (1 + 1e-9)).all()


def test_clipping_to_the_pixel_range_is_part_of_the_attack():
    """At the bounds of the range only the components that point inwards move."""
    model = TwoClasses()
    x, y = torch.cat([torch.zeros(1, *SHAPE), torch.ones(1, *SHAPE)]).double(), torch.zeros(2, dtype=torch.int64)
    sign = model.linear.weight.detach().view(SHAPE).sign()
    for name in ("fgsm", "pgd_linf"):
        adversarial = perturb(ATTACKS[name], model, x, y, 0.1)
        torch.testing.assert_close(adversarial, (x + 0.1 * sign).clamp(0, 1), rtol=0, atol=1e-9)


def test_one_step_is_fgsm_of_the_gradient():
    """Against a finite-difference-free oracle: the gradient by autograd on the bare network."""
    model = network().eval()
    x, y = inputs()
    leaf = x.clone().requires_grad_()
    nn.functional.cross_entropy(model(leaf), y).backward()
    expected = (x + 0.03 * leaf.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(perturb(ATTACKS["fgsm"], model, x, y, 0.03), expected, rtol=0, atol=1e-7)
    gradient = attacks.input_gradient(model, x, y)
    torch.testing.assert_close(gradient, len(x) * leaf.grad, rtol=1e-4, atol=1e-7)


def test_an_image_is_attacked_alike_in_any_batch():
    model = network().double().eval()
    x, y = inputs(dtype=DOUBLE)
    alone = torch.cat([perturb(ATTACKS["fgsm"], model, x[i : i + 1], y[i : i + 1], 0.1) for i in range(len(x))])
    torch.testing.assert_close(perturb(ATTACKS["fgsm"], model, x, y, 0.1), alone, rtol=0, atol=1e-12)
    gradients = torch.cat([attacks.input_gradient(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(attacks.input_gradient(model, x, y), gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["pgd_linf", "pgd_l2"])
def test_random_starts_follow_the_seed(name):
    model, (x, y) = network().eval(), inputs()
    one, again, other = (perturb(ATTACKS[name], model, x, y, 0.3, seed=seed, steps=2) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", ["pgd_linf", "pgd_l2"])
def test_more_steps_find_a_higher_loss(name):
    model, (x, y) = network().eval(), inputs()

    def loss(steps):
        adversarial = perturb(ATTACKS[name], model, x, y, 0.5, steps=steps)
        return nn.functional.cross_entropy(model(adversarial), y).item()

    clean = nn.functional.cross_entropy(model(x), y).item()
    assert clean < loss(1) < loss(20)


@pytest.mark.parametrize("eps", [-0.1, math.nan])
def test_a_negative_radius_is_refused(eps):
    with pytest.raises(ValueError, match=f"eps = {eps}: must be >= 0, in units of the pixel range"):
        perturb(ATTACKS["fgsm"], network(), *inputs(), eps)


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.0), (0.0, 1.1), (0.0, 255.0), (-1.0, 1.0)])
def test_pixels_outside_the_range_are_refused(low, high):
    x, y = inputs()
    x[0, 0, 0, 0], x[0, 0, 0, 1] = low, high
    with pytest.raises(ValueError, match=r"x = .*: must be pixels in \[0, 1\]; put the normalization into the model"):
        perturb(ATTACKS["fgsm"], network(), x, y, 0.1)
