"""Deployment: the same function, in plain layers, whatever the forward code does."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from architectures import networks as models
from helpers import DOUBLE, Tiny, randn
from wellcond import convert, counts, deployment
from wellcond.deployment import deploy
from wellcond.kinds.convolution import LowRankConv2d
from wellcond.layers import LowRankLinear, low_rank_layers
from wellcond.tracing import dataflow

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def settled(model):
    """Double precision, with batch normalizations that are far from the identity."""
    torch.manual_seed(7)
    for module in model.modules():
        if isinstance(module, NORMS):
            for value in (module.weight, module.running_var):
                if value is not None:
                    nn.init.uniform_(value, 0.5, 2)
            for value in (module.bias, module.running_mean):
                if value is not None:
                    nn.init.uniform_(value, -1, 1)
    return model.double()


def norms(model):
    return {name for name, module in model.named_modules() if isinstance(module, NORMS)}


def deployed(model, *inputs, **arguments):
    """The deployed network, after a check that its function is that of `model` in evaluation mode."""
    expected = copy.deepcopy(model).eval()(*inputs, **arguments)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = deploy(model)
    torch.testing.assert_close(small(*inputs, **arguments), expected, rtol=0, atol=1e-10)
    assert type(small) is type(model)
    assert not any(module.training for module in small.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return small


class SmallVGG16(models.VGG16):
    WIDTHS = ((6, 6), (6, 6), (8, 8, 8), (8, 8, 8), (8, 8, 512))


@pytest.mark.parametrize("core", [True, False])
@pytest.mark.parametrize("ratio", [None, 0, 0.3, 0.8])
def test_vgg16_has_no_normalization_left(ratio, core):
    model = settled(SmallVGG16())
    if ratio is not None:
        model = convert.factorize(model, ratio=ratio, core=core)
    small = deployed(model, torch.rand(3, 3, 32, 32, dtype=DOUBLE))
    assert not norms(small)
    assert not low_rank_layers(small)


@pytest.mark.parametrize("ratio", [None, 0.8])
def test_wide_residual_network(ratio):
    """Of a block, bn2 reads conv1 alone; bn1 reads a sum, or what the shortcut reads too. The first block is the
    exception: its shortcut takes the activated input, and so its bn1 alone reads the first convolution."""
    model = settled(models.WideResNet(widen=2))
    if ratio is not None:
        model = convert.factorize(model, ratio=ratio)
    small = deployed(model, torch.rand(2, 3, 16, 16, dtype=DOUBLE))
    assert norms(small) == {"bn", *(f"blocks.{i}.bn1" for i in range(1, 6))}
    assert isinstance(small.blocks[0].bn2, nn.Identity)
    assert type(small.normalize) is models.Normalize


@pytest.mark.parametrize("ratio", [None, 0.8])
def test_residual_network_has_no_normalization_left(ratio):
    """Each normalization reads one convolution alone, those of the shortcuts too."""
    model = settled(models.ResNet(widths=(4, 8), blocks=2))
    if ratio is not None:
        model = convert.factorize(model, ratio=ratio)
    small = deployed(model, torch.rand(2, 3, 16, 16, dtype=DOUBLE))
    assert not norms(small)
    assert not low_rank_layers(small)


@pytest.mark.parametrize("widen", [1, 2])
def test_the_first_normalization_of_a_wide_residual_network(widen):
    """Without a shortcut the first block adds the convolution itself."""
    model = settled(models.WideResNet(widen=widen, blocks=1))
    small = deployed(model, torch.rand(2, 3, 16, 16, dtype=DOUBLE))
    assert ("blocks.0.bn1" in norms(small)) == (widen == 1)


def test_torchvision_resnet():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = convert.factorize(settled(resnet18(weights=None)), ratio=0.7, skip=["layer3.*", "layer4.*"])
    small = deployed(model, randn(2, 3, 64, 64))
    assert not norms(small)
    assert not low_rank_layers(small)
    assert isinstance(small.layer1[0].conv1, nn.Sequential)


@pytest.mark.parametrize("ratio", [0.5, 0.8])
@pytest.mark.parametrize("name", [name for name in models.MODELS if "vit" not in name])  # attention multiplies tokens
def test_operations_are_those_of_the_merged_factors(name, ratio):
    """Σ min(r(n + m), nm)·positions multiply-adds, from the sizes of the factorized layers; and no batch norm, no
    shape and no class of ours hides any."""
    shape = (1, 28, 28) if name == "lenet5" else (3, 32, 32)
    with torch.device("meta"):
        model = convert.factorize(models.build(name, in_channels=shape[0]), ratio=ratio)
    positions, expected = {}, 0
    for label, layer in low_rank_layers(model).items():
        layer.register_forward_hook(lambda *io, label=label: positions.update({label: io[2][0, 0].numel()}))
    with torch.device("meta"):
        model.eval()(torch.zeros(1, *shape))
    for label, layer in low_rank_layers(model).items():
        layer._forward_hooks.clear()
        (n, r), m = layer.U.shape, layer.V.shape[0]
        expected += 2 * min(r * (n + m), n * m) * positions[label]
    assert counts.count_flops(deploy(model), shape) == expected


@pytest.mark.parametrize(
    "arguments", [{"stride": 2, "padding": 1}, {"dilation": 2}, {"padding": "same", "bias": False}]
)
def test_two_plain_layers(arguments):
    model = convert.factorize(nn.Sequential(nn.Conv2d(4, 8, 3, **arguments), nn.Flatten()).double(), rank=2)
    (first, second), _ = deployed(model, randn(2, 4, 9, 9))
    assert [type(first), type(second)] == [nn.Conv2d, nn.Conv2d]
    assert (second.bias is None) == (arguments.get("bias") is False)
    linear, *_ = deployed(convert.factorize(nn.Sequential(nn.Linear(7, 9)).double(), rank=2), randn(3, 5, 7))
    assert [type(layer) for layer in linear] == [nn.Linear, nn.Linear]
    assert not list(linear.buffers())


class Convolutions(nn.Module):
    """Two convolutions with their normalizations; the subclasses use them in unusual ways."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm_a, self.norm_b = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm_b(self.b(F.relu(self.norm_a(self.a(x)))))


