"""Federated averaging of rank-r matrices: clients send coordinates that add, and the server retracts.

All start from Z = U S Vᵀ (n, m); client i trains on its own data and reaches W_i, also of rank r. Factors of different
matrices cannot be added; the coordinates of the changes on the common bases can,

    A = Σ_i p_i (W_i - Z) V  (n, r),      B = Σ_i p_i (W_i - Z)ᵀ U  (m, r),      Σ_i p_i = 1,

by a `Channel`: in memory, over the air, or by torch.distributed. These r(n + m) numbers, in the place of nm, give the
tangential part of the mean change, A Vᵀ + U Bᵀ - U M Vᵀ with M = UᵀA = BᵀV, and the new point is its orthographic
retraction, the matrix of rank r with the coordinates A and B. It is W_1 where all W_i are equal, and its distance to
Σ p_i W_i is of second order in the largest ||W_i - Z|| / σ_min(S). No matrix (n, m) is formed.

The formulation, with the penalty λ/2 ||W_i - Z||², is that of Xue and Lau, IEEE Trans. Signal Process. 71 (2023); the
coordinates and the retraction are ours, and their precoder, which is for fading channels, is not here.
Others: McMahan et al., AISTATS 2017; Absil and Oseledets, Comput. Optim. Appl. 62 (2015), for the retraction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wellcond.errors import invalid
from wellcond.integrator import Factors
from wellcond.layers import LowRankLayer, low_rank_layers
from wellcond.linalg import upcast
from wellcond.optim import copy_
from wellcond.spectrum import check_max_cond, clip_condition_number
from wellcond.stiefel import project_horizontal, qr

# ------------------------------------------------------------------------ channels

Channel = Callable[[Tensor], Tensor]
"""Signals (k, ...) of the k clients of this process -> the sum over all clients (...), as it is received."""


def exact_sum(signals: Tensor) -> Tensor:
    """Σ_i s_i."""
    return signals.sum(0)


def all_reduced_sum(signals: Tensor) -> Tensor:
    """Σ_i s_i over the clients of all processes of torch.distributed's default group."""
    dist.all_reduce(total := signals.sum(0))
    return total


def noisy_sum(snr: float, generator: torch.Generator | None = None) -> Channel:
    """Over the air: Σ_i s_i + noise with independent entries N(0, σ²), snr = 10 log10(P/σ²) in dB.

    P is the mean square of the loudest signal, as all amplify by one number. Raises ValueError if snr is nan.
    """
    if math.isnan(snr):
        raise invalid("snr", snr, "a number of dB, inf for no noise")

    def channel(signals: Tensor) -> Tensor:
        power = signals.flatten(1).square().mean(1).amax()
        noise = torch.randn(signals.shape[1:], generator=generator, dtype=signals.dtype).to(signals.device)
        return signals.sum(0) + power.sqrt() * 10 ** (-snr / 20) * noise

    return channel


class Coordinates(NamedTuple):
    """Of a change D (n, m) on the bases of Z: A = D V (n, r), B = Dᵀ U (m, r)."""

    A: Tensor
    B: Tensor


def coordinates(Z: Factors, W: Factors) -> Coordinates:
    """Those of W - Z, from r(n + m) numbers each."""
    A = W.U @ (W.S @ (W.V.mT @ Z.V)) - Z.U @ Z.S
    return Coordinates(A, W.V @ (W.S.mT @ (W.U.mT @ Z.U)) - Z.V @ Z.S.mT)


def retract(Z: Factors, xi: Coordinates) -> Factors:
    """The W of rank r with these coordinates: X C Yᵀ, X = U + (I-UUᵀ)A C^-1, Y = V + (I-VVᵀ)B C^-T, C = S + M.

    This is the orthographic retraction of A Vᵀ + U Bᵀ - U M Vᵀ. M is received twice, so that noise in it is averaged;
    that in the rest is amplified by 1/σ_min(C). Raises torch.linalg.LinAlgError if C is singular.
    """
    C = Z.S + (Z.U.mT @ xi.A + (Z.V.mT @ xi.B).mT) / 2
    X = Z.U + torch.linalg.solve(C, project_horizontal(Z.U, xi.A), left=False)
    Y = Z.V + torch.linalg.solve(C.mT, project_horizontal(Z.V, xi.B), left=False)
    U, V = qr(X), qr(Y)
    return Factors(U, (U.mT @ X) @ C @ (Y.mT @ V), V)


def squared_distance(W: Factors, Z: Factors) -> Tensor:
    """||W - Z||_F² (...) = ||S_W||² + ||S_Z||² - 2⟨U_ZᵀW V_Z, S_Z⟩ for orthonormal bases, as the penalty of a client:
    its gradients along the manifold are those of the matrix, and a low-rank step projects the others out."""
    common = (Z.U.mT @ W.U) @ W.S @ (W.V.mT @ Z.V)
    return (W.S.square() + Z.S.square() - 2 * common * Z.S).sum((-2, -1))


# ------------------------------------------------------------------------ networks


def factors(layer: LowRankLayer) -> Factors:
    """U, S, V of a layer. Raises ValueError for one without a core, or with that of Tucker."""
    if layer.S is None or layer.S.ndim != layer.U.ndim:
        raise invalid("layer", f"{type(layer).__name__} without S (r, r)", "U S Vᵀ: wc.factorize(model, core=True)")
    return Factors(layer.U, layer.S, layer.V)


@torch.no_grad()
def aggregate_(
    server: nn.Module,
    clients: Sequence[nn.Module],
    weights: Sequence[float] | None = None,
    channel: Channel = exact_sum,
    *,
    max_cond: float = math.inf,
) -> None:
    """Move the server's network, in place, to the mean of its clients' networks, which are of the same shapes.

    Layers U S Vᵀ move by tangent coordinates and end with κ(S) <= max_cond, other parameters by their mean change;
    buffers stay. weights: p_i of the clients of this process, whose sum over all processes is one (default: equal).
    With `all_reduced_sum` each process begins and ends with the same server.
    Raises ValueError for no clients, another number of weights, or a max_cond that is none.
    """
    if not clients or (weights is not None and len(weights) != len(clients)):
        raise invalid("clients, weights", (len(clients), None if weights is None else len(weights)), "as many, >= 1")
    check_max_cond(max_cond)
    p = torch.tensor(weights or [1 / len(clients)] * len(clients), dtype=torch.float64)

    def received(changes: Sequence[Tensor]) -> Tensor:
        signals = torch.stack(list(changes))
        return channel(signals * p.to(signals).view(-1, *[1] * (signals.ndim - 1)))

    held: set[Tensor] = set()
    theirs = [low_rank_layers(client) for client in clients]
    for name, layer in low_rank_layers(server).items():
        point = factors(layer)
        Z = Factors(*map(upcast, point))
        sent = [coordinates(Z, Factors(*map(upcast, factors(layers[name])))) for layers in theirs]
        new = retract(Z, Coordinates(*(received(part) for part in zip(*sent, strict=True))))
        copy_(point, (new.U, clip_condition_number(new.S, max_cond), new.V))
        held.update(point)
    parameters = [dict(client.named_parameters()) for client in clients]
    for name, own in server.named_parameters():
        if own not in held:
            own.add_(received([other[name] - own for other in parameters]))
