"""What the training loops of others do besides a step: half precision, scaled losses, accumulated gradients, clipping,
schedules, resumed runs, averaged weights. Each with momentum SGD and with AdamW on the manifold."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import wellcond as wc
from helpers import DOUBLE

OPTIMIZERS = {
    "sgd": lambda groups: wc.LowRankSGD(groups, lr=0.05, momentum=0.3),
    "adamw": lambda groups: wc.LowRankAdamW(groups, lr=0.01),
    "rmsprop": lambda groups: wc.on_manifold(torch.optim.RMSprop, groups, lr=1e-3),
}
MAX_COND = 1.5


def network(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype)
    return wc.constrain(wc.factorize(layers, ratio=0.5), max_cond=MAX_COND)


def images(dtype=torch.float32, n=64):
    torch.manual_seed(1)
    x = torch.randn(n, 20, dtype=DOUBLE)
    return x.to(dtype), (x[:, :4] + 0.1 * x[:, 4:8]).argmax(1)


def groups(model):
    return wc.param_groups(model, max_cond=MAX_COND)


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x).float(), y)
    loss.backward()
    optimizer.step()
    return loss.item()


def assert_on_manifold(model, error, of_condition):
    for layer in wc.low_rank_layers(model).values():
        for basis in (layer.U, layer.V):
            assert wc.orthogonality_error(basis.detach().double()) <= error
        assert wc.condition_number(layer.S.detach().double()) <= MAX_COND * (1 + of_condition)


def parameters(model):
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.02), (torch.float16, 3e-3)])
def test_weights_in_half_precision_learn_on_the_manifold_up_to_their_rounding(name, dtype, error):
    model, (x, y) = network(dtype), images(dtype)
    optimizer = OPTIMIZERS[name](groups(model))
    losses = [step(model, optimizer, x, y) for _ in range(60)]
    assert losses[-1] < 0.9 * losses[0]
    assert_on_manifold(model, error, error)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_under_autocast_the_factors_stay_in_single_precision(name):
    model, (x, y) = network(), images()
    optimizer, losses = OPTIMIZERS[name](groups(model)), []
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert_on_manifold(model, 1e-5, 1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_scaled_loss_takes_the_step_of_the_loss(name):
    """The scale is a power of two, so that not a bit differs."""
    plain, scaled = network(), network()
    x, y = images()
    one, other = (OPTIMIZERS[name](groups(model)) for model in (plain, scaled))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(5):
        step(plain, one, x, y)
        other.zero_grad()
        scaler.scale(F.cross_entropy(scaled(x), y)).backward()
        scaler.step(other)
        scaler.update()
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_whose_gradients_overflow_is_left_out(name):
    model, (x, y) = network(), images()
    optimizer = OPTIMIZERS[name](groups(model))
    step(model, optimizer, x, y)
    before, state = parameters(model), copy.deepcopy(optimizer.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer.zero_grad()
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    next(model.parameters()).grad[0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 2.0**10
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    after = optimizer.state_dict()["state"]
    for key, entry in state["state"].items():
        for field, value in entry.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(after[key][field]))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_accumulated_gradients_take_the_step_of_the_whole_batch(name):
    whole, parts = network(DOUBLE), network(DOUBLE)
    x, y = images(DOUBLE)
    one, other = (OPTIMIZERS[name](groups(model)) for model in (whole, parts))
    for _ in range(5):
        one.zero_grad()
        F.cross_entropy(whole(x), y).backward()
        one.step()
        other.zero_grad()
        for k in range(0, len(x), 16):
            (F.cross_entropy(parts(x[k : k + 16]), y[k : k + 16]) / (len(x) / 16)).backward()
        other.step()
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-8)  # AdamW divides by small second moments


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_clipped_gradients_and_a_schedule(name):
    model, (x, y) = network(), images()
    optimizer = OPTIMIZERS[name](groups(model))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.05, total_steps=60, cycle_momentum=name != "rmsprop"
    )
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        assert torch.isfinite(norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert_on_manifold(model, 1e-5, 1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_resumed_run_ends_with_the_same_bits(name, dtype):
    model, (x, y) = network(dtype), images(dtype)
    optimizer = OPTIMIZERS[name](groups(model))
    for _ in range(5):
        step(model, optimizer, x, y)
    again = network(dtype, seed=3)
    second = OPTIMIZERS[name](groups(again))
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(5):
        step(model, optimizer, x, y)
        step(again, second, x, y)
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_averaged_weights_are_averaged_where_the_mean_is_defined(name):
    """The mean of factors is no factor of the mean: what is averaged is W, through `densify`, and factored again."""
    model, (x, y) = network(), images()
    optimizer = OPTIMIZERS[name](groups(model))
    averaged = torch.optim.swa_utils.AveragedModel(wc.densify(copy.deepcopy(model)))
    for _ in range(20):
        step(model, optimizer, x, y)
        averaged.update_parameters(wc.densify(copy.deepcopy(model)))
    small = wc.constrain(wc.factorize(averaged.module, ratio=0.5), max_cond=MAX_COND)
    assert_on_manifold(small, 1e-5, 1e-5)
    assert F.cross_entropy(small(x), y) < 1.05 * F.cross_entropy(network()(x), y)


@pytest.mark.long
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_thousand_steps_do_not_drift(name):
    torch.manual_seed(0)
    model = wc.constrain(wc.factorize(nn.Sequential(nn.Linear(12, 10)), rank=4), max_cond=MAX_COND)
    optimizer = OPTIMIZERS[name](groups(model))
    x, errors = torch.randn(32, 12), []
    target = torch.randn(32, 10)
    for k in range(10_000):
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()
        if k % 1000 == 999:
            layer = model[0]
            errors.append(max(wc.orthogonality_error(b.detach().double()).item() for b in (layer.U, layer.V)))
    assert max(errors) < 2e-6
    assert max(errors[5:]) < 3 * max(errors[:5]) + 1e-7
    assert_on_manifold(model, 2e-6, 1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_network_takes_the_same_steps(name):
    plain, model = network(), network()
    x, y = images()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    one, other = OPTIMIZERS[name](groups(plain)), OPTIMIZERS[name](groups(model))
    for _ in range(5):
        step(plain, one, x, y)
        step(compiled, other, x, y)
    for p, q in itertools.zip_longest(plain.parameters(), model.parameters()):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)
