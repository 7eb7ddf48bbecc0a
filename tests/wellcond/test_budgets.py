"""Ranks from a budget: kept within a step, optimal where the theory says so, and each cost and importance by itself."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import wellcond as wc
from architectures import networks
from helpers import DOUBLE, Tiny, generator
from wellcond.compression import costs
from wellcond.compression.budgets import Choice, allocated, frontier
from wellcond.compression.importance import sensitivity
from wellcond.layers import matricize, weight_layers


class SmallLeNet5(networks.LeNet5):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 8, 5)
        self.fc1, self.fc2 = nn.Linear(128, 40), nn.Linear(40, 10)


NETWORKS = {
    "lenet5": (SmallLeNet5, (1, 28, 28)),
    "residual network": (lambda: networks.WideResNet(blocks=1, widen=1), (3, 32, 32)),
}


def network(name):
    """In double precision, with spectra that fall, at different rates."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make().double()
    for i, layer in enumerate(weight_layers(model).values()):
        P, sigma, Qt = torch.linalg.svd(matricize(layer.weight.detach()), full_matrices=False)
        sigma = sigma * (0.9 - 0.2 * (i % 3)) ** torch.arange(len(sigma), dtype=DOUBLE)
        layer.weight.data = (P * sigma @ Qt).reshape(layer.weight.shape)
    return model, torch.rand(1, *shape, dtype=DOUBLE, generator=generator(1))


def largest_step(model, positions, multiple_of):
    """The most that a step to the next rank, or from the last one to the dense layer, costs."""
    shapes = {name: matricize(layer.weight).shape for name, layer in weight_layers(model).items()}
    return max(multiple_of * (n + m) * positions(name) for name, (n, m) in shapes.items())


# --- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("multiple_of", [1, 2])
@pytest.mark.parametrize("fraction", [0.3, 0.8])
def test_parameters_are_kept_within_one_step(name, multiple_of, fraction):
    model, _ = network(name)
    chosen = wc.ranks(model, {"parameters": fraction}, multiple_of=multiple_of)
    assert all(rank % multiple_of == 0 for rank in chosen.values())
    counts = wc.count_parameters(wc.factorize(model, rank=chosen))
    left = fraction * counts.dense - counts.deployed
    assert left >= -1e-6 * counts.dense
    assert left < largest_step(model, lambda _: 1, multiple_of)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("fraction", [0.25, 0.6])
def test_operations_are_kept_within_one_step(name, fraction):
    model, x = network(name)
    chosen = wc.ranks(model, {"flops": fraction}, input=x)
    dense = wc.count_flops(model, tuple(x.shape[1:]))
    left = fraction * dense - wc.count_flops(wc.deploy(wc.factorize(model, rank=chosen)), tuple(x.shape[1:]))
    positions = {}
    for key, layer in weight_layers(model).items():
        layer.register_forward_hook(lambda module, _, y, key=key: positions.update({key: y[0].numel() // y.shape[1]}))
    model.eval()(x)
    assert left >= -1e-6 * dense
    assert left < largest_step(model, lambda key: 2 * positions[key], 1)


@settings(max_examples=25)
@given(fractions=st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)), kind=st.sampled_from(["parameters", "energy"]))
def test_a_larger_budget_lowers_no_rank(fractions, kind):
    model, _ = network("lenet5")
    small, large = (wc.ranks(model, {kind: fraction}) for fraction in sorted(fractions))
    assert large.keys() <= small.keys()  # what is dense stays dense
    assert all(small[name] <= rank for name, rank in large.items())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("fraction", [0.3, 0.9, 0.999])
def test_energy_is_kept_by_the_least_rank(name, fraction):
    """By the errors of the truncated matrices, ||W - W_r||_F² <= (1 - fraction)||W||_F²."""
    model, _ = network(name)
    chosen = wc.ranks(model, {"energy": fraction})
    for key, layer in weight_layers(model).items():
        W = matricize(layer.weight.detach())
        P, sigma, Qt = torch.linalg.svd(W, full_matrices=False)
        enough = [
            r for r in range(1, len(sigma) + 1)
            if (W - P[:, :r] * sigma[:r] @ Qt[:r]).square().sum() <= (1 - fraction) * W.square().sum()
        ]  # fmt: skip
        assert chosen.get(key) == (enough[0] if enough[0] * sum(W.shape) < W.numel() else None)


def test_all_of_a_budget_leaves_the_network_dense():
    model, x = network("lenet5")
    assert wc.ranks(model, {"parameters": 1}) == wc.ranks(model, {"flops": 1}, input=x) == {}
    assert not wc.low_rank_layers(wc.factorize(model, rank={}))


def test_skipped_layers_stay_dense_and_are_paid_for():
    model, _ = network("lenet5")
    chosen = wc.ranks(model, {"parameters": 0.3}, skip="conv*")
    assert not {"conv1", "conv2"} & chosen.keys()
    counts = wc.count_parameters(wc.factorize(model, rank=chosen))
    assert counts.deployed <= 0.3 * counts.dense


def test_the_model_is_not_changed():
    model, x = network("residual network")
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    wc.ranks(model, {"flops": 0.5}, input=x, importance="sensitivity", data=[(x, torch.tensor([1]))])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


class Twice(nn.Module):
    """A layer called twice, one that is never called, and two arguments."""

    def __init__(self):
        super().__init__()
        self.again, self.never, self.last = nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 20)

    def forward(self, x, y):
        return self.last(self.again(x) + self.again(y))


