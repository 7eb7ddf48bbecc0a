"""CondLR: the manifold integrator under a bound on κ(S), as we have it and as published; without a bound; and the bound
on dense weights.

The published steps are kept beside ours as they were released, to be compared with; they are rules of
`wellcond.optim.LowRankSGD`, of the kinds lowrank_published_band and lowrank_published_mean.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wellcond.integrator import Factors
from wellcond.methods.method import (
    Method,
    constrained_factors,
    decayed,
    plain_groups,
    register,
    trained_matrices,
)
from wellcond.methods.settings import Settings
from wellcond.optim import (
    UPDATES,
    Group,
    State,
    clip_weight,
    copy_,
    euclidean,
    factors_of,
    param_groups,
    with_rest,
)
from wellcond.spectrum import clip_spectrum
from wellcond.stiefel import project_horizontal, qr


def _published_bases(W: Factors, grad: Factors, momentum: Factors, scale: Tensor, lr: float, beta: float) -> Factors:
    # the released code stores the scaled, projected direction as the momentum buffer: beta compounds with the scale
    scale = scale[..., None, None]
    return Factors(
        scale * project_horizontal(W.U, beta * momentum.U + grad.U),
        beta * momentum.S + grad.S,
        scale * project_horizontal(W.V, beta * momentum.V + grad.V),
    )


def published_band_step(
    W: Factors, grad: Factors, momentum: Factors, scale: Tensor, *, lr: float, beta: float, max_cond: float
) -> tuple[Factors, Factors, Tensor]:
    """One step of the published CondLR code with tau = max_cond - 1 > 0, as written there.

    The preconditioner (SSᵀ)^-1 is replaced by the scalar c = (σ_min/σ_max)² of the last clipped S (c = 1 at first),
    and the spectrum is clipped by the mean-centred rule. Returns W, momentum and c. It is a descent step but not a
    discretization of the projected gradient flow: the error against that flow does not vanish with lr.
    """
    momentum = _published_bases(W, grad, momentum, scale, lr, beta)
    S, sigma = clip_spectrum(W.S - lr * momentum.S, max_cond, "mean")
    assert sigma is not None
    new = Factors(qr(W.U - lr * momentum.U), S, qr(W.V - lr * momentum.V))
    return new, momentum, (sigma[..., -1] / sigma[..., 0]).square()


def published_mean_step(
    W: Factors, grad: Factors, momentum: Factors, scale: Tensor, *, lr: float, beta: float
) -> tuple[Factors, Factors, Tensor]:
    """One step of the published CondLR code with tau = 0: S <- sqrt(tr(SSᵀ)/r) qf(S).

    The bases are scaled by 1/a₀, a₀ the mean singular value at the start, which stays frozen. Returns W, momentum
    and the unchanged scale.
    """
    momentum = _published_bases(W, grad, momentum, scale, lr, beta)
    S = W.S - lr * momentum.S
    S = torch.linalg.matrix_norm(S, keepdim=True) / math.sqrt(S.shape[-1]) * qr(S)
    return Factors(qr(W.U - lr * momentum.U), S, qr(W.V - lr * momentum.V)), momentum, scale


def _published_band(group: Group, state: State) -> None:
    W, grad, momentum = factors_of(group, state)
    scale = state[W.S].setdefault("scale", torch.ones_like(W.S[..., 0, 0]))
    new, new_momentum, new_scale = published_band_step(
        W, grad, momentum, scale, lr=group["lr"], beta=group["momentum"], max_cond=group["max_cond"]
    )
    copy_((*W, *momentum, scale), (*new, *new_momentum, new_scale))


def _published_mean(group: Group, state: State) -> None:
    W, grad, momentum = factors_of(group, state)
    if "scale" not in state[W.S]:
        state[W.S]["scale"] = 1 / torch.linalg.svdvals(W.S).mean(-1)
    new, new_momentum, _ = published_mean_step(
        W, grad, momentum, state[W.S]["scale"], lr=group["lr"], beta=group["momentum"]
    )
    copy_((*W, *momentum), (*new, *new_momentum))


def _euclidean_clipped(group: Group, state: State) -> None:
    euclidean(group, state)
    for p in group["params"]:
        clip_weight(p, group["max_cond"], group["rule"], group["stacked"])


UPDATES["lowrank_published_band"] = _published_band
UPDATES["lowrank_published_mean"] = _published_mean
UPDATES["clipped"] = _euclidean_clipped


def _published_groups(model: nn.Module, settings: Settings) -> list[Group]:
    kind = "lowrank_published_mean" if settings.max_cond == 1 else "lowrank_published_band"
    return param_groups(model, max_cond=settings.max_cond, kind=kind)


def _clipped(model: nn.Module, settings: Settings) -> nn.Module:
    decayed(model, settings)
    with torch.no_grad():
        for weight in trained_matrices(model):
            clip_weight(weight, settings.max_cond)
    return model


def _clipped_groups(model: nn.Module, settings: Settings) -> list[Group]:
    weights = trained_matrices(model)
    return with_rest(model, [{"params": weights, "kind": "clipped", "max_cond": settings.max_cond}])


register(
    Method(
        "usv",
        "projected U S Vᵀ",
        "The manifold integrator without a bound on κ(S): τ = ∞.",
        constrained_factors,
        plain_groups,
        frozenset({"ratio"}),
    )
)

register(
    Method(
        "condlr",
        "CondLR",
        "The manifold integrator with the nearest projection onto κ(S) <= 1 + τ after each step.",
        constrained_factors,
        plain_groups,
        frozenset({"ratio", "max_cond"}),
    )
)

register(
    Method(
        "condlr_published",
        "CondLR as published",
        "The step of the released code: scalar preconditioner and mean-centred clamp (RMS at τ = 0).",
        constrained_factors,
        _published_groups,
        frozenset({"ratio", "max_cond"}),
    )
)

register(
    Method(
        "dense_clipped",
        "dense, κ clipped",
        "Dense weights by momentum SGD, after each step the nearest with κ(W) <= 1 + τ: CondLR without low rank.",
        _clipped,
        _clipped_groups,
        frozenset({"max_cond"}),
    )
)
