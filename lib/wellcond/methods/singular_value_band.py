"""U S Vᵀ with the norm and the condition number of every layer set apart: L/c <= σ_i(S) <= L.

A bound on κ(S) alone lets the norms of the layers float, and a bound on the norm lets κ float; a difference between two
networks of either kind may then be due to both. In the band the norm of a layer is at most L whatever c is, and κ at
most c whatever L is: an experiment can vary one and hold the other.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wellcond.errors import invalid
from wellcond.integrator import lowrank_step_
from wellcond.layers import low_rank_layers
from wellcond.linalg import svd
from wellcond.methods.method import Method, constrained_factors, register
from wellcond.methods.settings import Settings
from wellcond.optim import OF_POINT, UPDATES, Group, LowRankSGD, State, factors_of, param_groups
from wellcond.spectrum import check_max_cond


def clip_to_band(S: Tensor, max_norm: float, max_cond: float = math.inf) -> Tensor:
    """The Frobenius-nearest matrix to S (..., r, r) with L/c <= σ_i <= L, for L = max_norm > 0, c = max_cond >= 1.

    P diag(min(max(σ, L/c), L)) Qᵀ for S = P diag(σ) Qᵀ, by Mirsky's theorem; with c = inf the nearest matrix with
    ||S||_2 <= L, with c = 1 the nearest multiple L of an orthogonal one. Raises ValueError for a bound out of range.
    """
    if not 0 < max_norm < math.inf:
        raise invalid("max_norm", max_norm, "> 0")
    check_max_cond(max_cond)
    P, sigma, Qt = svd(S)
    clipped: Tensor = (P * sigma.clamp(max_norm / max_cond, max_norm).unsqueeze(-2) @ Qt).to(S.dtype)
    return clipped


def _band(group: Group, state: State) -> None:
    W, grad, momentum = factors_of(group, state)
    options = {key: group[key] for key in ("lr", *OF_POINT)}
    lowrank_step_(W, grad, momentum, beta=group["momentum"], **{**options, "max_cond": math.inf})
    W.S.copy_(clip_to_band(W.S, group["max_norm"], group["max_cond"]))


class BandSGD(LowRankSGD):
    """LowRankSGD whose groups of kind "lowrank_band" keep L/c <= σ_i(S) <= L, L = max_norm > 0 and c = max_cond."""

    updates = UPDATES | {"lowrank_band": _band}
    options: ClassVar[dict[str, Any]] = {**LowRankSGD.options, "max_norm": math.inf}


def _prepare(model: nn.Module, settings: Settings) -> nn.Module:
    model = constrained_factors(model, settings)
    with torch.no_grad():
        for layer in low_rank_layers(model).values():
            assert layer.S is not None
            layer.S.copy_(clip_to_band(layer.S, settings.max_norm, settings.max_cond))
    return model


def _groups(model: nn.Module, settings: Settings) -> list[Group]:
    return param_groups(model, max_cond=settings.max_cond, kind="lowrank_band", max_norm=settings.max_norm)


register(
    Method(
        "usv_band",
        "U S Vᵀ in a band",
        "The manifold integrator with all singular values of S clipped to [L/c, L] after each step.",
        _prepare,
        _groups,
        frozenset({"ratio", "max_cond", "max_norm"}),
        optimizer=BandSGD,
    )
)
