"""Every rule of every optimizer, each with a small network of its own, for tests of what is true of all."""

import torch
from torch import nn

import wellcond as wc
from helpers import randn
from wellcond import optim
from wellcond.methods import BUG, FrankWolfe, ProximalSGD, frank_wolfe_groups


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 6), nn.Linear(6, 6), nn.Linear(6, 4)).double()


def low_rank(**options):
    def make():
        model = wc.constrain(wc.factorize(network(), rank=3), 1.5)
        return model, wc.LowRankSGD(wc.param_groups(model, max_cond=1.5, **options), **COMMON)

    return make


def dense(optimizer, groups):
    def make():
        model = network()
        return model, optimizer(groups(model), **COMMON)

    return make


def bug(**options):
    def make():
        model = wc.factorize(network(), rank=3)
        return model, BUG(wc.param_groups(model, tolerance=0.2, **options), **COMMON)

    return make


def weights(kind, **options):
    return lambda model: optim.with_rest(model, [{"params": [m.weight for m in model], "kind": kind, **options}])


COMMON = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
OPTIMIZERS = {
    **{kind: low_rank(kind=kind) for kind in optim.UPDATES if kind.startswith("lowrank")},
    "lowrank polar": low_rank(retraction="polar"),
    "euclidean": dense(wc.LowRankSGD, lambda model: model.parameters()),
    "stiefel": dense(wc.LowRankSGD, weights("stiefel")),
    "clipped": dense(wc.LowRankSGD, weights("clipped", max_cond=1.5)),
    "thresholded": dense(ProximalSGD, weights("thresholded", threshold=0.5, every=1)),
    **{
        f"frank_wolfe {family}": dense(
            FrankWolfe, lambda model, family=family, k=k: frank_wolfe_groups(model, family, scale=0.5, k=k, draws=1)
        )
        for family, k in (("l2", None), ("k_support", 3), ("spectral_k_support", 2))
    },
    **{f"BUG {basis}": bug(basis=basis, coefficient_steps=2) for basis in ("fixed", "augmented")},
}


def closure(model, optimizer, change=lambda calls: None):
    calls = []

    def evaluate():
        optimizer.zero_grad()
        loss = (model(randn(5, 7)) - 1).square().mean()
        loss.backward()
        calls.append(loss)
        change(len(calls))
        return loss

    return evaluate