class SharedNorm(Convolutions):
    def forward(self, x):
        return self.norm_a(self.b(F.relu(self.norm_a(self.a(x)))))


class SharedConvolution(Convolutions):
    def forward(self, x):
        x = self.norm_a(self.b(self.a(x)))
        return self.norm_b(self.b(x))


class ReadTwice(Convolutions):
    def forward(self, x):
        x = self.a(x)
        return self.norm_b(self.b(self.norm_a(x) - x))


class Returned(Convolutions):
    def forward(self, x):
        x = self.norm_a(self.a(x))
        y = self.b(x)
        return self.norm_b(y), y


class ChangedInPlace(Convolutions):
    def forward(self, x):
        x = self.a(x)
        F.relu(x, inplace=True)
        return self.norm_b(self.b(self.norm_a(x)))


class WeightRead(Convolutions):
    def forward(self, x):
        x = self.norm_a(self.a(x)) + self.a.weight.mean()
        return self.norm_b(self.b(x)) + self.norm_b.running_mean.sum()


class OptionalArgument(Convolutions):
    """Only without the argument is there a second reader, and a placeholder is an argument."""

    def forward(self, x, skip=None):
        x = self.a(x)
        skip = x if skip is None else skip
        return self.norm_b(self.b(self.norm_a(x) + skip))


class Flag(Convolutions):
    def forward(self, x, features=False):
        y = self.a(x)
        return y if features else self.norm_b(self.b(self.norm_a(y)))


class Untraceable(Convolutions):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        (Convolutions, set()),
        (SharedNorm, {"norm_a", "norm_b"}),
        (SharedConvolution, {"norm_a", "norm_b"}),
        (ReadTwice, {"norm_a"}),
        (Returned, {"norm_b"}),
        (ChangedInPlace, {"norm_a"}),
        (WeightRead, {"norm_a", "norm_b"}),
        (OptionalArgument, {"norm_a"}),
        (Flag, {"norm_a", "norm_b"}),
        (Untraceable, {"norm_a", "norm_b"}),
    ],
)
@pytest.mark.parametrize("rank", [None, 1])
def test_only_a_sole_reader_is_folded(kind, kept, rank):
    model = settled(kind())
    if rank is not None:
        model = convert.factorize(model, rank=rank)
    assert norms(deployed(model, randn(2, 3, 5, 5).abs())) == kept


