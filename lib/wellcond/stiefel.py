"""Orthonormal frames: the Stiefel manifold St(n, r) = {X : XᵀX = I}.

A point X is an (..., n, r) tensor with n >= r, a tangent vector ξ at X one of the same shape with Xᵀξ skew.
All functions are pure and batched over the leading dimensions.

References: Edelman, Arias, Smith, SIAM J. Matrix Anal. Appl. 20 (1998); Absil, Mahony, Sepulchre,
*Optimization Algorithms on Matrix Manifolds* (2008), chapter 4; Wen, Yin, Math. Program. 142 (2013) for Cayley.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wellcond.errors import invalid, unknown
from wellcond.linalg import svd, upcast


def _check_tall(A: Tensor) -> None:
    if A.ndim < 2 or A.shape[-2] < A.shape[-1]:
        raise invalid("shape", tuple(A.shape), "(..., n, r) with n >= r")


def qr(A: Tensor) -> Tensor:
    """qf(A): the Q of the thin QR factorization of A (..., n, r) with diag(R) > 0, which makes it unique.

    Raises ValueError if n < r.
    """
    _check_tall(A)
    Q, R = torch.linalg.qr(upcast(A))
    sign = torch.where(torch.diagonal(R, dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(Q.dtype)
    frame: Tensor = (Q * sign.unsqueeze(-2)).to(A.dtype)
    return frame


def _eye_like(G: Tensor) -> Tensor:
    return torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)


def _newton_schulz(X: Tensor) -> Tensor:
    """One step to the polar factor; it squares a small orthogonality error."""
    return X + X @ (_eye_like(gram := X.mT @ X) - gram) / 2


def polar(A: Tensor) -> Tensor:
    """A (AᵀA)^(-1/2), the frame nearest to A (..., n, r) in the Frobenius norm. Raises ValueError if n < r."""
    _check_tall(A)
    P, _, Qt = svd(A)
    return _newton_schulz(P @ Qt).to(A.dtype)


def _triangular_root(gram: Tensor) -> Tensor:
    R = torch.linalg.cholesky_ex(gram, upper=True)[0]
    # small, and well conditioned in the last pass: a product with the inverse is faster than a solve, and as accurate
    inverse: Tensor = torch.linalg.solve_triangular(R, _eye_like(R), upper=True)
    return inverse


def _symmetric_root(gram: Tensor) -> Tensor:
    eigenvalues, Q = torch.linalg.eigh(gram)
    Z: Tensor = (Q / eigenvalues.sqrt().unsqueeze(-2)) @ Q.mT
    # float32 eigenvectors of close eigenvalues are orthonormal to 5e-6 only; a Newton step for Z gram Z = I mends that
    return 1.5 * Z - 0.5 * Z @ gram @ Z @ Z


def _orthonormalize_(A: Tensor, inverse_root: Callable[[Tensor], Tensor], fallback: Callable[[Tensor], Tensor]) -> None:
    """A <- A Z with Zᵀ(AᵀA)Z = I for A (..., n, r) with AᵀA >= I, from two tall products and r x r work.

    inverse_root: AᵀA -> Z. The error is about eps ||AᵀA||, so A far from a frame is treated twice, and very far from
    one by `fallback`. On a GPU it is always treated twice: reading the distance would stop the queue.
    """
    gram = A.mT @ A
    distance = math.inf if A.is_cuda else float((gram - _eye_like(gram)).norm(dim=(-2, -1)).amax())
    if not A.is_cuda and not distance < 1e4:  # also if it is nan
        A.copy_(fallback(A))
        return
    A.copy_(A @ inverse_root(gram))
    if distance > 0.5:
        A.copy_(A @ inverse_root(A.mT @ A))


def cholesky_qr_(A: Tensor) -> None:
    """A <- qf(A) as A R^-1, R the Cholesky factor of AᵀA, for A (..., n, r) with AᵀA >= I, such as a frame plus a
    horizontal vector: faster than Householder's QR by the speed of matrix products, and as orthogonal.

    Source: Yamamoto, Nakatsukasa, Yanagisawa, Fukaya, ETNA 44 (2015), for the second pass.
    """
    _orthonormalize_(A, _triangular_root, qr)


def gram_polar_(A: Tensor) -> None:
    """A <- its polar factor as A (AᵀA)^(-1/2) for A (..., n, r) with AᵀA >= I; see cholesky_qr_."""
    _orthonormalize_(A, _symmetric_root, polar)


def random_stiefel(
    n: int,
    r: int,
    *,
    batch: tuple[int, ...] = (),
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """A Haar-distributed frame (*batch, n, r): qf of a Gaussian matrix."""
    return qr(torch.randn(*batch, n, r, generator=generator, dtype=dtype, device=device))


def project_tangent(X: Tensor, Z: Tensor) -> Tensor:
    """Z - X sym(XᵀZ), the Frobenius-orthogonal projection of Z (..., n, r) on the tangent space at X."""
    XtZ = X.mT @ Z
    return Z - X @ ((XtZ + XtZ.mT) / 2)


def project_horizontal(X: Tensor, Z: Tensor) -> Tensor:
    """(I - XXᵀ) Z, evaluated as Z - X (XᵀZ): the n x n projector is never formed."""
    return Z - X @ (X.mT @ Z)


def _cayley(X: Tensor, xi: Tensor) -> Tensor:
    # (I - A/2)^-1 (I + A/2) X with the skew A = Pξ Xᵀ - X (Pξ)ᵀ, P = I - XXᵀ/2. A has rank 2r, so the Woodbury
    # identity leaves a 2r x 2r system; as XᵀX = I its blocks commute enough to be eliminated by hand, down to r x r:
    # R(ξ) = X + Pξ a + X b with (M² + (Pξ)ᵀPξ/4) a = I, b = 2 (M a - I), M = I - Xᵀξ/4.
    Xt_xi = X.mT @ xi
    P_xi = xi - X @ Xt_xi / 2
    eye = _eye_like(Xt_xi)
    M = eye - Xt_xi / 4
    a: Tensor = torch.linalg.inv(M @ M + P_xi.mT @ P_xi / 4)
    R = X + P_xi @ a + 2 * (X @ (M @ a - eye))
    return _newton_schulz(R)  # unlike QR and polar, Cayley inherits the rounding errors of X: here they stop


RETRACTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "qr": lambda X, xi: qr(X + xi),
    "polar": lambda X, xi: polar(X + xi),
    "cayley": _cayley,
}
"""R_X(ξ): QR is a first-order retraction, polar and Cayley agree with the geodesic to second order."""


def retract(X: Tensor, xi: Tensor, method: str = "qr") -> Tensor:
    """R_X(ξ) on St(n, r), with R_X(0) = X and dR_X(0) = id.

    X, xi: (..., n, r), xi tangent at X; method: a key of RETRACTIONS. Raises ValueError for an unknown method.
    """
    if method not in RETRACTIONS:
        raise unknown("retraction", method, RETRACTIONS)
    return RETRACTIONS[method](upcast(X), upcast(xi)).to(X.dtype)


def orthogonality_error(X: Tensor) -> Tensor:
    """||XᵀX - I||_2 (spectral norm), shape (...); evaluated in float64 so that it measures X, not the check."""
    X = X.double()
    gram = X.mT @ X
    error: Tensor = torch.linalg.eigvalsh(gram - _eye_like(gram)).abs().amax(-1)
    return error
