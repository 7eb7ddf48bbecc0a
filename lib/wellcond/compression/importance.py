"""How much the singular directions of a layer matter: by their singular values, or by what the loss says of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from wellcond.errors import invalid
from wellcond.layers import weight_matrix
from wellcond.linalg import upcast
from wellcond.spectrum import singular_values
from wellcond.tracing import evaluate

Layers = Mapping[str, Any]
"""Dense layers by name, whose weight `weight_matrix` makes a matrix (n, m), or a stack of them (g, n, m)."""


def matrix(layer: nn.Module, weight: Tensor | None = None) -> Tensor:
    """The weight of a dense layer, detached, or a tensor of its shape, as a matrix (..., n, m)."""
    if weight is None:
        return weight_matrix(layer).detach()
    other = copy.copy(layer)
    other._parameters = {**layer._parameters, "weight": weight}  # type: ignore[dict-item]
    return weight_matrix(other)


def _over_stack(gains: Tensor) -> Tensor:
    return gains.reshape(-1, gains.shape[-1]).sum(0)


def energy(model: nn.Module, layers: Layers, data: Any, loss: Any) -> dict[str, Tensor]:
    """log(σ_1² + ... + σ_r²) - log Σσ²: Σ_i v_i is then the logarithm of the product of what the layers keep.

    The product spares small layers: a sum lets one of them go almost whole, which costs accuracy. A zero matrix is 0.
    Source: Zhang, Zou, He, Sun, TPAMI 38 (2016), of the responses of a layer in place of its weights.
    """
    kept = {name: _over_stack(singular_values(matrix(layer)).double().square()) for name, layer in layers.items()}
    kept = {name: squares.cumsum(0) for name, squares in kept.items()}
    return {name: torch.where(sums > 0, sums / sums[-1], 1.0).log() for name, sums in kept.items()}


def sensitivity(
    model: nn.Module, layers: Layers, data: Iterable[tuple[Any, Any]], loss: Callable[[Any, Any], Tensor]
) -> dict[str, Tensor]:
    """Σ_{k <= r} Σ_b (σ_k u_kᵀ G_b v_k)²: squares of the first-order change of the loss when direction k is left out.

    G_b: the gradient of loss(model(x), y) of the b-th batch (x, y) with respect to the weight matrix.
    Raises ValueError if there is no batch. Source: Molchanov et al., CVPR 2019, who score filters so.
    """
    weights = {f"{name}.weight".lstrip("."): layer.weight.detach().requires_grad_() for name, layer in layers.items()}
    triples = {name: torch.linalg.svd(upcast(matrix(layer)), full_matrices=False) for name, layer in layers.items()}
    gains = {name: torch.zeros_like(_over_stack(sigma)) for name, (_, sigma, _) in triples.items()}

    def forward(*args: Any, **named: Any) -> Any:
        return functional_call(model, weights, args, named)

    batch = None
    for batch in data:
        x, y = batch
        with torch.enable_grad():
            grads = torch.autograd.grad(loss(evaluate(forward, x), y), list(weights.values()), materialize_grads=True)
        for (name, (P, sigma, Qt)), grad in zip(triples.items(), grads, strict=True):
            change = sigma * (P * (upcast(matrix(layers[name], grad)) @ Qt.mT)).sum(-2)
            gains[name] += _over_stack(change.square())
    if batch is None:
        raise invalid("data", data, "batches (x, y), at least one, where importance = 'sensitivity'")
    return {name: gain.double().cumsum(0) for name, gain in gains.items()}


IMPORTANCE: dict[str, Callable[..., dict[str, Tensor]]] = {"energy": energy, "sensitivity": sensitivity}
"""(model, layers, data, loss) -> v(r) of each layer, r = 1, ..., full rank, ascending."""
