"""Frank-Wolfe: feasibility, the rate on problems with known minimizers, step lengths, and the sets of a network."""

import copy
import io
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import DOUBLE, Tiny, randn
from wellcond.linalg import block_power_iteration
from wellcond.methods.constraint_sets import FAMILIES, constraint_set, coordinate_count, lmo_error, split_triplets
from wellcond.methods.frank_wolfe import (
    RESCALINGS,
    FrankWolfe,
    frank_wolfe_groups,
    frank_wolfe_step,
    initial_norms,
    shift_inside,
)

PARAMETERS = {"k": {"k": 2}, "p": {"p": 3.0}, None: {}}
CASES = [(name, PARAMETERS[family.parameter]) for name, family in FAMILIES.items()]
every_set = pytest.mark.parametrize(("constraint", "parameter"), CASES, ids=str)


def group_of(*params, constraint="l2", radius=1.0, **options):
    return {"params": list(params), "kind": "frank_wolfe", "constraint": constraint, "radius": radius, **options}


def project_l1(b, radius):
    """The nearest point of {‖x‖_1 <= radius}, radius < ‖b‖_1: soft thresholding, the threshold by bisection."""
    low, high = 0.0, float(np.abs(b).max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(np.abs(b) - middle, 0).sum() > radius else (low, middle)
    return np.sign(b) * np.maximum(np.abs(b) - low, 0)


def project_nuclear(B, radius):
    P, sigma, Qt = np.linalg.svd(B, full_matrices=False)
    return P * project_l1(sigma, radius) @ Qt


# ------------------------------------------------------------------------ rates


def distances(target, steps, engine="exact", start=None, **options):
    """½‖W_t - B‖² for t = 1, 2, ... with γ = 2/(t + 2)."""
    W = nn.Parameter(torch.zeros_like(target) if start is None else start.clone())
    optimizer = FrankWolfe([group_of(W, rescale="none", engine=engine, **options)], lr=1.0)
    found = []
    for t in range(steps):
        optimizer.param_groups[0]["lr"] = 2 / (t + 2)
        W.grad = (W - target).detach()
        optimizer.step()
        found.append(0.5 * float((W - target).detach().square().sum()))
    return W.detach(), np.array(found)


@pytest.mark.parametrize(
    ("constraint", "project", "shape", "engine", "slopes"),
    [
        ("l1", project_l1, (20,), "exact", (-2.1, -1.9)),
        ("nuclear", project_nuclear, (6, 5), "exact", (-2.1, -1.9)),
        ("nuclear", project_nuclear, (6, 5), "power", (-1.5, -0.6)),
    ],
)
def test_a_constrained_quadratic_is_minimized_within_the_bound(constraint, project, shape, engine, slopes):
    """2 L D²/(t + 2); even 1/t² where the minimizer lies within a face (Wirth, Kerdreux, Pokutta, AISTATS 2023), if the
    vertices are exact: at the minimizer the leading singular values of the gradient are equal."""
    B, radius, steps = randn(*shape), 3.0, 1000
    minimizer = project(B.numpy(), radius)
    W, found = distances(B, steps, engine=engine, constraint=constraint, radius=radius)
    gaps = found - 0.5 * np.square(B.numpy() - minimizer).sum()
    t = np.arange(1, steps + 1)
    assert gaps.min() > -1e-12
    assert (gaps <= 2 * (2 * radius) ** 2 / (t + 2)).all()
    assert slopes[0] < np.polyfit(np.log(t[50:]), np.log(gaps[50:]), 1)[0] < slopes[1]
    assert np.linalg.norm(W.numpy() - minimizer) <= math.sqrt(2 * gaps[-1]) * (1 + 1e-9)  # strong convexity


@pytest.mark.parametrize(("constraint", "k", "N"), [("k_sparse", 1, 4000), ("nuclear", None, 80)])
def test_the_rate_is_one_over_t_where_the_minimizer_is_dense(constraint, k, N):
    """Towards (1, ..., 1) or I every step adds a new one of N orthonormal vertices: W_t = Σ_i 2i/(t(t + 1)) V_i."""
    target = torch.ones(N, dtype=DOUBLE) if constraint == "k_sparse" else torch.eye(N, dtype=DOUBLE)
    t = np.arange(1, N // 4)
    _, found = distances(target, len(t), constraint=constraint, k=k)
    gaps = found - N / 2 * (1 - 1 / N) ** 2
    np.testing.assert_allclose(gaps, ((2 * (2 * t + 1)) / (3 * t * (t + 1)) - 1 / N) / 2, rtol=1e-6)
    early = (t > 5) & (t < N / 10)
    slope = np.polyfit(np.log(t[early]), np.log(gaps[early] + 1 / (2 * N)), 1)[0]
    assert slope == pytest.approx(-1, abs=0.07)


def test_an_interior_minimizer_is_reached_from_anywhere_in_the_set():
    B = 0.2 * randn(6, 5)
    C = constraint_set("spectral_k_support", (6, 5), radius=10.0, k=2)
    assert float(C.gauge(B)) < 1
    start = C.lmo(randn(6, 5, seed=4))
    _, found = distances(B, 1000, start=start, constraint="spectral_k_support", radius=10.0, k=2)
    assert found[-1] < 2 * C.diameter**2 / 1002


# ------------------------------------------------------------------------ feasibility


@every_set
def test_a_thousand_noisy_steps_stay_in_the_set(constraint, parameter):
    p = nn.Parameter(randn(4, 6, dtype=torch.float32))
    group = group_of(p, constraint=constraint, radius=0.7, **parameter)
    optimizer = FrankWolfe([group], lr=0.05, momentum=0.9, rescale="gradient")
    C = constraint_set(constraint, (4, 6), radius=0.7, **parameter)
    assert float(C.gauge(p.detach())) > 1
    shift_inside(optimizer.param_groups)
    noise = randn(1000, 4, 6, dtype=torch.float32, seed=1)
    worst = float(C.gauge(p.detach()))
    for t, g in enumerate(noise):
        p.grad = g
        optimizer.step()
        worst = max(worst, float(C.gauge(p.detach()))) if t % 20 == 19 else worst
    assert worst <= 1 + 1e-5


def test_shift_inside_after_k_was_reduced():
    p = nn.Parameter(randn(10))
    optimizer = FrankWolfe([group_of(p, constraint="k_support", radius=5.0, k=10)])
    before = p.detach().clone()
    shift_inside(optimizer.param_groups)
    assert torch.equal(p, before)
    optimizer.param_groups[0]["k"] = 1
    shift_inside(optimizer.param_groups)
    torch.testing.assert_close(p.detach(), before * 5 / before.abs().sum())


# ------------------------------------------------------------------------ step lengths


@pytest.mark.parametrize("rescale", RESCALINGS)
def test_step_lengths(rescale):
    C = constraint_set("k_sparse", (30,), radius=0.5, k=9)
    W, m, lr = C.shift_inside(randn(30)), randn(30, seed=1), 1e-3
    V = C.lmo(m)
    length = float((frank_wolfe_step(W, m, V, C, lr=lr, rescale=rescale) - W).norm())
    way, D = float((V - W).norm()), C.diameter
    assert pytest.approx(3) == D  # 2 · 0.5 · √9
    expected = {
        "none": lr * way,
        "diameter": lr * way / 3,
        "gradient": lr * float(m.norm()),
        "fast_gradient": lr * float(m.norm()) * way / 1.5,
    }
    assert length == pytest.approx(expected[rescale])


@pytest.mark.parametrize("rescale", RESCALINGS)
def test_a_step_never_passes_the_vertex(rescale):
    C = constraint_set("l2", (30,), radius=0.5)
    W, m = C.shift_inside(randn(30)), randn(30, seed=1)
    V = C.lmo(m)
    torch.testing.assert_close(frank_wolfe_step(W, m, V, C, lr=1e6, rescale=rescale), V, rtol=0, atol=0)
    torch.testing.assert_close(frank_wolfe_step(V, m, V, C, lr=0.1, rescale=rescale), V, rtol=0, atol=1e-16)


@pytest.mark.parametrize("rescale", ["gradient", "fast_gradient"])
def test_a_zero_gradient_moves_nothing(rescale):
    C, W = constraint_set("l2", (3,), radius=9.0), randn(3)
    zero = torch.zeros_like(W)
    for point in (W, zero):
        assert torch.equal(frank_wolfe_step(point, zero, C.lmo(zero), C, lr=0.1, rescale=rescale), point)


def test_momentum_and_rescaling_through_the_optimizer():
    """Five steps, one of them without a gradient for one of the tensors, from the formulas in numpy."""
    shapes, radius, lr, beta, k = [(3, 2), (4,)], 2.0, 0.1, 0.9, 3
    params = [nn.Parameter(0.1 * randn(*shape, seed=9)) for shape in shapes]
    optimizer = FrankWolfe([group_of(*params, constraint="k_support", radius=radius, k=k)], lr=lr, momentum=beta)
    W, m = np.concatenate([p.detach().numpy().ravel() for p in params]), np.zeros(10)
    for step in range(5):
        grads = [randn(*shape, seed=20 * step + j) for j, shape in enumerate(shapes)]
        if step == 2:
            grads[1] = None
        for p, g in zip(params, grads, strict=True):
            p.grad = None if g is None else g.clone()
        optimizer.step()
        m = beta * m + np.concatenate([np.zeros(4) if g is None else g.numpy().ravel() for g in grads])
        V = np.where(np.abs(m) >= np.sort(np.abs(m))[-k], m, 0)
        V = -radius * V / np.linalg.norm(V)
        gamma = min(1, lr * np.linalg.norm(m) / np.linalg.norm(V - W))
        W = W + gamma * (V - W)
    np.testing.assert_allclose(np.concatenate([p.detach().numpy().ravel() for p in params]), W, atol=1e-12)


def test_euclidean_groups_are_sgd_with_momentum_and_weight_decay():
    p, q = (nn.Parameter(randn(4)) for _ in range(2))
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    ours, torchs = FrankWolfe([p], **options), torch.optim.SGD([q], **options)
    for step in range(4):
        p.grad, q.grad = (randn(4, seed=step) for _ in range(2))
        ours.step()
        torchs.step()
    torch.testing.assert_close(p, q)


# ------------------------------------------------------------------------ warm starts


def drifting(steps, n=16, m=12):
    """Gradients whose singular vectors turn slowly and whose spectrum decays without a gap."""
    P, Q = torch.linalg.qr(randn(n, m))[0], torch.linalg.qr(randn(m, m, seed=1))[0]
    sigma = 0.8 ** torch.arange(m, dtype=DOUBLE)
    A, B = (X - X.mT for X in (randn(n, n, seed=2), randn(m, m, seed=3)))
    for t in range(steps):
        left, right = torch.linalg.matrix_exp(0.003 * t * A), torch.linalg.matrix_exp(0.003 * t * B)
        yield left @ (P * sigma @ Q.mT) @ right.mT


def iterations_needed(C, G, start, tolerance):
    for iterations in range(1, 60):
        triplets = block_power_iteration(G, C.norm.k, start, iterations=iterations)
        if float(lmo_error(C, G, C.vertex(*split_triplets(triplets, G.shape)))) <= tolerance:
            return iterations
    raise AssertionError("not converged")


@pytest.mark.parametrize(("constraint", "k"), [("spectral_k_sparse", 3), ("spectral_k_support", 3)])
def test_a_warm_start_needs_fewer_iterations(constraint, k):
    C = constraint_set(constraint, (16, 12), radius=1.0, k=k)
    gradients = list(drifting(8))
    cold = [iterations_needed(C, G, None, 1e-4) for G in gradients]
    warm = [
        iterations_needed(C, G, block_power_iteration(before, k, iterations=40).V, 1e-4)
        for before, G in itertools.pairwise(gradients)
    ]
    assert max(warm) < min(cold)


@pytest.mark.parametrize(("constraint", "parameter"), [case for case in CASES if case[0].startswith("spectral")])
def test_one_iteration_a_step_follows_a_drifting_gradient(constraint, parameter):
    """With the optimizer's own warm start: γ = 1 puts the weights on the vertex, where the error is measured."""
    p = nn.Parameter(torch.zeros(16, 12, dtype=DOUBLE))
    group = group_of(p, constraint=constraint, engine="power", iterations=1, rescale="none", **parameter)
    optimizer = FrankWolfe([group], lr=1.0)
    C = constraint_set(constraint, (16, 12), radius=1.0, **parameter)
    errors = []
    for G in drifting(12):
        p.grad = G
        optimizer.step()
        errors.append(float(lmo_error(C, G, p.detach())))
    assert max(errors[6:]) < 1e-3 < errors[0]


def test_a_resumed_optimizer_continues_alike():
    """The warm start and the momentum are in the state, the set is in the group: all of it plain data."""

    def make():
        p = nn.Parameter(0.01 * randn(8, 6))
        group = group_of(p, constraint="spectral_k_support", k=2, engine="power")
        return p, FrankWolfe([group], lr=0.1, momentum=0.9)

    def advance(p, optimizer, seeds):
        for seed in seeds:
            p.grad = randn(8, 6, seed=seed)
            optimizer.step()

    p, optimizer = make()
    advance(p, optimizer, range(3))
    file = io.BytesIO()
    torch.save([p.detach(), optimizer.state_dict()], file)
    advance(p, optimizer, range(3, 6))
    file.seek(0)
    value, state = torch.load(file, weights_only=True)
    q, resumed = make()
    q.data.copy_(value)
    resumed.load_state_dict(state)
    advance(q, resumed, range(3, 6))
    assert torch.equal(p, q)


# ------------------------------------------------------------------------ networks


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 7, stride=7), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(96, 12), nn.ReLU(), nn.Linear(12, 10)),
    )


