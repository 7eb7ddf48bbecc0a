"""The registry: every method trains, keeps what it promises, and names what is wrong with its settings."""

import functools
import math

import pytest
import torch
from torch.nn import functional as F

from helpers import DOUBLE
from study import data
from study import networks as models
from study.experiments.grids import check_settings
from study.settings import title
from study.training.adversarial import Adversary, adversary_of
from wellcond import layers, spectrum, stiefel
from wellcond.counts import count_parameters
from wellcond.deployment import deploy
from wellcond.methods import registry as methods
from wellcond.methods.constraint_sets import constraint_set
from wellcond.methods.method import Method, last_layer
from wellcond.methods.registry import METHODS
from wellcond.methods.settings import Settings

EVERY = {
    "ratio": 0.8,
    "max_cond": 1.1,
    "tolerance": 0.1,
    "beta": 0.01,
    "depth": 2,
    "fraction": 0.1,
    "scale": 3.0,
    "max_norm": 2.0,
}


def settings(method, **changes):
    return Settings(**{key: value for key, value in {**EVERY, **changes}.items() if key in method.uses})


@functools.cache
def batches():
    images = data.load("digits").train
    return [(images.pixels(part), images.labels[part]) for part in (slice(0, 32), slice(32, 64))]


def lenet5(seed=0):
    torch.manual_seed(seed)
    return models.build("lenet5")


@functools.cache
def trained(name, **changes):
    """LeNet5 after two steps of a method."""
    method = METHODS[name]
    chosen = settings(method, **changes)
    model = method.prepare(lenet5(), chosen)
    optimizer = method.optimizer(method.groups(model, chosen), lr=0.1, momentum=0.3)
    penalty = method.penalty(chosen) or (lambda model: 0.0)
    for x, y in batches() if method.trains else ():

        def loss(x=x, y=y):
            optimizer.zero_grad()
            value = F.cross_entropy(model(x), y) + penalty(model)
            value.backward()
            return value

        optimizer.step(loss)
    return model, optimizer


@pytest.mark.parametrize("name", METHODS)
def test_two_steps_keep_what_the_parameter_groups_promise(name):
    """Orthonormal bases and κ(S) <= max_cond of low-rank groups, orthonormal rows or columns of Stiefel groups."""
    model, optimizer = trained(name)
    assert model(batches()[0][0]).isfinite().all()
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))
    for group in optimizer.param_groups:
        if group["kind"].startswith("lowrank"):
            U, S, V = (p.detach() for p in group["params"])
            assert max(stiefel.orthogonality_error(X).item() for X in (U, V)) <= 1e-5
            expected = EVERY["max_cond"] if "max_cond" in METHODS[name].uses else math.inf
            assert group.get("max_cond", math.inf) == expected
            assert expected == math.inf or spectrum.condition_number(S.double()) <= expected * (1 + 1e-4)
        elif group["kind"] == "clipped":
            for weight in group["params"]:
                assert spectrum.condition_number(layers.matricize(weight).double()) <= group["max_cond"] * (1 + 1e-4)
        elif group["kind"] == "stiefel":
            for weight in group["params"]:
                W = layers.matricize(weight).double()
                gram = W @ W.mT if W.shape[0] <= W.shape[1] else W.mT @ W
                assert (gram - torch.eye(len(gram))).abs().max() < 1e-5


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.trains])
def test_two_steps_move_every_weight(name):
    method, (model, _) = METHODS[name], trained(name)
    start = method.prepare(lenet5(), settings(method)).state_dict()
    for key, value in model.state_dict().items():
        if not key.startswith("normalize") and value.shape == start[key].shape and value.numel() > 1:
            assert not torch.equal(value, start[key]), key


FORMS = {  # which form each layer takes at ratio 0.8: U S Vᵀ, U Vᵀ or dense, and its rank
    "dense": "dense dense dense dense",
    "uv": "UV:4 UV:10 UV:100 dense",
    "svd": "UV:4 UV:10 UV:100 dense",
    "svd_finetuned": "UV:4 UV:10 UV:100 dense",
    "usv": "USV:4 USV:10 USV:100 USV:10",
    "condlr": "USV:4 USV:10 USV:100 USV:10",
    "condlr_published": "USV:4 USV:10 USV:100 USV:10",
    "cayley_sgd": "dense dense dense dense",
    "projected_sgd": "dense dense dense dense",
    "dlrt": "USV:4 USV:10 USV:100 dense",
    "soft_orthogonal_uv": "UV:4 UV:10 UV:100 dense",
    "soft_orthogonal": "dense dense dense dense",
    "spectral_norm": "dense dense dense dense",
    "dense_clipped": "dense dense dense dense",
    "dense_adamw": "dense dense dense dense",
    "uv_adamw": "UV:4 UV:10 UV:100 dense",
    "usv_adamw": "USV:4 USV:10 USV:100 USV:10",
    "condlr_adamw": "USV:4 USV:10 USV:100 USV:10",
    "stella_adamw": "USV:4 USV:10 USV:100 USV:10",
}


