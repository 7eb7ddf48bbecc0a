"""The spectrum, condition number and orthogonality error of every layer of a network, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wellcond.convert import unparametrized
from wellcond.layers import LowRankLayer, weight_layers, weight_matrix
from wellcond.spectrum import singular_values, spread
from wellcond.stiefel import orthogonality_error
from wellcond.tracing import BATCH_NORMS, dataflow


@dataclass(frozen=True)
class LayerReport:
    """One weight layer: all singular values of its matrix (of S where there is a core), κ, and for a U S Vᵀ layer the
    larger orthogonality error of U and V (nan elsewhere); of a stack of matrices (a grouped convolution) the spectra
    (g, r), and the largest of both numbers. Computed in float64 from the stored numbers."""

    spectrum: Tensor
    kappa: float
    orthogonality: float


@torch.no_grad()
def layer_reports(model: nn.Module) -> Mapping[str, LayerReport]:
    """A report on every linear and convolution layer, by name."""
    reports = {}
    for name, layer in weight_layers(model).items():
        orthogonality = math.nan
        if isinstance(layer, LowRankLayer):
            core = layer.core_matrix()
            if core is None:
                spectrum = layer.singular_values()
            else:
                spectrum = singular_values(core.double())
                orthogonality = max(orthogonality_error(X).max().item() for X in (layer.U, layer.V))
        else:
            spectrum = singular_values(weight_matrix(layer).double())
        reports[name] = LayerReport(spectrum.cpu(), spread(spectrum).max().item(), orthogonality)
    return reports


@dataclass(frozen=True)
class Affine:
    """z -> W z + b: a weight layer with the batch normalization after it folded in, D W for W, and
    the singular values of W that are nonzero to working precision, descending, with their right singular vectors Vᵀ."""

    W: Tensor
    b: Tensor
    sigma: Tensor
    Vt: Tensor

    @property
    def kappa(self) -> float:
        """σ_max/σ_min over the nonzero singular values; inf if W = 0."""
        return (self.sigma[0] / self.sigma[-1]).item() if len(self.sigma) else math.inf


def in_double(model: nn.Module) -> nn.Module:
    """A copy in float64 and evaluation mode, with plain weights and without gradients."""
    return unparametrized(model).double().requires_grad_(False)


def affine_layers(model: nn.Module) -> dict[str, Affine]:
    """Every weight layer of a float64 model by name, with the batch normalization that `dataflow` finds after it."""
    norms = dataflow(model).normalized
    return {
        name: _affine(layer, model.get_submodule(norms[name]) if name in norms else None)
        for name, layer in weight_layers(model).items()
    }


def _affine(layer: nn.Module, norm: nn.Module | None) -> Affine:
    W, bias = _matrix(layer), getattr(layer, "bias", None)
    b = bias if isinstance(bias, Tensor) else W.new_zeros(len(W))
    if norm is not None:
        D = _scale(norm)
        W, b = D[:, None] * W, D * (b - norm.running_mean)  # type: ignore[operator]
        b = b + norm.bias if isinstance(norm.bias, Tensor) else b
    _, sigma, Vt = torch.linalg.svd(W, full_matrices=False)
    # Nonzero to working precision. A bound by Vᵀ holds however many are kept: ‖W z‖ >= σ_k ‖V_kᵀ z‖ for every k.
    r = _nonzero(sigma, max(W.shape))
    return Affine(W, b, sigma[:r], Vt[:r])


def _matrix(layer: nn.Module) -> Tensor:
    """W (n, m); of a stack, the block diagonal of its matrices."""
    W = layer.matrix() if isinstance(layer, LowRankLayer) else weight_matrix(layer)
    return W if W.ndim == 2 else torch.block_diag(*W)  # type: ignore[no-untyped-call]


def _scale(norm: nn.Module) -> Tensor:
    """D = γ/sqrt(var + eps), one number a channel."""
    assert isinstance(norm, BATCH_NORMS)
    assert norm.running_var is not None
    D = (norm.running_var + norm.eps).rsqrt()
    return D if norm.weight is None else D * norm.weight


def _nonzero(sigma: Tensor, size: int) -> int:
    """How many singular values of a matrix, its longer side of this size, are nonzero to working precision."""
    return int((sigma > size * torch.finfo(sigma.dtype).eps * sigma[0]).sum())


def effective_kappa(model: nn.Module) -> dict[str, float]:
    """κ(D W) = σ_max/σ_min over the nonzero singular values, of every weight layer by name; inf if D W = 0.

    D = diag(γ/sqrt(var + eps)) where batch normalization is the only reader of what the layer returns, which is what
    `deploy` folds; D = I elsewhere. float64; any model.
    """
    model = in_double(model)
    norms = dataflow(model).normalized
    return {
        name: _kappa(layer, model.get_submodule(norms[name]) if name in norms else None)
        for name, layer in weight_layers(model).items()
    }


def _kappa(layer: nn.Module, norm: nn.Module | None) -> float:
    D = 1.0 if norm is None else _scale(norm)[:, None]
    if isinstance(layer, LowRankLayer) and layer.S is not None and layer.S.ndim == layer.U.ndim == 2:
        size = max(layer.matrix_shape)  # W is not formed
        sigma = singular_values(torch.linalg.qr(D * layer.left())[1] @ torch.linalg.qr(layer.V)[1].mT)
    else:
        W = D * _matrix(layer)
        size, sigma = max(W.shape), singular_values(W)
    r = _nonzero(sigma, size)
    return (sigma[0] / sigma[r - 1]).item() if r else math.inf
