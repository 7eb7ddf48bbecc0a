"""A server and ten clients: who has which images, how a client trains, and the ways to merge what comes back.

    dense        mean of the weights of the dense network (federated averaging)
    tangent      coordinates on the common bases U, V add, and the server retracts
    products     truncated SVD of the mean of the products, which are nm numbers as they are added
    factors      means of U, S and V one by one, orthonormalized; a client's bases have moved horizontally from U and V
    own SVD      means of U, S and V one by one, each client's factors being those of the SVD of its own W_i

Sources: McMahan et al., AISTATS 2017, for the rounds; Li et al., MLSys 2020, for clients that restart from Z under a
penalty λ/2 ||W - Z||².
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import wellcond as wc
from study.data import Images
from study.training.ensemble import Stack
from wellcond.integrator import Factors
from wellcond.linalg import svd
from wellcond.methods import tangent_aggregation as ta
from wellcond.optim import copy_
from wellcond.stiefel import qr

CLIENTS, BATCH, RATIO, BOUND = 10, 25, 0.8, 1.1


def features(images: Images) -> Tensor:
    """Means of 2 x 2 pixels, centred and scaled, (N, 196)."""
    return ((F.avg_pool2d(images.pixels(slice(None)), 2) - 0.3) / 0.37).flatten(1)


def network(seed: int, classes: int = 10) -> nn.Module:
    """196-128-64-classes with tanh."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(196, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, classes))


def low_rank(model: nn.Module, max_cond: float) -> nn.Module:
    """Its two hidden matrices at rank 26 and 13, within the bound."""
    return wc.constrain(wc.factorize(model, ratio=RATIO, skip="4"), max_cond)


def identical(images: Images) -> list[Tensor]:
    """The images of each client: every tenth, in an order that is random already."""
    return [torch.arange(i, len(images), CLIENTS) for i in range(CLIENTS)]


def skewed(images: Images) -> list[Tensor]:
    """Client i has one half of class i and the other half of class i + 1, of ten."""
    halves = [torch.where(images.labels == c)[0].tensor_split(2) for c in range(CLIENTS)]
    return [torch.cat([halves[i][0], halves[(i + 1) % CLIENTS][1]]) for i in range(CLIENTS)]


SPLITS: dict[str, Callable[[Images], list[Tensor]]] = {"identical": identical, "skewed": skewed}


def drift(own: Mapping[str, Tensor], server: Mapping[str, Tensor]) -> Tensor:
    """Σ ||W_i - Z||² over the matrices, and over the clients whose parameters (10, ...) `own` are."""
    cores = [name[:-1] for name in own if name.endswith(".S")]
    points = ([Factors(*(of[name + key] for key in "USV")) for of in (own, server)] for name in cores)
    low = [ta.squared_distance(W, Z).sum() for W, Z in points]
    dense = [(p - server[name]).square().sum() for name, p in own.items() if name.endswith(".weight")]
    return torch.stack(low + dense).sum()


class Clients:
    """Ten networks in one stack; features x (10, N, 196), labels y (10, N), as many images of each client."""

    def __init__(self, images: Images, split: str, server: nn.Module, max_cond: float) -> None:
        parts = SPLITS[split](images)
        count = min(map(len, parts)) // BATCH * BATCH
        index = torch.stack([part[torch.randperm(len(part))[:count]] for part in parts])
        self.x, self.y = features(images)[index], images.labels[index]
        self.stack = Stack([copy.deepcopy(server).requires_grad_() for _ in parts])
        self.groups = wc.param_groups(self.stack.models[0], max_cond=max_cond)

    @torch.enable_grad()
    def train(self, server: nn.Module, lr: float, weight: float) -> Sequence[nn.Module]:
        """From the server's network, one epoch of SGD on the loss and weight/2 ||W - Z||²."""
        own, theirs = self.stack.parameters, dict(server.named_parameters())
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(theirs[name])
        optimizer = self.stack.optimizer(wc.LowRankSGD([dict(group) for group in self.groups], lr=lr))
        members = torch.arange(CLIENTS)[:, None]
        for index in torch.split(torch.rand(self.y.shape).argsort(1), BATCH, dim=1):
            optimizer.zero_grad()
            loss = self.stack.losses(self.x[members, index], self.y[members, index]).sum()
            if weight:
                loss = loss + weight / 2 * drift(own, theirs)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.stack.write_back(range(CLIENTS))
        return self.stack.models


