"""wellcond: well-conditioned low-rank layers, W = U S Vᵀ with orthonormal U, V and κ(S) <= 1 + τ.

model = wc.factorize(model, ratio=0.8)                      # any nn.Module, by truncated SVD
optimizer = wc.LowRankSGD(wc.param_groups(model, max_cond=1.1), lr=0.1)
...                                                         # an ordinary training loop
small = wc.deploy(model)                                    # for inference: plain layers, merged factors

Three wings stand beside it: `wc.methods`, the other ways to train a network; `wc.compression`, which makes a trained
one smaller; it loses less if it was trained for that (wc.methods.FrankWolfe, ProximalSGD, lorita.overparametrize); and
`wc.adaptation`, which moves it to another task, or to another program:

small = wc.compression.compress(model, "svd", amount=0.8).model    # 80 % of the rank of each layer removed
model = wc.adapt(model, rank=8)                                    # low-rank updates of frozen weights
wc.export(small, "network.onnx", example)
"""

from wellcond import adaptation, compression, kinds, methods
from wellcond.adaptation import adapt, export, load_factors
from wellcond.compression.budgets import ranks
from wellcond.convert import densify, factorize, opened, rank_for_ratio
from wellcond.counts import count_flops, count_parameters
from wellcond.deployment import deploy
from wellcond.diagnostics import effective_kappa, layer_reports
from wellcond.inventory import summary
from wellcond.kinds.convolution import LowRankConv1d, LowRankConv2d, LowRankConv3d, recompute
from wellcond.kinds.opening import register_matrices
from wellcond.layers import LowRankLayer, LowRankLinear, low_rank_layers, matricize, register_kind, weight_layers
from wellcond.methods.adam import LowRankAdamW
from wellcond.methods.riemannian import on_manifold
from wellcond.optim import LowRankSGD, constrain, param_groups
from wellcond.spectrum import clip_condition_number, condition_number, nearest_scaled_orthogonal, singular_values
from wellcond.stiefel import orthogonality_error, random_stiefel, retract

__all__ = [
    "LowRankAdamW",
    "LowRankConv1d",
    "LowRankConv2d",
    "LowRankConv3d",
    "LowRankLayer",
    "LowRankLinear",
    "LowRankSGD",
    "adapt",
    "adaptation",
    "clip_condition_number",
    "compression",
    "condition_number",
    "constrain",
    "count_flops",
    "count_parameters",
    "densify",
    "deploy",
    "effective_kappa",
    "export",
    "factorize",
    "kinds",
    "layer_reports",
    "load_factors",
    "low_rank_layers",
    "matricize",
    "methods",
    "nearest_scaled_orthogonal",
    "on_manifold",
    "opened",
    "orthogonality_error",
    "param_groups",
    "random_stiefel",
    "rank_for_ratio",
    "ranks",
    "recompute",
    "register_kind",
    "register_matrices",
    "retract",
    "singular_values",
    "summary",
    "weight_layers",
]
