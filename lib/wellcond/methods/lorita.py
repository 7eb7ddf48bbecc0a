"""LoRITa: training each weight as a product of N factors, so that weight decay on the factors favours low rank.

    W = W_N ··· W_1,     min over all such products of Σ ||W_i||_F²/2 = (N/2) Σ_j σ_j(W)^(2/N),

if no inner width is below rank(W): the nuclear norm for N = 2, a Schatten quasi-norm to the power 2/N for N > 2, and
plain weight decay for N = 1. The minimum is at balanced factors, W_{i+1}ᵀ W_{i+1} = W_i W_iᵀ, which all have the
singular values σ^(1/N). After training the factors are multiplied and what is left is the network one began with.

A linear layer m -> n has the factors (n, m), (m, m), ..., (m, m); a convolution, matricized to n = C_out rows and
m = C_in·kh·kw columns, (n, n), ..., (n, n), (n, m), and one in g groups a stack of g such products. The layers stay
what they were, and their ``weight`` is a parametrization: forward code may read it, and the factors are multiplied once
a pass, not applied at every position.

Source: Zhang, Alkhouri, Wang, arXiv:2405.03089; Shang, Liu, Cheng, AAAI 2016, for the identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from wellcond.convert import convertible, copied, matching, unparametrized
from wellcond.errors import invalid
from wellcond.kinds.opening import close_, open_
from wellcond.layers import matricize, weight_matrix
from wellcond.linalg import upcast
from wellcond.methods.method import Method, last_layer, register
from wellcond.methods.settings import Settings
from wellcond.optim import Group


def check_depth(depth: int) -> None:
    """Raise ValueError unless depth is a whole number >= 1."""
    if depth < 1 or depth != int(depth):
        raise invalid("depth", depth, "a whole number of factors >= 1")


@torch.no_grad()
def balanced_factors(W: Tensor, depth: int, *, squares: str = "left") -> list[Tensor]:
    """W_N, ..., W_1 with W = W_N ··· W_1 and Σ ||W_i||_F² = N Σ σ^(2/N), the least possible; N = depth.

    W (..., n, m) = P diag(σ) Qᵀ. squares: "left" for P σ^(1/N) Pᵀ (n, n), N - 1 times, and P σ^(1/N) Qᵀ; "right" for
    P σ^(1/N) Qᵀ and Q σ^(1/N) Qᵀ (m, m), N - 1 times. Raises ValueError if depth < 1.
    """
    check_depth(depth)
    P, sigma, Qt = torch.linalg.svd(upcast(W.detach()), full_matrices=False)
    root = sigma[..., None, :] ** (1 / depth)
    whole = (P * root) @ Qt
    square = {"left": (P * root) @ P.mT, "right": (Qt.mT * root) @ Qt}[squares]
    factors = {"left": [*[square] * (depth - 1), whole], "right": [whole, *[square] * (depth - 1)]}[squares]
    return [factor.to(W.dtype).clone() for factor in factors]


class FactorProduct(nn.Module):
    """The parametrization weight = W_N ··· W_1, reshaped; its right inverse are the balanced factors of a weight.

    groups: g > 1 for a stack of g matrices, each of as many rows of the weight.
    """

    def __init__(self, shape: Sequence[int], depth: int, groups: int = 1) -> None:
        super().__init__()
        check_depth(depth)
        self.shape, self.depth, self.groups = tuple(shape), depth, groups

    def forward(self, *factors: Tensor) -> Tensor:
        if self.groups > 1:  # multi_dot takes no stacks
            return reduce(torch.matmul, factors).reshape(self.shape)
        W = torch.linalg.multi_dot(factors) if len(factors) > 1 else factors[0]
        return W.reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> list[Tensor]:
        squares, W = "right" if weight.ndim == 2 else "left", matricize(weight)
        stack = W if self.groups == 1 else W.reshape(self.groups, -1, W.shape[1])
        return balanced_factors(stack, self.depth, squares=squares)

    def extra_repr(self) -> str:
        return f"depth={self.depth}"


def overparametrize(model: nn.Module, depth: int = 2, *, skip: str | Iterable[str] = ()) -> nn.Module:
    """A copy of `model` with every weight that `factorize` knows a product of `depth` factors.

    The factors begin balanced with the product that `model` has, so that the function is the same up to rounding, and
    a network without low-rank pressure starts where the dense one does. (The published training draws each factor
    from torch's default initialization.) What is left dense is told, as by `factorize`.
    skip: names or glob patterns of layers left alone. Raises ValueError if depth < 1, or a pattern matches no layer.
    """
    check_depth(depth)
    new = open_(copied(model))
    layers = convertible(new)
    for name in layers.keys() - matching(skip, layers, "skip"):
        weight, matrix = layers[name].weight, weight_matrix(layers[name])
        groups = len(matrix) if matrix.ndim > 2 else 1
        register_parametrization(layers[name], "weight", FactorProduct(weight.shape, depth, groups))
        layers[name].get_submodule("parametrizations.weight").requires_grad_(weight.requires_grad)
    return new


def _products(model: nn.Module) -> Iterator[Any]:
    """The lists of parametrizations of all weights that are products; each holds its factors as parameters."""
    for module in model.modules():
        if is_parametrized(module, "weight"):
            products = module.parametrizations["weight"]  # type: ignore[index]
            if isinstance(products[0], FactorProduct):
                yield products


def factors(model: nn.Module) -> list[list[nn.Parameter]]:
    """W_N, ..., W_1 of every weight that is a product, in module order."""
    return [list(products.parameters(recurse=False)) for products in _products(model)]


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer: the factors with weight decay λ, all others without.

    Σ λ ||W_i||_F²/2 is then what the optimizer adds to the loss, λ (N/2) Σ σ^(2/N) at balanced factors.
    Raises ValueError if weight_decay < 0.
    """
    if not weight_decay >= 0:
        raise invalid("weight_decay", weight_decay, ">= 0")
    decayed = [factor for product in factors(model) for factor in product]
    known = {id(factor) for factor in decayed}
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def collapse(model: nn.Module) -> nn.Module:
    """A copy of `model` with every product multiplied: plain layers, the same function up to rounding."""
    return close_(unparametrized(model)).train(model.training)


def _product(model: nn.Module, settings: Settings) -> nn.Module:
    return overparametrize(model, int(settings.depth), skip=last_layer(model))


def _product_groups(model: nn.Module, settings: Settings) -> list[Group]:
    return [{**group, "kind": "euclidean"} for group in param_groups(model, settings.beta)]


register(
    Method(
        "lorita",
        "LoRITa",
        "Each weight a product of N factors with weight decay β, multiplied after training; N = 1 is weight decay.",
        _product,
        _product_groups,
        frozenset({"depth", "beta"}),
        finish=collapse,
        any_start=False,
    )
)
