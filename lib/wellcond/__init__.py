"""wellcond: well-conditioned low-rank layers, W = U S Vᵀ with orthonormal U, V and κ(S) <= 1 + τ.

model = wc.factorize(model, ratio=0.8)                      # any nn.Module, by truncated SVD
optimizer = wc.LowRankSGD(wc.param_groups(model, max_cond=1.1), lr=0.1)
...                                                         # an ordinary training loop
small = wc.deploy(model)                                    # for inference: plain layers, merged factors

A network that was trained dense is compressed afterwards, the better if it was trained for that (FrankWolfe,
ProximalSGD, lorita.overparametrize):

small = wc.compress.compress(model, "svd", amount=0.8).model    # 80 % of the rank of each layer removed
"""

from wellcond import compress, distributed, lorita, paths
from wellcond.adversarial import Adversary
from wellcond.allocator import keep_freed_memory
from wellcond.assessment import assess
from wellcond.attacks import ATTACKS, frozen, perturb
from wellcond.basis_update import BUG
from wellcond.chapters import load_or_run
from wellcond.compress import COMPRESSORS, reestimate_batch_norm
from wellcond.conditioning import effective_kappa, relative_condition
from wellcond.convert import count_flops, count_parameters, densify, factorize, rank_for_ratio
from wellcond.data import DATASETS, Data, Images
from wellcond.data import load as load_data
from wellcond.deployment import deploy
from wellcond.ensemble import fit_together
from wellcond.evaluate import count_correct, layer_reports, robustness_curve
from wellcond.experiments import Experiment
from wellcond.frank_wolfe import FrankWolfe, frank_wolfe_groups, shift_inside
from wellcond.layers import (
    LowRankConv2d,
    LowRankLayer,
    LowRankLinear,
    low_rank_layers,
    matricize,
    recompute,
    weight_layers,
)
from wellcond.method import Method, Settings
from wellcond.methods import METHODS, register
from wellcond.models import MODELS, Normalize, build
from wellcond.notebook import check_parameters
from wellcond.optim import LowRankSGD, constrain, param_groups
from wellcond.proximal import ProximalSGD
from wellcond.regularizers import robustness_regularizer, soft_orthogonality
from wellcond.results import Results
from wellcond.runner import run_experiment, status
from wellcond.spectrum import clip_condition_number, condition_number, nearest_scaled_orthogonal, singular_values
from wellcond.stiefel import orthogonality_error, random_stiefel, retract
from wellcond.train import Diverged, fit
from wellcond.tucker import Tucker2Conv2d

__all__ = [
    "ATTACKS",
    "BUG",
    "COMPRESSORS",
    "DATASETS",
    "METHODS",
    "MODELS",
    "Adversary",
    "Data",
    "Diverged",
    "Experiment",
    "FrankWolfe",
    "Images",
    "LowRankConv2d",
    "LowRankLayer",
    "LowRankLinear",
    "LowRankSGD",
    "Method",
    "Normalize",
    "ProximalSGD",
    "Results",
    "Settings",
    "Tucker2Conv2d",
    "assess",
    "build",
    "check_parameters",
    "clip_condition_number",
    "compress",
    "condition_number",
    "constrain",
    "count_correct",
    "count_flops",
    "count_parameters",
    "densify",
    "deploy",
    "distributed",
    "effective_kappa",
    "factorize",
    "fit",
    "fit_together",
    "frank_wolfe_groups",
    "frozen",
    "keep_freed_memory",
    "layer_reports",
    "load_data",
    "load_or_run",
    "lorita",
    "low_rank_layers",
    "matricize",
    "nearest_scaled_orthogonal",
    "orthogonality_error",
    "param_groups",
    "paths",
    "perturb",
    "random_stiefel",
    "rank_for_ratio",
    "recompute",
    "reestimate_batch_norm",
    "register",
    "relative_condition",
    "retract",
    "robustness_curve",
    "robustness_regularizer",
    "run_experiment",
    "shift_inside",
    "singular_values",
    "soft_orthogonality",
    "status",
    "weight_layers",
]
