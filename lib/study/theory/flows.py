"""Matrix flows Ẇ = F(W), followed by production layers and optimizers in float64, and accurately for reference.

A field F enters an optimizer through the loss -⟨F(W₀), W⟩ at W₀ = W, whose gradient with respect to W is -F(W): one
step of the optimizer with learning rate h is then one step of length h of its integrator. Everything is a stack of k
independent problems, factors (k, n, r), (k, r, r), (k, m, r) and matrices (k, n, m), which take a step together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wellcond.integrator import Factors
from wellcond.layers import LowRankLinear
from wellcond.methods.dynamical_low_rank import BUG
from wellcond.optim import LowRankSGD, param_groups
from wellcond.stiefel import project_horizontal

Field = Callable[[Tensor, int], Tensor]
"""F(W, k) for a stack W (k, n, m) in step number k: a method that evaluates twice in a step sees the same noise."""


@dataclass(frozen=True)
class Method:
    """An integrator as training uses it. stacks: whether its optimizer takes stacked factors, or layer by layer."""

    label: str
    optimizer: Callable[[nn.Module, float], Optimizer]
    stacks: bool = True


def exact(max_cond: float = math.inf, retraction: str = "qr", label: str = "CondLR-exact") -> Method:
    """`integrator.lowrank_step_`: the projected gradient flow with the bound κ(S) <= max_cond."""
    options = {"max_cond": max_cond, "retraction": retraction}
    return Method(label, lambda model, lr: LowRankSGD(param_groups(model, **options), lr=lr))


def published(max_cond: float, label: str = "CondLR as published") -> Method:
    """The step of the released code: a number in place of (SSᵀ)^-1, and the mean-centred clip."""
    options = {"max_cond": max_cond, "kind": "lowrank_published_band"}
    return Method(label, lambda model, lr: LowRankSGD(param_groups(model, **options), lr=lr))


def basis_update(basis: str, label: str) -> Method:
    """`basis_update.BUG` at constant rank: "fixed" is K-L-S, "augmented" truncates from rank 2r."""
    return Method(label, lambda model, lr: BUG(param_groups(model), lr=lr, basis=basis), stacks=False)


KLS = basis_update("fixed", "K-L-S")
AUGMENTED = basis_update("augmented", "augmented basis")
TAU = 0.1
CONDLR = exact(1 + TAU)
COVERED = (CONDLR, KLS, AUGMENTED)
"""The methods of the theorems: A, its counterpart in the literature, and B."""


def joined(points: Iterable[Factors]) -> Factors:
    """Stacks of points, one after the other, as one stack."""
    return Factors(*map(torch.cat, zip(*points, strict=True)))


def matrix(W: Factors) -> Tensor:
    """U S Vᵀ."""
    return W.U @ W.S @ W.V.mT


def normal_part(W: Factors, Z: Tensor) -> Tensor:
    """(I - UUᵀ) Z (I - VVᵀ): what of Z no tangent vector of the rank-r matrices at W can follow."""
    return project_horizontal(W.V, project_horizontal(W.U, Z).mT).mT


def layer_at(W: Factors) -> LowRankLinear:
    """A layer without bias and with copies of these factors. Those of a stack make a stack of layers: `matrix()`
    multiplies in the last two dimensions."""
    layer = LowRankLinear(W.V.shape[-2], W.U.shape[-2], W.S.shape[-1], bias=False, dtype=W.S.dtype)
    layer.U, layer.S, layer.V = (nn.Parameter(factor.clone()) for factor in W)
    return layer


def factors(layer: LowRankLinear) -> Factors:
    """The present factors of a layer, without their history."""
    assert layer.S is not None
    return Factors(*(p.detach() for p in (layer.U, layer.S, layer.V)))


def descend(
    optimizer: Optimizer,
    loss: Callable[[int], Tensor],
    steps: int,
    before_step: Callable[[], object] = lambda: None,
) -> None:
    """`steps` steps of an optimizer on loss(k), k the number of the step; `before_step` may look at the parameters."""

    def closure(k: int) -> Tensor:
        optimizer.zero_grad()
        value = loss(k)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    for k in range(steps):
        before_step()
        optimizer.step(partial(closure, k))  # type: ignore[arg-type]


def integrate(method: Method, field: Field, start: Factors, *, lr: float, steps: int) -> Tensor:
    """The matrices W (k, n, m) that a method reaches from a stack of points in `steps` steps of length `lr`."""
    members = [start] if method.stacks else [Factors(*member) for member in zip(*start, strict=True)]
    layers = [layer_at(member) for member in members]

    def matrices() -> Tensor:
        return layers[0].matrix() if method.stacks else torch.stack([layer.matrix() for layer in layers])

    def loss(k: int) -> Tensor:
        W = matrices()
        return -(field(W.detach(), k) * W).sum()

    descend(method.optimizer(nn.ModuleList(layers), lr), loss, steps)
    return matrices().detach()


def reference(field: Field, W: Tensor, *, time: float, steps: int = 200) -> Tensor:
    """W(time) of the full flow, by the classical Runge-Kutta method of order four; `field` must not be noisy."""
    h = time / steps
    for k in range(steps):
        a = field(W, k)
        b = field(W + h / 2 * a, k)
        c = field(W + h / 2 * b, k)
        d = field(W + h * c, k)
        W = W + h / 6 * (a + 2 * b + 2 * c + d)
    return W