def test_both_branches_of_an_argument():
    model, x = settled(Flag()), randn(2, 3, 5, 5)
    deployed(model, x, features=True)
    model = settled(OptionalArgument())
    deployed(model, x, skip=randn(2, 4, 5, 5, seed=1))


class Gate(nn.Module):
    """Goes on with `inside`, or not, depending on the values: torch.fx cannot trace it."""

    def __init__(self, *inside):
        super().__init__()
        self.inside = nn.ModuleList(inside)

    def forward(self, x):
        for module in self.inside:
            if x.sum() > -1e9:
                x = module(x)
        return x


def block():
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())


@pytest.mark.parametrize("rank", [None, 1])
def test_where_tracing_fails_neighbours_in_a_sequence_are_folded(rank):
    """In the gate nothing is, which may reach into its blocks, unless an example shows that it does not; in the gate
    itself nothing is even then; around it everything is."""
    gate = Gate(block(), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), Gate(block()))
    model = settled(nn.Sequential(block(), gate, *block()))
    if rank is not None:
        model = convert.factorize(model, rank=rank)
    x = randn(2, 3, 7, 7)
    small = deployed(model, x)
    inside = {"1.inside.0", "1.inside.3.inside.0"}
    assert norms(small) == {"1.inside.2", *(f"{name}.1" for name in inside)}
    kept = {"1.inside.1"}  # the gate may read its weight
    low = {*kept, *(f"{name}.0" for name in inside)}
    assert low_rank_layers(small).keys() == (set() if rank is None else low)
    by_example = deploy(model, x)
    torch.testing.assert_close(by_example(x), small(x), rtol=0, atol=1e-10)
    assert norms(by_example) == {"1.inside.2"}
    assert low_rank_layers(by_example).keys() == (set() if rank is None else kept)
    assert norms(deployed(gate.float().double(), x)) == {"inside.0.1", "inside.2", "inside.3.inside.0.1"}


class ReachesIn(nn.Module):
    """Cannot be traced, and reads the convolution of a block before its normalization."""

    def __init__(self):
        super().__init__()
        self.block = block()

    def forward(self, x):
        y = self.block(x)
        return y + self.block[0](x) if y.sum() > -1e9 else y


class ReadsRank(ReachesIn):
    """Fails where the layer is another one."""

    def forward(self, x):
        y = self.block(x)
        return y * self.block[0].U.shape[1] if y.sum() > -1e9 else y


@pytest.mark.parametrize(("kind", "rank"), [(ReachesIn, None), (ReachesIn, 1), (ReadsRank, 1)])
def test_what_untraceable_code_reaches_into_stays(kind, rank):
    model, x = settled(nn.Sequential(*block(), kind(), *block())), randn(2, 3, 7, 7)
    if rank is not None:
        model = convert.factorize(model, rank=rank)
    small = deployed(model, x)
    assert norms(small) == {"3.block.1"}
    for example in (x, (x,), {"input": x}):
        by_example = deploy(model, example)
        assert norms(by_example) == {"3.block.1"}
        torch.testing.assert_close(by_example(x), small(x), rtol=0, atol=1e-10)


class Outputs(nn.Module):
    """Returns what `of` makes of its output."""

    def __init__(self, of):
        super().__init__()
        self.gate, self.of = Gate(block()), of

    def forward(self, x):
        return self.of(self.gate(x))


@pytest.mark.parametrize(
    "of", [lambda y: (y, [y, {"a": y}]), lambda y: {"a": y, "label": y.argmax(), "none": None}, lambda y: [y.sum()]]
)
def test_an_example_compares_all_tensors_of_the_output(of):
    assert not norms(deploy(settled(Outputs(of)), randn(2, 3, 5, 5)))


@pytest.mark.parametrize(
    ("of", "what"),
    [
        (lambda y: torch.rand_like(y), "returns the same output every time"),
        (lambda y: y * math.nan, "returns finite numbers"),
        (lambda y: {"none": None}, "returns tensors"),
    ],
)
def test_an_example_that_shows_nothing_is_refused(of, what):
    with pytest.raises(ValueError, match=f"example = 'Tensor': must be one .*{what}"):
        deploy(settled(Outputs(of)), randn(2, 3, 5, 5))


