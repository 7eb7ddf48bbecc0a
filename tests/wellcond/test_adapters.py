"""Adapters: the start, the manifold, the merged network, and the file of an adapter alone."""

import copy
import math
import re
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import wellcond as wc
from helpers import DOUBLE, Tiny, convolutional, randn
from wellcond.adaptation import AdaptedLayer, adapt, adapter_state, load_adapter, merge, save_adapter, unmerge
from wellcond.adaptation.adapters import adapted_layers
from wellcond.compression import COMPRESSORS, compress

X = randn(8, 1, 28, 28)
Y = torch.arange(8)


def trained_elsewhere(kind=Tiny):
    torch.manual_seed(1)
    return kind().double()


def adapted(kind=Tiny, rank=3, **options):
    torch.manual_seed(2)
    return adapt(trained_elsewhere(kind), rank, **options)


def stepped(model, optimizer, steps=4):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    return model


OPTIMIZERS = {
    "sgd": lambda model, c: wc.LowRankSGD(wc.param_groups(model, max_cond=c), lr=0.05, momentum=0.5),
    "adamw": lambda model, c: wc.LowRankAdamW(wc.param_groups(model, max_cond=c), lr=1e-2),
    "rmsprop": lambda model, c: wc.on_manifold(torch.optim.RMSprop, wc.param_groups(model, max_cond=c), lr=1e-3),
}


@pytest.mark.parametrize("kind", [Tiny, convolutional])
def test_the_function_is_that_of_the_trained_network_at_the_start(kind):
    model = trained_elsewhere(kind).eval()
    before = copy.deepcopy(model.state_dict())
    new = adapt(model, 3)
    torch.testing.assert_close(new(X), model(X), rtol=1e-14, atol=1e-14)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(layer.dense.weight, before[f"{name}.weight"]) for name, layer in adapted_layers(new).items())


def test_the_first_direction_is_the_projected_gradient_of_the_dense_weight():
    """The velocity of W at the start is -P_W G, G the gradient of the dense network: U, V and S do not matter."""
    model, x = nn.Linear(9, 7).double(), randn(5, 9)
    torch.manual_seed(0)
    new = adapt(model, 3)
    U, V = new.update.U.detach().clone(), new.update.V.detach().clone()
    (G,) = torch.autograd.grad(model(x).square().sum(), model.weight)
    P, Q = U @ U.mT, V @ V.mT
    expected = P @ G + G @ Q - P @ G @ Q
    errors = []
    for h in (1e-5, 5e-6):
        moved = copy.deepcopy(new)
        moved(x).square().sum().backward()
        wc.LowRankSGD(wc.param_groups(moved), lr=h).step()
        errors.append((-moved.difference() / h - expected).norm().item())
    assert errors[0] < 1e-2 * expected.norm()
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("max_cond", [1, 1.1, 10, math.inf])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_stays_on_the_manifold_and_moves_nothing_else(name, max_cond):
    model = adapted(train="classifier")
    before = copy.deepcopy(model.state_dict())
    losses = [F.cross_entropy(model(X), Y).item()]
    stepped(model, OPTIMIZERS[name](model, max_cond))
    losses.append(F.cross_entropy(model(X), Y).item())
    assert losses[1] < losses[0]
    for layer in wc.low_rank_layers(model).values():
        assert wc.orthogonality_error(layer.U) < 1e-13
        assert wc.orthogonality_error(layer.V) < 1e-13
        assert wc.condition_number(layer.S) <= max_cond * (1 + 1e-12)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    updates = {f"{layer}.update.{factor}" for layer in ("conv", "hidden") for factor in "USV"}
    assert moved == updates | {"classifier.weight", "classifier.bias"}


def test_what_is_trained_is_counted():
    model = adapted(rank=2)
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert n_trained == sum(2 * (n + m) + 4 for n, m in ((6, 49), (24, 24), (10, 24)))


