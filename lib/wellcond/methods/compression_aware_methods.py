"""Methods that train a dense network once so that it can be compressed to any ratio afterwards.

None of them touches the classifier, which no compressor of the study touches either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from wellcond.layers import matricize, weight_layers
from wellcond.methods import lorita
from wellcond.methods.constraint_sets import FAMILIES, SINGULAR_VALUES
from wellcond.methods.frank_wolfe import RESCALINGS, FrankWolfe, frank_wolfe_groups, shift_inside
from wellcond.methods.method import Method, Penalty, Settings, last_layer
from wellcond.methods.proximal import ProximalSGD
from wellcond.methods.sparsity import group_lasso, nuclear_norm
from wellcond.optim import Group, param_groups, with_rest


def _weights(model: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...] = nn.Module) -> dict[str, Tensor]:
    """The weights, by parameter name, of all layers of these kinds but the classifier."""
    spared = last_layer(model)
    return {
        f"{name}.weight": layer.weight
        for name, layer in weight_layers(model).items()
        if name not in spared and isinstance(layer, kinds) and isinstance(layer.weight, Tensor)
    }


def _dense(model: nn.Module, settings: Settings) -> nn.Module:
    return model


# ------------------------------------------------------------------------ Frank-Wolfe


def _frank_wolfe_groups(constraint: str, rescale: str) -> Callable[[nn.Module, Settings], list[Group]]:
    has_k = FAMILIES[constraint].parameter == "k"
    engine = "power" if FAMILIES[constraint].coordinates is SINGULAR_VALUES else "exact"

    def groups(model: nn.Module, settings: Settings) -> list[Group]:
        return frank_wolfe_groups(
            model,
            constraint,
            scale=settings.scale,
            fraction=settings.fraction if has_k else None,
            rescale=rescale,
            engine=engine,
            constrained=_weights(model),
            rest="l2",
        )

    return groups


def _frank_wolfe(constraint: str, rescale: str, name: str, label: str) -> Method:
    groups = _frank_wolfe_groups(constraint, rescale)

    def prepare(model: nn.Module, settings: Settings) -> nn.Module:
        shift_inside(groups(model, settings))
        return model

    return Method(
        name,
        label,
        f"Stochastic Frank-Wolfe: each weight in a set of the family {constraint}, rescaling {rescale}, "
        "and all else in l2 balls.",
        prepare,
        groups,
        frozenset({"scale"} | ({"fraction"} if FAMILIES[constraint].parameter == "k" else set())),
        optimizer=FrankWolfe,
        any_start=False,
    )


_FRANK_WOLFE_LABELS = {
    "l2": "FW, l2",
    "k_sparse": "FW, k-sparse",
    "k_support": "FW, k-support",
    "group_k_support": "FW, k filters",
    "nuclear": "FW, nuclear",
    "spectral_k_sparse": "FW, spectral k-sparse",
    "spectral_k_support": "FW, spectral k-support",
}
_RESCALED = "spectral_k_support"  # the family of the ablation of the rescaling


def _frank_wolfe_methods() -> Iterator[Method]:
    for constraint, label in _FRANK_WOLFE_LABELS.items():
        yield _frank_wolfe(constraint, "gradient", f"fw_{constraint}", label)
    for rescale in (rescale for rescale in RESCALINGS if rescale != "gradient"):
        label = f"{_FRANK_WOLFE_LABELS[_RESCALED]}, rescaling {rescale.replace('_', ' ')}"
        yield _frank_wolfe(_RESCALED, rescale, f"fw_{_RESCALED}_{rescale}", label)


# ------------------------------------------------------------------------ penalties, products, proximal maps


def _penalized(
    norm: Callable[[Tensor], Tensor], kinds: type[nn.Module] | tuple[type[nn.Module], ...] = nn.Module
) -> Callable[[Settings], Penalty | None]:
    """β Σ norm(W) over the weight matrices of these kinds of layers."""

    def of(settings: Settings) -> Penalty | None:
        def penalty(model: nn.Module) -> Tensor:
            norms: Iterable[Tensor] = (norm(matricize(weight)) for weight in _weights(model, kinds).values())
            return settings.beta * torch.stack(list(norms)).sum()

        return penalty if settings.beta else None

    return of


def _plain_groups(model: nn.Module, settings: Settings) -> list[Group]:
    return param_groups(model)


def _product(model: nn.Module, settings: Settings) -> nn.Module:
    return lorita.overparametrize(model, int(settings.depth), skip=last_layer(model))


def _product_groups(model: nn.Module, settings: Settings) -> list[Group]:
    return [{**group, "kind": "euclidean"} for group in lorita.param_groups(model, settings.beta)]


def _thresholded_groups(model: nn.Module, settings: Settings) -> list[Group]:
    weights = list(_weights(model).values())
    return with_rest(model, [{"params": weights, "kind": "thresholded", "threshold": settings.beta}])


_BETA = frozenset({"beta"})

COMPRESSION_AWARE_METHODS = (
    *_frank_wolfe_methods(),
    Method(
        "lorita",
        "LoRITa",
        "Each weight a product of N factors with weight decay β, multiplied after training; N = 1 is weight decay.",
        _product,
        _product_groups,
        frozenset({"depth", "beta"}),
        finish=lorita.collapse,
        any_start=False,
    ),
    Method(
        "nuclear_norm",
        "nuclear-norm penalty",
        "Dense weights by momentum SGD with the penalty β Σ ||W||_*.",
        _dense,
        _plain_groups,
        _BETA,
        penalty=_penalized(nuclear_norm),
        any_start=False,
    ),
    Method(
        "proximal_sgd",
        "proximal SGD",
        "Dense weights by momentum SGD, their singular values thresholded every ten steps, the penalty β Σ ||W||_*.",
        _dense,
        _thresholded_groups,
        _BETA,
        optimizer=ProximalSGD,
        any_start=False,
    ),
    Method(
        "group_lasso",
        "group lasso on filters",
        "Dense weights by momentum SGD with the penalty β Σ ||w_f||_2 over the filters of the convolutions.",
        _dense,
        _plain_groups,
        _BETA,
        penalty=_penalized(group_lasso, nn.Conv2d),
        any_start=False,
    ),
)
