"""A training step beside those of other libraries, in one run, at equal ranks and with the same optimizer.

Every linear layer and convolution but the classifier is replaced; each form of a layer is a function of the dense layer
and the rank. Libraries that are not installed have no rows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from study import networks as models
from study.benches.clocks import interleaved, spread
from study.benches.training import INPUTS, SPLIT, Row, Trainee
from wellcond.convert import copied, rank_for_ratio, replace_module
from wellcond.errors import invalid, unknown
from wellcond.layers import LowRankConv2d, LowRankLayer, LowRankLinear, full_rank, matricize, trained_layers
from wellcond.methods.adam import LowRankAdamW
from wellcond.methods.method import last_layer
from wellcond.optim import LowRankSGD, constrain, param_groups
from wellcond.stiefel import qr

MAX_COND = 1.1
LARGEST = 1024  # geotorch solves with a matrix n x n for a frame (n, r): with a larger n, a step takes minutes

# ------------------------------------------------------------------------ the forms of a layer


def factorized(layer: Any, rank: int, core: bool = True) -> LowRankLayer:
    """U S Vᵀ of this library, or U Vᵀ."""
    kind: Any = LowRankLinear if isinstance(layer, nn.Linear) else LowRankConv2d
    return kind.from_dense(layer, rank, core=core)  # type: ignore[no-any-return]


def two_layers(layer: Any, rank: int) -> nn.Module:
    """U Vᵀ as one writes it by hand: nn.Sequential of two plain layers."""
    with torch.no_grad():
        return factorized(layer, rank, core=False).plain_layers()


class Frame(nn.Module):
    """The parametrization of a frame by any matrix: X = qf(A)."""

    def forward(self, A: Tensor) -> Tensor:
        return qr(A)

    def right_inverse(self, X: Tensor) -> Tensor:
        return X


def differentiated_qr(layer: Any, rank: int) -> nn.Module:
    """U S Vᵀ with U = qf(A), V = qf(B), differentiated through the QR factorizations: faster than torch's and
    geotorch's frames."""
    made = factorized(layer, rank)
    for name in ("U", "V"):
        parametrize.register_parametrization(made, name, Frame())
    return made


class Matricized(nn.Module):
    """A parametrization of matrices as one of kernels (C_out, C_in, kh, kw)."""

    def __init__(self, of_matrix: Any, shape: torch.Size) -> None:
        super().__init__()
        self.of_matrix, self.shape = of_matrix, shape

    def forward(self, X: Tensor) -> Tensor:
        return self.of_matrix(X).reshape(self.shape)  # type: ignore[no-any-return]

    def right_inverse(self, weight: Tensor) -> Tensor:
        return self.of_matrix.right_inverse(matricize(weight), check_in_manifold=False)  # type: ignore[no-any-return]


def geotorch(layer: Any, rank: int) -> nn.Module:
    """W = U diag(σ) Vᵀ, formed in every pass, with U and V Cayley transforms: the faster of geotorch's two maps."""
    manifold = import_module("geotorch").LowRank(matricize(layer.weight).shape, rank, "cayley")
    parametrize.register_parametrization(layer, "weight", Matricized(manifold, layer.weight.shape))
    return layer  # type: ignore[no-any-return]


def tensorly_torch(layer: Any, rank: int) -> nn.Module:
    """A Tucker form with as many parameters as U Vᵀ of this rank: linear layers form W in every pass, as is its default
    (factor by factor, einsum would need opt_einsum), convolutions go factor by factor."""
    n, m = matricize(layer.weight).shape
    form: dict[str, Any] = {"factorization": "tucker", "rank": rank * (n + m) / (n * m)}
    tltorch = import_module("tltorch")
    if isinstance(layer, nn.Linear):
        return tltorch.FactorizedLinear((m,), (n,), bias=layer.bias is not None, implementation="reconstructed", **form)  # type: ignore
    geometry = {key: getattr(layer, key) for key in ("stride", "padding", "dilation")}
    channels = (layer.in_channels, layer.out_channels, layer.kernel_size)
    return tltorch.FactorizedConv(*channels, order=2, bias=layer.bias is not None, **geometry, **form)  # type: ignore


class Form(NamedTuple):
    """make: of a dense layer and a rank; package: that it needs; orthonormal: whether U and V stay so; largest: the
    n of the largest frame that is measured."""

    make: Callable[[Any, int], nn.Module]
    package: str = "torch"
    orthonormal: bool = False
    largest: float = math.inf


