"""A step changes everything or nothing; what has no gradient stays; unknown options and other forms are refused."""

import copy
import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn

import wellcond as wc
from helpers import DOUBLE, matrix_with, randn
from optimizers import COMMON, OPTIMIZERS, closure, network
from wellcond import optim
from wellcond.errors import NonFiniteGradient
from wellcond.methods import BUG, FrankWolfe, ProximalSGD, Tucker2Conv2d, frank_wolfe_groups, shift_inside


def everything(model, optimizer):
    """A copy of all numbers."""
    state = {name: copy.deepcopy(optimizer.state.get(p, {})) for name, p in model.named_parameters()}
    return copy.deepcopy(model.state_dict()), state


def assert_same(a, b):
    assert a[0].keys() == b[0].keys()
    assert all(torch.equal(a[0][name], b[0][name]) for name in a[0])
    for name, state in a[1].items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(b[1][name][key])) for key, v in state.items()), name


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradient_that_is_not_finite_is_refused_before_anything_changes(name, value):
    """Also in the second evaluation of a step, and named; the step after it is the one that would have been taken."""
    model, optimizer = OPTIMIZERS[name]()
    twin, other = OPTIMIZERS[name]()
    for _ in range(2):
        optimizer.step(closure(model, optimizer))
        other.step(closure(twin, other))
    before = everything(model, optimizer)
    for bad_call in (1, 2) if name.startswith("BUG") else (1,):

        def spoil(calls, bad_call=bad_call):
            if calls == bad_call:
                list(model.parameters())[-2].grad[-1, -1] = value

        with pytest.raises(NonFiniteGradient, match=r"gradient = nan or inf.* in group '") as error:
            optimizer.step(closure(model, optimizer, spoil))
        assert isinstance(error.value, torch.linalg.LinAlgError)
        assert isinstance(error.value, ValueError)
        assert_same(before, everything(model, optimizer))
    optimizer.step(closure(model, optimizer))
    other.step(closure(twin, other))
    assert_same(everything(twin, other), everything(model, optimizer))


def test_a_large_gradient_is_finite():
    """The square of its norm is not."""
    p = nn.Parameter(torch.zeros(4))
    optimizer = wc.LowRankSGD([p], lr=1e-30)
    p.grad = torch.full((4,), 1e30)
    optimizer.step()
    torch.testing.assert_close(p.data, torch.full((4,), -1.0))