def form(layer):
    if not isinstance(layer, layers.LowRankLayer):
        return "dense"
    return f"{'UV' if layer.S is None else 'USV'}:{layer.rank}"


@pytest.mark.parametrize("name", FORMS)
def test_form_of_each_layer(name):
    """The classifier is never truncated; where there is a core it is constrained at full rank."""
    model, _ = trained(name)
    assert " ".join(form(layer) for layer in layers.weight_layers(model).values()) == FORMS[name]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_starts_from_the_same_draw(name):
    """At ratio 0 and without a bound the low-rank methods start as the dense function, Frank-Wolfe in sets that are
    large enough; Stiefel methods from the orthonormal factor of its weights; biases are the same in all."""
    method, x = METHODS[name], batches()[0][0].double()
    dense = lenet5().double()
    model = method.prepare(
        lenet5().double(), settings(method, ratio=0.0, max_cond=math.inf, tolerance=0.0, scale=1e3, max_norm=1e3)
    )
    if name == "spectral_norm":
        for layer in layers.weight_layers(model).values():  # after one power iteration of torch's
            assert 0.9 < spectrum.singular_values(layers.matricize(layer.weight))[0] < 1.5
    elif name in ("cayley_sgd", "projected_sgd"):
        for key, layer in layers.weight_layers(model).items():
            W = layers.matricize(dense.get_submodule(key).weight)
            P, _, Qt = torch.linalg.svd(W, full_matrices=False)
            torch.testing.assert_close(layers.matricize(layer.weight), P @ Qt, rtol=0, atol=1e-10)
    else:
        torch.testing.assert_close(model(x), dense(x), rtol=0, atol=1e-10)
    for key in ("conv1.bias", "fc2.bias"):
        assert torch.equal(model.get_parameter(key), dense.get_parameter(key))


def test_training_starts_inside_the_constraint():
    for tau in (0, 0.1, 0.5):
        for name in ("condlr", "condlr_published"):
            model = METHODS[name].prepare(lenet5(), Settings(ratio=0.8, max_cond=1 + tau))
            for layer in layers.low_rank_layers(model).values():
                assert spectrum.condition_number(layer.S.double()) <= (1 + tau) * (1 + 1e-5)


@pytest.mark.parametrize("name", [name for name in METHODS if name.startswith("fw_")])
def test_frank_wolfe_starts_and_stays_in_its_sets(name):
    method, chosen = METHODS[name], settings(METHODS[name], scale=1.0)
    for model in (method.prepare(lenet5(), chosen), trained(name, scale=1.0)[0]):
        groups = {group["name"]: group for group in method.groups(model, chosen)}
        families = {key: group["constraint"] for key, group in groups.items()}
        assert name.startswith(f"fw_{families.pop('conv1.weight')}")
        assert families["fc1.bias"] == families["fc2.weight"] == "l2"
        for key, group in groups.items():
            W, size = model.get_parameter(key).detach(), {"k": group["k"]} if group["k"] else {}
            C = constraint_set(group["constraint"], tuple(W.shape), radius=group["radius"], **size)
            assert C.gauge(W) <= 1 + 1e-5, key


def test_a_product_is_finished_as_the_plain_network_of_the_same_function():
    method, (model, _), x = METHODS["lorita"], trained("lorita"), batches()[0][0]
    finished = method.finish(model.eval())
    assert finished.state_dict().keys() == lenet5().state_dict().keys()
    torch.testing.assert_close(finished(x), model(x), rtol=0, atol=1e-5)
    counts, plain = count_parameters(model), count_parameters(finished)
    assert (counts.dense, counts.deployed) == (plain.dense, plain.deployed) == (plain.trained, plain.trained)
    assert counts.trained > plain.trained


@pytest.mark.parametrize(("max_cond", "kind"), [(1.0, "lowrank_published_mean"), (1.1, "lowrank_published_band")])
def test_published_kind_follows_tau(max_cond, kind):
    _, optimizer = trained("condlr_published", max_cond=max_cond)
    assert {group["kind"] for group in optimizer.param_groups} == {kind, "euclidean"}


