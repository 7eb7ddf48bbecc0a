"""How confident a network is, and how steep: scores of its logits and the sizes of its input gradients.

Logits z (N, K), labels y (N,), probabilities p = softmax(z), in float64 unless said otherwise. Robustness numbers need
both: large logits and vanishing gradients make gradient attacks fail where images are not robust.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from study.attacks.registry import frozen, input_gradient
from study.data import Images
from study.measurement.accuracy import CHUNK, count_correct
from study.measurement.measurement import Cell, Given, MeasurementKind, Selective, Task, register
from study.results.tables import Table
from wellcond.errors import invalid

BINS = 15
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def _checked(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits in float64."""
    if logits.ndim != 2 or logits.shape[1] < 2 or len(logits) != len(labels) or not len(labels):
        raise invalid("logits", tuple(logits.shape), f"(N, K) with K >= 2 and N = {len(labels)} labels, at least one")
    return logits.double()


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Σ_b |B_b|/N |accuracy(B_b) - confidence(B_b)| over bins of equal width, in [0, 1].

    B_b: images with confidence max p in ((b-1)/bins, b/bins]. The estimate is biased upwards: a perfectly calibrated
    network has about Σ_b √(2 a_b (1 - a_b) |B_b| / π)/N, a_b the accuracy in the bin.
    Source: Guo, Pleiss, Sun, Weinberger, ICML 2017.
    """
    if bins < 1:
        raise invalid("bins", bins, ">= 1")
    confidence, predicted = _checked(logits, labels).softmax(1).max(1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    excess = confidence.new_zeros(bins).index_add_(0, place, (predicted == labels).double() - confidence)
    return float(excess.abs().sum()) / len(labels)


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log p_y, in nats, >= 0."""
    return float(F.cross_entropy(_checked(logits, labels), labels))


def brier_score(logits: Tensor, labels: Tensor) -> float:
    """Mean of Σ_k (p_k - [k = y])², in [0, 2]. Source: Brier, Monthly Weather Review 78 (1950)."""
    p = _checked(logits, labels).softmax(1)
    return float((p - F.one_hot(labels, p.shape[1])).square().sum(1).mean())


def mean_confidence(logits: Tensor, labels: Tensor) -> float:
    """Mean of max p, in [1/K, 1]."""
    return float(_checked(logits, labels).softmax(1).amax(1).mean())


def logit_margin(logits: Tensor) -> Tensor:
    """z_(1) - z_(2), the largest logit less the second, >= 0; shape (N,), whatever the label."""
    top = logits.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def logit_scale(logits: Tensor, labels: Tensor) -> float:
    """Median over the images of max_k |z_k - mean(z)|."""
    z = _checked(logits, labels)
    return float((z - z.mean(1, keepdim=True)).abs().amax(1).median())


def saturated(logits: Tensor, labels: Tensor) -> float:
    """Share of the images whose cross-entropy in float32 is exactly zero: z_y ahead of the others by about 17.

    There the term p_y - 1 of the gradient is lost to rounding: it no longer points along the steepest ascent.
    """
    _checked(logits, labels)
    return float((F.cross_entropy(logits.float(), labels, reduction="none") == 0).double().mean())


SCORES = {
    "ece": expected_calibration_error,
    "nll": negative_log_likelihood,
    "brier": brier_score,
    "confidence": mean_confidence,
    "logit_scale": logit_scale,
    "saturated": saturated,
}
"""Quantities of logits and labels, by their name in the table `confidence`."""


def _quantiles(name: str, values: Tensor) -> dict[str, float]:
    """margin_q05, margin_q25, ..."""
    found = values.double().quantile(torch.tensor(QUANTILES, dtype=torch.float64, device=values.device))
    return {f"{name}_q{round(100 * q):02d}": value for q, value in zip(QUANTILES, found.tolist(), strict=True)}


def confidence_rows(model: nn.Module, images: Images) -> list[dict[str, Any]]:
    """Rows quantity, value, n_examples, measured on the images as they are.

    The keys of SCORES; quantiles (_q05, _q25, _q50, _q75, _q95) over the images of logit_margin and of gradient_l1 and
    gradient_l2, the norms of ∂(cross-entropy)/∂x in nats per unit of the pixel range. l1 is the dual of linf: eps times
    it is the loss gained in a ball of radius eps, to first order. zero_gradient: the share of images with none at all.
    Raises ValueError for no images.
    """
    if not len(images):
        raise invalid("images", "0 images", "at least one")
    logits, norms = [], []
    for x, y in images.chunks(CHUNK):
        with torch.no_grad(), frozen(model):
            logits.append(model(x))
        # float64: squares of small gradients underflow in float32
        gradient = input_gradient(model, x, y).flatten(1).double()
        norms.append(torch.stack([gradient.abs().sum(1), gradient.norm(dim=1)]))
    z, (l1, l2) = torch.cat(logits), torch.cat(norms, 1)
    values = {name: score(z, images.labels) for name, score in SCORES.items()}
    values |= {"zero_gradient": float((l1 == 0).double().mean())}
    values |= _quantiles("logit_margin", logit_margin(z))
    values |= _quantiles("gradient_l1", l1) | _quantiles("gradient_l2", l2)
    return [{"quantity": name, "value": value, "n_examples": len(images)} for name, value in values.items()]


class Grid(Selective):
    """Calibration, logits and input gradients on the first n_examples test images (all if absent)."""

    n_examples: int | None = Field(None, ge=1)


def tasks(cell: Cell, grid: Grid, n_test: int, cells: Sequence[Cell]) -> list[Task]:
    def measure(given: Given) -> list[dict[str, Any]]:
        model, images = given.network(cell), given.data.test.first(grid.n_examples)
        right = count_correct(model, images).n_correct
        n_correct = {"quantity": "n_correct", "value": right, "n_examples": len(images)}
        return [n_correct, *confidence_rows(model, images)]

    return [Task(cell, "confidence", "confidence", measure)]


TABLE = Table({"run_id": str, "n_examples": int, "quantity": str, "value": float}, key=("run_id", "quantity"))

register(MeasurementKind("confidence", Grid, {"confidence": TABLE}, tasks))
