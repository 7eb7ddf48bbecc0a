"""Methods that train a network of given or adaptive rank, and their full-rank controls.

Low-rank methods begin with the truncated SVD of the weights that every method of a seed begins with.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from wellcond.convert import decay_spectra, factorize
from wellcond.layers import LowRankLayer, matricize, weight_layers
from wellcond.methods.dynamical_low_rank import BUG
from wellcond.methods.method import Method, Penalty, Settings, last_layer
from wellcond.methods.penalties import robustness_regularizer, soft_orthogonality
from wellcond.optim import Group, clip_weight, constrain, orthonormalize, param_groups, with_rest


def _decayed(model: nn.Module, settings: Settings) -> nn.Module:
    return decay_spectra(model, settings.decay, skip=last_layer(model))


def _dense(model: nn.Module, settings: Settings) -> nn.Module:
    return _decayed(model, settings)


def _usv(model: nn.Module, settings: Settings) -> nn.Module:
    # the classifier is factorized at full rank: it is constrained but not truncated
    factorized = factorize(model, **settings.size(), keep_full_rank=last_layer(model))
    return constrain(_decayed(factorized, settings), settings.max_cond)


def _uv(model: nn.Module, settings: Settings) -> nn.Module:
    return _decayed(factorize(model, **settings.size(), skip=last_layer(model), core=False), settings)


def _dlrt(model: nn.Module, settings: Settings) -> nn.Module:
    return _decayed(factorize(model, **settings.size(), skip=last_layer(model)), settings)


def _tucker(model: nn.Module, settings: Settings) -> nn.Module:
    return _decayed(factorize(model, **settings.size(), skip=last_layer(model), tucker=True), settings)


def _clipped(model: nn.Module, settings: Settings) -> nn.Module:
    _decayed(model, settings)
    with torch.no_grad():
        for layer in weight_layers(model).values():
            assert isinstance(layer.weight, Tensor)
            clip_weight(layer.weight, settings.max_cond)
    return model


def _spectrally_normalized(model: nn.Module, settings: Settings) -> nn.Module:
    _decayed(model, settings)
    for layer in weight_layers(model).values():
        spectral_norm(layer)
    return model


def _orthonormal(model: nn.Module, settings: Settings) -> nn.Module:
    for layer in weight_layers(model).values():
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        orthonormalize(layer.weight)
    return model


def _lowrank_groups(model: nn.Module, settings: Settings) -> list[Group]:
    return param_groups(model, max_cond=settings.max_cond)


def _published_groups(model: nn.Module, settings: Settings) -> list[Group]:
    kind = "lowrank_published_mean" if settings.max_cond == 1 else "lowrank_published_band"
    return param_groups(model, max_cond=settings.max_cond, kind=kind)


def _clipped_groups(model: nn.Module, settings: Settings) -> list[Group]:
    weights = [layer.weight for layer in weight_layers(model).values()]
    return with_rest(model, [{"params": weights, "kind": "clipped", "max_cond": settings.max_cond}])


def _bug_groups(basis: str, coefficient_steps: int = 1) -> Callable[[nn.Module, Settings], list[Group]]:
    def groups(model: nn.Module, settings: Settings) -> list[Group]:
        options = {"basis": basis, "coefficient_steps": coefficient_steps, "tolerance": settings.tolerance}
        return param_groups(model, **options)

    return groups


def _robustness(settings: Settings) -> Penalty | None:
    """β Σ R over all layers: of the core of a factorized layer, else of the weight matrix."""

    def penalty(model: nn.Module) -> Tensor:
        cores = (
            layer.core_matrix() if isinstance(layer, LowRankLayer) else matricize(layer.weight)
            for layer in weight_layers(model).values()
        )
        return settings.beta * torch.stack([robustness_regularizer(core) for core in cores if core is not None]).sum()

    return penalty if settings.beta else None


def _soft_orthogonality(settings: Settings) -> Penalty | None:
    """β Σ ||XᵀX - I||² over the factors U, V of factorized layers and the weight matrices of the others."""

    def penalty(model: nn.Module) -> Tensor:
        matrices = [
            X
            for layer in weight_layers(model).values()
            for X in ((layer.U, layer.V) if isinstance(layer, LowRankLayer) else (matricize(layer.weight),))
        ]
        return settings.beta * torch.stack([soft_orthogonality(X) for X in matrices]).sum()

    return penalty if settings.beta else None


def _stiefel_groups(retraction: str) -> Callable[[nn.Module, Settings], list[Group]]:
    def groups(model: nn.Module, settings: Settings) -> list[Group]:
        weights = [layer.weight for layer in weight_layers(model).values()]
        return with_rest(model, [{"params": weights, "kind": "stiefel", "retraction": retraction}])

    return groups


_RATIO, _BOTH = frozenset({"ratio"}), frozenset({"ratio", "max_cond"})
_ADAPTIVE = frozenset({"ratio", "tolerance"})
_ROBUST = _ADAPTIVE | {"beta"}

LOW_RANK_METHODS = (
    Method("dense", "dense SGD", "Dense weights, momentum SGD.", _dense, _lowrank_groups),
    Method("uv", "U Vᵀ", "Two factors, trained by plain momentum SGD.", _uv, _lowrank_groups, _RATIO),
    Method(
        "svd",
        "SVD of dense",
        "Truncated SVD of the trained dense network, no further training.",
        _uv,
        _lowrank_groups,
        _RATIO,
        starts_from="dense",
        trains=False,
    ),
    Method(
        "svd_finetuned",
        "SVD of dense, fine-tuned",
        "Truncated SVD of the trained dense network, then U Vᵀ trained on.",
        _uv,
        _lowrank_groups,
        _RATIO,
        starts_from="dense",
    ),
    Method(
        "usv",
        "projected U S Vᵀ",
        "The manifold integrator without a bound on κ(S): τ = ∞.",
        _usv,
        _lowrank_groups,
        _RATIO,
    ),
    Method(
        "condlr",
        "CondLR",
        "The manifold integrator with the nearest projection onto κ(S) <= 1 + τ after each step.",
        _usv,
        _lowrank_groups,
        _BOTH,
    ),
    Method(
        "condlr_published",
        "CondLR as published",
        "The step of the released code: scalar preconditioner and mean-centred clamp (RMS at τ = 0).",
        _usv,
        _published_groups,
        _BOTH,
    ),
    Method(
        "cayley_sgd",
        "Cayley SGD",
        "Full-rank weights with orthonormal rows, Cayley retraction.",
        _orthonormal,
        _stiefel_groups("cayley"),
        any_start=False,
    ),
    Method(
        "projected_sgd",
        "projected SGD",
        "Full-rank weights with orthonormal rows, QR retraction.",
        _orthonormal,
        _stiefel_groups("qr"),
        any_start=False,
    ),
    Method(
        "dlrt",
        "DLRT",
        "Dynamical low-rank training by K-L-S steps at fixed rank; the classifier is dense.",
        _dlrt,
        _bug_groups("fixed"),
        _RATIO,
        optimizer=BUG,
    ),
    Method(
        "dlrt_adaptive",
        "rank-adaptive DLRT",
        "K-L-S steps with augmented bases, truncated to a relative tolerance; ratio caps the rank.",
        _dlrt,
        _bug_groups("augmented"),
        _ADAPTIVE,
        optimizer=BUG,
    ),
    Method(
        "robust_dlrt",
        "RobustDLRT",
        "Augmented bases with nine coefficient steps, and the penalty β R(S) on the spread of the singular values.",
        _dlrt,
        _bug_groups("augmented", 9),
        _ROBUST,
        optimizer=BUG,
        penalty=_robustness,
    ),
    Method(
        "robust_dlrt_tucker",
        "RobustDLRT, Tucker",
        "RobustDLRT with the convolutions in Tucker-2 form.",
        _tucker,
        _bug_groups("augmented", 9),
        _ROBUST,
        optimizer=BUG,
        penalty=_robustness,
    ),
    Method(
        "soft_orthogonal_uv",
        "U Vᵀ, soft orthogonality",
        "Two factors by momentum SGD with the penalty β ||UᵀU - I||² + β ||VᵀV - I||².",
        _uv,
        _lowrank_groups,
        _RATIO | {"beta"},
        penalty=_soft_orthogonality,
    ),
    Method(
        "soft_orthogonal",
        "dense, soft orthogonality",
        "Dense weights by momentum SGD with the penalty β ||WᵀW - I||² (over the smaller side).",
        _dense,
        _lowrank_groups,
        frozenset({"beta"}),
        penalty=_soft_orthogonality,
    ),
    Method(
        "spectral_norm",
        "dense, spectral norm 1",
        "Dense weights divided by their spectral norms, by power iteration.",
        _spectrally_normalized,
        _lowrank_groups,
    ),
    Method(
        "dense_clipped",
        "dense, κ clipped",
        "Dense weights by momentum SGD, after each step the nearest with κ(W) <= 1 + τ: CondLR without low rank.",
        _clipped,
        _clipped_groups,
        frozenset({"max_cond"}),
    ),
)
