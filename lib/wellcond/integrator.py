"""The manifold integrator: one step of the projected gradient flow on rank-r matrices, in a plain and a fast form.

`lowrank_step` is the definition, a pure function. `lowrank_step_` computes the same numbers in place, with five tall
products for each basis and r x r work otherwise; it is what the optimizer runs, and the tests hold it to the plain
form. Both take one layer, (n, r), (r, r), (m, r), or a stack of equal ones with a leading dimension.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from wellcond.spectrum import clip_after_step, clip_condition_number
from wellcond.stiefel import cholesky_qr_, gram_polar_, project_horizontal, retract


class Factors(NamedTuple):
    """W = U S Vᵀ, or a triple of gradients or momenta of the same shapes: (n, r), (r, r), (m, r)."""

    U: Tensor
    S: Tensor
    V: Tensor


def _inverse(A: Tensor, step: Tensor) -> Tensor:
    """(A + δI)^-1 for A = SSᵀ or SᵀS (..., r, r), δ relative to its mean eigenvalue; 0 where S is negligible against
    its own next step (..., r, r), so that the bases of a layer that starts at zero wait until its core has moved.

    δ only keeps the Cholesky factorization alive when κ(S) is beyond the working precision: it is 1e-8 in float64
    and about 1e-6 in float32, and has no visible effect while κ(S) is bounded by a small constant.
    """
    info = torch.finfo(A.dtype)
    diagonal = A.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(-1, keepdim=True)
    delta = max(1e-8, 10 * info.eps) * mean
    L, failed = torch.linalg.cholesky_ex(A + torch.diag_embed(delta.expand_as(diagonal)))
    least = info.eps * step.square().mean((-2, -1)) * A.shape[-1]
    waits = ((failed != 0) | (mean[..., 0] <= least.clamp(min=info.tiny / info.eps)))[..., None, None]
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    inverse = torch.cholesky_inverse(torch.where(waits, eye, L))  # one product with a tall matrix is cheaper than two
    return torch.where(waits, 0.0, inverse)  # triangular solves


def precondition(W: Factors, step: Tensor) -> tuple[Tensor, Tensor]:
    """(SSᵀ)^-1 and (SᵀS)^-1, regularised; 0 where S is negligible against its own next step (..., r, r)."""
    return _inverse(W.S @ W.S.mT, step), _inverse(W.S.mT @ W.S, step)


def lowrank_step(
    W: Factors,
    grad: Factors,
    momentum: Factors,
    *,
    lr: float,
    beta: float = 0.0,
    max_cond: float = math.inf,
    rule: str = "nearest",
    retraction: str = "qr",
) -> tuple[Factors, Factors]:
    """One step of the projected gradient flow Ẇ = -P_W G on {rank r, κ(S) <= max_cond} ("CondLR-exact").

        m_U <- (I - UUᵀ)(β m_U + g_U),   m_V <- (I - VVᵀ)(β m_V + g_V),   m_S <- β m_S + g_S
        U   <- R_U(-h m_U (SSᵀ)^-1),     V   <- R_V(-h m_V (SᵀS)^-1)
        S   <- nearest{κ <= max_cond}(S - h m_S)

    The momenta are stored before preconditioning, so that a change of S does not rescale them, and transported to the
    new tangent space by the projection, which is needed there anyway. While the constraint
    is inactive and β = 0, the new U S Vᵀ is W - h P_W(G) + O(h²); the constants do not depend on small singular
    values once κ(S) is bounded. Where S is 0, or negligible against h m_S, the bases stay for that step.

    W, grad, momentum: factors and autograd gradients; returns new W and momentum. lr: step h >= 0; beta in [0, 1).
    Source: Koch and Lubich, SIAM J. Matrix Anal. Appl. 29 (2007), for the flow; Savostianova et al., NeurIPS 2023,
    for the constraint; the preconditioner here is that of the flow, not of their code.
    """
    U, S, V = W
    m_U = project_horizontal(U, beta * momentum.U + grad.U)
    m_S = beta * momentum.S + grad.S
    m_V = project_horizontal(V, beta * momentum.V + grad.V)
    left, right = precondition(W, lr * m_S)
    d_U, d_V = m_U @ left, m_V @ right
    new = Factors(
        retract(U, -lr * d_U, retraction),
        clip_condition_number(S - lr * m_S, max_cond, rule),
        retract(V, -lr * d_V, retraction),
    )
    return new, Factors(m_U, m_S, m_V)


ORTHONORMALIZE = {"qr": cholesky_qr_, "polar": gram_polar_}
"""Fast retractions of a horizontal step, in place: X + ξ becomes R_X(ξ). The others go through `retract`."""


def _add_product_(C: Tensor, A: Tensor, B: Tensor, alpha: float) -> None:
    """C <- C + alpha A B for C (..., n, m), A (..., n, k) and B (..., k, m), with at most one leading dimension."""
    (C.addmm_ if C.ndim == 2 else C.baddbmm_)(A, B, alpha=alpha)


def _move_basis_(
    X: Tensor, grad: Tensor, momentum: Tensor, preconditioner: Tensor, lr: float, beta: float, retraction: str
) -> None:
    torch.add(grad, momentum, alpha=beta, out=momentum)
    _add_product_(momentum, X, X.mT @ momentum, -1)  # (I - XXᵀ) m
    if retraction in ORTHONORMALIZE:
        _add_product_(X, momentum, preconditioner, -lr)
        ORTHONORMALIZE[retraction](X)
    else:
        X.copy_(retract(X, -lr * (momentum @ preconditioner), retraction))


def lowrank_step_(
    W: Factors,
    grad: Factors,
    momentum: Factors,
    *,
    lr: float,
    beta: float = 0.0,
    max_cond: float = math.inf,
    rule: str = "nearest",
    retraction: str = "qr",
) -> None:
    """`lowrank_step`, with W and momentum overwritten by their new values; float32 or float64 factors.

    Each basis costs five products of size n r² (m r²): Xᵀm, X(Xᵀm), m A^-1, YᵀY and Y R^-1; the core costs one
    symmetric eigenvalue problem of size r and a dozen products r³, or on a GPU products alone (clip_after_step). The
    orthogonality error does not accumulate, since YᵀY is computed from the stored basis and not from the formula
    I + h² A^-1 mᵀm A^-1.
    """
    m_S = torch.add(grad.S, momentum.S, alpha=beta)
    left, right = precondition(W, lr * m_S)
    S = clip_after_step(torch.add(W.S, m_S, alpha=-lr), max_cond, rule)  # may fail, so before anything is changed
    _move_basis_(W.U, grad.U, momentum.U, left, lr, beta, retraction)
    _move_basis_(W.V, grad.V, momentum.V, right, lr, beta, retraction)
    momentum.S.copy_(m_S)
    W.S.copy_(S)