@pytest.mark.parametrize("as_input", [lambda x: (x, x), lambda x: {"x": x, "y": x}])
def test_a_layer_costs_as_often_as_it_is_called(as_input):
    model, x = Twice().double(), torch.rand(3, 20, dtype=DOUBLE)
    layers = dict(model.named_children())
    found = costs.flops(model, layers, dict.fromkeys(layers, range(1, 10)), as_input(x))
    assert {name: cost[-1] for name, cost in found.layers.items()} == {"again": 4800, "never": 0, "last": 2400}
    assert found.layers["again"][2] == 2 * 3 * 2 * 3 * 40  # two calls of three rows, rank 3
    assert (found.rest, found.total) == (0, 7200)
    assert "never" not in wc.ranks(model, {"flops": 0.3}, input=as_input(x))


# --- the allocation --------------------------------------------------------------------------------------------------

NUMBERS = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@st.composite
def menus(draw):
    """Two or three menus with any costs and gains, as they are and reduced to their frontiers."""
    found = {}
    for name in "abc"[: draw(st.integers(2, 3))]:
        costs = draw(NUMBERS)
        values = itertools.accumulate(draw(st.lists(st.integers(0, 9), min_size=len(costs), max_size=len(costs))))
        found[name] = [Choice(*c) for c in zip(costs, values, range(len(costs)), strict=True)]
    return found


def total(choices, field):
    return sum(getattr(choice, field) for choice in choices)


def best(every, limit):
    """The largest value of all combinations that fit."""
    fitting = (choices for choices in itertools.product(*every.values()) if total(choices, "cost") <= limit)
    return max(total(choices, "value") for choices in fitting)


def on_hull(menu, choice):
    """Whether no chord between two others of the menu passes above."""
    return all(
        a.value + (b.value - a.value) * (choice.cost - a.cost) / (b.cost - a.cost) <= choice.value + 1e-9
        for a in menu
        for b in menu
        if a.cost < choice.cost < b.cost
    )


@given(every=menus(), spare=st.integers(0, 30))
def test_the_allocation_is_that_of_brute_force_on_the_hull(every, spare):
    reduced = {name: frontier(menu) for name, menu in every.items()}
    limit = sum(menu[0].cost for menu in reduced.values()) + spare
    chosen = allocated(reduced, limit)
    spent, value = (total(chosen.values(), field) for field in ("cost", "value"))
    assert spent <= limit
    rest = [menu[menu.index(chosen[name]) + 1 :] for name, menu in reduced.items()]
    # less than one step of one layer is left over
    assert not any(rest) or any(
        after and spent + after[0].cost - chosen[n].cost > limit for n, after in zip(reduced, rest, strict=True)
    )
    gains = [b.value - a.value for menu in reduced.values() for a in menu for b in menu]
    assert value <= best(every, limit) <= value + max(gains)  # of one edge of a hull at most
    assume(all(on_hull(menu, chosen[name]) for name, menu in reduced.items()))
    assert value == best(every, spent)


