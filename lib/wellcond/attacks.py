"""Adversarial attacks, through advertorch: white-box, untargeted, in pixel space, clipped to [0, 1].

An attack maps (model, x, y, eps) to x' with ||x' - x|| <= eps in its norm. The model gets pixels: normalization is its
own first layer, so eps is in units of the pixel range.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wellcond.errors import invalid


def advertorch(name: str) -> ModuleType:
    """Import advertorch.<name>. Version 0.2.3 imports a helper that torch has removed, so give it back first."""
    import importlib

    import torch.autograd.gradcheck  # noqa: F401

    def zero_gradients(x: Tensor) -> None:
        if x.grad is not None:
            x.grad.detach_().zero_()

    # the attribute torch.autograd.gradcheck is a function that hides the module of the same name
    module = sys.modules["torch.autograd.gradcheck"]
    if not hasattr(module, "zero_gradients"):
        setattr(module, "zero_gradients", zero_gradients)  # noqa: B010
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"advertorch.{name}")


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode, no parameter gradients; modes and requires_grad flags are restored afterwards."""
    with advertorch("context").ctx_noparamgrad_and_eval(model):
        yield model


Attack = Callable[..., Tensor]


def _fgsm(model: nn.Module, x: Tensor, y: Tensor, *, eps: float) -> Tensor:
    attack = advertorch("attacks").GradientSignAttack(model, loss_fn=_summed_loss, eps=float(eps))
    return attack.perturb(x, y)  # type: ignore[no-any-return]


def _pgd(cls: str) -> Attack:
    def attack(
        model: nn.Module, x: Tensor, y: Tensor, *, eps: float, steps: int = 40, relative_step: float = 2.5
    ) -> Tensor:
        adversary = getattr(advertorch("attacks"), cls)(
            model,
            loss_fn=_ascent_loss,
            eps=float(eps),
            nb_iter=steps,
            eps_iter=relative_step * eps / steps,
            rand_init=True,
            clip_min=0.0,
            clip_max=1.0,
        )
        return adversary.perturb(x, y)  # type: ignore[no-any-return]

    return attack


def _summed_loss(logits: Tensor, y: Tensor) -> Tensor:
    # summed, so that the gradient of one image does not depend on the size of its batch
    return F.cross_entropy(logits, y, reduction="sum")


def _ascent_loss(logits: Tensor, y: Tensor) -> Tensor:
    # advertorch divides an l2 gradient by max(norm, 1e-6): unscaled, the steps would all but vanish on an image that
    # is classified with confidence, and the model would look robust there
    return 1e12 * _summed_loss(logits, y)


@dataclass(frozen=True)
class AttackKind:
    """An attack of the registry: its norm, the call, its options with defaults, and whether eps-balls are nested.

    nested: an image that falls at one eps has fallen at every larger one, since the smaller perturbation is allowed
    there too; a single-step attack is reported at each eps on its own.
    """

    name: str
    norm: str
    label: str
    call: Attack
    options: tuple[tuple[str, Any], ...] = ()
    nested: bool = True


ATTACKS: dict[str, AttackKind] = {
    kind.name: kind
    for kind in (
        AttackKind("fgsm", "linf", "FGSM", _fgsm, nested=False),
        AttackKind("pgd_linf", "linf", "PGD, l∞", _pgd("LinfPGDAttack"), (("steps", 40), ("relative_step", 2.5))),
        AttackKind("pgd_l2", "l2", "PGD, l2", _pgd("L2PGDAttack"), (("steps", 40), ("relative_step", 2.5))),
    )
}
"""FGSM: x + eps sign ∇L (Goodfellow, 2015). PGD: `steps` projected steps of relative_step·eps/steps from a random
start in the ball (Madry, 2018)."""


def perturb(
    kind: AttackKind, model: nn.Module, x: Tensor, y: Tensor, eps: float, *, seed: int = 0, **options: Any
) -> Tensor:
    """Adversarial images for x (B, C, H, W) in [0, 1] with labels y (B,), ||x' - x|| <= eps in kind.norm.

    eps >= 0 in pixel units; eps = 0 returns x. The model, x and the global random state are left as they were found.
    Raises ValueError for eps < 0 or pixels outside [0, 1].
    """
    if not eps >= 0:
        raise invalid("eps", eps, ">= 0, in units of the pixel range")
    low, high = x.amin().item(), x.amax().item()
    if low < 0 or high > 1:
        raise invalid("x", f"[{low:.4g}, {high:.4g}]", "pixels in [0, 1]; put the normalization into the model")
    if eps == 0:
        return x.clone()
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices), frozen(model), torch.enable_grad():
        torch.manual_seed(seed)
        return kind.call(model, x.clone(), y, eps=eps, **{**dict(kind.options), **options}).detach()


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """∂(cross-entropy)/∂x, shape of x."""
    with frozen(model), torch.enable_grad():
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(_summed_loss(model(x), y), x)
    return gradient