def test_a_layer_used_again_inside_untraceable_code():
    shared = nn.Conv2d(3, 3, 3, padding=1)
    model = settled(nn.Sequential(shared, nn.BatchNorm2d(3), Gate(nn.Sequential(shared, nn.ReLU()))))
    assert norms(deployed(model, randn(2, 3, 5, 5))) == {"1"}
    model = settled(nn.Sequential(shared, nn.BatchNorm2d(3), Gate(shared)))
    assert norms(deployed(model, randn(2, 3, 5, 5))) == {"1"}


class ReadingGate(nn.Module):
    """Reads the bias of a layer that is not part of it, and only then cannot be traced."""

    def __init__(self, conv):
        super().__init__()
        self.elsewhere = [conv]

    def forward(self, x):
        y = x + self.elsewhere[0].bias.sum()
        return y if y.sum() > 1e9 else x


class ReadsAfterwards(Convolutions):
    def __init__(self):
        super().__init__()
        self.gate = ReadingGate(self.a)

    def forward(self, x):
        return super().forward(self.gate(x)) + self.a.bias.sum()


class CallingGate(nn.Module):
    """Calls layers that are not part of it, and reads an output a second time where it can no longer be traced."""

    def __init__(self, *layers):
        super().__init__()
        self.elsewhere = layers

    def forward(self, x):
        conv, norm = self.elsewhere
        y = conv(x)
        z = norm(y)
        return z + y if z.sum() > -1e9 else z


class CalledElsewhere(Convolutions):
    def __init__(self):
        super().__init__()
        self.gate = CallingGate(self.a, self.norm_a)

    def forward(self, x):
        return self.norm_b(self.b(self.gate(x)))


def test_a_failed_trace_leaves_no_trace():
    """What follows the untraceable module is seen, and so is what surrounds it."""
    for kind in (ReadsAfterwards, CalledElsewhere):
        assert norms(deployed(settled(kind()), randn(2, 3, 5, 5))) == {"norm_a"}
    assert not norms(deployed(settled(nn.Sequential(nn.Sequential(*block(), Gate(nn.ReLU())))), randn(2, 3, 5, 5)))


@pytest.mark.parametrize(
    ("layers", "folded"),
    [
        ((nn.Linear(6, 6), nn.BatchNorm1d(6)), False),  # (B, 6, 6) would be normalized along another axis
        ((nn.Flatten(), nn.Linear(36, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6)), True),
        ((nn.Flatten(), nn.Linear(36, 6, bias=False), nn.BatchNorm1d(6, affine=False)), True),
        ((nn.Flatten(0, 1), nn.Linear(6, 6), nn.BatchNorm1d(6)), False),
        ((nn.Conv1d(6, 6, 1), nn.BatchNorm1d(6)), True),
    ],
)
@pytest.mark.parametrize("rank", [None, 1])
def test_linear_layers(layers, folded, rank):
    model = settled(copy.deepcopy(nn.Sequential(*layers)))
    if rank is not None:
        model = convert.factorize(model, rank=rank)
    assert (not norms(deployed(model, randn(5, 6, 6)))) == folded


@pytest.mark.parametrize(
    ("flatten", "folded"),
    [
        (lambda x: x.flatten(1), True),
        (lambda x: torch.flatten(x, start_dim=1), True),
        (lambda x: x.view(x.size(0), -1), True),
        (lambda x: x.reshape(-1, 36), True),
        (lambda x: x.reshape(x.shape), False),
        (lambda x: F.leaky_relu(x.flatten(1)), True),
        (lambda x: x.flatten(0, 1).flatten(0, -1).view(-1, 36), True),
        (lambda x: x.flatten(end_dim=1).view(-1, 6, 6).flatten(1), True),
        (lambda x: x.flatten(1).sin(), False),  # not among those that are known
    ],
)
def test_matrices_are_recognized(flatten, folded):
    class Flat(nn.Sequential):
        def forward(self, x):
            return super().forward(flatten(x))

    x = randn(6, 6, 6)
    model = Flat(nn.Linear(flatten(x).shape[-1], 6), nn.BatchNorm1d(6))
    assert (not norms(deployed(settled(model), x))) == folded