@pytest.mark.parametrize("kind", [Tiny, convolutional])
def test_merged_and_taken_apart_again(kind):
    base = trained_elsewhere(kind)
    model = adapted(kind)
    stepped(model, OPTIMIZERS["adamw"](model, 2.0)).eval()
    plain = merge(model)
    assert not adapted_layers(plain)
    assert plain.state_dict().keys() == base.state_dict().keys()
    torch.testing.assert_close(plain(X), model(X), rtol=1e-12, atol=1e-13)
    assert not torch.allclose(plain(X), base.eval()(X))
    again = unmerge(plain, adapter_state(model))
    torch.testing.assert_close(again(X), model(X), rtol=1e-12, atol=1e-13)
    for name, layer in adapted_layers(again).items():
        W0, W = base.get_submodule(name).weight, plain.get_submodule(name).weight
        assert ((layer.dense.weight - W0).abs() <= 2 * torch.finfo(DOUBLE).eps * torch.maximum(W0.abs(), W.abs())).all()
        assert torch.equal(model.get_submodule(name).dense.weight, W0)  # what was merged is as it was


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", None])
@pytest.mark.parametrize("kind", [Tiny, convolutional])
def test_an_adapter_alone(kind, suffix, tmp_path):
    """It holds no frozen weight, and gives the network before its function, its ranks and what is trained."""
    model = adapted(kind, {"*": 3, "0": 2} if kind is convolutional else {"*": 3, "conv": 2}, train="*bias")
    stepped(model, OPTIMIZERS["adamw"](model, 2.0)).eval()
    adapter = adapter_state(model)
    if suffix:
        if suffix == ".safetensors":
            pytest.importorskip("safetensors", reason="safetensors is not installed")
        save_adapter(model, adapter := tmp_path / f"adapter{suffix}")
        assert [path.name for path in tmp_path.iterdir()] == [f"adapter{suffix}"]
    else:
        assert not any(name.endswith("dense.weight") for name in adapter)
    torch.manual_seed(9)
    again = load_adapter(trained_elsewhere(kind), adapter).eval()
    torch.testing.assert_close(again(X), model(X), rtol=1e-13, atol=1e-14)
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {
        name for name, p in model.named_parameters() if p.requires_grad
    }


def test_names_patterns_and_what_is_trained():
    assert adapted_layers(adapted(rank={"*e*": 4})).keys() == {"classifier"} | {"hidden"}
    assert adapted_layers(adapted(train=["conv", "hidden.weight"])).keys() == {"classifier"}
    ranks = {name: layer.update.rank for name, layer in adapted_layers(adapted(rank=99)).items()}
    assert ranks == {"conv": 6, "hidden": 24, "classifier": 10}
    whole = adapt(nn.Linear(3, 4), 2)
    assert isinstance(whole, AdaptedLayer)
    assert isinstance(load_adapter(nn.Linear(3, 4), adapter_state(whole)), AdaptedLayer)
    assert type(merge(whole)) is nn.Linear


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": {"clasifier": 2}}, "rank = 'clasifier': unknown; did you mean 'classifier'"),
        ({"rank": {"x*": 2}}, "rank = 'x*': unknown"),
        ({"rank": 0}, "rank = 0: must be a whole number in 1.."),
        ({"rank": {"conv": 7}}, "rank = 7: must be a whole number in 1..6"),
        ({"train": "clasifier"}, "train = 'clasifier': unknown; did you mean 'classifier'"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        adapt(Tiny(), **arguments)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (Tiny, lambda state: {}),
        (Tiny, lambda state: {k: v for k, v in state.items() if k != "conv.start.0.weight"}),
        (Tiny, lambda state: {**state, "more": torch.ones(1)}),
        (Tiny, lambda state: {**state, "conv.update.U": torch.ones(9, 3)}),
        (convolutional, lambda state: state),
    ],
)
def test_the_adapter_of_another_network_is_refused(base, change):
    with pytest.raises(ValueError, match="adapter = ") as error:
        load_adapter(base().double(), change(adapter_state(adapted())))
    assert len(str(error.value)) < 150
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="model = 'Tiny': must be a network with adapters"):
        adapter_state(Tiny())


def test_hooks_are_called_once():
    model, calls = Tiny(), []
    model.hidden.register_forward_hook(lambda *_: calls.append(1))
    adapt(model, 2)(X.float())
    assert calls == [1]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_a_merged_layer_is_the_adapted_one(n, m, data):
    rank = data.draw(st.integers(1, min(n, m)))
    torch.manual_seed(n)
    model = adapt(nn.Linear(m, n).double(), rank)
    with torch.no_grad():
        for p in model.update.parameters():
            p.add_(torch.randn_like(p))
    x = randn(3, m)
    torch.testing.assert_close(merge(model)(x), model(x))
    torch.testing.assert_close(F.linear(x, model.weight, model.bias), model(x))


@pytest.mark.parametrize("kind", [Tiny, convolutional])
def test_an_adapted_network_is_deployed(kind):
    model = adapted(kind)
    stepped(model, OPTIMIZERS["adamw"](model, 2.0)).eval()
    for small in (wc.deploy(model), wc.deploy(merge(model))):
        assert not wc.low_rank_layers(small)
        torch.testing.assert_close(small(X), model(X), rtol=1e-10, atol=1e-11)


