"""Penalties on weights, pure and differentiable functions of matrices, and the methods that add one to the loss.

Those on the singular values are products of matrices, so that repeated ones do no harm; those of the second half make
singular values, or whole filters, small enough to be removed afterwards (`proximal` makes them exactly zero).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wellcond.errors import invalid
from wellcond.layers import LowRankLayer, weight_layers, weight_matrix
from wellcond.linalg import svd
from wellcond.methods.method import Method, Penalty, dense, factors, inner_layers, plain_groups, register
from wellcond.methods.settings import Settings


def _small_gram(A: Tensor) -> Tensor:
    """A Aᵀ or AᵀA, whichever is smaller: its eigenvalues are the squares of all min(n, m) singular values."""
    return A @ A.mT if A.shape[-2] <= A.shape[-1] else A.mT @ A


def robustness_regularizer(S: Tensor) -> Tensor:
    """R(S) = ||SᵀS - α² I||_F, α² = ||S||_F²/r, for S with r = min(n, m) singular values; shape (...).

    R² = r·Var(σ_i²): it is zero exactly for multiples of orthonormal matrices, whatever their scale, and
    κ(S) <= exp(R(S)/(√2 σ_min²)). The gradient is 2 S (SᵀS - α² I)/R, and zero at R = 0. Since R is invariant under
    orthogonal factors, R(U S Vᵀ) = R(S): it does not act on the bases. Units: those of σ².
    Source: arXiv:2505.08022, Definition 1 and Propositions 1 to 3.
    """
    gram = _small_gram(S)
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    eye = torch.eye(gram.shape[-1], dtype=S.dtype, device=S.device)
    distance: Tensor = torch.linalg.matrix_norm(gram - mean[..., None, None] * eye)
    return distance


def soft_orthogonality(W: Tensor) -> Tensor:
    """||WᵀW - I||_F² over the smaller side of W (..., n, m): zero exactly for orthonormal rows or columns; shape (...).

    Source: Bansal, Chen, Wang, NeurIPS 2018.
    """
    gram = _small_gram(W)
    eye = torch.eye(gram.shape[-1], dtype=W.dtype, device=W.device)
    return (gram - eye).square().sum((-2, -1))


def nuclear_norm(W: Tensor) -> Tensor:
    """||W||_* = Σ σ_i of W (..., n, m), shape (...), in the units of W.

    The gradient is P Qᵀ of the thin SVD W = P diag(σ) Qᵀ over the nonzero singular values: the subgradient of least
    norm, and 0 at W = 0. Repeated singular values do no harm, since P Qᵀ is unique.
    Source: Fazel, Hindi, Boyd, ACC 2001, for minimizing it in place of the rank; Watson, 1992, for the subgradient.
    """
    tall = W if W.shape[-2] >= W.shape[-1] else W.mT
    P, sigma, Qt = svd(tall.detach())
    smallest = tall.shape[-2] * torch.finfo(sigma.dtype).eps * sigma[..., :1]  # as torch.linalg.matrix_rank
    polar = (P * (sigma > smallest).to(P.dtype).unsqueeze(-2)) @ Qt
    norm: Tensor = (tall * polar.to(W.dtype)).sum((-2, -1))
    return norm


def group_lasso(W: Tensor) -> Tensor:
    """Σ_f ||w_f||_2 over the rows w_f, the filters, of W (..., n, m), shape (...), in the units of W.

    The gradient is w_f/||w_f||_2, and 0 at w_f = 0.
    Source: Yuan, Lin, 2006; Wen et al., NeurIPS 2016, for the filters of a convolution.
    """
    norms: Tensor = torch.linalg.vector_norm(W, dim=-1)
    return norms.sum(-1)


# ------------------------------------------------------------------------ methods


def robustness_penalty(settings: Settings) -> Penalty | None:
    """β Σ R over all layers: of the core of a factorized layer, else of the weight matrix."""

    def penalty(model: nn.Module) -> Tensor:
        cores = (
            layer.core_matrix() if isinstance(layer, LowRankLayer) else weight_matrix(layer)
            for layer in weight_layers(model).values()
        )
        return (
            settings.beta
            * torch.stack([robustness_regularizer(core).sum() for core in cores if core is not None]).sum()
        )

    return penalty if settings.beta else None


def _soft_orthogonality(settings: Settings) -> Penalty | None:
    """β Σ ||XᵀX - I||² over the factors U, V of factorized layers and the weight matrices of the others."""

    def penalty(model: nn.Module) -> Tensor:
        matrices = [
            X
            for layer in weight_layers(model).values()
            for X in ((layer.U, layer.V) if isinstance(layer, LowRankLayer) else (weight_matrix(layer),))
        ]
        return settings.beta * torch.stack([soft_orthogonality(X).sum() for X in matrices]).sum()

    return penalty if settings.beta else None


def _penalized(
    norm: Callable[[Tensor], Tensor], kind: type[nn.Module] = nn.Module
) -> Callable[[Settings], Penalty | None]:
    """β Σ norm(W) over the weight matrices of all layers of this kind but the classifier. Raises ValueError if there
    is none."""

    def of(settings: Settings) -> Penalty | None:
        def penalty(model: nn.Module) -> Tensor:
            layers = [layer for layer in inner_layers(model).values() if isinstance(layer, kind)]
            if not layers:
                expected = f"a network with a {kind.__name__} before its last layer"
                raise invalid("model", type(model).__name__, expected)
            return settings.beta * torch.stack([norm(weight_matrix(layer)).sum() for layer in layers]).sum()

        return penalty if settings.beta else None

    return of


register(
    Method(
        "soft_orthogonal_uv",
        "U Vᵀ, soft orthogonality",
        "Two factors by momentum SGD with the penalty β ||UᵀU - I||² + β ||VᵀV - I||².",
        factors,
        plain_groups,
        frozenset({"ratio", "beta"}),
        penalty=_soft_orthogonality,
    )
)

register(
    Method(
        "soft_orthogonal",
        "dense, soft orthogonality",
        "Dense weights by momentum SGD with the penalty β ||WᵀW - I||² (over the smaller side).",
        dense,
        plain_groups,
        frozenset({"beta"}),
        penalty=_soft_orthogonality,
    )
)

register(
    Method(
        "nuclear_norm",
        "nuclear-norm penalty",
        "Dense weights by momentum SGD with the penalty β Σ ||W||_*.",
        dense,
        plain_groups,
        frozenset({"beta"}),
        penalty=_penalized(nuclear_norm),
        any_start=False,
    )
)

register(
    Method(
        "group_lasso",
        "group lasso on filters",
        "Dense weights by momentum SGD with the penalty β Σ ||w_f||_2 over the filters of the convolutions.",
        dense,
        plain_groups,
        frozenset({"beta"}),
        penalty=_penalized(group_lasso, nn.Conv2d),
        any_start=False,
    )
)
