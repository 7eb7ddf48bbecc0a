"""Adversarial training: what is minimized, at the images that an adversary has moved within l∞ balls.

    key       minimized over the weights                            maximized over ||x' - x||∞ <= ε
    mix       (1 - m) CE(f(x), y) + m CE(f(x'), y)                  CE(f(x'), y)
    trades    CE(f(x), y) + β KL(p(x) ‖ p(x'))                      KL(p(x) ‖ p(x'))

with p = softmax f, means over the batch; m = 1 is the training of Madry et al. (ICLR 2018), m = 1/2 that of Goodfellow
et al. (ICLR 2015) and Kurakin et al. (ICLR 2017), with their one step replaced by several. TRADES: Zhang et al. (ICML
2019), whose code has the divergence in this direction.

x' comes from STEPS projected sign steps from a random start in the ball. The adversary meets the network in evaluation
mode, as in the code of TRADES: the running statistics of batch normalization stay those of training steps, and dropout
hides nothing from it. (Madry's code attacks with the statistics of the batch.) The loss is then that of training mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.attacks.registry import advertorch, frozen, stride_free
from wellcond.errors import invalid, unknown

STEPS = 7
RELATIVE_STEP = 2.5
"""STEPS steps of RELATIVE_STEP·ε/STEPS: from any start, every point of the ball can be reached."""


Network = Callable[[Tensor], Tensor]
"""x -> logits."""


def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """KL(p ‖ p') = Σ_k p_k (log p_k - log p'_k), summed over the batch; p, p' the softmax of logits (B, K)."""
    return F.kl_div(adversarial.log_softmax(1), clean.log_softmax(1), reduction="sum", log_target=True)


def mixed_loss(model: Network, x: Tensor, adversarial: Tensor, y: Tensor, mix: float) -> Tensor:
    """(1 - mix) CE(f(x), y) + mix CE(f(x'), y); with mix = 1 the network does not see x."""
    loss = F.cross_entropy(model(adversarial), y)
    return loss if mix == 1 else (1 - mix) * F.cross_entropy(model(x), y) + mix * loss


def trades_loss(model: Network, x: Tensor, adversarial: Tensor, y: Tensor, weight: float) -> Tensor:
    """CE(f(x), y) + weight · KL(p(x) ‖ p(x')), differentiated through both p."""
    clean = model(x)
    return F.cross_entropy(clean, y) + weight * divergence(clean, model(adversarial)) / len(y)


Ascent = Callable[[Tensor], Tensor]


def _cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Ascent:
    return partial(F.cross_entropy, target=y, reduction="sum")


def _divergence(model: nn.Module, x: Tensor, y: Tensor) -> Ascent:
    with torch.no_grad():
        return partial(divergence, model(x))


class Objective(NamedTuple):
    """loss: (model, x, x', y, weight) -> what training minimizes; ascent: (model, x, y) -> what the adversary
    maximizes, a sum over the images as a function of f(x')."""

    loss: Callable[[Network, Tensor, Tensor, Tensor, float], Tensor]
    ascent: Callable[[nn.Module, Tensor, Tensor], Ascent]


OBJECTIVES: dict[str, Objective] = {
    "mix": Objective(mixed_loss, _cross_entropy),
    "trades": Objective(trades_loss, _divergence),
}
"""The objectives by the setting that gives their weight."""


@dataclass(frozen=True)
class Adversary:
    """objective: key of OBJECTIVES, with its weight (m or β); radius: ε >= 0 in units of the pixel range.

    Raises ValueError for an unknown objective or ε < 0.
    """

    objective: str
    weight: float
    radius: float

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise unknown("objective", self.objective, OBJECTIVES)
        if not self.radius >= 0:
            raise invalid("radius", self.radius, ">= 0, in units of the pixel range")

    def start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """δ uniform in the ball, with x + δ in [0, 1]: an image's δ depends on its place in the batch alone."""
        # drawn in one layout on the host: the same on every device
        x = x.contiguous()
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        return (x + self.radius * (2 * noise - 1)).clamp(0, 1) - x

    def images(self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
        """x' (B, C, H, W) for x in [0, 1] and y (B,), from x + start; the model is left as it was found."""
        with frozen(model), torch.enable_grad():
            ascent = OBJECTIVES[self.objective].ascent(model, x, y)
            found: Tensor = advertorch("attacks.iterative_projected_gradient").perturb_iterative(
                x,
                y,
                stride_free(model),
                nb_iter=STEPS,
                eps=float(self.radius),
                eps_iter=RELATIVE_STEP * self.radius / STEPS,
                loss_fn=lambda logits, _: ascent(logits),
                delta_init=start.clone(),
            )
        return found.detach()

    def loss(self, model: Network, x: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
        """The mean over the batch that training minimizes."""
        return OBJECTIVES[self.objective].loss(model, x, adversarial, y, self.weight)


def adversary_of(settings: Mapping[str, float]) -> Adversary | None:
    """That of a run with these settings, whose objective is the one of mix and trades that is given; None without.

    Raises ValueError, naming the setting, for a radius without an objective or the reverse, or two objectives.
    """
    given = [key for key in OBJECTIVES if key in settings]
    if given and "radius" not in settings:
        raise invalid("radius", None, f"given where {given[0]} is")
    if "radius" in settings and not given:
        raise invalid("radius", settings["radius"], f"absent without one of {' and '.join(OBJECTIVES)}")
    if len(given) > 1:
        raise invalid(given[1], settings[given[1]], f"absent where {given[0]} is given")
    return Adversary(given[0], settings[given[0]], settings["radius"]) if given else None