def test_without_running_statistics_nothing_is_folded():
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)))
    assert norms(deployed(model, randn(2, 3, 5, 5))) == {"1"}


def test_a_layer_that_is_more_than_its_weight():
    """Hooks recompute weights or see outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        hooked = nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))
    observed, seen = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), []
    observed[0].register_forward_hook(lambda module, given, y: seen.append(y))
    for model in (hooked, observed):
        assert norms(deploy(settled(model).eval())) == {"1"}
    subclass = type("Scaled", (nn.Conv2d,), {"forward": lambda self, x: 2 * nn.Conv2d.forward(self, x)})
    assert norms(deployed(settled(nn.Sequential(subclass(3, 4, 3), nn.BatchNorm2d(4))), randn(2, 3, 5, 5))) == {"1"}


def test_a_parametrized_weight_is_deployed_as_it_is():
    parametrizations = nn.utils.parametrizations
    for parametrize in (parametrizations.weight_norm, parametrizations.spectral_norm):
        model = settled(nn.Sequential(parametrize(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)))
        small = deployed(model, randn(2, 3, 5, 5))
        assert not norms(small)
        assert type(small[0]) is nn.Conv2d
        assert nn.utils.parametrize.is_parametrized(model[0])  # the model itself is not changed


def test_tied_weights_are_folded_apart():
    model = settled(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    model[2].weight = model[0].weight
    assert not norms(deployed(model, randn(2, 3, 5, 5)))


def test_reflected_and_grouped_convolutions_are_folded_too():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect", groups=2), nn.BatchNorm2d(8))
    assert not norms(deployed(settled(model), randn(2, 4, 5, 5)))


def test_networks_that_remember():
    """What forward code stores is no placeholder afterwards, and a network may have several inputs and outputs."""

    class Remembers(Convolutions):
        def forward(self, x, y):
            self.last = self.norm_a(self.a(x + y))
            return {"first": self.last, "second": self.norm_b(self.b(self.last))}

    x = randn(2, 3, 5, 5)
    small = deploy(settled(Remembers()))
    assert not norms(small)
    assert not hasattr(small, "last")
    assert copy.deepcopy(small)(x, x)["second"].shape == (2, 4, 5, 5)


def test_sizes_can_be_read_where_the_layer_was():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 4, 3, stride=2), nn.Linear(16, 5)

        def forward(self, x):
            x = self.conv(x)
            assert self.conv.out_channels == 4
            assert self.conv.stride == (2, 2)
            return self.head(x.view(-1, self.head.in_features))

    small = deployed(convert.factorize(Reads().double(), rank=1), randn(3, 2, 5, 5))
    assert isinstance(small.conv, nn.Sequential)
    assert isinstance(small.head, nn.Sequential)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.conv = nn.Linear(8, 8), nn.Conv2d(1, 8, 3)

    def forward(self, x):
        x = F.linear(x, self.linear.weight) + self.linear(x)
        return self.conv(x) + self.conv.weight.sum()


def test_a_weight_that_is_read_stays():
    """The layer keeps its class, merged, and its kernel is not copied at every call."""
    small = deployed(convert.factorize(Reader().double(), rank=2), randn(2, 1, 8, 8))
    assert [type(small.linear), type(small.conv)] == [LowRankLinear, LowRankConv2d]
    assert small.linear.S is small.conv.S is None
    assert small.conv.V.mT.is_contiguous()


@pytest.mark.parametrize("grad", [True, False])
def test_transformer_layers_keep_their_weights(grad):
    """Their fast path reads them, of linear1 for one."""
    encoder = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12, dropout=0.0, batch_first=True)
    model = convert.factorize(nn.Sequential(nn.Linear(5, 8), encoder, nn.Linear(8, 3)).double(), rank=2)
    with torch.set_grad_enabled(grad):
        small = deployed(model, randn(2, 7, 5))
    matrices = ("linear1", "linear2", "self_attn.in_proj", "self_attn.out_proj")
    assert low_rank_layers(small).keys() == {f"1.{name}" for name in matrices}


class WeightGate(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return x @ self.linear.weight if x.sum() > -1e9 else x


def test_a_weight_that_others_read_stays():
    """In code that cannot be traced, or that of a layer of torch."""
    shared, encoder = nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
    encoder.linear1 = shared
    for other in (WeightGate(shared), encoder):
        with torch.no_grad():
            small = deployed(convert.factorize(nn.Sequential(shared, other).double(), rank=2), randn(2, 7, 8))
        assert "0" in low_rank_layers(small)


def test_parameters_promised_less_those_of_folded_normalization():
    """A folded normalization of width w leaves a bias of w where there was none, and nothing else."""
    low = convert.factorize(settled(SmallVGG16()), ratio=0.8)
    small = deploy(low)
    folded = sum(w for stage in SmallVGG16.WIDTHS for w in stage)
    size = sum(p.numel() for p in small.parameters())
    assert size == counts.count_parameters(low).deployed - folded == counts.count_parameters(low).deployed - 600


def test_deployed_weights_load_into_a_deployed_network():
    small = deploy(convert.factorize(Tiny(), rank=2))
    other = deploy(convert.factorize(Tiny(), rank=2))
    other.load_state_dict(small.state_dict(), strict=True)
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(other(x), small(x))


def test_deploying_twice_changes_nothing():
    small = deploy(convert.factorize(settled(models.WideResNet(widen=1)), ratio=0.8))
    x = torch.rand(2, 3, 8, 8, dtype=DOUBLE)
    assert torch.equal(deploy(small)(x), small(x))


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last(channels):
    """Input in channels-last stays so through every convolution, and the kernels can be."""
    low = convert.factorize(settled(Convolutions()) if channels == 3 else nn.Conv2d(1, 4, 3).double(), rank=1)
    x = randn(2, channels, 6, 6)
    small = deploy(low)
    expected, inputs = small(x), x.to(memory_format=torch.channels_last)
    for network in (small, copy.deepcopy(small).to(memory_format=torch.channels_last)):
        y = network(inputs)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_export():
    small = deploy(convert.factorize(SmallVGG16(), ratio=0.8))
    x = torch.rand(2, 3, 32, 32)
    expected = small(x)
    torch.testing.assert_close(torch.export.export(small, (x,)).module()(x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.testing.assert_close(torch.jit.trace(small, x)(x), expected)
        torch.testing.assert_close(torch.jit.script(small.features)(x), small.features(x))


def test_the_data_flow_of_a_network():
    flow = dataflow(convert.factorize(models.WideResNet(widen=1, blocks=1), rank=1))
    assert flow.normalized == {f"blocks.{i}.conv1": f"blocks.{i}.bn2" for i in range(3)}
    parts = ("bn1", "conv1", "bn2", "conv2", "shortcut")
    of_blocks = {f"blocks.{i}.{part}" for i in range(3) for part in parts} - {"blocks.0.shortcut"}
    assert flow.called == {"conv", "bn", "fc"} | of_blocks  # what is traced into is not called but followed


class CalledTwice(nn.Module):
    """Its layer sees two inputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        return self.linear(self.linear(x))


