"""Decentralized training: agents with few images, who talk to their neighbours only, and gradient descent among them.

Agent i has a softmax regression w_i (d, c), and f_i is its mean cross-entropy on the images of i. A round of
decentralized gradient descent (DGD) is w <- S(w - η∇f(w)), S the averages over neighbours; federated averaging has a
server, S = 11ᵀ/n, and takes several local steps a round. Class shares of a problem are uniform in the simplex.

Sources: Nedić and Ozdaglar, IEEE Trans. Autom. Control 54 (2009); McMahan et al., AISTATS 2017.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from study.data import Images

AGENTS, OWN, NEW, FEATURES, CLASSES = 12, 30, 180, 12, 10


class Problems(NamedTuple):
    """x (B, AGENTS, OWN, d) and y, one-hot; new images x_new (B, NEW, d) and their labels (B, NEW)."""

    x: Tensor
    y: Tensor
    x_new: Tensor
    y_new: Tensor


class Pool(NamedTuple):
    """Features (N, d), the last of which is one, and labels."""

    x: Tensor
    y: Tensor

    def draw(self, count: int, labels: str) -> Problems:
        """Problems without an image twice."""
        shares = torch.distributions.Dirichlet(torch.ones(CLASSES)).sample((count,))
        index = torch.multinomial(shares[:, self.y] + 1e-9, AGENTS * OWN + NEW)
        numbers = torch.rand(count, CLASSES).argsort(1) if labels == "new" else torch.arange(CLASSES).expand(count, -1)
        labelled = (index, numbers.gather(1, self.y[index]))
        (own, new), (y, y_new) = (torch.split(of, [AGENTS * OWN, NEW], 1) for of in labelled)
        shape = (count, AGENTS, OWN, -1)
        return Problems(self.x[own].view(shape), F.one_hot(y, CLASSES).float().view(shape), self.x[new], y_new)


def pools(*parts: Images) -> list[Pool]:
    """In the principal components of the first part, scaled to a mean square of one."""
    x = [part.pixels(slice(None)).flatten(1) for part in parts]
    V = torch.linalg.svd(x[0] - x[0].mean(0), full_matrices=False).Vh[:FEATURES].mT
    scale = ((x[0] - x[0].mean(0)) @ V).square().mean().sqrt()
    return [Pool(F.pad((z - x[0].mean(0)) @ V / scale, (0, 1), value=1.0), p.labels) for z, p in zip(x, parts)]  # noqa: B905


def ladder(n: int) -> Tensor:
    """S = (A + I)/4, A the Möbius ladder: a ring, and its opposite agents."""
    return sum((torch.eye(n).roll(shift, 0) for shift in (1, -1, n // 2)), torch.eye(n)) / 4


def mix(S: Tensor, W: Tensor, noise: float = 0.0) -> Tensor:
    """S W for W (B, n, d, c), received with noise relative to the root mean square of W."""
    return torch.einsum("ij,bjdc->bidc", S, W + noise * W.square().mean().sqrt() * torch.randn_like(W))


def asynchronous(new: Tensor, old: Tensor, asleep: float) -> Tensor:
    """An agent keeps its old weights with this probability."""
    return torch.where(torch.rand(*new.shape[:2], 1, 1) < asleep, old, new)


def gradient(W: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """∇f_i(w_i), f_i the mean cross-entropy of agent i."""
    return x.mT @ ((x @ W).softmax(-1) - y) / x.shape[-2]


def gradient_norms(states: Tensor, problems: Problems) -> Tensor:
    """||∇f(w_l)|| over all agents, (L + 1, B)."""
    return torch.stack([gradient(W, problems.x, problems.y).flatten(1).norm(dim=1) for W in states])


class Descent(NamedTuple):
    """The states of DGD, or with local steps and S = 11ᵀ/n of FedAvg, (rounds + 1, B, n, d, c)."""

    S: Tensor
    eta: float
    rounds: int
    local: int = 1

    def __call__(self, W: Tensor, problems: Problems, asleep: float = 0.0, noise: float = 0.0) -> Tensor:
        states = [W]
        for _ in range(self.rounds):
            own = states[-1]
            for _ in range(self.local):
                own = own - self.eta * gradient(own, problems.x, problems.y)
            states.append(asynchronous(mix(self.S, own, noise), states[-1], asleep))
        return torch.stack(states)


def start(problems: Problems) -> Tensor:
    """w_0, normal of deviation 0.1."""
    return 0.1 * torch.randn(*problems.x.shape[:2], problems.x.shape[-1], CLASSES)


def accuracy(states: Tensor, problems: Problems) -> list[float]:
    """Per cent right of the new images by state, mean over agents and problems."""
    right = (((problems.x_new[:, None] @ W).argmax(-1) == problems.y_new[:, None]).double().mean() for W in states)
    return [100 * float(share) for share in right]


def stored(pool: Pool) -> Tensor:
    """One classifier (d, c) for all: 300 steps of gradient descent."""
    W, y = torch.zeros(pool.x.shape[1], CLASSES), F.one_hot(pool.y, CLASSES)
    for _ in range(300):
        W = W - 3 * gradient(W, pool.x, y)
    return W
