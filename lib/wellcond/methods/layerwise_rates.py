"""Layer-wise adaptive learning rates for large batches (LARS), and unbiased quantization of what machines send.

Steps of a large batch are few and must be long; a rate that suits one layer is then too long for another. With one
trust ratio a layer every layer moves by the same share of its norm:

    ΔW = -h ρ (G + λW),        ρ = η ||W|| / ||G + λW||,        ρ = 1 where a norm is zero

    layer      ||W||                        ||G||
    dense      ||W||_F                      ||G||_F
    U S Vᵀ     ||S||_F                      ||P_W G||_F, the part of G along the matrices of rank r
    U Vᵀ       (||U||² + ||V||²)^(1/2)      (||g_U||² + ||g_V||²)^(1/2), of a step on both factors

Neither W nor G is formed for factors. With g_U = G V Sᵀ, g_S = Uᵀ G V, g_V = Gᵀ U S, as autograd gives them,

    ||P_W G||² = ||g_S||² + ||(I - UUᵀ) G V||² + ||(I - VVᵀ) Gᵀ U||²
               = ⟨g_S, g_S⟩ + ⟨g_U, (I - UUᵀ) g_U (SSᵀ)^-1⟩ + ⟨g_V, (I - VVᵀ) g_V (SᵀS)^-1⟩,

the rate at which the loss falls along the flow; the inverses are regularised as those of the integrator, which is
relative to 1e-8 κ(S)² in float64. As P_W G is linear in (g_U, g_S, g_V), ρ may scale these gradients
before any step that is linear in them, with momentum or without: LowRankSGD, torch.optim.SGD, or
wc.on_manifold(torch.optim.SGD, ...). Between several machines: sum the gradients first.

Sources: You, Gitman and Ginsburg, arXiv 1708.03888, for the ratio, there with ||G|| + λ||W||; Zhang et al., UAI 2022
(arXiv 2206.06257), for its use against adversaries, there with τ(||W||) for ||W||; Alistarh et al., NeurIPS
2017, for the quantization, there relative to the Euclidean norm. The norms from factors are ours, and so is that a bias
moves at the rate of its layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wellcond.errors import invalid
from wellcond.integrator import Factors
from wellcond.layers import LowRankLayer, weight_layers
from wellcond.linalg import upcast
from wellcond.methods.riemannian import horizontal_gradient
from wellcond.methods.tangent_aggregation import factors

# ------------------------------------------------------------------------ trust ratios


def tangent_norm(W: Factors, grad: Factors) -> Tensor:
    """||P_W G||_F (...) from the gradients of the factors (..., n, r), (..., r, r), (..., m, r) of W = U S Vᵀ."""
    pairs = zip(grad, horizontal_gradient(W, grad), strict=True)
    return torch.stack([(g * xi).sum((-2, -1)) for g, xi in pairs]).sum(0).clamp(min=0).sqrt()


def trust_ratio(weight: Tensor, gradient: Tensor, trust: float = 1.0) -> Tensor:
    """η ||W|| / ||G|| of two norms, 1 where one of them is zero."""
    return torch.where((weight > 0) & (gradient > 0), trust * weight / gradient, 1.0)


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(upcast(x)) for x in tensors]))


def _norms(layer: nn.Module, matrices: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Of the weight of a layer and of its gradient; `matrices` are its parameters that have a gradient."""
    if not isinstance(layer, LowRankLayer) or layer.S is None:
        return _norm(matrices), _norm([p.grad for p in matrices if p.grad is not None])
    W = factors(layer)
    grad = (torch.zeros_like(p) if p.grad is None else p.grad for p in W)
    return _norm([W.S]), _norm([tangent_norm(Factors(*map(upcast, W)), Factors(*map(upcast, grad)))])


@torch.no_grad()
def scale_gradients_(model: nn.Module, trust: float = 1.0, weight_decay: float = 0.0) -> dict[str, Tensor]:
    """Turn the gradients of every layer into ρ (G + λW), in place; returns {name of the layer: ρ}.

        loss.backward()
        scale_gradients_(model, trust=0.01)
        optimizer.step()

    trust: η > 0, the share of its norm by which a layer moves in a step of size 1. weight_decay: λ >= 0; that of the
    optimizer should be zero. Biases have no decay. Parameters outside layers with weights, and layers without a
    gradient, stay as they are; a weight that several layers share is one of the first. Raises ValueError for numbers
    out of range, and for a Tucker core.
    """
    if not trust > 0:
        raise invalid("trust", trust, "> 0")
    if not weight_decay >= 0:
        raise invalid("weight_decay", weight_decay, ">= 0")
    ratios: dict[str, Tensor] = {}
    seen: set[Tensor] = set()
    for name, layer in weight_layers(model).items():
        own = [p for p in layer.parameters() if p.grad is not None and p not in seen]
        matrices = [p for p in own if p.ndim > 1]
        seen.update(own)
        if not matrices:
            continue
        core = getattr(layer, "S", None)  # of U S Vᵀ: the components of λW along the manifold are (0, λS, 0)
        for p in (p for p in matrices if core is None or p is core):
            p.grad.add_(p, alpha=weight_decay)
        ratios[name] = trust_ratio(*_norms(layer, matrices), trust)
        for p in own:
            p.grad.mul_(ratios[name])
    return ratios


# ------------------------------------------------------------------------ quantization


@dataclass(frozen=True)
class Quantized:
    """Numbers as codes (int8) of so many bits each, in units of one scale."""

    codes: Tensor
    scale: Tensor

    @property
    def value(self) -> Tensor:
        """The numbers that the codes stand for."""
        return self.codes * self.scale


def quantize_gradient(x: Tensor, bits: int = 8, generator: torch.Generator | None = None) -> Quantized:
    """q = ⌊x/s + u⌋ with u uniform in [0, 1) and s = max|x| / (2^(bits-1) - 1), entry by entry.

    E s q = x, |s q - x| < s, and the variance of an entry is s² p(1 - p) <= s²/4, p the fractional part of x/s; all up
    to rounding. bits: 2 to 8, the sign included. generator: on the device of x. Raises ValueError for other bits.
    """
    if not (isinstance(bits, int) and 2 <= bits <= 8):
        raise invalid("bits", bits, "an integer from 2 to 8")
    levels = 2 ** (bits - 1) - 1
    scale = upcast(x).abs().max() / levels
    u = torch.rand(x.shape, generator=generator, dtype=scale.dtype, device=x.device)
    codes = (x / torch.where(scale > 0, scale, 1.0) + u).floor().clamp(-levels, levels)
    return Quantized(codes.to(torch.int8), scale)
