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
from torch import Tensor

import wellcond as wc
from study.statistics.verdicts import Finding, Lines
from study.theory.lista import (
    LAYERS,
    SPARSITY,
    Codes,
    Lista,
    constraints,
    dictionary,
    draw,
    gradient_norms,
    losses,
)

finding = partial(Finding, "unrolled")
DUAL_RATE, BOUND = 1.0, 10.0
TRAIN, TEST, BATCH, EPOCHS = 5000, 2000, 250, 30
NOISES = (0.01, 0.05, 0.1, 0.2, 0.3)
SPARSITIES = (0.05, 0.1, 0.15, 0.2)


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
