"""The clipping of the published codes: singular values are moved into a band around their mean,

    σ <- min(max(σ, a (1 - η)), a (1 + η)),    η = (c - 1)/(c + 1),    c = max_cond,

whose ends have the ratio c. Rules of `spectrum.CLIP_RULES`, to be compared with the nearest: both guarantee
max σ <= c min σ, but are no projections, since they move feasible spectra and are not idempotent.
"""

from __future__ import annotations

from torch import Tensor

from wellcond.spectrum import CLIP_RULES


def _band(sigma: Tensor, centre: Tensor, max_cond: float) -> Tensor:
    eta = (max_cond - 1) / (max_cond + 1)
    return sigma.maximum(centre * (1 - eta)).minimum(centre * (1 + eta))


def mean_rule(sigma: Tensor, max_cond: float) -> Tensor:
    """The band around a = mean(σ) of σ >= 0 (..., r), max_cond >= 1: the rule of the published CondLR code."""
    return _band(sigma, sigma.mean(-1, keepdim=True), max_cond)


def rms_rule(sigma: Tensor, max_cond: float) -> Tensor:
    """The band around a = rms(σ) of σ >= 0 (..., r), max_cond >= 1: found, unused, in the published RobustDLRT code."""
    return _band(sigma, sigma.square().mean(-1, keepdim=True).sqrt(), max_cond)


CLIP_RULES.update(mean=mean_rule, rms=rms_rule)
