"""What one step of the manifold integrator costs: its growth, its retractions, and the choices it was made by."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from study.benches.clocks import interleaved
from wellcond.integrator import Factors, lowrank_step, lowrank_step_
from wellcond.kinds.convolution import LowRankConv2d
from wellcond.matrix_sign import clip_nearly_feasible
from wellcond.spectrum import clip_condition_number, nearest_rule
from wellcond.stiefel import (
    cholesky_qr_,
    gram_polar_,
    orthogonality_error,
    polar,
    project_horizontal,
    qr,
    random_stiefel,
    retract,
)

Row = dict[str, Any]
MAX_COND = 1.1

# --- growth of the optimizer step ------------------------------------------------------------------------------------

SWEEPS: dict[str, list[tuple[int, int, int]]] = {
    "rank": [(1024, r, 1) for r in (16, 32, 64, 128, 256)],
    "size": [(n, 64, 1) for n in (256, 512, 1024, 2048, 4096)],
    "layers": [(512, 64, count) for count in (1, 2, 4, 8, 16)],
}
"""(n = m, r, number of layers): what varies is the name of the sweep."""


def _random_layer(n: int, m: int, r: int, device: str) -> tuple[Factors, Factors, Factors]:
    """W with κ(S) = 1, a gradient that moves the singular values out of the constraint, and no momentum."""
    W = Factors(random_stiefel(n, r, device=device), torch.eye(r, device=device), random_stiefel(m, r, device=device))
    W = Factors(*(p.mT.contiguous().mT for p in W))  # by columns, as in a layer
    gradient = Factors(*(0.1 * torch.randn_like(p) / math.sqrt(r) for p in W))
    return W, gradient, Factors(*(torch.zeros_like(p) for p in W))


def _steps(layers: Sequence[tuple[Factors, Factors, Factors]], step: Callable[..., Any]) -> None:
    for W, gradient, momentum in layers:
        step(W, gradient, momentum, lr=1e-3, beta=0.9, max_cond=MAX_COND)


def _products(layers: Sequence[tuple[Factors, Factors, Factors]]) -> None:
    """The tall products of lowrank_step_ and nothing else: five for each basis."""
    for W, gradient, _ in layers:
        for X, g in ((W.U, gradient.U), (W.V, gradient.V)):
            core = X.mT @ g
            for _ in range(4):
                X @ core


def growth_rows(*, repeats: int = 15, device: str = "cpu") -> list[Row]:
    """Seconds of one integrator step, and of its tall products alone, as each quantity of SWEEPS grows.

    Columns: sweep, n (= m), rank, layers, step_s, plain_s (the plain form), products_s. Theory: (n + m) r² a layer.
    """
    kinds: dict[str, Callable[..., Any]] = {
        "products_s": _products,
        "step_s": partial(_steps, step=lowrank_step_),
        "plain_s": partial(_steps, step=lowrank_step),
    }
    rows = []
    for sweep, sizes in SWEEPS.items():
        torch.manual_seed(0)
        layers = {size: [_random_layer(size[0], *size[:2], device) for _ in range(size[2])] for size in sizes}
        # all sizes of a kind in turn, so that each finds its code in the cache and its layer not, as in training; the
        # largest first, since the first one does not find its code either
        order = [(size, kind) for kind in kinds for size in reversed(sizes)]
        tasks = {(size, kind): partial(kinds[kind], layers[size]) for size, kind in order}
        seconds = interleaved(tasks, repeats, device)
        for size in sizes:
            medians = {kind: statistics.median(seconds[size, kind]) for kind in kinds}
            rows.append({"sweep": sweep, **dict(zip(("n", "rank", "layers"), size, strict=True)), **medians})
    return rows


# --- retractions -----------------------------------------------------------------------------------------------------


def _in_place(orthonormalize_: Callable[[Tensor], None], X: Tensor, xi: Tensor) -> Tensor:
    Y = X + xi
    orthonormalize_(Y)
    return Y


FORMS: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "QR by Householder": ("qr", lambda X, xi: qr(X + xi)),
    "QR by Cholesky": ("qr", partial(_in_place, cholesky_qr_)),
    "polar by singular vectors": ("polar", lambda X, xi: polar(X + xi)),
    "polar by the Gram matrix": ("polar", partial(_in_place, gram_polar_)),
    "Cayley": ("cayley", lambda X, xi: retract(X, xi, "cayley")),
}
"""Name: (key in stiefel.RETRACTIONS, one way to compute it for a horizontal ξ)."""


def retraction_rows(*, n: int = 1024, repeats: int = 15, device: str = "cpu") -> list[Row]:
    """Each of FORMS in float32 for a horizontal step of Frobenius norm 0.1, against the same retraction in float64.

    Columns: retraction, n, rank, seconds, orthogonality (||XᵀX - I||_2 after the step), error (largest entry).
    """
    rows = []
    for r in (n // 16, n // 4):
        torch.manual_seed(0)
        X = random_stiefel(n, r, device=device)
        xi = project_horizontal(X, torch.randn_like(X))
        xi *= 0.1 / xi.norm()
        tasks = {name: partial(form, X, xi) for name, (_, form) in FORMS.items()}
        seconds = interleaved(tasks, repeats, device)
        for name, (kind, form) in FORMS.items():
            found, exact = form(X, xi), retract(X.double(), xi.double(), kind)
            rows.append(
                {
                    "retraction": name, "n": n, "rank": r, "seconds": statistics.median(seconds[name]),
                    "orthogonality": float(orthogonality_error(found)), "error": float((found - exact).abs().amax()),
                }
            )  # fmt: skip
    return rows


# --- the constraint: decompositions or products ----------------------------------------------------------------------


def clip_rows(*, cores: int = 8, repeats: int = 15, device: str = "cpu") -> list[Row]:
    """Clipping a stack of equal cores that were feasible one step of 1e-3 ago, by singular vectors or products alone.

    Columns: rank, max_cond, decomposition_s, products_s, ratio (products over decomposition; where it is below 0.9 on a
    GPU `spectrum.clip_after_step` is right to take them).
    """
    rows = []
    for r in (16, 64, 256):
        torch.manual_seed(0)
        S = clip_condition_number(torch.randn(cores, r, r, device=device), MAX_COND)
        S = S + 1e-3 * torch.randn_like(S) * S.norm() / math.sqrt(S.numel())
        for max_cond in (1.0, MAX_COND, 2.0):
            tasks = {
                "decomposition_s": partial(clip_condition_number, S, max_cond),
                "products_s": partial(clip_nearly_feasible, S, max_cond),
            }
            medians = {key: statistics.median(times) for key, times in interleaved(tasks, repeats, device).items()}
            ratio = medians["products_s"] / medians["decomposition_s"]
            rows.append({"rank": r, "max_cond": max_cond, **medians, "ratio": ratio})
    return rows


# --- what the design choices of the published implementation cost ----------------------------------------------------


class UnfoldedConv2d(LowRankConv2d):
    """The same layer applied to unfolded patches (B, C_in·kh·kw, positions) by two matrix products."""

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, self.kernel_size, padding=1)
        return (self.left() @ (self.V.mT @ patches)).reshape(x.shape[0], -1, *x.shape[-2:])  # stride 1, padding 1


def _project_by_matrix(X: Tensor, Z: Tensor) -> Tensor:
    return (torch.eye(X.shape[0], device=X.device) - X @ X.mT) @ Z


def published_choices_step(
    W: Factors, grad: Factors, momentum: Factors, *, lr: float, beta: float, max_cond: float
) -> tuple[Factors, Factors]:
    """`lowrank_step` as one would transcribe it: n x n projectors, explicit inverses, Householder QR, SVD of S."""
    U, S, V = W
    m_U = _project_by_matrix(U, beta * momentum.U + grad.U)
    m_S = beta * momentum.S + grad.S
    m_V = _project_by_matrix(V, beta * momentum.V + grad.V)
    P, sigma, Qt = torch.linalg.svd(S - lr * m_S)
    new = Factors(
        torch.linalg.qr(U - lr * m_U @ torch.linalg.inv(S @ S.mT))[0],
        P * nearest_rule(sigma, max_cond) @ Qt,
        torch.linalg.qr(V - lr * m_V @ torch.linalg.inv(S.mT @ S))[0],
    )
    return new, Factors(m_U, m_S, m_V)


VARIANTS: dict[str, tuple[type[LowRankConv2d], Callable[..., Any]]] = {
    "fast": (LowRankConv2d, lowrank_step_),
    "plain": (LowRankConv2d, lowrank_step),
    "dense projectors, QR, SVD": (LowRankConv2d, published_choices_step),
    "unfolded patches": (UnfoldedConv2d, lowrank_step_),
    "both": (UnfoldedConv2d, published_choices_step),
}


PARTS = ("forward_backward_s", "optimizer_s")


def ablation_rows(
    *, channels: int = 256, positions: int = 8, batch: int = 128, repeats: int = 9, device: str = "cpu"
) -> list[Row]:
    """One 3 x 3 convolution (channels to channels, on positions x positions) at half its rank, in each of VARIANTS.

    Columns: variant, forward_backward_s, optimizer_s, step_ratio (to the dense convolution with SGD).
    """
    torch.manual_seed(0)
    dense = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device)
    dense = dense.to(memory_format=torch.channels_last)
    sgd = torch.optim.SGD(dense.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(batch, channels, positions, positions, device=device).to(memory_format=torch.channels_last)
    x.requires_grad_()

    def train(layer: torch.nn.Module) -> None:
        layer.zero_grad(set_to_none=True)
        layer(x).square().mean().backward()

    tasks: dict[Any, Callable[[], Any]] = {
        ("dense", "forward_backward_s"): partial(train, dense),
        ("dense", "optimizer_s"): sgd.step,
    }
    for name, (kind, step) in VARIANTS.items():
        layer = kind.from_dense(dense, channels // 2)
        momentum = Factors(*(torch.zeros_like(p) for p in (layer.U, layer.S, layer.V) if p is not None))

        def update(layer: Any = layer, momentum: Factors = momentum, step: Any = step) -> None:
            with torch.no_grad():
                W, grad = Factors(layer.U, layer.S, layer.V), Factors(layer.U.grad, layer.S.grad, layer.V.grad)
                step(W, grad, momentum, lr=1e-3, beta=0.9, max_cond=MAX_COND)

        tasks[name, "forward_backward_s"] = partial(train, layer)
        tasks[name, "optimizer_s"] = update
    seconds = interleaved(tasks, repeats, device)
    total = {
        name: statistics.median(map(sum, zip(*(seconds[name, part] for part in PARTS), strict=True)))
        for name in ("dense", *VARIANTS)
    }
    return [
        {
            "variant": name,
            **{part: statistics.median(seconds[name, part]) for part in PARTS},
            "step_ratio": total[name] / total["dense"],
        }
        for name in total
    ]