@given(every=menus())
def test_a_frontier_leaves_out_what_something_better_makes_useless(every):
    for menu in every.values():
        kept = frontier(menu)
        assert [choice.cost for choice in kept] == sorted({choice.cost for choice in kept})
        for limit in {choice.cost for choice in menu}:
            assert best({"a": kept}, limit) == best({"a": menu}, limit)


def test_ranks_of_a_small_network_keep_the_largest_product_of_energies():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12, bias=False), nn.Linear(12, 9, bias=False), nn.Linear(9, 20, bias=False))
    model = model.double()
    energies, sizes = {}, {}
    for name, layer in model.named_children():
        squares = torch.linalg.svdvals(layer.weight.detach()).square()
        energies[name] = (squares.cumsum(0) / squares.sum()).tolist()
        sizes[name] = [min(r * sum(layer.weight.shape), layer.weight.numel()) for r in range(1, len(squares) + 1)]
    dense = wc.count_parameters(model).dense
    equal = 0
    for fraction in (0.3, 0.45, 0.6, 0.75, 0.9):
        chosen = wc.ranks(model, {"parameters": fraction})
        spent = wc.count_parameters(wc.factorize(model, rank=chosen)).deployed
        kept = math.prod(energies[name][chosen.get(name, 0) - 1] for name in energies)  # [-1]: dense
        every = itertools.product(*(range(len(energies[name])) for name in energies))
        rivals = [r for r in every if sum(sizes[n][k] for n, k in zip(sizes, r, strict=True)) <= spent]
        largest = max(math.prod(energies[n][k] for n, k in zip(energies, r, strict=True)) for r in rivals)
        assert spent <= fraction * dense
        equal += kept == pytest.approx(largest)
    assert equal >= 4  # within an edge of a hull, to the dense layer, it need not be


# --- sensitivity -----------------------------------------------------------------------------------------------------


def test_sensitivity_is_the_squared_derivative_by_finite_differences():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    batches = [(torch.rand(6, 5, dtype=DOUBLE), torch.randint(3, (6,))) for _ in range(3)]
    layers = {"0": model[0], "2": model[2]}
    found = sensitivity(model, layers, batches, F.cross_entropy)
    h = 1e-5
    for name, layer in layers.items():
        W = layer.weight.detach().clone()
        P, sigma, Qt = torch.linalg.svd(W, full_matrices=False)
        gains = torch.zeros_like(sigma)
        for k in range(len(sigma)):
            for x, y in batches:
                losses = []
                for t in (-h, h):  # of the k-th triple, the fraction left out
                    layer.weight.data = W - t * sigma[k] * torch.outer(P[:, k], Qt[k])
                    losses.append(F.cross_entropy(model(x), y).item())
                gains[k] += ((losses[1] - losses[0]) / (2 * h)) ** 2
        layer.weight.data = W
        torch.testing.assert_close(found[name], gains.cumsum(0), rtol=1e-6, atol=1e-12)


def test_sensitivity_keeps_what_the_loss_depends_on():
    """Of two equal layers side by side, the output of one is thrown away."""

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return self.used(x) + 0 * self.unused(x)

    torch.manual_seed(0)
    model = Half()
    data = [(torch.rand(8, 16), torch.randint(16, (8,)))]
    chosen = wc.ranks(model, {"parameters": 0.4}, importance="sensitivity", data=data)
    assert chosen["unused"] == 1 < chosen["used"]


# --- latency ---------------------------------------------------------------------------------------------------------


def fake(work):
    """Milliseconds of Vᵀ and U S by their rank, with a bump and a plateau; a dense layer takes 5."""
    (module,) = work.args[1:]
    return (
        float({1: 1, 3: 3.5, 5: 2.5, 7: 4, 9: 4}.get(len(module[0].weight), math.nan))
        if len(list(module.children()))
        else 5.0
    )


