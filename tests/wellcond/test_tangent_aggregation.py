"""Tangent aggregation: against dense matrices, projections and SVDs, by its orders, and between processes."""

import copy
import itertools
import math
import multiprocessing
import re

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import wellcond as wc
from wellcond.integrator import Factors
from wellcond.methods import tangent_aggregation as ta
from wellcond.methods.tangent_aggregation import Coordinates, aggregate_, coordinates, noisy_sum


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


def point(n=9, m=7, r=3, seed=0):
    U, V = (wc.random_stiefel(k, r, generator=gen(seed + k), dtype=torch.float64) for k in (n, m))
    return Factors(U, draw(r, r, seed=seed) + 3 * torch.eye(r, dtype=torch.float64), V)


def matrix(W):
    return W.U @ W.S @ W.V.mT


def split(W, r):
    P, sigma, Qt = torch.linalg.svd(W)
    return Factors(P[:, :r], torch.diag(sigma[:r]), Qt[:r].mT)


def near(Z, size, seed):
    """A matrix of the same rank at a distance of about `size`, with bases of its own."""
    n, m, r = len(Z.U), len(Z.V), len(Z.S)
    return split(matrix(Z) + size * draw(n, m, seed=seed) / math.sqrt(n * m), r)


def mean_of(Z, clients):
    sums = [torch.stack(part).mean(0) for part in zip(*(coordinates(Z, W) for W in clients), strict=True)]
    return Coordinates(*sums)


def projection(Z, D):
    """P_Z(D), by its definition."""
    left, right = Z.U @ Z.U.mT, Z.V @ Z.V.mT
    return left @ D + D @ right - left @ D @ right


@given(n=st.integers(3, 12), m=st.integers(3, 12), r=st.integers(1, 3), seed=st.integers(0, 1000))
def test_coordinates_are_those_of_the_projection(n, m, r, seed):
    Z, W = point(n, m, r, seed), point(n, m, r, seed + 1)
    D = matrix(W) - matrix(Z)
    A, B = coordinates(Z, W)
    torch.testing.assert_close(A, D @ Z.V)
    torch.testing.assert_close(B, D.mT @ Z.U)
    tangent = A @ Z.V.mT + Z.U @ B.mT - Z.U @ (Z.U.mT @ A) @ Z.V.mT
    torch.testing.assert_close(tangent, projection(Z, D))


@given(n=st.integers(3, 12), m=st.integers(3, 12), r=st.integers(1, 3), seed=st.integers(0, 1000))
def test_orthographic_retraction_is_the_point_with_these_coordinates(n, m, r, seed):
    Z = point(n, m, r, seed)
    W = near(Z, 0.5, seed)
    new = ta.retract(Z, coordinates(Z, W))
    torch.testing.assert_close(matrix(new), matrix(W), rtol=1e-8, atol=1e-8)
    assert max(wc.orthogonality_error(X) for X in (new.U, new.V)) < 1e-12


def test_a_retraction_deviates_from_the_tangent_in_second_order():
    Z, D = point(), draw(9, 7, seed=3)
    steps = [0.1 * 2.0**-k for k in range(6)]
    errors = []
    for h in steps:
        new = ta.retract(Z, Coordinates(h * D @ Z.V, h * D.mT @ Z.U))
        errors.append(float((matrix(new) - matrix(Z) - h * projection(Z, D)).norm()))
    assert slopes(steps, errors) == pytest.approx([2] * 5, abs=0.15)


def slopes(xs, ys):
    pairs = itertools.pairwise(zip(xs, ys, strict=True))
    return [math.log(b[1] / a[1]) / math.log(b[0] / a[0]) for a, b in pairs]


def test_the_error_of_the_aggregate_is_of_second_order_in_the_drift():
    Z = point()
    drifts, errors = [], []
    for size in (0.4 * 2.0**-k for k in range(7)):
        clients = [near(Z, size, seed) for seed in range(4)]
        mean = torch.stack([matrix(W) for W in clients]).mean(0)
        new = ta.retract(Z, mean_of(Z, clients))
        drifts.append(max(float((matrix(W) - matrix(Z)).norm()) for W in clients))
        errors.append(float((matrix(new) - mean).norm()))
    assert slopes(drifts, errors)[2:] == pytest.approx([2] * 4, abs=0.15)


def test_the_distance_and_its_gradients_along_the_manifold_are_those_of_the_matrix():
    Z, W = point(seed=0), Factors(*(x.requires_grad_() for x in point(seed=1)))
    exact = (matrix(W) - matrix(Z)).square().sum()
    torch.testing.assert_close(ta.squared_distance(W, Z), exact)
    ours, theirs = (torch.autograd.grad(value, W) for value in (ta.squared_distance(W, Z), exact))
    torch.testing.assert_close(ours[1], theirs[1])
    for k, X in ((0, W.U), (2, W.V)):
        torch.testing.assert_close(*(g - X @ (X.mT @ g) for g in (ours[k], theirs[k])))


# ------------------------------------------------------------------------ channels


def test_noise_has_the_power_that_the_snr_says():
    signals = torch.stack([draw(200, 200, seed=0), 3 * draw(200, 200, seed=1)])
    noise = noisy_sum(10.0, gen(2))(signals) - signals.sum(0)
    assert float(noise.square().mean()) == pytest.approx(0.1 * float(signals[1].square().mean()), rel=0.05)
    torch.testing.assert_close(noisy_sum(math.inf)(signals), ta.exact_sum(signals))


