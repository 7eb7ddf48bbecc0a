"""A training step beside those of other libraries, in one run, at equal ranks and with the same optimizer.

Every linear layer and convolution but the classifier is replaced. Libraries that are not installed have no rows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from study import networks as models
from study.benches.clocks import interleaved, spread
from study.benches.training import INPUTS, SPLIT, Row, Trainee, check
from wellcond.convert import copied, rank_for_ratio, replace_module
from wellcond.kinds.convolution import LowRankConv2d
from wellcond.layers import LowRankLinear, full_rank, matricize
from wellcond.methods.adam import LowRankAdamW
from wellcond.methods.method import last_layer, trained_layers
from wellcond.optim import LowRankSGD, constrain, param_groups
from wellcond.stiefel import qr

MAX_COND = 1.1
LARGEST = 1024  # geotorch solves with a matrix n x n for a frame (n, r): with a larger n, a step takes minutes


def factorized(layer: Any, rank: int, core: bool = True) -> Any:
    """U S Vᵀ of this library, or U Vᵀ."""
    return (LowRankLinear if isinstance(layer, nn.Linear) else LowRankConv2d).from_dense(layer, rank, core=core)


@torch.no_grad()
def two_layers(layer: Any, rank: int) -> Any:
    """U Vᵀ as one writes it by hand: nn.Sequential of two plain layers."""
    return factorized(layer, rank, core=False).plain_layers()


class Frame(nn.Module):
    """The parametrization of a frame by any matrix: X = qf(A)."""

    def forward(self, A: Tensor) -> Tensor:
        return qr(A)

    def right_inverse(self, X: Tensor) -> Tensor:
        return X


def differentiated_qr(layer: Any, rank: int) -> Any:
    """U S Vᵀ with U = qf(A), V = qf(B), differentiated through the QR factorizations."""
    made = factorized(layer, rank)
    for name in ("U", "V"):
        parametrize.register_parametrization(made, name, Frame())
    return made


class Matricized(nn.Module):
    """A parametrization of matrices as one of kernels (C_out, C_in, kh, kw)."""

    def __init__(self, of_matrix: Any, shape: torch.Size) -> None:
        super().__init__()
        self.of_matrix, self.shape = of_matrix, shape

    def forward(self, X: Tensor) -> Any:
        return self.of_matrix(X).reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> Any:
        return self.of_matrix.right_inverse(matricize(weight), check_in_manifold=False)


def geotorch(layer: Any, rank: int) -> Any:
    """W = U diag(σ) Vᵀ, formed in every pass, with U and V Cayley transforms: the faster of geotorch's two maps."""
    manifold = import_module("geotorch").LowRank(matricize(layer.weight).shape, rank, "cayley")
    return parametrize.register_parametrization(layer, "weight", Matricized(manifold, layer.weight.shape))


def tensorly_torch(layer: Any, rank: int) -> Any:
    """A Tucker form with as many parameters as U Vᵀ of this rank; linear layers form W, convolutions go by factors."""
    (n, m), tltorch = matricize(layer.weight).shape, import_module("tltorch")
    form = {"factorization": "tucker", "rank": rank * (n + m) / (n * m), "bias": layer.bias is not None}
    if isinstance(layer, nn.Linear):  # by factors its einsum needs opt_einsum, or forms tensors of B m r² numbers
        return tltorch.FactorizedLinear((m,), (n,), implementation="reconstructed", **form)
    geometry = {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding", "dilation")}
    return tltorch.FactorizedConv(layer.in_channels, layer.out_channels, order=2, **geometry, **form)


FORMS: dict[str, Callable[[Any, int], Any]] = {
    "wellcond": factorized, "uv": two_layers, "qr": differentiated_qr, "geotorch": geotorch,
    "tensorly_torch": tensorly_torch,
}  # fmt: skip
ORTHONORMAL = ("wellcond", "qr", "geotorch")
PACKAGES = {  # what a form needs; tensorly-torch does not declare tensorly
    "geotorch": ("geotorch",),
    "tensorly_torch": ("tensorly-torch", "tensorly"),
}


def installed(form: str) -> str:
    """The version of its package, "" if that or what it needs is not there."""
    try:
        first, *_ = map(version, PACKAGES.get(form, ("torch",)))
        return first
    except PackageNotFoundError:
        return ""


# of each family torch's, ours, and the options of both
OPTIMIZERS: dict[str, tuple[Any, Any, dict[str, float]]] = {
    "SGD": (torch.optim.SGD, LowRankSGD, {"lr": 0.01, "momentum": 0.9}),
    "AdamW": (torch.optim.AdamW, LowRankAdamW, {"lr": 1e-4, "weight_decay": 0.01}),
}


def converted(model: nn.Module, form: str, ratio: float) -> nn.Module:
    """A copy of `model` with every layer but the classifier in that form; inside the constraint if it is ours."""
    new = copied(model)
    for name, layer in trained_layers(new).items():
        if name not in last_layer(model):
            new = replace_module(new, name, FORMS[form](layer, rank_for_ratio(ratio, full_rank(layer))))
    return constrain(new, MAX_COND) if form == "wellcond" else new


class Peer(Trainee):
    """A network in training on one batch; a parametrized frame is computed once in a step."""

    def __init__(self, form: str, family: str, model: nn.Module, x: Tensor, y: Tensor) -> None:
        torchs, ours, options = OPTIMIZERS[family]
        groups = param_groups(model, max_cond=MAX_COND) if form == "wellcond" else model.parameters()
        self.optimizer = (ours if form == "wellcond" else torchs)(groups, **options)
        self.device, self.network, self.x, self.y = x.device.type, model.train(), x, y
        self.penalty, self.spent = None, dict.fromkeys((*SPLIT, "passes"), 0.0)

    def step(self) -> None:
        with parametrize.cached():
            super().step()


def peer_rows(net: str, ratios: Sequence[float], *, batch: int, repeats: int, device: str = "cpu") -> list[Row]:
    """One row a network, form, ratio and optimizer: the step, and its ratio to that of U Vᵀ by hand.

    Columns: net, method (dense or a key of FORMS), optimizer, ratio, batch, parameters, step_s (median), spread, to_uv
    (step_s over that of U Vᵀ with this ratio and optimizer), memory_bytes (peak of a step), orthonormal
    (whether U and V stay so), version (of the package).
    Raises ValueError for an unknown network, or a batch or ratio out of range.
    """
    check(net, batch)
    torch.manual_seed(0)
    dense = models.build(net, in_channels=INPUTS[net][0]).to(device).to(memory_format=torch.channels_last)
    x, y = torch.rand(batch, *INPUTS[net], device=device), torch.randint(10, (batch,), device=device)
    n = max(max(matricize(layer.weight).shape) for layer in trained_layers(dense).values())
    forms = [form for form in FORMS if installed(form) and (form != "geotorch" or n <= LARGEST)]
    networks = {("dense", math.nan): dense} | {(f, r): converted(dense, f, r) for r in ratios for f in forms}
    peers = {
        (form, ratio, family): Peer(form, family, copied(network).to(memory_format=torch.channels_last), x, y)
        for (form, ratio), network in networks.items()
        for family in OPTIMIZERS
    }
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
            "orthonormal": form in ORTHONORMAL,
            "version": installed(form),
        }
        for (form, ratio, family), peer in peers.items()
    ]  # fmt: skip
