"""Points U S Vᵀ for tests of the integrator, and a gradient at them."""

import torch

from helpers import DOUBLE, matrix_with, randn
from wellcond.integrator import Factors

N, M, R = 40, 30, 12


def start(dtype=DOUBLE, kappa=1.05, seed=0, batch=()):
    """U S Vᵀ with singular values in [1, kappa]; a stack of different ones if batch is given."""
    if batch:
        layers = [start(dtype, kappa, seed + i) for i in range(batch[0])]
        return Factors(*(torch.stack(p) for p in zip(*layers, strict=True)))
    sigma = [kappa + i * (1 - kappa) / (R - 1) for i in range(R)]
    U, V = (torch.linalg.qr(randn(n, R, seed=seed + k))[0] for n, k in ((N, 1), (M, 2)))
    return Factors(*(p.to(dtype).contiguous() for p in (U, matrix_with(sigma, seed=seed + 3), V)))


def clone(W):
    return Factors(*(p.clone() for p in W))


def zeros(W):
    return Factors(*(torch.zeros_like(p) for p in W))


def gradient(W, target):
    """Of ||U S Vᵀ - target||²/2 with respect to the factors."""
    G = W.U @ W.S @ W.V.mT - target
    return Factors(G @ W.V @ W.S.mT, W.U.mT @ G @ W.V, G.mT @ W.U @ W.S)


def matrix(W):
    return W.U @ W.S @ W.V.mT
