"""wellcond: well-conditioned low-rank layers, W = U S Vᵀ with orthonormal U, V and κ(S) <= 1 + τ.

model = wc.factorize(model, ratio=0.8)                      # any nn.Module, by truncated SVD
optimizer = wc.LowRankSGD(wc.param_groups(model, max_cond=1.1), lr=0.1)
...                                                         # an ordinary training loop
small = wc.deploy(model)                                    # for inference: plain layers, merged factors

Two wings stand beside it: `wc.methods`, the other ways to train a network, and `wc.compression`, which makes a trained
one smaller; it loses less if it was trained for that (wc.methods.FrankWolfe, ProximalSGD, lorita.overparametrize):

small = wc.compression.compress(model, "svd", amount=0.8).model    # 80 % of the rank of each layer removed
"""

from wellcond import compression, methods
from wellcond.convert import densify, factorize, rank_for_ratio
from wellcond.counts import count_flops, count_parameters
from wellcond.deployment import deploy
from wellcond.diagnostics import effective_kappa, layer_reports
from wellcond.layers import (
    LowRankConv2d,
    LowRankLayer,
    LowRankLinear,
    low_rank_layers,
    matricize,
    recompute,
    weight_layers,
)
from wellcond.methods.adam import LowRankAdamW
from wellcond.optim import LowRankSGD, constrain, param_groups
from wellcond.riemannian import on_manifold
from wellcond.spectrum import clip_condition_number, condition_number, nearest_scaled_orthogonal, singular_values
from wellcond.stiefel import orthogonality_error, random_stiefel, retract

__all__ = [
    "LowRankAdamW",
    "LowRankConv2d",
    "LowRankLayer",
    "LowRankLinear",
    "LowRankSGD",
    "clip_condition_number",
    "compression",
    "condition_number",
    "constrain",
    "count_flops",
    "count_parameters",
    "densify",
    "deploy",
    "effective_kappa",
    "factorize",
    "layer_reports",
    "low_rank_layers",
    "matricize",
    "methods",
    "nearest_scaled_orthogonal",
    "on_manifold",
    "orthogonality_error",
    "param_groups",
    "random_stiefel",
    "rank_for_ratio",
    "recompute",
    "retract",
    "singular_values",
    "weight_layers",
]
