"""Adversarial attacks, through advertorch: white-box, untargeted, in pixel space, clipped to [0, 1].

An attack maps (model, x, y, eps) to x' with ||x' - x|| <= eps in its norm. The model gets pixels: normalization is its
own first layer, so eps is in units of the pixel range.
"""

from __future__ import annotations

import importlib
import logging
import math
import pkgutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.attacks.attack import ATTACKS as ATTACKS
from study.attacks.attack import Attack, Option, complete, register
from study.attacks.attack import AttackKind as AttackKind
from study.attacks.attack import options_text as options_text
from study.attacks.logits import correct, logits_of
from study.attacks.starts import image_generators
from wellcond.errors import invalid


def advertorch(name: str) -> ModuleType:
    """Import advertorch.<name>. Version 0.2.3 imports a helper that torch has removed, so give it back first."""
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
    """Evaluation mode, no parameter gradients; modes and requires_grad flags are restored."""
    # advertorch's context for this is of no use to who only counts: loading it takes as long as loading torch
    training = [module for module in model.modules() if module.training]
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for module in training:
        module.training = False
    for parameter in learned:
        parameter.requires_grad = False
    try:
        yield model
    finally:
        for module in training:
            module.training = True
        for parameter in learned:
            parameter.requires_grad = True


def _summed_loss(logits: Tensor, y: Tensor) -> Tensor:
    # summed, so that the gradient of one image does not depend on the size of its batch
    return F.cross_entropy(logits, y, reduction="sum")


def _ascent_loss(logits: Tensor, y: Tensor) -> Tensor:
    # advertorch divides an l2 gradient by max(norm, 1e-6): unscaled, the steps would all but vanish on an image that
    # is classified with confidence, and the model would look robust there
    return 1e12 * _summed_loss(logits, y)


def _scaled_loss(logits: Tensor, y: Tensor) -> Tensor:
    """The loss of logits that are shifted and scaled to mean 0 and largest modulus 10, image by image.

    Of large logits the softmax is saturated and the gradient of the loss rounds to zero; here it cannot.
    """
    centred = logits - logits.mean(1, keepdim=True)
    scale = centred.detach().abs().amax(1, keepdim=True).clamp_min(torch.finfo(logits.dtype).tiny)
    return _ascent_loss(10 * centred / scale, y)


def _fgsm(loss: Callable[[Tensor, Tensor], Tensor] = _summed_loss) -> Attack:
    def attack(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, index: Tensor, seed: int) -> Tensor:
        adversary = advertorch("attacks").GradientSignAttack(model, loss_fn=loss, eps=float(eps))
        return adversary.perturb(x, y)

    return attack


def random_start(x: Tensor, eps: float, norm: str, index: Tensor, seed: int) -> Tensor:
    """δ (B, C, H, W) with x + δ in [0, 1], ‖δ‖ <= eps: uniform in the cube ("linf"); in the ball ("l2"), a normal
    direction times eps u^(1/d) with u uniform in [0, 1]. Drawn image by image from (seed, index)."""
    draws = []
    for generator in image_generators(index, seed):
        delta = torch.empty(x.shape[1:])
        if norm == "linf":
            draws.append(delta.uniform_(-1, 1, generator=generator))
        else:
            delta.normal_(generator=generator)
            radius = torch.rand((), generator=generator) ** (1 / delta.numel())
            draws.append(radius * delta / delta.norm())
    start = eps * torch.stack(draws).to(x)
    return (x + start).clamp(0, 1) - x


def _pgd(norm: str, loss: Callable[[Tensor, Tensor], Tensor] = _ascent_loss) -> Attack:
    def attack(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: float,
        index: Tensor,
        seed: int,
        steps: int = 40,
        relative_step: float = 2.5,
        restarts: int = 1,
    ) -> Tensor:
        iterate = advertorch("attacks.iterative_projected_gradient").perturb_iterative
        adversarial, left = x.clone(), torch.arange(len(x), device=x.device)
        for restart in range(int(restarts)):
            found = iterate(
                x[left],
                y[left],
                model,
                nb_iter=int(steps),
                eps=float(eps),
                eps_iter=relative_step * eps / steps,
                loss_fn=loss,
                ord=math.inf if norm == "linf" else 2,
                delta_init=random_start(x[left], eps, norm, index[left], seed + 7919 * restart),
            ).detach()
            adversarial[left] = found
            left = left[_correct(model, found, y[left])]
            if not len(left):
                break
        return adversarial

    return attack


def _momentum(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, index: Tensor, seed: int, steps: int, relative_step: float
) -> Tensor:
    adversary = advertorch("attacks").LinfMomentumIterativeAttack(
        model, loss_fn=_ascent_loss, eps=float(eps), nb_iter=int(steps), eps_iter=relative_step * eps / steps
    )
    return adversary.perturb(x, y)


def _autoattack(norm: str, **version: Any) -> Attack:
    def attack(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: float,
        index: Tensor,
        seed: int,
        iterations: int | None = None,
        queries: int | None = None,
    ) -> Tensor:
        from pyautoattack import AutoAttack

        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        if version["version"] == "standard" and classes < 4:
            raise invalid("classes", classes, "at least 4 for AutoAttack, whose targeted loss compares four logits")
        adversary = AutoAttack(model, eps=eps, norm=norm, seed=seed, device=x.device, **version)
        for part in (adversary.apgd_targeted, adversary.fab):
            part.n_target_classes = min(9, classes - 1)
        for part in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
            part.n_iter = iterations or part.n_iter
        adversary.square.n_queries = queries or adversary.square.n_queries
        for part in (adversary, adversary.apgd, adversary.apgd_targeted):
            part.logger = _SILENT  # what it warns of, `study.statistics.flags` finds in the tables
        adversarial, _ = adversary.run_standard_evaluation(x.contiguous(), y, batch_size=len(x))
        return adversarial

    return attack