Merge = Callable[[nn.Module, Sequence[nn.Module], ta.Channel, float], None]
"""(server, to be moved in place, models, channel, bound on κ)."""


def tangent(server: nn.Module, models: Sequence[nn.Module], channel: ta.Channel, max_cond: float) -> None:
    """The mean in the coordinates; of a dense network, the mean."""
    ta.aggregate_(server, models, None, channel, max_cond=max_cond)


def products(server: nn.Module, models: Sequence[nn.Module], channel: ta.Channel, max_cond: float) -> None:
    """The mean of the dense networks, factorized."""
    mean = wc.densify(server)
    ta.aggregate_(mean, [wc.densify(model) for model in models], None, channel)
    server.load_state_dict(low_rank(mean, max_cond).state_dict())


def factors(server: nn.Module, models: Sequence[nn.Module], channel: ta.Channel, max_cond: float) -> None:
    """All parameters one by one; then the bases are orthonormalized."""
    theirs = zip(*(model.parameters() for model in models), strict=True)
    for own, others in zip(server.parameters(), theirs, strict=True):
        own.add_(channel((torch.stack(others) - own) / len(models)))
    for layer in wc.low_rank_layers(server).values():
        X, S, Y = ta.factors(layer)
        U, V = qr(X), qr(Y)
        copy_(ta.factors(layer), (U, (U.mT @ X) @ S @ (Y.mT @ V), V))
    wc.constrain(server, max_cond)


def own_svd(server: nn.Module, models: Sequence[nn.Module], channel: ta.Channel, max_cond: float) -> None:
    """`factors` of the SVDs, in which the largest entry of every column of U is positive."""
    for layer in (layer for model in (server, *models) for layer in wc.low_rank_layers(model).values()):
        U, S, V = ta.factors(layer)
        P, sigma, Qt = svd(S)
        X, Y = U @ P, V @ Qt.mT
        sign = X.gather(0, X.abs().argmax(0, keepdim=True)).sign()
        copy_(ta.factors(layer), (X * sign, torch.diag(sigma), Y * sign))
    factors(server, models, channel, max_cond)


class Way(NamedTuple):
    """How networks are merged, whether they are of low rank, and the bound on κ."""

    merge: Merge
    low_rank: bool = True
    max_cond: float = math.inf

    def start(self, seed: int) -> nn.Module:
        """The server's first network: the same dense one, or its truncation."""
        model = network(seed)
        return (low_rank(model, self.max_cond) if self.low_rank else model).requires_grad_(False)

    def megabytes(self, server: nn.Module) -> float:
        """On the channel in a round, up and down."""
        layers = wc.low_rank_layers(server).values()
        dense = sum(p.numel() for p in wc.densify(server).parameters())
        coordinates = dense - sum(layer.n_dense - layer.n_deployed for layer in layers)
        cores = sum(layer.rank**2 for layer in layers)
        up = dense if self.merge is products else coordinates + (cores if self.merge in (factors, own_svd) else 0)
        return 4e-6 * (up + coordinates)


BOUNDED = f"κ ≤ {BOUND:g}"
WAYS = {
    "dense": Way(tangent, low_rank=False),
    "tangent": Way(tangent),
    f"tangent, {BOUNDED}": Way(tangent, max_cond=BOUND),
    "products": Way(products),
    "factors": Way(factors),
    "own SVD": Way(own_svd),
}
