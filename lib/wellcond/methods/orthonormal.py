"""Full-rank weights with orthonormal rows, trained by Riemannian SGD: κ = 1 by construction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wellcond.methods.method import Method, register, trained_matrices
from wellcond.methods.settings import Settings
from wellcond.optim import UPDATES, Group, State, momentum_of, set_tall, tall, with_rest
from wellcond.stiefel import polar, project_tangent, retract


def stiefel_step(
    X: Tensor, grad: Tensor, momentum: Tensor, *, lr: float, beta: float, retraction: str
) -> tuple[Tensor, Tensor]:
    """Riemannian momentum SGD on St(n, r): m <- P_X(β m + g), X <- R_X(-h m), P_X the tangent projection at X.

    X, grad, momentum (n, r); returns the new X and m. Projecting the stored momentum at each new point is the vector
    transport of Li, Fuxin and Todorovic, ICLR 2020.
    """
    momentum = project_tangent(X, beta * momentum + grad)
    return retract(X, -lr * momentum, retraction), momentum


def _stiefel(group: Group, state: State) -> None:
    params, stacked = [p for p in group["params"] if p.grad is not None], group["stacked"]
    for p in params:
        buffer = momentum_of(p, state)
        X, grad, momentum = (tall(t, stacked) for t in (p, p.grad, buffer))
        options = {"lr": group["lr"], "beta": group["momentum"], "retraction": group["retraction"]}
        frame, momentum = stiefel_step(X, grad, momentum, **options)
        set_tall(p, frame, stacked)
        set_tall(buffer, momentum, stacked)


UPDATES["stiefel"] = _stiefel


@torch.no_grad()
def orthonormalize(weight: Tensor) -> None:
    """Replace a weight, in place, by the nearest matrix with orthonormal rows (columns if it is tall)."""
    set_tall(weight, polar(tall(weight)))


def _orthonormal(model: nn.Module, settings: Settings) -> nn.Module:
    for weight in trained_matrices(model):
        orthonormalize(weight)
    return model


def _stiefel_groups(retraction: str) -> Callable[[nn.Module, Settings], list[Group]]:
    def groups(model: nn.Module, settings: Settings) -> list[Group]:
        weights = trained_matrices(model)
        return with_rest(model, [{"params": weights, "kind": "stiefel", "retraction": retraction}])

    return groups


register(
    Method(
        "cayley_sgd",
        "Cayley SGD",
        "Full-rank weights with orthonormal rows, Cayley retraction.",
        _orthonormal,
        _stiefel_groups("cayley"),
        any_start=False,
    )
)

register(
    Method(
        "projected_sgd",
        "projected SGD",
        "Full-rank weights with orthonormal rows, QR retraction.",
        _orthonormal,
        _stiefel_groups("qr"),
        any_start=False,
    )
)
