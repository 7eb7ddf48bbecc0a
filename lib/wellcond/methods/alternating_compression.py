"""Sparse training by a schedule: AC/DC, which alternates dense and compressed phases, and gradual magnitude pruning.

A schedule says which share s(t) of all weights is zero when the fraction t of the training is done, 0 <= t <= 1; it is
piecewise constant. At each of its jumps the weights of largest magnitude are chosen, over all layers together, and the
others are held at zero, with their gradients, until the next one:

    W <- M ⊙ W,   g <- M ⊙ g,      M = 1 on the (1 - s)N largest |W|, else 0,      N the number of weights.

AC/DC is projected gradient descent on {at most (1 - s)N non-zeros} with dense phases between, in which zeros may come
back. Gradual pruning has s(t) = s (1 - (1 - t/t₁)³), on a staircase.

Sources: Peste, Iofinova, Vladu and Alistarh, NeurIPS 2021 (AC/DC); Zhu and Gupta, arXiv 1710.01878 (gradual pruning).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wellcond.errors import invalid

Schedule = Callable[[float], float]
"""t in [0, 1] -> the share of zeros in [0, 1), piecewise constant."""


def _check_sparsity(sparsity: float) -> None:
    if not 0 <= sparsity < 1:
        raise invalid("sparsity", sparsity, "in [0, 1), the share of zeros")


def alternating(sparsity: float, *, period: float = 0.05, last_dense: float = 0.75, final: float = 0.85) -> Schedule:
    """AC/DC: dense and compressed phases of length `period` in turn, the first one dense; dense from `last_dense` on,
    and compressed from `final` on. Defaults: a public recipe for ImageNet, as fractions of its 100 epochs.

    Raises ValueError unless sparsity is in [0, 1), period > 0 and 0 <= last_dense <= final <= 1.
    """
    _check_sparsity(sparsity)
    if not period > 0:
        raise invalid("period", period, "> 0")
    if not 0 <= last_dense <= final <= 1:
        raise invalid("final", final, f"in [last_dense, 1], where last_dense = {last_dense} >= 0")

    def share(t: float) -> float:
        compressed = t >= final or (t < last_dense and math.floor(t / period + 1e-9) % 2 == 1)
        return sparsity if compressed else 0.0

    return share


def gradual(sparsity: float, *, end: float = 0.75, stairs: int = 50) -> Schedule:
    """s(t) = s (1 - (1 - t/end)³) in `stairs` equal steps of t, and s from `end` on.

    Raises ValueError unless sparsity is in [0, 1), end in (0, 1] and stairs >= 1.
    """
    _check_sparsity(sparsity)
    if not 0 < end <= 1:
        raise invalid("end", end, "in (0, 1]")
    if stairs < 1:
        raise invalid("stairs", stairs, ">= 1")

    def share(t: float) -> float:
        stair = min(math.floor(stairs * t / end + 1e-9), stairs)
        return sparsity * (1 - (1 - stair / stairs) ** 3)

    return share


def magnitude_masks(weights: Sequence[Tensor], sparsity: float, *, stacked: bool = False) -> list[Tensor]:
    """Masks, True on the N - round(sparsity·N) weights of largest magnitude, of N in all tensors together.

    stacked: the first dimension of every tensor counts networks, each with a budget of its own. Raises ValueError for
    no weights, or a sparsity outside [0, 1).
    """
    _check_sparsity(sparsity)
    if not weights:
        raise invalid("weights", list(weights), "one tensor or more")
    flat = [W.detach().abs().flatten(1) if stacked else W.detach().abs().reshape(1, -1) for W in weights]
    together = torch.cat(flat, 1)
    kept = together.shape[1] - round(sparsity * together.shape[1])
    largest = together.topk(kept, dim=1, sorted=False).indices
    mask = torch.zeros_like(together, dtype=torch.bool).scatter_(1, largest, True)
    parts = torch.split(mask, [part.shape[1] for part in flat], 1)
    return [part.reshape(W.shape) for part, W in zip(parts, weights, strict=True)]


class SparseTraining:
    """Masks that follow a schedule and are held in every step of an optimizer, which calls it by itself.

        SparseTraining(optimizer, weights, alternating(0.95), steps=epochs * len(loader))

    optimizer: any of torch; weights: the tensors that become sparse, parameters of it; steps: how many it will take;
    stacked: as in `magnitude_masks`. `masks` and `sparsity` are those of the moment; `stop` ends the holding. With a
    schedule that is always 0 the optimizer does what it would alone, bit for bit. A training that was interrupted goes
    on when `load_state_dict` has been called, then that of the network. Raises ValueError for steps < 1.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        weights: Iterable[Tensor],
        schedule: Schedule,
        *,
        steps: int,
        stacked: bool = False,
    ) -> None:
        if steps < 1:
            raise invalid("steps", steps, ">= 1")
        self.weights, self.schedule, self.steps, self.stacked = list(weights), schedule, steps, stacked
        self.taken = 0
        self.sparsity = -1.0  # of no schedule: the masks are chosen now
        self._hold()
        hooks = optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)
        self._hooks = hooks

    @torch.no_grad()
    def _before(self, *_: Any) -> None:
        for W, mask in zip(self.weights, self.masks, strict=True):
            if self.sparsity and W.grad is not None:
                W.grad.mul_(mask)

    def _after(self, *_: Any) -> None:
        self.taken += 1
        self._hold()

    @torch.no_grad()
    def _hold(self) -> None:
        sparsity = self.schedule(min(self.taken / self.steps, 1.0))
        if sparsity != self.sparsity:
            self.sparsity = sparsity
            self.masks = magnitude_masks(self.weights, sparsity, stacked=self.stacked)
        for W, mask in zip(self.weights, self.masks, strict=True):
            if sparsity:
                W.mul_(mask)

    def state_dict(self) -> dict[str, Any]:
        """The steps taken, the sparsity and the masks."""
        return {"taken": self.taken, "sparsity": self.sparsity, "masks": self.masks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.taken, self.sparsity = state["taken"], state["sparsity"]
        self.masks = [mask.to(W.device) for mask, W in zip(state["masks"], self.weights, strict=True)]

    def stop(self) -> None:
        """Leave the optimizer alone from now on; the zeros stay until it moves them."""
        for hook in self._hooks:
            hook.remove()
