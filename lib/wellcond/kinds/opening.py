"""Modules whose forward code reads weight matrices of their own, such as attention: each becomes a linear layer.

    attention.in_proj_weight, a parameter  ->  attention.in_proj, an nn.Linear, whose weight attention.in_proj_weight is

The function stays the same. Then whatever acts on linear layers, `factorize` first of all, acts on these matrices too,
by the name of the layer; where the module's own code reads the weight of a factorized layer, W = U S Vᵀ is formed. A
file of `kinds/`, or of a user, says by `register_matrices` which parameters of a module are matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wellcond.errors import invalid

Matrices = Callable[[Any], Mapping[str, str]]
"""From a module, {the name of a child to be: the name of the parameter (n, m) that it will hold}."""


class Opened:
    """Mixed in before the class of a module. A parameter in `matrices`, {parameter: child}, is the weight of the child:
    a linear layer, dense or factorized, or a sequence of them."""

    closed: ClassVar[type[nn.Module]]
    """The class of the module as it was."""
    matrices: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        child = self.__dict__.get("matrices", {}).get(name)
        return super().__getattr__(name) if child is None else _product(getattr(self, child))  # type: ignore[misc]

    def after_opening(self) -> None:
        """Called once the parameters have become layers."""

    def after_closing(self) -> None:
        """Called once the layers have become parameters, with the module as it was, of its own class."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _empty, (self.closed,), self.__getstate__()  # the class is made at run time


def _product(layer: nn.Module) -> Tensor:
    """The weight of a linear layer, or of a sequence of them."""
    weights: list[Any] = [part.weight for part in (layer if isinstance(layer, nn.Sequential) else [layer])]
    W: Tensor = torch.linalg.multi_dot(weights[::-1]) if len(weights) > 1 else weights[0]
    return W


OPENED: dict[type[nn.Module], tuple[Matrices, type[Opened]]] = {}
"""{type of a module: which of its parameters are matrices, and what is mixed in}; exact types."""
_CLASSES: dict[type[nn.Module], type[Any]] = {}


def register_matrices(kind: type[nn.Module], matrices: Matrices, mixin: type[Opened] = Opened) -> None:
    """Have `factorize` and `opened` treat the parameters that `matrices` names as weight matrices, of all modules of
    the exact type `kind`: wc.register_matrices(Mixer, lambda m: {"across": "across_weight"}). mixin: where the forward
    code should call the linear layers, a subclass of Opened that says how."""
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise invalid("kind", kind, "a class of modules")
    OPENED[kind] = (matrices, mixin)


def _class(kind: type[nn.Module]) -> type[Any]:
    if kind not in _CLASSES:
        _CLASSES[kind] = type(f"Opened{kind.__name__}", (OPENED[kind][1], kind), {"closed": kind})
    return _CLASSES[kind]


def _empty(kind: type[nn.Module]) -> nn.Module:
    """An opened module without contents."""
    module: nn.Module = object.__new__(_class(kind))
    return module


def open_(model: nn.Module) -> nn.Module:
    """Open every module of `model` that can be, in place; see `opened`."""
    for module in list(model.modules()):
        if type(module) not in OPENED:
            continue
        found = OPENED[type(module)][0](module).items()
        children = {name: child for child, name in found if module._parameters.get(name) is not None}
        if not children:
            continue
        module.__class__ = _class(type(module))
        module.__dict__["matrices"] = children
        for name, child in children.items():
            module._modules[child] = _linear(module._parameters.pop(name), module.training)
        module.after_opening()  # type: ignore[operator]
    return model


def _linear(weight: Any, training: bool) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta", dtype=weight.dtype)
    layer.weight = weight
    return layer.train(training)


def close_(model: nn.Module) -> nn.Module:
    """Give the modules that `open_` opened their own class and parameters again, in place, where all are dense."""
    for module in list(model.modules()):
        if not isinstance(module, Opened):
            continue
        layers: dict[str, Any] = {name: module._modules[child] for name, child in module.matrices.items()}
        if all(type(layer) is nn.Linear for layer in layers.values()):
            for child in module.matrices.values():
                del module._modules[child]
            del module.__dict__["matrices"]
            after: Callable[[Any], None] = type(module).after_closing
            module.__class__ = module.closed  # type: ignore[assignment]
            for name, layer in layers.items():
                module._parameters[name] = layer.weight
            after(module)
    return model
