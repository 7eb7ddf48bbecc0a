"""Measurements of a model. Everything is counted; rates are computed where they are shown."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from study.attacks.attack import ATTACKS, AttackKind, complete, options_text
from study.attacks.logits import correct, logits_of
from study.attacks.registry import frozen, input_gradient, perturb
from study.data import Images
from study.results.store import Measurement
from study.strict import Strict, one_of
from wellcond.errors import unknown

Once = Callable[[str, Callable[[], Any]], Any]
"""(key, compute) -> compute(), or what it returned before the process was interrupted."""


def at_once(key: str, compute: Callable[[], Any]) -> Any:
    """Remembers nothing."""
    return compute()


CHUNK = 500  # images a forward pass; it changes the memory used, not the result
ATTACKED = 128  # images a step of an attack on a CPU: what it keeps fits the cache, and LeNet5 was 1.5 times as fast


class AttackGrid(Strict):
    """An attack at several radii, on the first n_examples test images (all if absent)."""

    name: Annotated[str, one_of("attack", ATTACKS)]
    eps: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(min_length=1)
    n_examples: int | None = Field(None, ge=1)
    options: dict[str, Any] = Field({})

    @field_validator("eps")
    @classmethod
    def _once(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) < len(value):
            raise ValueError("must name each radius once")
        return value

    @field_validator("options")
    @classmethod
    def _accepted(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "name" in info.data:  # else its own error is reported
            complete(info.data["name"], ATTACKS[info.data["name"]].options, value)
        return value

    def measurements(self) -> list[Measurement]:
        """One for each eps."""
        options = options_text(ATTACKS[self.name], self.options)
        return [Measurement(self.name, eps, self.n_examples, options) for eps in self.eps]


@dataclass(frozen=True)
class Score:
    """n_correct of n images, and their summed cross-entropy."""

    n: int
    n_correct: int
    loss_sum: float


@torch.no_grad()
def predictions(model: nn.Module, images: Images) -> tuple[Tensor, float]:
    """Which images are classified correctly (N,), and the summed cross-entropy."""
    found, loss = [torch.zeros(0, dtype=torch.bool, device=images.labels.device)], 0.0  # there may be no images
    with frozen(model):
        for x, y in images.chunks(CHUNK):
            logits = logits_of(model, x)
            found.append(logits.argmax(1) == y)
            loss += F.cross_entropy(logits, y, reduction="sum").item()
    return torch.cat(found), loss


def count_correct(model: nn.Module, images: Images) -> Score:
    """Counts over all images, the last short batch included; the model is left as it was found."""
    right, loss = predictions(model, images)
    return Score(len(images), int(right.sum()), loss)


def zero_gradients(model: nn.Module, images: Images) -> int:
    """The number of images whose input gradient is exactly zero: a gradient attack cannot move those."""
    return sum(int((input_gradient(model, x, y).flatten(1).abs().amax(1) == 0).sum()) for x, y in images.chunks(CHUNK))


def attacked_together(index: Tensor) -> tuple[Tensor, ...]:
    """index (N,) in the parts that are attacked at once."""
    return torch.split(index, CHUNK if index.is_cuda else ATTACKED)


def survivors(
    kind: AttackKind,
    model: nn.Module,
    images: Images,
    alive: Tensor,
    eps: float,
    *,
    seed: int = 0,
    once: Once = at_once,
    **options: Any,
) -> Tensor:
    """Which of the images `alive` (N,), bool, are classified correctly after an attack too; only those are attacked.

    once: remembers the parts that are done, by the attack and the numbers of their images.
    """
    alive = alive.clone()
    for index in attacked_together(alive.nonzero().flatten()):

        def outcomes(index: Tensor = index) -> list[int]:
            y = images.labels[index]
            adversarial = perturb(kind, model, images.pixels(index), y, eps, index=index, seed=seed, **options)
            with torch.no_grad(), frozen(model):
                return [int(stands) for stands in correct(model, adversarial, y)]

        about = f"{kind.name} {eps:g} {options_text(kind, options)} seed={seed} images={part_key(index)}"
        alive[index] = torch.tensor(once(about, outcomes), dtype=torch.bool, device=alive.device)
    return alive


def part_key(index: Tensor) -> str:
    """A short text for the numbers (n,) of images."""
    return hashlib.sha256(index.cpu().numpy().tobytes()).hexdigest()[:16]


def robustness_curve(
    model: nn.Module,
    images: Images,
    attack: str,
    epsilons: Iterable[float],
    *,
    seed: int = 0,
    once: Once = at_once,
    **options: Any,
) -> list[dict[str, Any]]:
    """Robust counts of `attack` (a key of ATTACKS) at each eps, ascending, one row per eps.

    n_correct counts the images that are classified correctly both as they are and after the attack, so only survivors
    are attacked; where the attack's eps-balls are nested, an image that has fallen stays fallen. eps = 0 is the clean
    count. Columns: attack, norm, eps, options, n_examples, n_correct, n_zero_gradient.
    Raises ValueError for an unknown attack or option.
    """
    if attack not in ATTACKS:
        raise unknown("attack", attack, ATTACKS)
    kind = ATTACKS[attack]
    text = options_text(kind, options)
    clean, _ = predictions(model, images)
    n_zero = zero_gradients(model, images)
    alive = clean
    rows = []
    for eps in sorted(epsilons):
        alive = survivors(kind, model, images, alive if kind.nested else clean, eps, seed=seed, once=once, **options)
        counts = {"n_examples": len(images), "n_correct": int(alive.sum()), "n_zero_gradient": n_zero}
        rows.append({"attack": attack, "norm": kind.norm, "eps": eps, "options": text, **counts})
    return rows