def test_a_table_of_latencies_is_monotone_and_keeps_the_budget(monkeypatch):
    monkeypatch.setattr(costs, "seconds", fake)
    model, x = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20)), torch.rand(3, 20)
    menu = range(1, 10)
    table = costs.latency(model, {"0": model[0]}, {"0": menu}, x)
    assert table.layers["0"] == pytest.approx([1, 2, 3, 3, 3, 3.5, 4, 4, 4, 5])  # 3.5 and 2.5 are levelled
    assert table.total == 5
    for fraction in (0.2, 0.5, 0.6, 0.9):
        chosen = wc.ranks(model, {"latency": fraction}, input=x)
        assert sum(table.layers["0"][rank - 1] for rank in chosen.values()) + 5 * (2 - len(chosen)) <= fraction * 10
    assert set(wc.ranks(model, {"latency": 0.6}, input=x).values()) == {5}  # 3 ms: the most of a plateau
    with pytest.raises(ValueError, match=r"^budget\['latency'\] = 0.1: must be at least 0.2, where every layer"):
        wc.ranks(model, {"latency": 0.1}, input=x)


def test_a_layer_that_no_rank_makes_faster_stays_dense(monkeypatch):
    monkeypatch.setattr(costs, "seconds", lambda work: 1.0 if isinstance(work.args[1], nn.Linear) else 2.0)
    model = nn.Sequential(nn.Linear(20, 20))
    assert wc.ranks(model, {"latency": 1}, input=torch.rand(3, 20)) == {}
    with pytest.raises(ValueError, match=r"must be at least 1, where every layer has the smallest rank$"):
        wc.ranks(model, {"latency": 0.9}, input=torch.rand(3, 20))


def test_times_are_measured(monkeypatch):
    monkeypatch.setattr(costs, "SECONDS", 0.002)
    model = nn.Sequential(nn.Linear(300, 300))
    found = costs.latency(model, {"0": model[0]}, {"0": range(50, 150, 50)}, torch.rand(64, 300))
    assert 0 < found.layers["0"][0] <= found.layers["0"][1]


@given(y=st.lists(st.floats(0, 10), min_size=1, max_size=7))
def test_isotonic_regression_fulfils_the_optimality_conditions(y):
    z = costs.isotonic(y)
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(z))
    sums = [*itertools.accumulate(a - b for a, b in zip(y, z, strict=True))]  # the multipliers of z_k <= z_{k+1}
    assert all(s >= -1e-9 for s in sums)
    assert sums[-1] == pytest.approx(0, abs=1e-9)
    assert all(abs(s * (b - a)) < 1e-7 for s, (a, b) in zip(sums, itertools.pairwise(z), strict=False))


# --- bad input -------------------------------------------------------------------------------------------------------

X = torch.rand(1, 1, 28, 28)


@pytest.mark.parametrize(
    ("budget", "options", "message"),
    [
        ({}, {}, r"^budget = {}: must be one entry, of parameters, flops, latency, energy$"),
        ({"energy": 0.5, "flops": 0.5}, {}, r"^budget = {'energy': 0.5, 'flops': 0.5}: must be one entry"),
        ({"flop": 0.5}, {}, r"^budget = 'flop': unknown; did you mean 'flops'\? accepted: energy, flops"),
        ({"energy": 0}, {}, r"^budget\['energy'\] = 0: must be in \(0, 1\], a fraction of the dense network$"),
        ({"parameters": 1.1}, {}, r"^budget\['parameters'\] = 1.1: must be in \(0, 1\]"),
        ({"parameters": 0.01}, {}, r"^budget\['parameters'\] = 0.01: must be at least 0.\d+, where every layer has"),
        ({"flops": 0.5}, {}, r"^input = None: must be what the forward code takes, for a budget of flops$"),
        ({"latency": 0.5}, {}, r"^input = None: must be what the forward code takes"),
        ({"energy": 0.5}, {"multiple_of": 0}, r"^multiple_of = 0: must be >= 1$"),
        ({"energy": 0.5}, {"skip": "fc9"}, r"^skip = 'fc9': unknown"),
        ({"energy": 0.5}, {"skip": "*"}, r"^model = 'Tiny': must be one with layers to convert$"),
        ({"parameters": 0.5}, {"importance": "energi"}, r"^importance = 'energi': unknown; did you mean 'energy'\?"),
        ({"energy": 0.5}, {"importance": "sensitivity"}, r"^importance = 'sensitivity': must be 'energy' for a budget"),
        ({"parameters": 0.5}, {"importance": "sensitivity"}, r"^data = \(\): must be batches \(x, y\), at least one"),
    ],
)  # fmt: skip
def test_bad_input(budget, options, message):
    with pytest.raises(ValueError, match=message):
        wc.ranks(Tiny(), budget, **options)
