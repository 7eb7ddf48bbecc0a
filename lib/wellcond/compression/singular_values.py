"""Compression by truncated singular value decompositions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from wellcond.compression.units import COMPRESSORS, AtAmount, Compressed, ranked
from wellcond.convert import densify, factorize, replace_module
from wellcond.counts import count_parameters
from wellcond.kinds.opening import close_, open_
from wellcond.layers import LowRankLayer, low_rank_layers, weight_layers


def _as_is(sigma: Tensor) -> Tensor:
    return sigma


def relative_to_largest(sigma: Tensor) -> Tensor:
    """σ_i/σ_1, and 0 if all are."""
    return sigma / sigma.max().clamp(min=torch.finfo(sigma.dtype).tiny)


def relative_to_norm(sigma: Tensor) -> Tensor:
    """σ_i/||σ||_2, and 0 if all are."""
    norm: Tensor = torch.linalg.vector_norm(sigma)
    return sigma / norm.clamp(min=torch.finfo(sigma.dtype).tiny)


def _scores(layer: LowRankLayer) -> Tensor:
    """σ_1, σ_2, ... of a U Vᵀ layer as it is made: |u_i| = |v_i| = sqrt(σ_i). Of a stack, whose matrices have one rank,
    the root mean square."""
    sigma = layer.U.square().sum(-2)
    return sigma if sigma.ndim == 1 else sigma.square().mean(0).sqrt()


@torch.no_grad()
def truncated_svd(
    model: nn.Module,
    *,
    scale: Callable[[Tensor], Tensor] = _as_is,
    together: bool = False,
    skip: str | Iterable[str] = (),
) -> AtAmount:
    """Remove singular values: each weight matrix becomes its best approximation of the rank that is left to it.

    The score is scale(σ_1, σ_2, ...). together = False leaves every layer the same fraction of its rank, which no
    scale changes; together = True is one threshold on the scores of all layers. A layer becomes U Vᵀ where
    r(n + m) < nm, and the dense layer with that matrix otherwise: never more parameters. At its full rank it is left
    alone. skip: names or patterns of layers left whole. Source: Eckart, Young, 1936.
    """
    dense = open_(densify(model))
    full = low_rank_layers(factorize(dense, ratio=0, skip=skip, core=False))
    spectra = {name: _scores(layer) for name, layer in full.items()}
    survivors = ranked({name: scale(sigma) for name, sigma in spectra.items()}, together=together)
    whole = {name: "skipped, or not one plain matrix" for name in weight_layers(dense) if name not in full}

    @torch.no_grad()
    def at(amount: float) -> Compressed:
        new = copy.deepcopy(dense)
        kept = {name: int(stays.sum()) for name, stays in survivors(amount).items()}
        for name, rank in kept.items():
            if rank == full[name].rank:
                continue
            layer = copy.deepcopy(full[name])
            layer.U, layer.V = (nn.Parameter(factor[..., :rank].clone()) for factor in (layer.U, layer.V))
            new = replace_module(new, name, layer if layer.n_deployed < layer.n_dense else layer.to_dense())
        return Compressed(close_(new), count_parameters(new).deployed, kept, whole)

    return at


COMPRESSORS["svd"] = truncated_svd
COMPRESSORS["svd_global"] = partial(truncated_svd, scale=relative_to_largest, together=True)
COMPRESSORS["svd_global_norm"] = partial(truncated_svd, scale=relative_to_norm, together=True)
