"""LISTA, the unrolled iteration for sparse codes, and when its layers descend.

z_l = soft(W1_l x + W2_l z_{l-1}, θ_l), z_0 = 0, estimates a sparse z from x = D z + noise; ISTA is W1 = ηDᵀ,
W2 = I - ηDᵀD, η = 1/||D||². Sources: Gregor and LeCun, ICML 2010; Hadou, NaderiAlizadeh and
Ribeiro, arXiv 2312.15788, for the constraints C_l.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

MEASUREMENTS, ATOMS, LAYERS = 32, 64, 10
SPARSITY, NOISE, EPSILON = 0.05, 0.01, 0.05


class Codes(NamedTuple):
    """Sparse codes z (B, ATOMS) and their measurements x (B, MEASUREMENTS)."""

    x: Tensor
    z: Tensor


def dictionary() -> Tensor:
    """A Gaussian D (MEASUREMENTS, ATOMS) with columns of norm one."""
    return nn.functional.normalize(torch.randn(MEASUREMENTS, ATOMS), dim=0)


def draw(D: Tensor, count: int, sparsity: float = SPARSITY, noise: float = NOISE) -> Codes:
    """Entries of z are standard normal with probability `sparsity`, else zero; that of x has the deviation `noise`."""
    z = torch.randn(count, ATOMS) * (torch.rand(count, ATOMS) < sparsity)
    return Codes(z @ D.mT + noise * torch.randn(count, MEASUREMENTS), z)


def soft(z: Tensor, threshold: Tensor) -> Tensor:
    """sign(z) max(|z| - θ, 0), the proximal map of θ||z||_1."""
    return z.sign() * (z.abs() - threshold).relu()


class Lista(nn.Module):
    """All states z_0, ..., z_L, as (L + 1, B, ATOMS).

    At first those of ISTA with the penalty `weight` ||z||_1; with `random`, its matrices are Gaussian of the same norm.
    """

    def __init__(self, D: Tensor, weight: float = 0.1, layers: int = LAYERS, random: bool = False) -> None:
        super().__init__()
        eta = 1 / torch.linalg.matrix_norm(D, 2) ** 2
        self.W1 = nn.Parameter((eta * D.mT).repeat(layers, 1, 1))
        self.W2 = nn.Parameter((torch.eye(D.shape[1]) - eta * D.mT @ D).repeat(layers, 1, 1))
        self.threshold = nn.Parameter((eta * weight).repeat(layers))
        for W in (self.W1, self.W2) if random else ():
            W.data = torch.randn_like(W) * (W[0].norm() / W[0].numel() ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        states = [x.new_zeros(len(x), self.W2.shape[1])]
        for W1, W2, threshold in zip(self.W1, self.W2, self.threshold, strict=True):
            states.append(soft(x @ W1.mT + states[-1] @ W2.mT, threshold))
        return torch.stack(states)


def gradient_norms(states: Tensor, x: Tensor, D: Tensor) -> Tensor:
    """||g(z_l)|| as (L + 1, B)."""
    norms: Tensor = ((states @ D.mT - x) @ D).norm(dim=2)
    return norms


def descent(norms: Tensor) -> Tensor:
    """C_1, ..., C_L, means over the batch, of gradient norms (L + 1, B)."""
    return (norms[1:] / norms[:-1].clamp(min=1e-6)).mean(1) - (1 - EPSILON)


def constraints(states: Tensor, x: Tensor, D: Tensor) -> Tensor:
    """`descent` of the sparse problem."""
    return descent(gradient_norms(states, x, D))


def losses(states: Tensor, z: Tensor) -> Tensor:
    """E ½||z_l - z||², l = 0, ..., L."""
    return (states - z).square().sum(2).mean(1) / 2
