"""Trust ratios against assembled weights and projected gradients, the quantizer against its moments, two processes."""

import copy
import math
import multiprocessing
import re

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import wellcond as wc
from wellcond.integrator import Factors
from wellcond.methods.layerwise_rates import quantize_gradient, scale_gradients_, tangent_norm, trust_ratio


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def network(seed=0, **lowrank):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3))
    return wc.factorize(model, rank=4, skip="4", **lowrank) if lowrank else model


def batch(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, 9, generator=generator), torch.randint(3, (12,), generator=generator)


def differentiated(model):
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    return model


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


# ------------------------------------------------------------------------ norms


def projected(layer, G):
    """P_W G by the textbook, from dense projectors."""
    U, V = (torch.linalg.qr(X).Q for X in (layer.U.detach(), layer.V.detach()))
    P, Q = U @ U.mT, V @ V.mT
    return P @ G + G @ Q - P @ G @ Q


@pytest.mark.parametrize("kappa", [1.1, 10, 1000])
def test_norms_from_factors_are_those_of_the_matrix_and_of_the_projected_gradient(kappa):
    """To 1e-8 κ², by which the integrator regularises its inverse, and the norm with it."""
    model = network(core=True)
    for layer in wc.low_rank_layers(model).values():
        P, Q = (torch.linalg.qr(torch.randn(4, 4)).Q for _ in range(2))
        layer.S.data = P @ torch.diag(torch.logspace(0, -math.log10(kappa), 4)) @ Q
    dense = differentiated(wc.densify(model))
    differentiated(model)
    for name, layer in wc.low_rank_layers(model).items():
        G = dense.get_submodule(name).weight.grad
        W, grad = values(layer)
        torch.testing.assert_close(tangent_norm(W, grad), projected(layer, G).norm(), rtol=1e-8 * kappa**2, atol=0)
        ratio = (layer.weight.norm() / projected(layer, G).norm()).item()
        found = scale_gradients_(copied(model), trust=0.3)[name].item()
        assert found == pytest.approx(0.3 * ratio, rel=1e-8 * kappa**2)


def values(layer):
    factors = layer.U, layer.S, layer.V
    return Factors(*(p.detach() for p in factors)), Factors(*(p.grad for p in factors))


def copied(model):
    new = copy.deepcopy(model)
    for p, q in zip(new.parameters(), model.parameters(), strict=True):
        p.grad = q.grad.clone()
    return new


def test_a_stack_has_the_norms_of_its_members():
    W, grad = values(differentiated(network(core=True))[0])
    members = [(W, grad), (Factors(W.U.flip(0), 2 * W.S, W.V), Factors(3 * grad.U, grad.S, grad.V))]
    stacks = (Factors(*map(torch.stack, zip(*parts, strict=True))) for parts in zip(*members, strict=True))
    torch.testing.assert_close(tangent_norm(*stacks), torch.stack([tangent_norm(*member) for member in members]))


@pytest.mark.parametrize("lowrank", [{}, {"core": True}, {"core": False}])
def test_a_layer_moves_by_the_same_share_of_its_norm(lowrank):
    """To first order in the step, for U S Vᵀ, whose steps end on the manifold; exactly for the others."""
    start = differentiated(network(**lowrank))
    shares = {}
    for h in (1e-3, 5e-4):
        model = copied(start)
        scale_gradients_(model)
        wc.LowRankSGD(wc.param_groups(model), lr=h).step()
        for name, layer in wc.weight_layers(model).items():
            old = start.get_submodule(name)
            pairs = [(layer.weight, old.weight)]
            if lowrank and not lowrank["core"] and name != "4":
                pairs = [(layer.U, old.U), (layer.V, old.V)]
            moved = math.hypot(*((p - q).norm().item() for p, q in pairs))
            shares[name, h] = moved / math.hypot(*(q.norm().item() for _, q in pairs)) / h
    errors = {h: max(abs(share - 1) for (_, step), share in shares.items() if step == h) for h in (1e-3, 5e-4)}
    assert errors[5e-4] < 1e-3
    if errors[1e-3] > 1e-9:
        assert lowrank["core"]
        assert errors[1e-3] / errors[5e-4] == pytest.approx(2, abs=1.2)  # h, or h² where the curvature is normal


# ------------------------------------------------------------------------ steps


@pytest.mark.parametrize("lowrank", [{}, {"core": True}, {"core": False}])
def test_with_equal_norms_it_is_sgd(lowrank):
    """Rescale every gradient to the norm of its weight: then the ratio is one."""
    model = differentiated(network(**lowrank))
    scale_gradients_(model)
    before = gradients(model)
    ratios = scale_gradients_(model)
    assert [float(ratio) for ratio in ratios.values()] == pytest.approx([1] * 3)
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, before[name])


def test_the_scale_of_the_loss_does_not_matter():
    models = [network(core=True) for _ in range(2)]
    for model, scale in zip(models, (1, 1000), strict=True):
        x, y = batch()
        (scale * F.cross_entropy(model(x), y)).backward()
        scale_gradients_(model, trust=0.1)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_dense_layer_is_the_published_rule():
    model = differentiated(network())
    G, b = model[0].weight.grad.clone(), model[0].bias.grad.clone()
    scale_gradients_(model, trust=0.02, weight_decay=0.5)
    H = G + 0.5 * model[0].weight
    ratio = 0.02 * model[0].weight.norm() / H.norm()
    torch.testing.assert_close(model[0].weight.grad, ratio * H)
    torch.testing.assert_close(model[0].bias.grad, ratio * b)


