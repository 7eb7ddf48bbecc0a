"""Proximal gradient descent for the nuclear norm: SGD whose weights lose their small singular values.

    W <- W - h m,   then, every `every` steps,   W <- argmin_X ||X - W||_F²/2 + t ||X||_*,   t = every · h · λ,

h the learning rate: a splitting of the gradient flow of loss + λ Σ ||W||_* that is consistent for any `every`, and
whose decompositions cost the less the larger it is. Singular values below t become exactly zero.

Source: Cai, Candès, Shen, SIAM J. Optim. 20 (2010), for the map; Lions, Mercier, 1979, for the splitting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wellcond.errors import invalid
from wellcond.layers import matricize
from wellcond.linalg import svd
from wellcond.methods.method import Method, dense, inner_layers, register, single_matrices
from wellcond.methods.settings import Settings
from wellcond.optim import CheckedOptimizer, Group, State, euclidean, with_rest


@torch.no_grad()
def singular_value_threshold(W: Tensor, threshold: float) -> Tensor:
    """argmin_X ||X - W||_F²/2 + t ||X||_* = P diag(max(σ - t, 0)) Qᵀ for W = P diag(σ) Qᵀ (..., n, m).

    t = threshold >= 0, in the units of σ. After a gradient step of length lr on the loss, t = lr·λ makes it a proximal
    gradient step on loss + λ ||W||_*. Raises ValueError if threshold < 0.
    Source: Cai, Candès, Shen, 2010, Theorem 2.1.
    """
    if not threshold >= 0:
        raise invalid("threshold", threshold, ">= 0, in the units of the singular values")
    tall = W if W.shape[-2] >= W.shape[-1] else W.mT
    P, sigma, Qt = svd(tall)
    nearest = (P * (sigma - threshold).clamp(min=0).unsqueeze(-2) @ Qt).to(W.dtype)
    return nearest if tall is W else nearest.mT


def _thresholded(group: Group, state: State) -> None:
    euclidean(group, state)
    for p in group["params"]:
        steps = state[p]["steps"] = state[p].get("steps", 0) + 1
        if steps % group["every"] == 0:
            W = singular_value_threshold(matricize(p), group["every"] * group["lr"] * group["threshold"])
            p.copy_(W.reshape(p.shape))


UPDATES: dict[str, Callable[[Group, State], None]] = {"euclidean": euclidean, "thresholded": _thresholded}


class ProximalSGD(CheckedOptimizer):
    """Momentum SGD with the proximal map of the nuclear norm; see this module.

    params: groups. Options, of all groups or of one, with the defaults below:
        lr >= 0; momentum in [0, 1); weight_decay >= 0;
    kind: a key of UPDATES, "thresholded" for weights of two or more dimensions, each matricized to one matrix;
    threshold: λ >= 0; every >= 1.
    Raises ValueError, naming the option, for anything else.
    """

    updates = UPDATES
    options: ClassVar[dict[str, Any]] = {**CheckedOptimizer.options, "threshold": 0.0, "every": 10}

    def check(self, group: Group) -> None:
        super().check(group)
        if not group["threshold"] >= 0:
            raise invalid("threshold", group["threshold"], ">= 0")
        if not (group["every"] >= 1 and group["every"] == int(group["every"])):
            raise invalid("every", group["every"], "a whole number >= 1")
        flat = [tuple(p.shape) for p in group["params"] if p.ndim < 2]
        if group["kind"] == "thresholded" and flat:
            raise invalid("params", f"a tensor of shape {flat[0]}", "matrices or kernels in a thresholded group")


def _thresholded_groups(model: nn.Module, settings: Settings) -> list[Group]:
    weights = single_matrices(inner_layers(model))
    return with_rest(model, [{"params": weights, "kind": "thresholded", "threshold": settings.beta}])


register(
    Method(
        "proximal_sgd",
        "proximal SGD",
        "Dense weights by momentum SGD, their singular values thresholded every ten steps, the penalty β Σ ||W||_*.",
        dense,
        _thresholded_groups,
        frozenset({"beta"}),
        optimizer=ProximalSGD,
        any_start=False,
    )
)
