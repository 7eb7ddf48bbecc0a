"""Networks with zeros or of low rank, each trained at several learning rates and from several starts at once.

Momentum SGD with milestones, as fractions of the epochs, as in the study on MNIST. Zeros are held by alternating phases
(AC/DC) or grow in number (gradual pruning): see `wellcond.methods.alternating_compression`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import wellcond as wc
from study.training.ensemble import Stack
from wellcond.methods.alternating_compression import Schedule, SparseTraining, alternating, gradual
from wellcond.methods.method import constrained_factors, dense, factors, plain_groups
from wellcond.methods.settings import Settings

MOMENTUM, MILESTONES, GAMMA = 0.3, (0.6, 0.85), 0.3
Part = tuple[Tensor, Tensor]
"""Images (N, C, H, W) and their labels."""


class Method(NamedTuple):
    """prepare, settings: what becomes of the dense network, as for a method of the library; schedule: of its zeros."""

    prepare: Callable[[nn.Module, Settings], nn.Module] = dense
    settings: Settings = Settings()
    schedule: Schedule | None = None


SPARSITIES, RATIOS = (0.9, 0.95, 0.98), (0.5, 0.8, 0.9)
METHODS = {
    ("dense", 0.0): Method(),
    **{("AC/DC", s): Method(schedule=alternating(s, period=0.1, last_dense=0.5, final=0.6)) for s in SPARSITIES},
    **{("gradual", s): Method(schedule=gradual(s)) for s in SPARSITIES},
    **{("U Vᵀ", r): Method(factors, Settings(ratio=r)) for r in RATIOS},
    **{("CondLR", r): Method(constrained_factors, Settings(ratio=r, max_cond=1.1)) for r in RATIOS},
}
"""By name, and the share of zeros or the ratio of rank removed."""


def fit(
    method: Method, starts: Sequence[nn.Module], data: Sequence[Part], epochs: int, rates: Sequence[float], batch: int
) -> list[nn.Module]:
    """One network for each start, with its own data, and each learning rate, all trained as one stack."""
    models = [method.prepare(copy.deepcopy(start), method.settings) for start in starts for _ in rates]
    stack = Stack(models)
    optimizer = stack.optimizer(wc.LowRankSGD(plain_groups(models[0], method.settings), momentum=MOMENTUM))
    steps = torch.tensor([*rates] * len(starts))  # linear in the gradients: the rate of a member weights its loss
    size = len(data[0][1]) // batch * batch
    if method.schedule is not None:
        weights = [p for name, p in stack.parameters.items() if name.endswith("weight")]
        SparseTraining(optimizer, weights, method.schedule, steps=epochs * size // batch, stacked=True)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = GAMMA ** sum(epoch >= milestone * epochs for milestone in MILESTONES)
        for index in torch.split(torch.randperm(len(data[0][1]))[:size], batch):
            x, y = (torch.stack([part[k][index] for part in data for _ in rates]) for k in range(2))
            optimizer.zero_grad()
            (steps * stack.losses(x, y)).sum().backward()  # type: ignore[no-untyped-call]
            stack.isolate(optimizer)
            optimizer.step()
    stack.write_back(range(len(models)))
    return models


@torch.no_grad()
def measure(model: nn.Module, train: Part, held_out: Part, test: Part) -> dict[str, float]:
    """Accuracies in percent, the loss on training images, and the mean entropy of the outputs on them."""
    model.eval()
    accuracy = {
        name: 100 * float((model(x).argmax(1) == y).double().mean())
        for name, (x, y) in (("held out", held_out), ("test", test))
    }
    log_p = F.log_softmax(model(train[0]), 1)
    entropy = -(log_p.exp() * log_p).sum(1).mean()
    return {**accuracy, "loss": float(F.nll_loss(log_p, train[1])), "entropy": float(entropy)}
