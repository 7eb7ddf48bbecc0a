"""Full-rank weights with orthonormal rows, trained by Riemannian SGD: κ = 1 by construction."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from wellcond.layers import trained_layers
from wellcond.methods.method import Method, Settings, register
from wellcond.optim import Group, orthonormalize, with_rest


def _orthonormal(model: nn.Module, settings: Settings) -> nn.Module:
    for layer in trained_layers(model).values():
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        orthonormalize(layer.weight)
    return model


def _stiefel_groups(retraction: str) -> Callable[[nn.Module, Settings], list[Group]]:
    def groups(model: nn.Module, settings: Settings) -> list[Group]:
        weights = [layer.weight for layer in trained_layers(model).values()]
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