def test_last_layer_is_the_classifier():
    assert last_layer(lenet5()) == ["fc2"]
    assert last_layer(torch.nn.ReLU()) == []


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("dense", {"ratio": 0.5}, "ratio = 0.5: must be absent: dense has no such setting"),
        ("usv", {"ratio": 0.5, "max_cond": 1.1}, "max_cond = 1.1: must be absent: usv has no such setting"),
        ("condlr", {"ratio": 0.5}, "max_cond = None: must be given for condlr"),
        ("uv", {}, "ratio = None: must be given for uv"),
        ("uv", {"ratio": 1.0}, r"ratio = 1.0: must be in \[0, 1\)"),
        ("uv", {"ratio": -0.1}, r"ratio = -0.1: must be in \[0, 1\)"),
        ("condlr", {"ratio": 0.5, "max_cond": 0.9}, "max_cond = 0.9: must be a number >= 1"),
        ("dense", {"mix": 0.5}, "radius = None: must be given where mix is"),
        ("dense", {"trades": 6.0}, "radius = None: must be given where trades is"),
        ("dense", {"radius": 0.1}, "radius = 0.1: must be absent without one of mix and trades"),
        ("dense", {"radius": 0.1, "mix": 0.5, "trades": 6.0}, "trades = 6.0: must be absent where mix is given"),
        ("dense", {"radius": 0.1, "mix": 1.5}, r"mix = 1.5: must be in \(0, 1\]"),
        ("svd", {"ratio": 0.5, "mix": 1.0, "radius": 0.1}, "must be absent: svd has no such setting"),
    ],
)
def test_settings_are_checked(name, given, message):
    with pytest.raises(ValueError, match=message):
        check_settings(METHODS[name], given)


def test_every_method_accepts_its_own_settings():
    for method in METHODS.values():
        chosen = {key: value for key, value in EVERY.items() if key in method.uses}
        check_settings(method, chosen)
        if "ratio" in method.uses:
            check_settings(method, {**{key: value for key, value in chosen.items() if key != "ratio"}, "rank": 20})
        if method.any_start:
            check_settings(method, {**chosen, "decay": 10.0})
        for given in ({"mix": 0.5, "radius": 0.1}, {"trades": 6.0, "radius": 0.1}) if method.trains else ():
            check_settings(method, {**chosen, **given})
        assert method.label
        assert method.summary.endswith(".")
        assert not method.starts_from or METHODS[method.starts_from].trains


def test_settings_make_the_adversary():
    assert adversary_of({}) is None
    assert adversary_of({"mix": 0.5, "radius": 0.1}) == Adversary("mix", 0.5, 0.1)
    assert adversary_of({"ratio": 0.5, "trades": 6.0, "radius": 0.2}) == Adversary("trades", 6.0, 0.2)


def test_titles_name_tau():
    for value, text in ((1.1, "0.1"), (1.0, "0"), (math.inf, "inf")):
        assert title("CondLR", {"ratio", "max_cond"}, {"max_cond": value}) == f"CondLR, τ = {text}"
    assert title("dense SGD", (), {"max_cond": 1.1}) == "dense SGD"


def test_registration(monkeypatch):
    monkeypatch.setattr("wellcond.methods.method.METHODS", dict(METHODS))
    mine = Method("mine", "Mine", "One of my own.", lambda model, _: model, lambda model, _: [], starts_from="dense")
    assert methods.register(mine) is methods.find("mine") is mine
    with pytest.raises(ValueError, match="method = 'mine': must be a name that is not yet registered"):
        methods.register(mine)
    with pytest.raises(ValueError, match="method = 'dens': unknown; did you mean 'dense'"):
        methods.register(Method("other", "", "", mine.prepare, mine.groups, starts_from="dens"))
    assert "other" not in methods.METHODS


def test_unknown_method_suggests_the_nearest():
    with pytest.raises(ValueError, match="method = 'conldr': unknown; did you mean 'condlr'"):
        methods.find("conldr")


def test_deployment_after_training_keeps_the_function():
    """Of every form of the registry, after real steps."""
    x = batches()[0][0]
    for name in ("uv", "condlr", "dense"):
        model, _ = trained(name)
        expected = model.eval()(x).to(DOUBLE)
        # single precision: three factors merged into two
        torch.testing.assert_close(deploy(model)(x).to(DOUBLE), expected, rtol=0, atol=1e-4)
