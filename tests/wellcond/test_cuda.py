"""On a CUDA device: the batched step of products alone is the plain one of the processor, and never waits for it."""

import copy
import math

import pytest
import torch
from torch import nn

import wellcond as wc
from helpers import randn

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def network():
    torch.manual_seed(0)
    twins = [nn.Linear(48, 48) for _ in range(3)]  # of one shape: a stack
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 48), *twins, nn.Linear(48, 10)
    )


def trained(device, optimizer, max_cond, steps=5):
    model = wc.constrain(wc.factorize(network(), ratio=0.5), max_cond).to(device)
    moves = optimizer(wc.param_groups(model, max_cond=max_cond))
    x, y = randn(32, 3, 8, 8, seed=1).float().to(device), torch.arange(32, device=device) % 10
    for _ in range(steps):
        moves.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        moves.step()
    return model


OPTIMIZERS = {
    "sgd": lambda groups: wc.LowRankSGD(groups, lr=0.05, momentum=0.5),
    "adamw": lambda groups: wc.LowRankAdamW(groups, lr=1e-3),
    "rmsprop": lambda groups: wc.on_manifold(torch.optim.RMSprop, groups, lr=1e-3),
}


@pytest.mark.parametrize("max_cond", [1.0, 1.1, 3.0, math.inf])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_five_steps_are_those_of_the_processor(name, max_cond):
    here, there = (trained(device, OPTIMIZERS[name], max_cond) for device in ("cpu", "cuda"))
    for one, other in zip(wc.weight_layers(here).values(), wc.weight_layers(there).values(), strict=True):
        W = one.matrix() if hasattr(one, "matrix") else one.weight
        torch.testing.assert_close(
            (other.matrix() if hasattr(other, "matrix") else other.weight).cpu(), W, rtol=0, atol=2e-3
        )
    for layer in wc.low_rank_layers(there).values():
        assert wc.condition_number(layer.S).item() <= max_cond * (1 + 2e-4)
        assert wc.orthogonality_error(layer.U).item() < 1e-5


@pytest.mark.parametrize("max_cond", [1.0, 1.1, 3.0, math.inf])
def test_a_step_never_waits_for_the_queue(max_cond):
    model = wc.constrain(wc.factorize(network(), ratio=0.5), max_cond).cuda()
    optimizer = OPTIMIZERS["sgd"](wc.param_groups(model, max_cond=max_cond))
    for p in model.parameters():
        p.grad = 1e-2 * torch.randn_like(p)
    optimizer.step()  # the first one makes the momenta
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_under_autocast_and_deployed():
    model = trained("cuda", OPTIMIZERS["sgd"], 1.1)
    x = torch.randn(4, 3, 8, 8, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        half = model(x)
    torch.testing.assert_close(half.float(), model(x), rtol=0.1, atol=0.1)
    torch.testing.assert_close(wc.deploy(copy.deepcopy(model))(x), model(x), rtol=0, atol=1e-4)
