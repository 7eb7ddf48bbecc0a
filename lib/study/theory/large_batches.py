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
from functools import partial

import numpy as np
import pandas as pd
from torch import nn

from study.data import Images, load
from study.measurement.accuracy import robustness_curve
from study.statistics.verdicts import Finding, Lines
from study.theory.machines import (
    BOUNDED,
    DENSE,
    EIGHT,
    EPS,
    FORMS,
    LARS,
    ONE_RATIO,
    ONE_STEP,
    RULES,
    SCALED,
    SGD,
    STEPS,
    UV,
    kilobytes,
    train,
)

finding = partial(Finding, "large_batches")
IMAGES, HELD_OUT, TEST, TUNING = 2048, 1000, 1000, 100
BATCHES = (128, 512, 2048)
ATTACK, CHANCE = 20, 10.0
Cell = tuple[str, str, int]
"""Form, rule and batch."""


def measure(model: nn.Module | None, images: Images, seed: int) -> tuple[float, float]:
    """Clean and robust accuracy in percent."""
    if model is None:
        return CHANCE, CHANCE
    clean, robust = robustness_curve(model, images, "pgd_linf", (0, EPS), seed=seed, steps=ATTACK)
    return 100 * clean["n_correct"] / len(images), 100 * robust["n_correct"] / len(images)


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