def test_initial_norms_are_those_of_torchs_initialization():
    """Uniform in ±1/sqrt(fan_in): the root mean square of the norm is sqrt(N/(3 fan_in)), close to the mean."""
    model = network()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    norms = initial_norms(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert norms.keys() == dict(model.named_parameters()).keys()
    assert norms["0.weight"] == pytest.approx(math.sqrt(6 * 49 / (3 * 49)), rel=0.02)
    assert norms["4.weight"] == pytest.approx(math.sqrt(12 * 96 / (3 * 96)), rel=0.01)
    assert norms["4.bias"] == pytest.approx(math.sqrt(12 / (3 * 96)), rel=0.1)
    assert norms["1.weight"] == pytest.approx(math.sqrt(6))  # ones
    assert norms["1.bias"] == 1  # zeros


@every_set
@pytest.mark.parametrize("rest", ["euclidean", "l2"])
def test_groups_of_a_network(constraint, parameter, rest):
    model = network()
    groups = frank_wolfe_groups(model, constraint, scale=3.0, rest=rest, draws=20, rescale="diameter", **parameter)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(map(id, model.parameters()))
    norms = initial_norms(model, draws=20)
    optimizer = FrankWolfe(groups, lr=0.1)
    for group in optimizer.param_groups:
        if group["kind"] == "frank_wolfe":
            (p,) = group["params"]
            matrix = p.ndim >= 2
            assert group["constraint"] == (constraint if matrix else "l2")
            options = parameter if matrix else {}
            C = constraint_set(group["constraint"], p.shape, radius=group["radius"], **options)
            assert C.diameter == pytest.approx(2 * 3 * norms[group["name"]])
            assert group["rescale"] == "diameter"
        else:
            assert rest == "euclidean"
            assert all(p.ndim == 1 for p in group["params"])


def test_k_as_a_fraction_or_a_capped_number():
    model = network()
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for constraint in ("k_sparse", "group_k_support", "spectral_k_support"):
        sizes = {name: coordinate_count(constraint, shape) for name, shape in shapes.items() if len(shape) > 1}
        groups = frank_wolfe_groups(model, constraint, scale=1.0, fraction=0.3, draws=2)[:-1]
        assert {g["name"]: g["k"] for g in groups} == {name: max(1, math.floor(0.3 * N)) for name, N in sizes.items()}
        groups = frank_wolfe_groups(model, constraint, scale=1.0, k=8, draws=2)[:-1]
        assert {g["name"]: g["k"] for g in groups} == {name: min(8, N) for name, N in sizes.items()}


def test_one_set_for_all_weights_together():
    model = network()
    chosen = [name for name, _ in model.named_parameters()]
    (group, rest) = frank_wolfe_groups(model, "k_support", scale=2.0, fraction=0.1, constrained=chosen, together=True)
    assert rest["params"] == []
    assert group["k"] == math.floor(0.1 * sum(p.numel() for p in model.parameters()))
    assert group["radius"] == pytest.approx(2 * math.sqrt(sum(v**2 for v in initial_norms(model).values())))
    with pytest.raises(ValueError, match=r"^shape = .*one matrix"):
        frank_wolfe_groups(model, "nuclear", scale=2.0, together=True)


@pytest.mark.parametrize("constraint", ["k_sparse", "group_k_support", "spectral_k_support"])
def test_a_network_learns_inside_its_sets(constraint):
    torch.manual_seed(0)
    model = Tiny()
    options = {"engine": "power"} if constraint.startswith("spectral") else {}
    groups = frank_wolfe_groups(model, constraint, scale=5.0, fraction=0.3, draws=5, **options)
    optimizer = FrankWolfe(groups, lr=0.1, momentum=0.5)
    shift_inside(optimizer.param_groups)
    x, y = randn(32, 1, 28, 28, dtype=torch.float32), torch.arange(32) % 10

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    for group in optimizer.param_groups[:-1]:
        (p,) = group["params"]
        C = constraint_set(constraint, p.shape, radius=group["radius"], k=group["k"])
        assert float(C.gauge(p.detach())) <= 1 + 1e-5


# ------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("kind", {"kind": "euclidian"}),
        ("rescale", {"rescale": "gradients"}),
        ("engine", {"engine": "lobpcg"}),
        ("engine", {"engine": "power", "constraint": "l1"}),
        ("constraint", {"constraint": "l3"}),
        ("radius", {"radius": None}),
        ("radius", {"radius": -1.0}),
        ("k", {"constraint": "k_sparse"}),
        ("lr", {"lr": -0.1}),
        ("momentum", {"momentum": 1.0}),
        ("weight_decay", {"weight_decay": -1.0}),
        ("iterations", {"iterations": 0}),
    ],
)
def test_bad_options_are_named(field, options):
    with pytest.raises(ValueError, match=f"^{field} = "):
        FrankWolfe([{**group_of(nn.Parameter(torch.ones(2, 2))), **options}])


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("scale", {"scale": 0.0}),
        ("fraction", {"fraction": 1.5}),
        ("constrained", {"constrained": ["5.weight"]}),
        ("draws", {"draws": 0}),
        ("constraint", {"rest": "l3"}),
        ("k", {"fraction": None}),
        ("k", {"k": 3}),
        ("k", {"fraction": None, "k": 0}),
    ],
)
def test_bad_groups_are_named(field, options):
    with pytest.raises(ValueError, match=f"^{field} = "):
        frank_wolfe_groups(network(), "k_sparse", **{"scale": 1.0, "fraction": 0.3, "draws": 1, **options})


def test_an_unknown_rescaling_and_a_model_that_cannot_be_redrawn_are_named():
    C, W = constraint_set("l2", (3,), radius=1.0), torch.ones(3)
    with pytest.raises(ValueError, match=r"^rescale = "):
        frank_wolfe_step(W, W, W, C, lr=0.1, rescale="grad")
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"^model = "):
        initial_norms(model)