@pytest.mark.parametrize("how", ["frozen", "unused"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_has_no_gradient_stays(name, how):
    """Parameters and momenta, exactly, of a layer that is frozen or unused from the start, or later; others move."""
    for first in (0, 2):
        model, optimizer = OPTIMIZERS[name]()
        for _ in range(first):
            optimizer.step(closure(model, optimizer))
        own = [f"1.{parameter}" for parameter, _ in model[1].named_parameters()]
        before = everything(model, optimizer)
        model[1].requires_grad_(how != "frozen")
        optimizer.zero_grad()
        for _ in range(3):
            optimizer.step(closure(model, optimizer, lambda calls, unused=model[1]: unused.zero_grad()))
        after = everything(model, optimizer)
        assert_same(*(({n: d[0][n] for n in own}, {n: d[1][n] for n in own}) for d in (before, after)))
        moved = [n for n in before[0] if n not in own]
        assert not any(torch.equal(before[0][n], after[0][n]) for n in moved if before[0][n].shape == after[0][n].shape)


@pytest.mark.parametrize("frozen", ["U", "S", "V", "UV", "US"])
@pytest.mark.parametrize("kind", [kind for kind in optim.UPDATES if kind.startswith("lowrank")])
def test_a_frozen_factor_stays_and_the_others_move(kind, frozen):
    model, optimizer = OPTIMIZERS[kind]()
    layer, before = model[1], copy.deepcopy(model[1].state_dict())
    for factor in frozen:
        layer.get_parameter(factor).requires_grad_(False)
    for _ in range(3):
        optimizer.step(closure(model, optimizer))
    assert {n for n, p in layer.named_parameters() if torch.equal(p, before[n])} == set(frozen)
    assert max(wc.orthogonality_error(layer.U), wc.orthogonality_error(layer.V)) < 1e-12


def test_frozen_weights_are_not_shifted_into_their_sets_and_a_set_is_frozen_as_a_whole():
    model = network()
    model[0].requires_grad_(False)
    names = [name for name, _ in model.named_parameters()]
    before = copy.deepcopy(model.state_dict())
    groups = frank_wolfe_groups(model, "l2", scale=0.01, constrained=names, draws=1)
    shift_inside(groups)
    assert [n for n, p in model.named_parameters() if torch.equal(p, before[n])] == ["0.weight", "0.bias"]
    together = frank_wolfe_groups(model, "l2", scale=0.01, constrained=names, together=True, draws=1)
    with pytest.raises(ValueError, match=r"params = '0\.weight 0\.bias.*frozen all of them, or none"):
        shift_inside(together)
    optimizer = FrankWolfe(together)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="frozen all of them, or none"):
        optimizer.step(closure(model, optimizer))
    assert all(torch.equal(p, state[n]) for n, p in model.named_parameters())
    (own, _) = frank_wolfe_groups(model, "l2", scale=0.01, together=True, draws=1)
    assert own["name"] == "1.weight 2.weight"


# ------------------------------------------------------------------------------------------------------------ options

MISSPELT = [
    (wc.LowRankSGD, {"max_cnd": 1.1}, "max_cond"),
    (wc.LowRankSGD, {"weight_deacy": 0.1}, "weight_decay"),
    (BUG, {"tolerence": 0.1}, "tolerance"),
    (FrankWolfe, {"radus": 0.1}, "radius"),
    (ProximalSGD, {"treshold": 0.1}, "threshold"),
]


@pytest.mark.parametrize(("kind", "option", "nearest"), MISSPELT)
def test_a_misspelt_option_of_a_group_is_refused_with_the_nearest(kind, option, nearest):
    (name,) = option
    group = {"params": [nn.Parameter(torch.ones(3, 3))], **option}
    with pytest.raises(ValueError, match=rf"option = '{name}': unknown; did you mean '{nearest}'\?"):
        kind([group])
    optimizer = kind([nn.Parameter(torch.ones(3, 3))])
    with pytest.raises(ValueError, match=f"option = '{name}'"):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("kind", [wc.LowRankSGD, BUG, FrankWolfe, ProximalSGD])
@pytest.mark.parametrize("option", [{"foreach": True}, {"fused": True}])
def test_options_of_other_optimizers_are_refused(kind, option):
    with pytest.raises(ValueError, match=r"option = '(foreach|fused)': unknown"):
        kind([{"params": [nn.Parameter(torch.ones(3, 3))], **option}])
    with pytest.raises(ValueError, match="kind = 'adamw': unknown"):
        kind([nn.Parameter(torch.ones(3, 3))], kind="adamw")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_schedulers_and_optimizers_write_into_a_group_is_accepted(name):
    _, optimizer = OPTIMIZERS[name]()
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=4)
    again = type(optimizer)(optimizer.param_groups)
    assert [g["lr"] for g in again.param_groups] == [g["lr"] for g in optimizer.param_groups]


