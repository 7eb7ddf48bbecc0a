"""Adversarial training in large batches on several machines: forms of a network, rules for its steps, what is sent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import wellcond as wc
from study.data import Images
from study.theory.small_networks import perceptron14
from study.theory.triangular import triangular
from wellcond.errors import NonFiniteGradient
from wellcond.methods.layerwise_rates import quantize_gradient, scale_gradients_, trust_ratio

EPOCHS, EPS, STEPS = 20, 0.1, 4
MACHINE = 128
"""Images of a machine that quantizes its gradient."""
RATIO, BOUND, MOMENTUM = 0.8, 1.1, 0.9


DENSE, UV, BOUNDED = "dense", "U Vᵀ", "κ ≤ 1.1"
FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    DENSE: lambda model: model,
    UV: lambda model: wc.factorize(model, ratio=RATIO, skip="5", core=False),
    BOUNDED: lambda model: wc.constrain(wc.factorize(model, ratio=RATIO, skip="5"), BOUND),
}


@torch.no_grad()
def one_ratio_(model: nn.Module) -> None:
    """LARS with the whole network for one layer, of Euclidean norms."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norms = nn.utils.get_total_norm(weights), nn.utils.get_total_norm(g for g in gradients if g.ndim > 1)
    for g in gradients:
        g.mul_(trust_ratio(*norms))


class Rule(NamedTuple):
    """rates: to choose from; scale: what is done to the gradients; bits: of what is sent; steps: of the adversary."""

    rates: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8, 1.6)
    scale: Callable[[nn.Module], object] = lambda model: None
    bits: int = 32
    steps: int = STEPS


SCALED, SGD, LARS, EIGHT, ONE_RATIO, ONE_STEP = "linear scaling", "SGD", "LARS", "LARS, 8 bits", "one ratio", "one step"
TRUST = (0.01, 0.02, 0.04, 0.08, 0.16)
RULES = {
    SGD: Rule(),
    SCALED: Rule(),
    LARS: Rule(TRUST, scale_gradients_),
    EIGHT: Rule(TRUST, scale_gradients_, bits=8),
    ONE_RATIO: Rule(TRUST, one_ratio_),
    ONE_STEP: Rule(steps=1),
}


def adversarial(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """x' after sign steps up the cross-entropy from a random start in the ball ||x' - x||∞ <= EPS, in [0, 1]:
    several steps of 2.5 EPS in all, or one of 1.25 EPS (Wong et al., ICLR 2020)."""
    size = EPS * (2.5 / steps if steps > 1 else 1.25)
    found = (x + EPS * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        found.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(found), y, reduction="sum"), found)
        found = (found.detach() + size * grad.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    return found


def differentiate(model: nn.Module, x: Tensor, y: Tensor, bits: int) -> None:
    """The gradient of the mean cross-entropy; with fewer than 32 bits the sum of what machines send."""
    part, parameters = len(y) if bits == 32 else MACHINE, list(model.parameters())
    model.zero_grad()
    for x_k, y_k in zip(torch.split(x, part), torch.split(y, part), strict=True):
        loss = F.cross_entropy(model(x_k), y_k, reduction="sum") / len(y)
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            sent = g if bits == 32 else quantize_gradient(g, bits).value
            p.grad = sent if p.grad is None else p.grad + sent


def train(images: Images, form: str, rule: Rule, batch: int, rate: float, seed: int) -> nn.Module | None:
    """The network after EPOCHS; None if it diverged."""
    torch.manual_seed(seed)
    model = FORMS[form](perceptron14())
    optimizer = wc.LowRankSGD(wc.param_groups(model, max_cond=BOUND), lr=rate, momentum=MOMENTUM)
    steps = EPOCHS * math.ceil(len(images) / batch)
    schedule = triangular(optimizer, steps)
    try:
        for epoch in range(EPOCHS):
            for x, y in images.batches(batch, seed=seed, epoch=epoch):
                differentiate(model, adversarial(model, x, y, rule.steps), y, rule.bits)
                rule.scale(model)
                optimizer.step()
                schedule.step()
    except (NonFiniteGradient, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return None
    return model.eval() if all(p.isfinite().all() for p in model.parameters()) else None


def kilobytes(form: str, bits: int) -> float:
    """What a machine sends in a step."""
    return sum(p.numel() * bits / 8 + 4 * (bits < 32) for p in FORMS[form](perceptron14()).parameters()) / 1000