def test_weight_decay_of_factors_is_that_of_the_matrix():
    """Decay of U S Vᵀ is P_W(G + λW) = P_W G + λW."""
    model = network(core=True)
    dense = differentiated(wc.densify(model))
    ratios = scale_gradients_(differentiated(model), weight_decay=0.5)
    for name, layer in wc.low_rank_layers(model).items():
        H = projected(layer, dense.get_submodule(name).weight.grad + 0.5 * layer.weight)
        assert ratios[name].item() == pytest.approx((layer.weight.norm() / H.norm()).item(), rel=1e-6)


def test_what_has_no_gradient_or_no_norm_stays():
    model = network()
    assert scale_gradients_(model) == {}
    model[0].weight.data.zero_()
    model[4].weight.requires_grad_(False)
    differentiated(model)
    before = gradients_of(model[0])
    ratios = scale_gradients_(model, trust=0.1)
    assert set(ratios) == {"0", "2"}
    assert float(ratios["0"]) == 1
    torch.testing.assert_close(gradients_of(model[0]), before)
    assert float(trust_ratio(torch.tensor(2.0), torch.tensor(0.0))) == 1


def gradients_of(layer):
    return [p.grad.clone() for p in layer.parameters()]


def test_a_shared_weight_is_scaled_once():
    model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Tanh(), nn.Linear(5, 5, bias=False))
    model[2].weight = model[0].weight
    model(torch.randn(4, 5)).square().sum().backward()
    G = model[0].weight.grad.clone()
    scale_gradients_(model)
    torch.testing.assert_close(model[0].weight.grad, G * model[0].weight.norm() / G.norm())


@pytest.mark.parametrize("name", ["trust", "weight_decay"])
def test_numbers_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=re.escape(f"{name} = -1")):
        scale_gradients_(network(), **{name: -1})


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, wc.LowRankSGD])
def test_training_with_it_lowers_the_loss_and_keeps_the_bound(optimizer):
    model = wc.constrain(network(core=True), 1.5)
    groups = wc.param_groups(model, max_cond=1.5)
    step = wc.LowRankSGD(groups, lr=0.05) if optimizer is wc.LowRankSGD else wc.on_manifold(optimizer, groups, lr=0.05)
    x, y = batch()
    losses = []
    for _ in range(40):
        step.zero_grad()
        (loss := F.cross_entropy(model(x), y)).backward()
        scale_gradients_(model)
        step.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert max(report.kappa for name, report in wc.layer_reports(model).items() if name != "4") < 1.5 + 1e-9


# ------------------------------------------------------------------------ quantizer


@given(st.integers(2, 8), st.integers(0, 2**31), st.floats(1e-6, 1e6))
def test_an_error_is_below_one_step_and_codes_fit_their_bits(bits, seed, size):
    x = size * torch.randn(50, generator=torch.Generator().manual_seed(seed))
    found = quantize_gradient(x, bits, torch.Generator().manual_seed(seed))
    codes, scale = found.codes, found.scale
    assert int(codes.to(torch.int64).abs().max()) <= 2 ** (bits - 1) - 1
    assert float((found.value - x).abs().max()) <= float(scale) * (1 + 1e-9)
    assert codes.dtype == torch.int8


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_it_is_unbiased_and_has_the_variance_of_its_formula(bits):
    n = 20_000
    x = torch.tensor([1.0, -0.71, 0.33, 0.004, -0.0001, 0.0])
    generator = torch.Generator().manual_seed(0)
    step = float(x.abs().max()) / (2 ** (bits - 1) - 1)
    found = quantize_gradient(x.expand(n, -1), bits, generator).value
    share = (x / step) % 1
    variance = step**2 * share * (1 - share)
    assert ((found.mean(0) - x).abs() <= 5 * (variance / n).sqrt() + 1e-12).all()  # five standard errors
    fourth = step**4 * share * (1 - share) * ((1 - share) ** 3 + share**3)
    assert ((found.var(0) - variance).abs() <= 5 * (fourth / n).sqrt() + variance / n + 1e-12).all()


def test_zero_stays_and_the_codes_depend_on_the_generator_alone():
    assert not quantize_gradient(torch.zeros(3, 4)).value.any()
    x = torch.randn(100)
    one, two = (quantize_gradient(x, 4, torch.Generator().manual_seed(7)).codes for _ in range(2))
    assert torch.equal(one, two)
    for bits in (1, 9, 4.5):
        with pytest.raises(ValueError, match=re.escape(f"bits = {bits}")):
            quantize_gradient(x, bits)


# ------------------------------------------------------------------------ two processes


def trained(parts, total):
    """Steps on a batch of which this process has the parts; total: sums a gradient over the processes."""
    model = network(core=True)
    optimizer = wc.LowRankSGD(wc.param_groups(model, max_cond=2.0), lr=0.1, momentum=0.5)
    x, y = batch()
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(x[parts]), y[parts], reduction="sum").div(len(y)).backward()
        for p in model.parameters():
            total(p.grad)
        scale_gradients_(model)
        optimizer.step()
    return model.state_dict()


def process(rank, address, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.save(trained(slice(6 * rank, 6 * rank + 6), dist.all_reduce), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    context = multiprocessing.get_context("fork")  # without importing torch anew
    processes = [context.Process(target=process, args=(rank, f"file://{tmp_path}/store", tmp_path)) for rank in (0, 1)]
    for each in processes:
        each.start()
    for each in processes:
        each.join(60)
        assert each.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    alone = trained(slice(None), lambda grad: grad)
    for name, value in alone.items():
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
        torch.testing.assert_close(first[name], value, rtol=1e-8, atol=1e-10)