FORMS: dict[str, Form] = {
    "wellcond": Form(factorized, orthonormal=True),
    "uv": Form(two_layers),
    "qr": Form(differentiated_qr, orthonormal=True),
    "geotorch": Form(geotorch, "geotorch", orthonormal=True, largest=LARGEST),
    "tensorly_torch": Form(tensorly_torch, "tltorch"),
}
OPTIMIZERS: dict[str, tuple[Any, Any, dict[str, float]]] = {
    "SGD": (torch.optim.SGD, LowRankSGD, {"lr": 0.01, "momentum": 0.9}),
    "AdamW": (torch.optim.AdamW, LowRankAdamW, {"lr": 1e-4, "weight_decay": 0.01}),
}
"""Of each family torch's, ours, and the options of both."""


def optimizer(family: str, form: str, model: nn.Module) -> torch.optim.Optimizer:
    """That of a network in this form."""
    torchs, ours, options = OPTIMIZERS[family]
    kind, params = (
        (ours, param_groups(model, max_cond=MAX_COND)) if form == "wellcond" else (torchs, model.parameters())
    )
    return kind(params, **options)  # type: ignore[no-any-return]


def converted(model: nn.Module, form: str, ratio: float) -> nn.Module:
    """A copy of `model` with every layer but the classifier in that form; inside the constraint if it is ours."""
    new = copied(model)
    for name, layer in trained_layers(new).items():
        if name not in last_layer(model):
            new = replace_module(new, name, FORMS[form].make(layer, rank_for_ratio(ratio, full_rank(layer))))
    return constrain(new, MAX_COND) if form == "wellcond" else new


class Peer(Trainee):
    """A network in training on one batch; a parametrized frame is computed once in a step."""

    def __init__(self, model: nn.Module, optimizer: Any, x: Tensor, y: Tensor) -> None:
        self.device, self.network, self.optimizer, self.x, self.y = x.device.type, model.train(), optimizer, x, y
        self.penalty, self.spent = None, dict.fromkeys((*SPLIT, "passes"), 0.0)

    def step(self) -> None:
        with parametrize.cached():
            super().step()


def peer_rows(net: str, ratios: Sequence[float], *, batch: int, repeats: int, device: str = "cpu") -> list[Row]:
    """One row a network, form, ratio and optimizer: the step, and its ratio to that of U Vᵀ by hand.

    Columns: net, method (dense or a key of FORMS), optimizer, ratio, batch, parameters, step_s (median), spread, to_uv
    (step_s over that of U Vᵀ with this ratio and optimizer), memory_bytes (peak of a step), orthonormal.
    Raises ValueError for an unknown network, or a batch or ratio out of range.
    """
    if net not in INPUTS:
        raise unknown("net", net, INPUTS)
    if batch < 1:
        raise invalid("batch", batch, ">= 1")
    torch.manual_seed(0)
    dense = models.build(net, in_channels=INPUTS[net][0]).to(device, memory_format=torch.channels_last)
    x, y = torch.rand(batch, *INPUTS[net], device=device), torch.randint(10, (batch,), device=device)
    n = max(max(matricize(layer.weight).shape) for layer in trained_layers(dense).values())  # type: ignore[arg-type]
    forms = [name for name, form in FORMS.items() if find_spec(form.package) and n <= form.largest]
    networks = {("dense", math.nan): dense} | {(f, r): converted(dense, f, r) for r in ratios for f in forms}
    peers = {}
    for (form, ratio), network in networks.items():
        for family in OPTIMIZERS:
            model = copied(network).to(memory_format=torch.channels_last)
            peers[form, ratio, family] = Peer(model, optimizer(family, form, model), x, y)
    seconds = interleaved({key: peer.step for key, peer in peers.items()}, repeats, device)
    median = {key: statistics.median(times) for key, times in seconds.items()}
    return [
        {
            "net": net, "method": form, "optimizer": family, "ratio": ratio, "batch": batch,
            "parameters": sum(p.numel() for p in peer.network.parameters()),
            "step_s": median[form, ratio, family],
            "spread": spread(seconds[form, ratio, family]),
            "to_uv": median[form, ratio, family] / median.get(("uv", ratio, family), math.nan),
            "memory_bytes": peer.memory(),
            "orthonormal": form in FORMS and FORMS[form].orthonormal,
        }
        for (form, ratio, family), peer in peers.items()
    ]  # fmt: skip