def test_noise_in_the_horizontal_part_is_amplified_by_a_small_singular_value():
    """Why a bound on κ makes it harmless. (I - UUᵀ)A C^-1 (I - VVᵀ)B is what grows."""
    still, moved = Coordinates(draw(9, 3, seed=1), draw(7, 3, seed=2)), []
    for smallest in (1.0, 1e-4):
        Z = point()._replace(S=torch.diag(torch.tensor([1.0, 1.0, smallest], dtype=torch.float64)))
        A, B = 1e-3 * still.A, 1e-3 * still.B
        A, B = A - Z.U @ (Z.U.mT @ A), B - Z.V @ (Z.V.mT @ B)
        moved.append(float((matrix(ta.retract(Z, Coordinates(A, B))) - matrix(Z) - A @ Z.V.mT - Z.U @ B.mT).norm()))
    assert moved[1] == pytest.approx(1e4 * moved[0], rel=0.9)


# ------------------------------------------------------------------------ networks


def network():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Flatten(), nn.Linear(96, 8), nn.Tanh(), nn.Linear(8, 3))
    return wc.factorize(dense.double(), rank=3, skip="4")


def train(model, seed, steps=3, **options):
    x, y = draw(12, 1, 6, 6, seed=seed), torch.randint(3, (12,), generator=gen(seed))
    optimizer = wc.LowRankSGD(wc.param_groups(model, **options), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def weights_of(model):
    return [p.detach() for p in wc.densify(model).parameters()]


def assert_same(one, two, **tolerance):
    for a, b in zip(weights_of(one), weights_of(two), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_one_client_is_plain_training():
    """Over rounds by the polar retraction, whose steps of W do not depend on the choice of U, S and V."""
    server, alone = network(), network()
    for k in range(4):
        aggregate_(server, [train(copy.deepcopy(server), k, retraction="polar")])
        train(alone, k, retraction="polar")
    assert_same(server, alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("max_cond", [math.inf, 1.1])
def test_clients_that_agree_are_returned(max_cond):
    server = wc.constrain(network(), max_cond)
    client = train(copy.deepcopy(server), 0, max_cond=max_cond)
    aggregate_(server, [copy.deepcopy(client) for _ in range(3)], max_cond=max_cond)
    assert_same(server, client, rtol=1e-10, atol=1e-12)


def test_clients_that_stayed_leave_the_server():
    server, before = network(), network()
    aggregate_(server, [copy.deepcopy(server)] * 2)
    assert_same(server, before, rtol=1e-12, atol=1e-14)


def test_dense_parameters_are_averaged_with_the_weights():
    server = network()
    clients = [train(copy.deepcopy(server), seed) for seed in range(2)]
    aggregate_(server, clients, [0.25, 0.75])
    torch.testing.assert_close(server[4].weight, 0.25 * clients[0][4].weight + 0.75 * clients[1][4].weight)
    torch.testing.assert_close(server[0].bias, 0.25 * clients[0][0].bias + 0.75 * clients[1][0].bias)


def test_the_result_has_the_bound_whatever_the_channel_does():
    server = wc.constrain(network(), 1.1)
    clients = [train(copy.deepcopy(server), seed, max_cond=1.1) for seed in range(3)]
    aggregate_(server, clients, channel=noisy_sum(-10.0, gen()), max_cond=1.1)
    for layer in wc.low_rank_layers(server).values():
        assert float(wc.condition_number(layer.S)) <= 1.1 * (1 + 1e-12)
        assert float(wc.orthogonality_error(layer.U.detach())) < 1e-12


def test_half_precision_is_moved_in_single_precision():
    server = network().to(torch.bfloat16)
    client = copy.deepcopy(server)
    client[4].weight.data += 1
    aggregate_(server, [client])
    assert_same(server, client, rtol=0.05, atol=0.05)
    assert server[2].U.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clients": []}, "clients, weights = (0, None): must be as many, >= 1"),
        ({"weights": [1.0]}, "clients, weights = (2, 1): must be as many, >= 1"),
        ({"max_cond": 0.5}, "max_cond = 0.5: must be"),
    ],
)
def test_bad_input(arguments, message):
    server = network()
    with pytest.raises(ValueError, match=re.escape(message)):
        aggregate_(server, **{"clients": [copy.deepcopy(server)] * 2, **arguments})


def test_a_layer_without_a_core_and_an_snr_that_is_none_are_refused():
    with pytest.raises(ValueError, match=re.escape("layer = 'LowRankLinear without S (r, r)'")):
        ta.factors(wc.factorize(nn.Linear(4, 4), rank=2, core=False))
    with pytest.raises(ValueError, match="snr = nan"):
        noisy_sum(math.nan)


# ------------------------------------------------------------------------ two processes

PARTS = ((0, 1), (2,))
SHARES = (0.2, 0.3, 0.5)


def federated(parts, channel):
    server = network()
    for k in range(3):
        clients = [train(copy.deepcopy(server), 10 * k + i) for i in parts]
        aggregate_(server, clients, [SHARES[i] for i in parts], channel, max_cond=1.5)
    return server


def process(rank, address, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=len(PARTS))
    torch.save(federated(PARTS[rank], ta.all_reduced_sum).state_dict(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_the_simulation(tmp_path):
    context = multiprocessing.get_context("fork")  # without importing torch anew
    arguments = [(rank, f"file://{tmp_path}/store", tmp_path) for rank in range(len(PARTS))]
    processes = [context.Process(target=process, args=each) for each in arguments]
    for each in processes:
        each.start()
    for each in processes:
        each.join(60)
        assert each.exitcode == 0
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(PARTS))]
    simulated = federated((0, 1, 2), ta.exact_sum).state_dict()
    for name, value in simulated.items():
        torch.testing.assert_close(states[0][name], states[1][name], rtol=0, atol=0)
        torch.testing.assert_close(states[0][name], value, rtol=1e-9, atol=1e-10)
