"""Dynamic rewiring: sparse from the first step on, with zeros that move once an epoch to where they cost least.

Of the N weights of all layers together at most K = round(dN) are not zero, d the density; M marks the live ones. In
every step, and once an epoch,

    m <- γm + g,   g <- M ⊙ (g + ρ(W - Z))           then the step of the optimizer, in which the dead have no part
    prune:    a share p of the live weights, the smallest in magnitude over all layers together
    regrow:   up to K live ones; layer l gets n_l ∝ μ_l, where its dead weights have the largest |m|
    Z <- W,   μ_l = mean of |m| over the live weights of layer l / the sum of these means over the layers

m averages the gradients of dead weights too, and only scores: the momentum of the optimizer is zero where they are, and
they start again from zero; a weight that is pruned and regrown at once goes on. What a full layer cannot take goes to
the others. As channels (`dim` 1: of the input) whole slices live or die, by root mean squares and by means of |m|.

The dynamic regularizer (ρ/2)||W - Z + Λ||² is that of ADMM, Z the projection of W + Λ on the tensors with as many
non-zeros as W has, Λ <- Λ + W - Z. W itself is such a tensor, hence Z = W and Λ = 0 for good: it is a proximal term.

Source: Kundu, Nazemi, Beerel and Pedram, ASP-DAC 2021 (arXiv 2011.03083), after the sparse momentum of Dettmers and
Zettlemoyer (arXiv 1907.04840). The order over all layers, m beside the momentum, one unit that each layer keeps, and
largest remainders in place of rounding are this library's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from wellcond.errors import invalid

Tensors = Sequence[Tensor]
"""One tensor a layer. Masks, norms and momenta of units have one entry a unit, and broadcast to the weights."""
AVERAGE = 0.9  # γ


def per_unit(T: Tensor, dim: int | None = None) -> Tensor:
    """T itself, or its means over all dimensions but `dim`, which are kept as ones."""
    return T if dim is None else T.mean([k for k in range(T.ndim) if k != dim], keepdim=True)


def shares(momenta: Tensors, masks: Tensors) -> list[float]:
    """μ_l: the mean of |m| over the live units of a layer over the sum of these means; equal if all are zero."""
    means = [float(m[mask].mean()) if bool(mask.any()) else 0.0 for m, mask in zip(momenta, masks, strict=True)]
    total = math.fsum(means)
    return [mean / total if total > 0 else 1 / len(means) for mean in means]


def apportion(count: int, weights: Sequence[float], room: Sequence[int]) -> list[int]:
    """Whole numbers n_l <= room_l, in proportion to the weights by the largest remainders, with the sum `count`, or
    that of room if this is less; what does not fit goes to the others, in proportion again."""
    given = [0] * len(room)
    while left := min(count, sum(room)) - sum(given):
        open_ = [k for k, size in enumerate(room) if given[k] < size]
        total = math.fsum(weights[k] for k in open_)
        quota = {k: left * (weights[k] / total if total > 0 else 1 / len(open_)) for k in open_}
        extra = left - sum(map(int, quota.values()))
        for place, k in enumerate(sorted(open_, key=lambda k: -(quota[k] % 1))):
            given[k] = min(room[k], given[k] + int(quota[k]) + (place < extra))
    return given


def pruned(norms: Tensors, masks: Tensors, sizes: Sequence[int], share: float) -> list[Tensor]:
    """The masks without the smallest live units, at most `share` of the live weights; a layer keeps its largest."""
    live = torch.cat([mask.flatten() for mask in masks])
    weights = torch.cat([mask.flatten() * size for mask, size in zip(masks, sizes, strict=True)])  # of what is live
    ranked = [norm.masked_fill(~mask, -math.inf).flatten() for norm, mask in zip(norms, masks, strict=True)]
    largest = torch.cat([torch.arange(len(part), device=part.device) == part.argmax() for part in ranked])
    order = torch.cat(ranked).argsort(stable=True)
    goes = (weights * ~largest)[order].cumsum(0) <= math.floor(share * int(weights.sum()) + 1e-9)
    stays = live & (torch.ones_like(live).index_fill(0, order[goes], False) | largest)
    parts = torch.split(stays, [mask.numel() for mask in masks])
    return [part.reshape(mask.shape) for part, mask in zip(parts, masks, strict=True)]


def regrown(masks: Tensors, momenta: Tensors, parts: Sequence[float], sizes: Sequence[int], K: int) -> list[Tensor]:
    """The masks with at most K live weights: layers grow in proportion to `parts`, in each the dead units with the
    largest momenta. All K are live, if units are single weights."""
    left = K - sum(int(mask.sum()) * size for mask, size in zip(masks, sizes, strict=True))
    dead = [int((~mask).sum()) for mask in masks]
    wanted = apportion(left, parts, [n * size for n, size in zip(dead, sizes, strict=True)])
    units = [w // size for w, size in zip(wanted, sizes, strict=True)]
    left -= sum(n * size for n, size in zip(units, sizes, strict=True))  # parts of units may make whole ones
    for k in sorted(range(len(units)), key=lambda k: -(wanted[k] % sizes[k])):
        if sizes[k] <= left and units[k] < dead[k]:
            units[k], left = units[k] + 1, left - sizes[k]
    most = [m.masked_fill(mask, -math.inf).flatten() for m, mask in zip(momenta, masks, strict=True)]
    grown = [m.flatten().index_fill(0, x.topk(n).indices, True) for m, x, n in zip(masks, most, units, strict=True)]
    return [new.reshape(mask.shape) for new, mask in zip(grown, masks, strict=True)]


def random_masks(weights: Tensors, density: float, dim: int | None = None) -> list[Tensor]:
    """Random live units, one in every layer, the others at equal density. Raises ValueError for one out of range."""
    draws = [torch.rand(per_unit(W, dim).shape).to(W.device) for W in weights]
    lengths, sizes = [W.numel() for W in weights], [W.numel() // d.numel() for W, d in zip(weights, draws, strict=True)]
    if not (density <= 1 and round(density * sum(lengths)) >= sum(sizes)):
        raise invalid("density", density, f"in [{sum(sizes) / sum(lengths):.3g}, 1]: each layer keeps a unit")
    return regrown([d == d.max() for d in draws], draws, lengths, sizes, round(density * sum(lengths)))


class Rewiring:
    """Weights of an optimizer held sparse; `rewire` moves their zeros, say once an epoch.

        rewiring = Rewiring(optimizer, weights, 0.05)
        for epoch in range(epochs): ...; rewiring.rewire(0.5 * (1 - epoch / epochs))

    density: d; dim: None for single weights, or the dimension of channels; rho: ρ >= 0. `masks` are those of the
    moment, the first ones drawn from torch's generator. A training that was interrupted goes on when `load_state_dict`
    has been called, then those of the network and the optimizer, whose weights and momenta a new one masks anew.
    Raises ValueError as `random_masks`, and for ρ out of range.
    """

    def __init__(
        self, optimizer: Optimizer, weights: Iterable[Tensor], density: float, dim: int | None = None, rho: float = 0.0
    ) -> None:
        if not 0 <= rho < math.inf:
            raise invalid("rho", rho, "a number >= 0")
        self.optimizer, self.weights, self.dim, self.rho = optimizer, list(weights), dim, rho
        self.masks = random_masks(self.weights, density, dim)
        self.sizes = [W.numel() // mask.numel() for W, mask in zip(self.weights, self.masks, strict=True)]
        self.budget = round(density * sum(W.numel() for W in self.weights))
        self.momenta = [torch.zeros_like(W) for W in self.weights]
        self._hold()
        optimizer.register_step_pre_hook(self._before)

    def _before(self, *_: Any) -> None:
        for W, mask, m, Z in zip(self.weights, self.masks, self.momenta, self.anchors, strict=True):
            if W.grad is not None:
                m.mul_(AVERAGE).add_(W.grad)
                if self.rho:
                    W.grad.add_(W.detach() - Z, alpha=self.rho)
                W.grad.mul_(mask)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The masks M, the averages m and the anchors Z."""
        return {"masks": self.masks, "momenta": self.momenta, "anchors": self.anchors}

    def load_state_dict(self, state: Mapping[str, Tensors]) -> None:
        """Go on from a `state_dict`."""
        for name in ("masks", "momenta", "anchors"):
            pairs = zip(state[name], self.weights, strict=True)
            setattr(self, name, [T.to(W.device, copy=True) for T, W in pairs])

    def rewire(self, share: float) -> None:
        """Prune this share of the live weights, regrow, renew Z. Raises ValueError unless it is in [0, 1]."""
        if not 0 <= share <= 1:
            raise invalid("share", share, "in [0, 1], of the live weights")
        momenta = [per_unit(m.abs(), self.dim) for m in self.momenta]
        norms = [per_unit(W.detach().square(), self.dim) for W in self.weights]
        kept = pruned(norms, self.masks, self.sizes, share)
        self.masks = regrown(kept, momenta, shares(momenta, self.masks), self.sizes, self.budget)
        self._hold()

    def _hold(self) -> None:
        for W, mask in zip(self.weights, self.masks, strict=True):
            for value in (W, *self.optimizer.state.get(W, {}).values()):
                if torch.is_tensor(value) and value.shape == W.shape:  # momenta
                    value.detach().mul_(mask)
        self.anchors = [W.detach().clone() for W in self.weights]