def test_factors_in_a_euclidean_group_are_warned_of():
    low = wc.factorize(network(), rank=3)
    tucker = wc.factorize(nn.Conv2d(4, 6, 3), rank=2, convolution=Tucker2Conv2d)
    on_manifold = partial(wc.on_manifold, torch.optim.RMSprop)
    for kind in (wc.LowRankSGD, BUG, FrankWolfe, ProximalSGD, wc.LowRankAdamW, on_manifold):
        for model in (low, tucker):
            with pytest.warns(UserWarning, match=r"wc\.param_groups"):
                kind(model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wc.LowRankSGD(wc.param_groups(low))
        wc.LowRankSGD(wc.factorize(network(), rank=3, core=False).parameters())
        wc.LowRankSGD(network().parameters())
        square = nn.Sequential(*(nn.Linear(5, 5, bias=False) for _ in range(3)))
        for layer in square:
            nn.init.orthogonal_(layer.weight)
        wc.LowRankSGD(square.parameters())


# ------------------------------------------------------------------------------------------------------------ Tucker


def tucker(*ranks):
    torch.manual_seed(0)
    return Tucker2Conv2d(4, 20, 3, ranks, dtype=DOUBLE)


@pytest.mark.parametrize("ranks", [(3, 2), (12, 1), (9, 1)])  # a wide unfolding, a tall and a square one
@pytest.mark.parametrize("max_cond", [1.0, 1.1])
def test_a_tucker_core_is_clipped_to_the_nearest_whose_unfolding_is_conditioned(ranks, max_cond):
    layer = tucker(*ranks)
    core = layer.core_matrix().clone()
    wc.constrain(layer, max_cond)
    assert wc.condition_number(layer.core_matrix()) <= max_cond * (1 + 1e-9)
    P, sigma, Qt = torch.linalg.svd(core, full_matrices=False)
    nearest = P * wc.spectrum.nearest_rule(sigma, max_cond) @ Qt
    torch.testing.assert_close(layer.core_matrix(), nearest)
    feasible = layer.S.clone()
    wc.constrain(layer, 2 * max_cond)
    torch.testing.assert_close(layer.S.data, feasible, rtol=0, atol=1e-14)


def test_a_tucker_core_is_not_for_the_matrix_integrator():
    with pytest.raises(ValueError, match=r"params = \[\(20, 3\), \(3, 2, 3, 3\), \(4, 2\)\]: must be U .*BUG"):
        wc.LowRankSGD(wc.param_groups(tucker(3, 2)))


@pytest.mark.parametrize("channels", [(2, 60), (60, 2)])
def test_a_tucker_mode_with_fewer_columns_than_channels(channels):
    dense = nn.Conv2d(*channels, 3).double()
    layer = wc.factorize(dense, ratio=0, convolution=Tucker2Conv2d)
    assert [X.shape[1] for X in (layer.V, layer.U)] == [min(18, c) for c in channels]
    torch.testing.assert_close(layer.weight, dense.weight)


def test_constrain_checks_its_arguments_whatever_the_network():
    for model in (network(), wc.factorize(network(), rank=2)):
        with pytest.raises(ValueError, match=r"max_cond = 0\.5: must be a number >= 1"):
            wc.constrain(model, 0.5)
        with pytest.raises(ValueError, match="rule = 'nearst'"):
            wc.constrain(model, 1.1, "nearst")


def test_constrain_leaves_a_frozen_core():
    model = wc.factorize(network(), rank=3)
    with torch.no_grad():
        for layer in model:
            layer.S.copy_(matrix_with([5.0, 2.0, 1.0]))
    model[1].S.requires_grad_(False)
    wc.constrain(model, 1.1)
    assert [float(wc.condition_number(layer.S)) > 4 for layer in model] == [False, True, False]


# ------------------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "use",
    [
        lambda model: wc.factorize(model, rank=2),
        wc.methods.lorita.overparametrize,
        *(
            lambda model, name=name: wc.compression.compress(model, name, amount=0.5)
            for name in wc.compression.COMPRESSORS
        ),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(use, value):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(36, 4))
    with torch.no_grad():
        model[1].weight[0, 1, 2, 0] = value
    with pytest.raises(ValueError, match=r"1\.weight = 'one with nan or inf': must be finite"):
        use(model)


@pytest.mark.parametrize(
    "use", [lambda model: wc.factorize(model, rank=2), wc.deploy, wc.densify, wc.methods.lorita.overparametrize]
)
def test_a_scripted_module_is_refused(use):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        scripted = torch.jit.script(network())
    with pytest.raises(ValueError, match=r"model = 'RecursiveScriptModule': must be an nn\.Module as it was before"):
        use(scripted)


STATES = [("U", (6, 2)), ("S", (2, 2)), ("V", (7, 2)), ("S", (3, 2)), ("U", (5, 3))]


@pytest.mark.parametrize(("name", "shape"), STATES)
def test_factors_of_different_ranks_are_refused_by_torch(name, shape):
    layer = wc.LowRankLinear(7, 6, 3, dtype=DOUBLE)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match=rf"size mismatch for {name}: copying a param with shape torch.Size"):
        layer.load_state_dict(before | {name: torch.ones(shape, dtype=DOUBLE)})
    assert {n: p.shape for n, p in layer.named_parameters()} == {n: p.shape for n, p in before.items()}


def test_a_rank_above_the_full_one_is_refused_by_torch():
    state = {"U": torch.ones(6, 9), "S": torch.ones(9, 9), "V": torch.ones(7, 9), "bias": torch.ones(6)}
    with pytest.raises(RuntimeError, match="size mismatch for U"):
        wc.LowRankLinear(7, 6, 3).load_state_dict(state)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name.startswith(("lowrank", "BUG"))])
def test_training_goes_on_after_a_state_of_another_rank_is_loaded(name):
    """From zero momenta: it is a new start, exactly that of a new optimizer."""
    model, optimizer = OPTIMIZERS[name]()
    for _ in range(2):
        optimizer.step(closure(model, optimizer))
    small = wc.constrain(wc.factorize(network(), rank=2), 1.5)
    outputs = model(randn(5, 7))  # an old graph is alive
    model.load_state_dict(small.state_dict())
    if name.startswith("BUG"):
        for _ in range(2):
            optimizer.step(closure(model, optimizer))
        assert all(layer.rank <= 3 for layer in model)
    else:
        new = wc.LowRankSGD(wc.param_groups(small, kind=optimizer.param_groups[0]["kind"], max_cond=1.5), **COMMON)
        new.param_groups[-1]["momentum"] = optimizer.param_groups[-1]["momentum"] = 0.0
        if "published_mean" not in name:  # its scale is that of the first core
            optimizer.step(closure(model, optimizer))
            new.step(closure(small, new))
            assert {n: p.shape for n, p in model.named_parameters()} == {
                n: p.shape for n, p in small.named_parameters()
            }
    assert outputs.isfinite().all()
