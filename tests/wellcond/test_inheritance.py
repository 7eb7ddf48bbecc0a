"""What a layer keeps when another form takes its place: its hooks, what of it is frozen, the weights it shares."""

import warnings

import pytest
import torch
from torch import nn

import wellcond as wc
from helpers import randn
from wellcond.layers import HOOKS
from wellcond.methods import Tucker2Conv2d, lorita

RANK = 2
LAYERS = ("0", "2")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 9, 6)).double()


def factorized(**options):
    return lambda model: wc.factorize(model, rank=RANK, **options)


def shrunk(model):
    return wc.compression.compress(model, "svd", amount=0.5).model


FORMS = {
    "U S Vᵀ": factorized(),
    "U Vᵀ": factorized(core=False),
    "Tucker": factorized(convolution=Tucker2Conv2d),
    "densified": lambda model: wc.densify(factorized()(model)),
    "deployed": lambda model: wc.deploy(factorized()(model)),
    "deployed dense": lambda model: wc.deploy(wc.factorize(model, ratio=0)),
    "truncated": shrunk,
    "zeroed": lambda model: wc.compression.compress(model, "magnitude", amount=0.5).model,
    "without filters": lambda model: wc.compression.compress(model, "filters_l2", amount=0.5).model,
    "multiplied": lambda model: lorita.collapse(lorita.overparametrize(model)),
}


def with_every_hook(layer, calls):
    layer.register_forward_pre_hook(lambda module, args, kwargs: calls.append("before"), with_kwargs=True)
    layer.register_forward_hook(
        lambda module, args, kwargs, output: calls.append("after") or output + 1, with_kwargs=True
    )
    layer.register_full_backward_pre_hook(lambda module, grads: calls.append("back"))
    layer.register_full_backward_hook(lambda module, inputs, outputs: calls.append("backed"))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("form", [form for form in FORMS if form != "without filters"])
def test_hooks_are_carried_over(form, name):
    """Each is called once, sees what it saw, and what it changes reaches the output."""
    model, x, calls = network(), randn(2, 3, 5, 5), []
    with_every_hook(model.get_submodule(name), calls)
    new = FORMS[form](model)
    output = new(x.requires_grad_())
    output.sum().backward()
    assert calls == ["before", "after", "back", "backed"]
    plain = FORMS[form](network())
    maps = plain[0](x) + (name == "0")
    torch.testing.assert_close(output, plain[2](maps.flatten(1)) + (name == "2"))
    assert all(getattr(new.get_submodule(name), kind) is not getattr(model.get_submodule(name), kind) for kind in HOOKS)


def test_filters_that_a_hook_sees_are_left_whole():
    for register in ("forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Conv2d(5, 6, 3))
        getattr(model[2], f"register_{register}")(lambda *_: None)
        compressed = wc.compression.compress(model, "filters_l2", amount=0.5)
        assert compressed.kept == {"0": 2}
        assert "more than once" in compressed.whole["1"]


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("form", FORMS)
def test_frozen_stays_frozen(form, name, frozen):
    model = network()
    model.get_parameter(f"{name}.{frozen}").requires_grad_(False)
    new = FORMS[form](model)
    for parameter, p in new.named_parameters():
        of_bias = "bias" in parameter
        of_layer = parameter.startswith(name)
        assert p.requires_grad == (not (of_layer and of_bias == (frozen == "bias"))), parameter


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dense_clipped", {"max_cond": 1.1, "decay": 2.0}),
        ("cayley_sgd", {}),
        ("projected_sgd", {}),
        ("spectral_norm", {}),
    ],
)
def test_what_is_frozen_is_not_prepared(name, settings):
    """Neither clipped, nor made orthonormal, nor normalized: the frozen layer computes what it did."""
    model = network()
    before = model[0].requires_grad_(False).weight.detach().clone()
    after = wc.methods.find(name).prepare(model, wc.methods.Settings(**settings))
    assert torch.equal(after[0].weight, before)
    assert not torch.equal(after[2].weight, network()[2].weight)


def test_a_single_layer_has_its_hooks_too():
    layer, calls = nn.Linear(5, 4), []
    layer.register_forward_hook(lambda *_: calls.append("after"))
    wc.factorize(layer, rank=2)(torch.ones(1, 5))
    assert calls == ["after"]


class Tied(nn.Module):
    """A classifier tied to an embedding, two linear layers of one weight, and one of its own."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight
        self.one, self.other, self.own = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.one.weight

    def forward(self, x):
        return self.head(self.own(self.other(self.one(self.embedding(x)))))


SIZE = 160 + 64 + 64 + 3 * 8


def test_tied_weights_stay_tied_and_one_warning_names_them():
    model = Tied().double()
    with pytest.warns(UserWarning, match=r"head \(tied to embedding\); one \(tied to other\)") as caught:
        small = wc.factorize(model, rank=1)
    assert len(caught) == 1
    assert small.head.weight is small.embedding.weight
    assert small.one.weight is small.other.weight
    assert list(wc.low_rank_layers(small)) == ["own"]
    count = wc.count_parameters(small)
    assert (count.dense, count.trained, count.deployed) == (SIZE, SIZE - 64 + 17, SIZE - 64 + 16)
    assert wc.count_parameters(model).dense == SIZE
    for new in (wc.densify(small), wc.deploy(small)):
        assert new.head.weight is new.embedding.weight
        torch.testing.assert_close(new(torch.arange(20)), small(torch.arange(20)))


@pytest.mark.parametrize("compressor", wc.compression.COMPRESSORS)
def test_a_compressed_network_with_tied_weights_is_no_larger(compressor):
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 1)
    )
    model[1].weight = model[0].weight
    sizes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for amount in (0, 0.5, 0.9):
            small = wc.compression.compress(model, compressor, amount=amount)
            assert small.model[0].weight is small.model[1].weight
            stored = {
                p: int(p.count_nonzero()) if "magnitude" in compressor else p.numel() for p in small.model.parameters()
            }
            assert small.size == sum(stored.values())
            sizes.append(small.size)
    assert sizes[0] == wc.count_parameters(model).dense > sizes[1] > sizes[2] > 0
    assert {"0", "1"} <= small.whole.keys()


def test_factors_that_layers_share_are_one_weight():
    model = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)).double()
    low = wc.factorize(model, rank=2)
    low[1].U, low[1].S, low[1].V = low[0].U, low[0].S, low[0].V
    x = randn(3, 9)
    assert wc.count_parameters(low).dense == 81 + 18
    assert wc.count_parameters(low).trained == 36 + 4 + 18
    dense, small = wc.densify(low), wc.deploy(low)
    assert dense[0].weight is dense[1].weight
    assert small[0].U is small[1].U
    for new in (dense, small):
        torch.testing.assert_close(new(x), low(x))


def test_a_weight_that_is_computed_is_left_dense():
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    model[0] = torch.nn.utils.spectral_norm(model[0])
    with pytest.warns(UserWarning, match=r"left dense: 0 \(its weight is computed"):
        assert list(wc.low_rank_layers(wc.factorize(model, rank=1))) == ["1"]