@pytest.mark.parametrize(("longer", "form"), [(True, nn.Linear), (False, nn.Sequential)])
def test_with_an_example_the_faster_form_is_taken(longer, form, monkeypatch):
    torch.manual_seed(0)
    model = convert.factorize(nn.Sequential(CalledTwice(), nn.Linear(6, 9)).double(), rank=2)
    x, seen = randn(4, 6), []

    def takes_longer(this, that, inputs):
        seen.append((tuple(inputs.shape), torch.allclose(this(inputs), that(inputs))))
        return longer

    monkeypatch.setattr(deployment, "_takes_longer", takes_longer)
    small = deploy(model, x)
    assert [type(layer) for layer in (small[0].linear, small[1])] == [form, form]
    assert seen == [((4, 6), True)] * 2
    torch.testing.assert_close(small(x), model(x))
    assert not any(layer._forward_pre_hooks for layer in low_rank_layers(model).values())
    for without in (deploy(model), deploy(model, x, measure=False)):
        assert type(without[1]) is nn.Sequential
    assert len(seen) == 2


def test_times_are_those_of_the_layers():
    slow, fast, x = nn.Sequential(*(nn.Linear(400, 400) for _ in range(8))), nn.Linear(400, 400), torch.rand(64, 400)
    assert deployment._takes_longer(slow, fast, x)
    assert not deployment._takes_longer(fast, slow, x)
