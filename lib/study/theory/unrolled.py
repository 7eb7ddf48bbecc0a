"""LISTA whose layers are made to descend on average, against plain LISTA and a bound on its matrices.

Sparse codes z of x = D z + noise are estimated by L layers z_l = soft(W1_l x + W2_l z_{l-1}, θ_l), z_0 = 0, which learn
to minimize E ½||z_L - z||²; ISTA has W1 = ηDᵀ, W2 = I - ηDᵀD, η = 1/||D||². With g(z) = Dᵀ(Dz - x), layer l descends if

    C_l = E[||g(z_l)|| / ||g(z_{l-1})||] - (1 - ε) <= 0.

The Lagrangian E ½||z_L - z||² + Σ_l ν_l C_l is minimized by Adam over the layers on batches, and ν_l becomes
max(0, ν_l + ρ C_l) once an epoch. The other way to tame a layer is this study's: ||W2_l||_2 <= 1 and κ(W2_l) <= BOUND,
by projection. Layers start random, or as ISTA, which descends by itself.

Sources: Hadou, NaderiAlizadeh and Ribeiro, arXiv 2312.15788; Gregor and LeCun, ICML 2010.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

import wellcond as wc
from study.statistics.verdicts import Finding, Lines

finding = partial(Finding, "unrolled")
MEASUREMENTS, ATOMS, LAYERS = 32, 64, 10
SPARSITY, NOISE = 0.05, 0.01
EPSILON, DUAL_RATE, BOUND = 0.05, 1.0, 10.0
TRAIN, TEST, BATCH, EPOCHS = 5000, 2000, 250, 30
NOISES = (0.01, 0.05, 0.1, 0.2, 0.3)
SPARSITIES = (0.05, 0.1, 0.15, 0.2)


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


def dual_step(multipliers: Tensor, values: Tensor) -> Tensor:
    """ν <- max(0, ν + ρ C)."""
    return (multipliers + DUAL_RATE * values).clamp(min=0)


@torch.no_grad()
def project(network: Lista) -> None:
    """The nearest W2_l with κ <= BOUND, scaled to a norm of at most one."""
    W = wc.clip_condition_number(network.W2, BOUND)
    network.W2.copy_(W / torch.linalg.matrix_norm(W, 2).clamp(min=1)[:, None, None])


def _leave(network: Lista) -> None:
    pass


class Method(NamedTuple):
    """constrained: whether the layers have to descend; repair: what follows every tenth step, and the last; random:
    whether the start is."""

    constrained: bool = False
    repair: Callable[[Lista], None] = _leave
    random: bool = True


METHODS = {
    "LISTA": Method(),
    "LISTA, started as ISTA": Method(random=False),
    "descending": Method(constrained=True),
    "bounded": Method(repair=project),
}


def train(D: Tensor, data: Codes, method: Method) -> Lista:
    """Adam on batches, a dual step after each epoch."""
    network = Lista(D, random=method.random)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    multipliers, steps = torch.zeros(len(network.W2)), 0
    for _ in range(EPOCHS):
        seen = []
        for index in torch.split(torch.randperm(len(data.x)), BATCH):
            x, z = data.x[index], data.z[index]
            states = network(x)
            loss = (states[-1] - z).square().sum(1).mean() / 2
            if method.constrained:
                values = constraints(states, x, D)
                loss = loss + multipliers @ values
                seen.append(values.detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
            if steps % 10 == 0:
                method.repair(network)
        if method.constrained:
            multipliers = dual_step(multipliers, torch.stack(seen).mean(0))
    method.repair(network)
    return network


def losses(states: Tensor, z: Tensor) -> Tensor:
    """E ½||z_l - z||², l = 0, ..., L."""
    return (states - z).square().sum(2).mean(1) / 2


@torch.no_grad()
def unrolled(seeds: int = 3) -> tuple[list[Finding], pd.DataFrame]:
    """Panels layers (loss), gradients (E||g(z_l)||, the first being one), noise and sparsity (final loss), kappa."""
    lines, found = Lines(), {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        D = dictionary()
        data = draw(D, TRAIN)
        shifted = {("noise", s): draw(D, TEST, noise=s) for s in NOISES}
        shifted |= {("sparsity", s): draw(D, TEST, sparsity=s) for s in SPARSITIES}
        test = shifted["sparsity", SPARSITY]
        networks = {"ISTA": Lista(D), "ISTA, 100 steps": Lista(D, layers=100)}
        for name, method in METHODS.items():
            torch.manual_seed(seed)
            with torch.enable_grad():
                networks[name] = train(D, data, method)
        for name, network in networks.items():
            states = network(test.x)
            norms = gradient_norms(states, test.x, D).mean(1)
            for k in range(LAYERS + 1 if len(states) == LAYERS + 1 else 0):
                lines.add("layers", name, k, [float(losses(states, test.z)[k])], seed)
                lines.add("gradients", name, k, [float(norms[k] / norms[0])], seed)
            final = {key: float(losses(network(codes.x)[-1:], codes.z)) for key, codes in shifted.items()}
            for (panel, x), value in final.items():
                lines.add(panel, name, x, [value], seed)
            if name in METHODS:
                for k, kappa in enumerate(wc.condition_number(network.W2).tolist(), 1):
                    lines.add("kappa", name, k, [kappa], seed)
            found[name, seed] = {
                "rising": int((norms[1:] > norms[:-1]).sum()),
                "worst": float(constraints(states, test.x, D).max()),
                "loss": final["sparsity", SPARSITY],
                "noise": final["noise", NOISES[-1]] / final["noise", NOISES[0]],
                "noisy": final["noise", NOISES[-1]],
                "shift": final["sparsity", SPARSITIES[-1]] / final["sparsity", SPARSITY],
            }

    def each(number: str, name: str, over: str = "") -> list[float]:
        ratio = (found[over, seed][number] if over else 1 for seed in range(seeds))
        return [found[name, seed][number] / other for seed, other in enumerate(ratio)]

    return [
        finding("Layers of plain LISTA need not descend", "layers of 10 where E‖g‖ rises", each("rising", "LISTA"), 1),
        finding("Constrained layers do", "largest C on test data", each("worst", "descending"), high=0.02),
        finding("at about the same loss", "final loss over that of LISTA", each("loss", "descending", "LISTA"),
                 high=1.1),
        finding("and degrade less under noise", f"growth of the loss to σ = {NOISES[-1]:g}, over that of LISTA",
                 each("noise", "descending", "LISTA"), high=1),
        finding("and under a shift", f"growth of the loss to a sparsity of {SPARSITIES[-1]:g}, over that of LISTA",
                 each("shift", "descending", "LISTA"), high=1),
        finding("A bound on κ(W2) and its norm does the same", f"loss at σ = {NOISES[-1]:g} over that of descending",
                 each("noisy", "bounded", "descending"), high=1.1),
    ], lines.frame  # fmt: skip