class First(nn.Module):
    """The first of what a recurrent layer, or attention, returns for x."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(*([x] * (3 if isinstance(self.layer, nn.MultiheadAttention) else 1)))[0]


KINDS = {
    "line": (lambda: nn.Conv1d(6, 9, 3, padding=1), randn(2, 6, 5)),
    "volume": (lambda: nn.Conv3d(6, 4, 2, bias=False), randn(2, 6, 3, 4, 5)),
    "groups": (lambda: nn.Conv2d(6, 8, 3, groups=2, padding_mode="reflect", padding=1), randn(2, 6, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, output_padding=1), randn(2, 6, 5, 5)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 2, bias=False), randn(2, 4, 5)),
    "embedding": (lambda: nn.Embedding(9, 5), torch.tensor([[1, 0], [8, 3]])),
    "square embedding": (lambda: nn.Embedding(6, 6, padding_idx=2), torch.tensor([[1, 2], [5, 3]])),
    "attention": (lambda: First(nn.MultiheadAttention(6, 2)), randn(2, 5, 6)),
    "recurrent": (lambda: First(nn.GRU(6, 5)), randn(2, 5, 6)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer(kind):
    """The start is the function; trained on the manifold; merged, saved and deployed, it stays the same function."""
    make, x = KINDS[kind]
    torch.manual_seed(3)
    base = nn.Sequential(make().double())
    model = adapt(base, 2)
    assert adapted_layers(model).keys() == wc.low_rank_layers(wc.factorize(base, rank=2)).keys()
    torch.testing.assert_close(model(x), base(x), rtol=1e-13, atol=1e-13)
    optimizer = wc.LowRankAdamW(wc.param_groups(model, max_cond=2), lr=1e-2, weight_decay=0)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) - 1).square().sum().backward()
        optimizer.step()
    assert (model(x) - 1).square().sum() < (base(x) - 1).square().sum()
    plain = merge(model)
    assert [type(module) for module in plain.modules()] == [type(module) for module in base.modules()]
    for other in (plain, load_adapter(base, adapter_state(model)), unmerge(plain, adapter_state(model))):
        torch.testing.assert_close(other(x), model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(wc.deploy(model.eval())(x), model(x), rtol=1e-12, atol=1e-12)


def test_what_forward_code_reads_of_a_layer():
    for make, _ in (KINDS["groups"], KINDS["transposed"], KINDS["embedding"]):
        layer = make()
        new, public = adapt(layer, 2), {name for name in vars(layer) if not name.startswith("_")}
        assert {name: getattr(new, name) for name in public} == {name: getattr(layer, name) for name in public}
        assert new.weight.shape == layer.weight.shape


def test_the_matrices_of_a_stack_have_their_own_scale():
    layer = nn.Conv2d(4, 4, 1, groups=2, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.cat([3 * torch.eye(2), torch.zeros(2, 2)])[..., None, None])
    S = adapt(layer, 1).update.S
    torch.testing.assert_close(S.flatten(), torch.tensor([3, 2**-0.5], dtype=DOUBLE))


def test_the_row_of_padding_stays():
    layer = nn.Embedding(6, 8, padding_idx=2).double()
    model = adapt(layer, 8)
    assert model.update.rank == 5
    optimizer = wc.LowRankSGD(wc.param_groups(model), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        (model(torch.arange(6)) - 1).square().sum().backward()
        optimizer.step()
    assert model(torch.tensor(2)).norm() < 1e-11
    assert merge(model).weight[2].norm() < 1e-11
    assert not torch.allclose(merge(model).weight, layer.weight)
    with pytest.raises(ValueError, match=re.escape("rank = 6: must be in 1..5, beside the row of padding")):
        adapt(nn.Sequential(layer), {"0": 6})


def test_a_transposed_convolution_is_told_the_size_of_its_output():
    layer = nn.ConvTranspose2d(3, 4, 3, stride=2)
    model, x = adapt(layer, 2), torch.rand(2, 3, 5, 5)
    torch.testing.assert_close(model(x, output_size=[12, 12]), layer(x, output_size=[12, 12]))


def test_what_is_left_out_is_told():
    depthwise = nn.Conv2d(4, 4, 3, groups=4)
    with pytest.warns(UserWarning, match=r"left dense: 0 \(a depthwise convolution"):
        model = adapt(nn.Sequential(depthwise, nn.Conv2d(4, 3, 1)))
    assert adapted_layers(model).keys() == {"1"}
    with pytest.raises(ValueError, match="model = 'ReLU': must be one with layers to adapt"):
        adapt(nn.ReLU())


@pytest.mark.parametrize(
    "use",
    [
        wc.count_parameters,
        wc.summary,
        adapt,
        lambda model: wc.factorize(model, rank=2),
        lambda model: wc.ranks(model, {"parameters": 0.5}),
        *(partial(compress, compressor=name, amount=0.5) for name in COMPRESSORS),
    ],
)
def test_adapters_are_merged_before(use):
    """An adapter is three layers and one matrix: whoever counts or cuts them one by one is told so."""
    message = r"model = 'one with adapters \(.*\)': must be merged, wc.adaptation.merge\(model\)"
    for model in (adapted(), adapt(nn.Conv2d(4, 6, 3), 2)):
        with pytest.raises(ValueError, match=message):
            use(model)
    assert wc.count_parameters(merge(adapted())) == wc.count_parameters(trained_elsewhere())


def test_half_precision_keeps_every_bit_of_the_weights():
    model = trained_elsewhere().bfloat16()
    new = adapt(model, 3)
    assert torch.equal(new.conv.dense.weight, model.conv.weight)
    torch.testing.assert_close(new(X.bfloat16()), model(X.bfloat16()), rtol=0, atol=2e-2)