def _square(norm: str) -> Attack:
    return _autoattack(norm, version="custom", attacks=["square"])


def _standard(norm: str) -> Attack:
    return _autoattack(norm, version="standard")


_SILENT = logging.Logger("silent", logging.CRITICAL)


def stride_free(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The model, whose images are contiguous, and so are the gradients that come back to them.

    Attacks flatten gradients by ``view``, which fails on those of a network that has its channels last.
    """

    def forward(x: Tensor) -> Tensor:
        x = x.contiguous()
        if x.requires_grad:
            x = x.view_as(x)  # a node of its own: a hook on a leaf would stay there
            x.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]
        return logits_of(model, x)

    return forward


@torch.no_grad()
def _correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return correct(model, x, y)


_STEPS = (Option("steps", 40), Option("relative_step", 2.5, whole=False))
_RESTARTS = (*_STEPS, Option("restarts", 1))
_QUERIES = (Option("queries", None),)
_STANDARD = (Option("iterations", None), *_QUERIES)

for _kind in (
    AttackKind("fgsm", "FGSM", "linf", _fgsm(), nested=False),
    AttackKind("pgd_linf", "PGD ℓ∞", "linf", _pgd("linf"), _RESTARTS),
    AttackKind("pgd_l2", "PGD ℓ₂", "l2", _pgd("l2"), _RESTARTS),
    AttackKind("mim_linf", "momentum PGD", "linf", _momentum, _STEPS, follows=("pgd_linf",)),
    AttackKind("fgsm_scaled", "FGSM, scaled logits", "linf", _fgsm(_scaled_loss), nested=False),
    AttackKind("pgd_linf_scaled", "PGD ℓ∞, scaled logits", "linf", _pgd("linf", _scaled_loss), _RESTARTS),
    AttackKind("pgd_l2_scaled", "PGD ℓ₂, scaled logits", "l2", _pgd("l2", _scaled_loss), _RESTARTS),
    AttackKind("square_linf", "Square ℓ∞", "linf", _square("Linf"), _QUERIES, follows=("pgd_linf",)),
    AttackKind("square_l2", "Square ℓ₂", "l2", _square("L2"), _QUERIES, follows=("pgd_l2",)),
    AttackKind(
        "autoattack_linf", "AutoAttack ℓ∞", "linf", _standard("Linf"), _STANDARD, follows=("pgd_linf", "square_linf")
    ),
    AttackKind("autoattack_l2", "AutoAttack ℓ₂", "l2", _standard("L2"), _STANDARD, follows=("pgd_l2", "square_l2")),
):
    register(_kind)

for _file in pkgutil.iter_modules([str(Path(__file__).parent)]):  # each registers its own
    importlib.import_module(f"study.attacks.{_file.name}")


def perturb(
    kind: AttackKind,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    index: Tensor | None = None,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """Adversarial images for x (B, C, H, W) in [0, 1] with labels y (B,), ||x' - x|| <= eps in kind.norm.

    eps >= 0 in pixel units; eps = 0 returns x. index (B,): the numbers of the images, 0, 1, ... unless given; with the
    seed they determine random starts. The model, x and the global random state are left as they were found.
    Raises ValueError for eps < 0, pixels outside [0, 1], an option that the attack does not have or out of range, and
    logits that are not (B, K >= 2) and finite.
    """
    if not len(x):
        return x.clone()
    if not eps >= 0:
        raise invalid("eps", eps, ">= 0, in units of the pixel range")
    settings = complete(kind.name, kind.options, options)
    low, high = x.amin().item(), x.amax().item()
    if not (low >= 0 and high <= 1):  # so, that NaN is refused
        raise invalid("x", f"[{low:.4g}, {high:.4g}]", "pixels in [0, 1]; put the normalization into the model")
    if eps == 0:
        return x.clone()
    devices = [x.device] if x.is_cuda else []
    index = torch.arange(len(x)) if index is None else index
    with torch.random.fork_rng(devices), frozen(model), torch.enable_grad():
        torch.manual_seed(seed)
        images = x.detach().contiguous().clone()
        return kind.call(
            stride_free(model), images, y, eps=eps, index=index.to(x.device), seed=seed, **settings
        ).detach()


def smallest_perturbation(model: nn.Module, x: Tensor, y: Tensor, *, steps: int = 100, seed: int = 0) -> Tensor:
    """‖x' - x‖₂ (B,) of the smallest perturbation found that changes the prediction, for images classified correctly;
    inf where none is found.

    The decoupled direction and norm attack (DDN; Rony, 2019) on 8-bit pixels.
    """
    if not len(x):
        return torch.zeros(0, device=x.device)
    with torch.random.fork_rng([x.device] if x.is_cuda else []), frozen(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it steps its scheduler before its optimizer
        torch.manual_seed(seed)
        with torch.enable_grad():
            found = (
                advertorch("attacks")
                .DDNL2Attack(stride_free(model), nb_iter=steps)
                .perturb(x.detach().contiguous().clone(), y)
                .detach()
            )
        distance: Tensor = (found - x).flatten(1).norm(dim=1)
        return distance.where(~_correct(model, found, y), torch.inf)


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """∂(cross-entropy)/∂x, shape of x."""
    with frozen(model), torch.enable_grad():
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(_summed_loss(model(x), y), x)
    return gradient
