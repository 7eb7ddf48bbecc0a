"""What a method of the study is: data, a way to prepare a network and the parameter groups of its optimizer.

A method starts from the network as its constructor initialises it, the same draw for every method of a seed, or from
the trained network of another method (`starts_from`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wellcond.convert import factorize, matching
from wellcond.errors import invalid, unknown
from wellcond.layers import LowRankLayer, full_rank, set_weight_matrix, weight_layers, weight_matrix
from wellcond.methods.settings import SETTINGS, Settings
from wellcond.optim import Group, LowRankSGD, constrain, param_groups

Penalty = Callable[[nn.Module], Tensor]


def _no_penalty(settings: Settings) -> Penalty | None:
    return None


def _as_trained(model: nn.Module) -> nn.Module:
    return model


@dataclass(frozen=True)
class Method:
    """name: key in METHODS; label: for figures; summary: one sentence; uses: the settings it needs ("ratio" stands
    for ratio or rank); starts_from: "" or the method whose trained weights it starts from; trains: whether it then
    trains; optimizer: made from the groups with lr, momentum and weight_decay; penalty: what is added to the loss;
    finish: what becomes of the trained network;
    any_start: whether the spectra of its start may be decayed."""

    name: str
    label: str
    summary: str
    prepare: Callable[[nn.Module, Settings], nn.Module]
    groups: Callable[[nn.Module, Settings], list[Group]]
    uses: frozenset[str] = frozenset()
    starts_from: str = ""
    trains: bool = True
    optimizer: Callable[..., torch.optim.Optimizer] = LowRankSGD
    penalty: Callable[[Settings], Penalty | None] = _no_penalty
    finish: Callable[[nn.Module], nn.Module] = _as_trained
    any_start: bool = True

    @property
    def finishes(self) -> bool:
        """Whether the trained network becomes another one."""
        return self.finish is not _as_trained

    @property
    def stackable(self) -> bool:
        """Whether several seeds can be trained as one batched network."""
        plain = self.penalty is _no_penalty and not self.finishes
        return self.optimizer is LowRankSGD and plain and not self.starts_from and self.trains

    def check(self, settings: Mapping[str, object]) -> None:
        """Raise ValueError, naming the setting, unless exactly the used settings are given, decay besides."""
        allowed = {*self.uses, *(("decay",) if self.any_start else ())}
        if "ratio" in self.uses:
            allowed.add("rank")
            if settings.keys() >= {"ratio", "rank"}:
                raise invalid("rank", settings["rank"], f"absent where ratio is given, for {self.name}")
        for key in settings.keys() - allowed:
            raise invalid(key, settings[key], f"absent: {self.name} has no such setting")
        for key in self.uses - settings.keys():
            if key != "ratio" or "rank" not in settings:
                raise invalid(key, None, f"given for {self.name}")


METHODS: dict[str, Method] = {}
"""The methods by name."""


def register(method: Method) -> Method:
    """Add a method to METHODS. Raises ValueError if its name is taken or it starts from an unknown method."""
    if method.name in METHODS:
        raise invalid("method", method.name, "a name that is not yet registered")
    if method.starts_from:
        find(method.starts_from)
    METHODS[method.name] = method
    return method


def find(name: str) -> Method:
    """The method of that name. Raises ValueError, suggesting the nearest name."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


# ------------------------------------------------------------------------ what several methods have in common


def dense(model: nn.Module, settings: Settings) -> nn.Module:
    """The network as it is, its spectra decayed."""
    return decayed(model, settings)


def factors(model: nn.Module, settings: Settings) -> nn.Module:
    """U Vᵀ in every layer but the classifier."""
    return decayed(factorize(model, **settings.size(), skip=last_layer(model), core=False), settings)


def constrained_factors(model: nn.Module, settings: Settings) -> nn.Module:
    """U S Vᵀ in every layer, inside κ(S) <= max_cond; the classifier is constrained but not truncated."""
    factorized = factorize(model, **settings.size(), keep_full_rank=last_layer(model))
    return constrain(decayed(factorized, settings), settings.max_cond)


def decayed(model: nn.Module, settings: Settings) -> nn.Module:
    """The network with decayed spectra; not those of the classifier."""
    return decay_spectra(model, settings.decay, skip=last_layer(model))


def plain_groups(model: nn.Module, settings: Settings) -> list[Group]:
    """Dense weights and U Vᵀ by plain SGD, U S Vᵀ by the manifold integrator."""
    return param_groups(model, max_cond=settings.max_cond)


def trained_layers(model: nn.Module) -> dict[str, Any]:
    """Those of `weight_layers` of which something is trained: what is frozen stays what it is."""
    return {
        name: layer
        for name, layer in weight_layers(model).items()
        if any(p.requires_grad for part, p in layer.named_parameters() if part != "bias")
    }


def trained_matrices(model: nn.Module) -> list[Tensor]:
    """The weights of `trained_layers`, as `single_matrices`."""
    return single_matrices(trained_layers(model))


def single_matrices(layers: Mapping[str, Any]) -> list[Tensor]:
    """The weights of layers, for rules that take each as one matrix. Raises ValueError, naming the layer, for a stack
    of them, as that of a convolution in groups."""
    for name, layer in layers.items():
        if (stack := weight_matrix(layer)).ndim > 2:
            raise invalid(f"{name}.weight", f"a stack of {len(stack)} matrices", "one matrix for this method")
    return [layer.weight for layer in layers.values()]


def inner_layers(model: nn.Module) -> dict[str, Any]:
    """Those of `weight_layers` but the classifier."""
    spared = last_layer(model)
    return {name: layer for name, layer in weight_layers(model).items() if name not in spared}


def last_layer(model: nn.Module) -> list[str]:
    """The name of the last linear or convolution layer, the classifier, in a list; it is never truncated."""
    return list(weight_layers(model))[-1:]


@torch.no_grad()
def decay_spectra(model: nn.Module, alpha: float, skip: str | Iterable[str] = ()) -> nn.Module:
    """Multiply, in place, the singular values σ_0 >= σ_1 >= ... of every weight matrix by α^-k, k = 0, 1, ...

    An ill-conditioned start with an unchanged norm; for a network as `factorize` returns it, whose factors are in the
    order of the singular values. skip: names or patterns of layers left alone, as frozen ones are. Returns the model.
    Raises ValueError if alpha < 1, or a pattern matches no layer.
    """
    SETTINGS["decay"].check("decay", alpha)
    skipped = matching(skip, weight_layers(model), "skip")
    for name, layer in trained_layers(model).items():
        if name in skipped or alpha == 1:
            continue
        device = next(layer.parameters()).device
        powers = alpha ** -torch.arange(full_rank(layer), dtype=torch.float64, device=device)
        if isinstance(layer, LowRankLayer):
            scale = powers[: layer.rank]
            if layer.S is None:
                layer.U.mul_(scale.sqrt())
                layer.V.mul_(scale.sqrt())
            else:  # S diagonal, of a stack too, or a Tucker core whose slices are orthogonal
                layer.S.mul_(scale.view(-1, *(1 for _ in layer.S.shape[layer.U.ndim - 1 :])))
        else:
            P, sigma, Qt = torch.linalg.svd(weight_matrix(layer).double(), full_matrices=False)
            set_weight_matrix(layer, (P * (sigma * powers)[..., None, :]) @ Qt)
    return model
