"""Adversarial training with large batches: do layer-wise rates keep what linear scaling loses, and what is sent?

Zhang et al. (UAI 2022, arXiv 2206.06257) train against adversaries on many machines: large batches, a trust ratio for
every layer, one-step or iterative adversaries, quantized gradients. Here 2,048 images of MNIST at 14 x 14 pixels,
ε = 0.1, a network 196-128-64-10 whose hidden matrices have rank 26 and 13 where they are factorized, 20 epochs for
every batch up to the whole set (20 steps). The rate rises for a quarter of the steps, then falls to zero.

    linear scaling   rate of the smallest batch times batch/128 (Goyal et al., arXiv 1706.02677)
    SGD, LARS        a rate of its own for each batch
    LARS, 8 bits     at the rate of LARS; machines with 128 images send quantized gradients, which are added
    one ratio        LARS with one trust ratio for the whole network: what of LARS is due to layers?
    one step         SGD against the one-step adversary, batch 128

A rate of its own is the one of five, spaced by twos, that keeps most of 1,000 held-out images under PGD with seed 100,
for each form of the network, batch and method alike; test images play no part. The grids were placed, and the start of
He et al. was taken, after a look at seed 100; 4,096 images were halved for time before there was a result. Robust
accuracy is that of the study's PGD with 20 steps on 1,000 test images; a training that diverges counts as guessing. A
machine sends the gradient of every parameter once a step: four bytes a number, or one, and four for the scale of a
tensor.

Predictions, written before the run. Confirmed if at the largest batch linear scaling is more than five points below
batch 128 and LARS at most two, LARS is above SGD with a rate of its own, and 8 bits, or one step, cost at most a point.
Expected: linear scaling fails altogether at 2,048; LARS is above SGD in all forms, yet far below batch 128, as 20 steps
are few; one ratio does half of what LARS does; low-rank forms lose more, as they need more steps; 8 bits and one step
cost nothing. Rank 26 and 13 sends fewer numbers than a dense network, but more bytes than its 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import wellcond as wc
from study.data import Images, load
from study.measurement.accuracy import robustness_curve
from study.statistics.verdicts import Finding, Lines
from study.theory.triangular import triangular
from wellcond.errors import NonFiniteGradient
from wellcond.methods.layerwise_rates import quantize_gradient, scale_gradients_, trust_ratio

finding = partial(Finding, "large_batches")
IMAGES, HELD_OUT, TEST, EPOCHS, TUNING = 2048, 1000, 1000, 20, 100
BATCHES = (128, 512, 2048)
MACHINE = 128
"""Images of a machine that quantizes its gradient."""
EPS, STEPS, ATTACK = 0.1, 4, 20
RATIO, BOUND, MOMENTUM, CHANCE = 0.8, 1.1, 0.9, 10.0


def network() -> nn.Sequential:
    """196-128-64-10 with ReLU on pixels; weights start as of He et al., ICCV 2015, biases at zero."""
    layers = nn.Linear(196, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    model = nn.Sequential(nn.Flatten(), *layers)
    for p in model.parameters():
        nn.init.kaiming_normal_(p) if p.ndim > 1 else nn.init.zeros_(p)
    return model


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
Cell = tuple[str, str, int]
"""Form, rule and batch."""


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
    model = FORMS[form](network())
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


def measure(model: nn.Module | None, images: Images, seed: int) -> tuple[float, float]:
    """Clean and robust accuracy in percent."""
    if model is None:
        return CHANCE, CHANCE
    clean, robust = robustness_curve(model, images, "pgd_linf", (0, EPS), seed=seed, steps=ATTACK)
    return 100 * clean["n_correct"] / len(images), 100 * robust["n_correct"] / len(images)


def kilobytes(form: str, bits: int) -> float:
    """What a machine sends in a step."""
    return sum(p.numel() * bits / 8 + 4 * (bits < 32) for p in FORMS[form](network()).parameters()) / 1000


def tuned(dataset: str, lines: Lines) -> dict[Cell, float]:
    """All that is trained, and at which rate; lines gets what is kept of the held-out images, x being the rate."""
    data, first, last = load(dataset, seed=TUNING, n_train=IMAGES), BATCHES[0], BATCHES[-1]
    images, held_out = data.train.halved(), data.validation.first(HELD_OUT).halved()

    def best(form: str, name: str, batch: int) -> float:
        trained = [train(images, form, RULES[name], batch, rate, TUNING) for rate in RULES[name].rates]
        kept = dict(zip(RULES[name].rates, (measure(model, held_out, TUNING)[1] for model in trained), strict=True))
        for rate, value in kept.items():
            lines.add("held out", f"{form}, {name}, {batch}", rate, [value], TUNING)
        return max(kept, key=kept.__getitem__)

    own = [(form, name, batch) for form in FORMS for name in (SGD, LARS) for batch in BATCHES]
    own += [(DENSE, ONE_RATIO, last), *((form, ONE_STEP, first) for form in FORMS)]
    rates = {cell: best(*cell) for cell in own}
    scaled = {(form, SCALED, b): b / first * rates[form, SGD, first] for form in FORMS for b in BATCHES[1:]}
    return rates | scaled | {(form, EIGHT, last): rates[form, LARS, last] for form in FORMS}


def large_batches(seeds: int = 3, dataset: str = "mnist") -> tuple[list[Finding], pd.DataFrame]:
    """Panels clean and robust: accuracy by batch, series as "dense, LARS"; sent: robust accuracy at the largest batch
    by kilobytes a step; held out: robust accuracy by rate with seed 100, series as "dense, LARS, 128"."""
    lines, robust = Lines(), {}
    parts = [load(dataset, seed=seed, n_train=IMAGES, n_test=TEST) for seed in range(seeds)]
    data = [(part.train.halved(), part.test.halved()) for part in parts]
    for (form, name, batch), rate in tuned(dataset, lines).items():
        trained = [train(images, form, RULES[name], batch, rate, seed) for seed, (images, _) in enumerate(data)]
        found = np.array([measure(model, data[seed][1], seed) for seed, model in enumerate(trained)])
        robust[form, name, batch] = found[:, 1]
        lines.add("clean", f"{form}, {name}", batch, list(found[:, 0]))
        lines.add("robust", f"{form}, {name}", batch, list(found[:, 1]))
        if batch == BATCHES[-1]:
            lines.add("sent", f"{form}, {name}", kilobytes(form, RULES[name].bits), list(found[:, 1]))
    return findings(robust), lines.frame


def findings(robust: dict[Cell, np.ndarray]) -> list[Finding]:
    """From the robust accuracies of each cell, by seed."""
    first, last = BATCHES[0], BATCHES[-1]

    def kept(name: str, form: str = DENSE, batch: int = last) -> np.ndarray:
        return robust[form, name, batch]

    small, small_bounded = (kept(SGD, form, first) for form in (DENSE, BOUNDED))
    fall, at = f"robust accuracy, SGD at batch {first} minus", f"batch {last}, points"
    step, inf = f"one step minus {STEPS}, batch {first}, points", math.inf
    rows: list[tuple[str, str, np.ndarray, float, float]] = [
        ("Linear scaling loses robust accuracy", f"{fall} linear scaling at {last}", small - kept(SCALED), 5, inf),
        ("and so does SGD with a rate of its own", f"{fall} SGD at {last}", small - kept(SGD), 5, inf),
        ("LARS keeps it", f"{fall} LARS at {last}", small - kept(LARS), -inf, 2),
        ("or loses less", f"LARS minus linear scaling, {at}", kept(LARS) - kept(SCALED), 0, inf),
        ("also less than SGD with a rate of its own", f"LARS minus SGD, {at}", kept(LARS) - kept(SGD), 0, inf),
        ("since layers have ratios of their own", f"LARS minus one ratio, {at}", kept(LARS) - kept(ONE_RATIO), 0, inf),
        ("It helps U Vᵀ", f"LARS minus SGD, {at}", kept(LARS, UV) - kept(SGD, UV), 0, inf),
        ("and U S Vᵀ with κ ≤ 1.1 as well", f"LARS minus SGD, {at}", kept(LARS, BOUNDED) - kept(SGD, BOUNDED), 0, inf),
        ("Large batches cost κ ≤ 1.1 no more than dense", "what LARS loses, κ ≤ 1.1 minus dense, points",
         small_bounded - kept(LARS, BOUNDED) - (small - kept(LARS)), -inf, 0),
        ("Gradients of 8 bits cost nothing", f"8 bits minus 32, {at}", kept(EIGHT) - kept(LARS), -1, inf),
        ("nor with κ ≤ 1.1", f"8 bits minus 32, {at}", kept(EIGHT, BOUNDED) - kept(LARS, BOUNDED), -1, inf),
        ("A one-step adversary is enough", step, kept(ONE_STEP, batch=first) - small, -1, inf),
        ("also for κ ≤ 1.1", step, kept(ONE_STEP, BOUNDED, first) - small_bounded, -1, inf),
    ]  # fmt: skip
    return [finding(claim, measured, list(values), low, high) for claim, measured, values, low, high in rows]
