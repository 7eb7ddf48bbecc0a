"""AdamW in place of momentum SGD: dense, two factors, U S Vᵀ without and with a bound on κ(S), and StelLA's step.

The protocol's momentum is β₁ of Adam; β₂ = 0.999 and ε = 1e-8 are torch's. Decay of U S Vᵀ shrinks S alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from wellcond.integrator import Factors
from wellcond.methods.method import Method, constrained_factors, dense, factors, plain_groups, register
from wellcond.methods.riemannian import OnManifold
from wellcond.stiefel import project_horizontal


class LowRankAdamW(OnManifold, torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter, ICLR 2019) on {U S Vᵀ, κ(S) <= max_cond}; options and all else as torch's.

    optimizer = wc.LowRankAdamW(wc.param_groups(model, max_cond=1.1), lr=1e-3, weight_decay=0.01)
    """


def projected_gradient(W: Factors, grad: Factors) -> Factors:
    """(P_U g_U, g_S, P_V g_V): autograd's gradients of the factors, projected, without the preconditioner."""
    return Factors(project_horizontal(W.U, grad.U), grad.S, project_horizontal(W.V, grad.V))


class ProjectedAdamW(LowRankAdamW):
    """AdamW on the projected gradients, its step projected and retracted.

    Source: StelLA, NeurIPS 2025, there with the polar retraction, and for adapters rather than whole layers.
    """

    gradient = staticmethod(projected_gradient)


def adamw(
    groups: Iterable[Any],
    lr: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    *,
    kind: type[LowRankAdamW] = LowRankAdamW,
) -> torch.optim.Optimizer:
    """AdamW on the manifold of each group, with β₁ = momentum."""
    return kind(groups, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay)


def projected_adamw(groups: Iterable[Any], **options: Any) -> torch.optim.Optimizer:
    """`adamw` without the preconditioner."""
    return adamw(groups, **options, kind=ProjectedAdamW)


register(Method("dense_adamw", "dense AdamW", "Dense weights, AdamW.", dense, plain_groups, optimizer=adamw))

register(
    Method(
        "uv_adamw",
        "U Vᵀ, AdamW",
        "Two factors, trained by AdamW.",
        factors,
        plain_groups,
        frozenset({"ratio"}),
        optimizer=adamw,
    )
)

register(
    Method(
        "usv_adamw",
        "projected U S Vᵀ, AdamW",
        "AdamW between two projections, on preconditioned gradients, without a bound on κ(S).",
        constrained_factors,
        plain_groups,
        frozenset({"ratio"}),
        optimizer=adamw,
    )
)

register(
    Method(
        "condlr_adamw",
        "CondLR, AdamW",
        "The same, with the nearest projection onto κ(S) <= 1 + τ after each step.",
        constrained_factors,
        plain_groups,
        frozenset({"ratio", "max_cond"}),
        optimizer=adamw,
    )
)

register(
    Method(
        "stella_adamw",
        "StelLA's step",
        "AdamW between two projections, without preconditioner or bound, retracted by QR.",
        constrained_factors,
        plain_groups,
        frozenset({"ratio"}),
        optimizer=projected_adamw,
    )
)
