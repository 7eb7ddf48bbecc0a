"""How a network is trained: one file a method, with its mathematics, its words and its place in the registry."""

from wellcond.methods import lorita
from wellcond.methods.alternating_compression import SparseTraining
from wellcond.methods.dynamical_low_rank import BUG
from wellcond.methods.frank_wolfe import FrankWolfe, frank_wolfe_groups, shift_inside
from wellcond.methods.kernel_average_pooling import KernelAveragePool, pool_kernels
from wellcond.methods.layerwise_rates import quantize_gradient, scale_gradients_
from wellcond.methods.method import Method
from wellcond.methods.orthogonal_flow import OrthogonalFlow
from wellcond.methods.penalties import robustness_regularizer, soft_orthogonality
from wellcond.methods.proximal import ProximalSGD
from wellcond.methods.registry import METHODS, find, register
from wellcond.methods.rewiring import Rewiring
from wellcond.methods.settings import Settings
from wellcond.methods.tangent_aggregation import aggregate_
from wellcond.methods.tucker import Tucker2Conv2d

__all__ = [
    "BUG",
    "METHODS",
    "FrankWolfe",
    "KernelAveragePool",
    "Method",
    "OrthogonalFlow",
    "ProximalSGD",
    "Rewiring",
    "Settings",
    "SparseTraining",
    "Tucker2Conv2d",
    "aggregate_",
    "find",
    "frank_wolfe_groups",
    "lorita",
    "pool_kernels",
    "quantize_gradient",
    "register",
    "robustness_regularizer",
    "scale_gradients_",
    "shift_inside",
    "soft_orthogonality",
]
