"""Conversion of whole networks: the user's architecture survives, and the counts are those of methods.md 3.6."""

import copy
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from architectures import networks as models
from helpers import DOUBLE, Tiny, randn
from wellcond import convert
from wellcond.counts import count_flops, count_parameters
from wellcond.deployment import deploy
from wellcond.kinds.convolution import LowRankConv2d
from wellcond.layers import LowRankLinear, low_rank_layers, matricize
from wellcond.methods import method
from wellcond.methods.tucker import Tucker2Conv2d


class Residual(nn.Module):
    """Skips, a layer called twice, a layer reached by two names, and a weight that the forward code reads itself."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.mix = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.alias = self.mix
        self.head = nn.ModuleDict({"out": nn.Linear(6, 4)})

    def forward(self, x):
        x = F.relu(self.conv(x))
        x = x + F.relu(self.mix(x))
        x = (x + F.relu(self.alias(x))).mean((2, 3))
        return self.head["out"](x) + F.linear(x, self.head["out"].weight)


def settled(model):
    """Double precision, with batch-norm statistics and weights that are not those of a fresh network."""
    torch.manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    return model.double()


def small_wrn():
    return settled(models.WideResNet(num_classes=5, blocks=2, widen=1))


NETWORKS = {
    "wide residual network": (small_wrn, (2, 3, 8, 8)),
    "residual network": (lambda: settled(models.ResNet(widths=(4, 8), blocks=1)), (2, 3, 8, 8)),
    "custom skips and aliases": (lambda: settled(Residual()), (2, 3, 6, 6)),
    "tiny": (lambda: settled(Tiny()), (2, 1, 28, 28)),
    "a single layer": (lambda: nn.Linear(6, 4).double(), (2, 6)),
}


@pytest.mark.parametrize("core", [True, False])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_at_full_rank_the_function_is_unchanged(name, training, core):
    """The regression test for skip connections lost in conversion."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make().train(training)
    x = torch.rand(shape, dtype=DOUBLE)
    factorized = convert.factorize(model, ratio=0, core=core)
    assert low_rank_layers(factorized)
    assert not any(type(m) in (nn.Linear, nn.Conv2d) for m in factorized.modules())
    torch.testing.assert_close(factorized(x), model(x), rtol=0, atol=1e-10)


def test_skips_matter_in_the_networks_of_this_test():
    """Without them the functions differ: the test above would notice a lost one."""
    model = small_wrn().eval()
    x = torch.rand(2, 3, 8, 8, dtype=DOUBLE)
    expected = model(x)
    for block in model.blocks:
        block.forward = lambda x, block=block: block.conv2(
            F.leaky_relu(block.bn2(block.conv1(F.leaky_relu(block.bn1(x)))))
        )
    assert (model(x) - expected).abs().max() > 0.1


def test_the_original_is_untouched():
    model = settled(Residual())
    before = copy.deepcopy(model.state_dict())
    factorized = convert.factorize(model, rank=2)
    with torch.no_grad():
        for p in factorized.parameters():
            p.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not low_rank_layers(model)


def test_a_layer_with_two_names_stays_one_layer():
    for conversion in (lambda m: m, convert.densify, deploy):
        model = conversion(convert.factorize(settled(Residual()), rank=1))
        assert model.mix is model.alias


@given(tenths=st.integers(0, 99), full=st.integers(1, 600))
def test_rank_rule_is_the_exact_ceiling(tenths, full):
    """ceil((1 - ratio)·full) in rational arithmetic, at least 1."""
    assert convert.rank_for_ratio(tenths / 100, full) == max(1, -((tenths - 100) * full // 100))


@pytest.mark.parametrize(("ratio", "full", "rank"), [(0.7, 10, 3), (0.8, 10, 2), (0.9, 20, 2), (0.5, 25, 13)])
def test_rank_rule_where_floating_point_rounds_up(ratio, full, rank):
    assert convert.rank_for_ratio(ratio, full) == rank


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, math.nan])
def test_ratio_out_of_range(ratio):
    with pytest.raises(ValueError, match=rf"ratio = {ratio}: must be in \[0, 1\)"):
        convert.factorize(nn.Linear(3, 3), ratio=ratio)


def ranks(model):
    return {name: layer.rank for name, layer in low_rank_layers(model).items()}


# full ranks: conv 6, hidden 24, classifier 10
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"ratio": 0.75}, {"conv": 2, "hidden": 6, "classifier": 3}),
        ({"rank": 8}, {"conv": 6, "hidden": 8, "classifier": 8}),
        ({"rank": {"hidden": 5}}, {"hidden": 5}),
        ({"rank": 2, "skip": ["conv"]}, {"hidden": 2, "classifier": 2}),
        ({"rank": 2, "skip": ["c*"]}, {"hidden": 2}),
        ({"rank": 2, "keep_full_rank": ["h*", "classifier"]}, {"conv": 2, "hidden": 24, "classifier": 10}),
        ({"ratio": 0.5, "skip": ["hidden"], "keep_full_rank": ["conv"]}, {"conv": 6, "classifier": 5}),
    ],
    ids=str,
)
def test_choice_of_layers_and_ranks(arguments, expected):
    assert ranks(convert.factorize(Tiny(), **arguments)) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "ratio = None, rank = None: give exactly one"),
        ({"ratio": 0.5, "rank": 2}, "ratio = 0.5, rank = 2: give exactly one"),
        ({"rank": 0}, r"rank = 0: must be a whole number in 1\.\.6"),
        ({"rank": {"hidden": 25}}, r"rank = 25: must be a whole number in 1\.\.24 for a 24 x 24"),
        ({"rank": {"hiden": 3}}, "rank = 'hiden': unknown; did you mean 'hidden'"),
        ({"ratio": 0.5, "skip": ["clasifier"]}, "skip = 'clasifier': unknown; did you mean 'classifier'"),
        ({"ratio": 0.5, "keep_full_rank": ["fc*"]}, r"keep_full_rank = 'fc\*': unknown; .*accepted: classifier, conv"),
    ],
)
def test_bad_choices(arguments, message):
    with pytest.raises(ValueError, match=message):
        convert.factorize(Tiny(), **arguments)


class Standardized(nn.Conv2d):
    """Applies another weight than the one it holds."""

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias)


def test_layers_without_a_matrix_of_their_own_stay_dense_with_one_warning():
    """Of what is of no known kind, only what holds more than a hundredth of the parameters is told; and nothing that
    was to be skipped."""
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, groups=4, padding=1) for _ in range(6)), Standardized(4, 40, 3))
    model.extend([nn.Conv2d(40, 2, 3), nn.Bilinear(2, 1, 1), nn.PReLU()])
    told = (
        r"left dense: 0, 1, 2, 3 and 2 more \(a depthwise convolution, one row a group\); "
        r"6 \(Standardized, a Conv2d that may use its weight in another way\)$"
    )
    with pytest.warns(UserWarning, match=told) as caught:
        factorized = convert.factorize(model, rank=1)
    assert len(caught) == 1
    assert list(low_rank_layers(factorized)) == ["7"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert.factorize(model, rank=1, skip=["[0-6]"])


def other_parameters(model):
    """Biases and normalization."""
    weights = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    return sum(p.numel() for p in model.parameters() if id(p) not in weights)


TABLE = [  # methods.md 3.6: weights dense, trained with U S Vᵀ everywhere, deployed with a dense last layer
    ("lenet5", 1, 10, 0.5, 430_500, 407_625, 344_200),
    ("lenet5", 1, 10, 0.8, 430_500, 150_996, 140_680),
    ("vgg16", 3, 10, 0.5, 15_239_872, 9_371_270, 8_788_218),
    ("vgg16", 3, 10, 0.8, 15_239_872, 3_637_559, 3_542_818),
    ("wrn16_4", 3, 10, 0.5, 2_745_264, 1_647_904, 1_556_440),
    ("wrn16_4", 3, 10, 0.8, 2_745_264, 649_189, 633_916),
    ("wrn16_4", 3, 100, 0.5, 2_768_304, 1_690_744, 1_579_480),
]


@pytest.mark.parametrize(("name", "channels", "classes", "ratio", "dense", "trained", "deployed"), TABLE)
def test_weight_counts_of_the_study(name, channels, classes, ratio, dense, trained, deployed):
    with torch.device("meta"):  # shapes without numbers: no singular value decomposition is computed
        model = models.build(name, num_classes=classes, in_channels=channels)
        factorized = convert.factorize(model, ratio=ratio, keep_full_rank=method.last_layer(model))
    counts, rest = count_parameters(factorized), other_parameters(model)
    assert (counts.dense - rest, counts.trained - rest, counts.deployed - rest) == (dense, trained, deployed)
    assert counts.dense == sum(p.numel() for p in model.parameters())
    assert counts.trained == sum(p.numel() for p in factorized.parameters())
    assert count_parameters(model).rank_fraction == 1


@pytest.mark.parametrize(("ratio", "ranks_"), [(0.5, (10, 25, 250, 10)), (0.8, (4, 10, 100, 10))])
def test_ranks_and_rank_fraction_of_lenet5(ratio, ranks_):
    with torch.device("meta"):
        factorized = convert.factorize(models.build("lenet5"), ratio=ratio, keep_full_rank=["fc2"])
    assert tuple(ranks(factorized).values()) == ranks_
    assert count_parameters(factorized).rank_fraction == pytest.approx(sum(ranks_) / 580)


def test_an_empty_count():
    counts = count_parameters(nn.BatchNorm1d(3))
    assert (counts.dense, counts.trained, counts.deployed, counts.rank_fraction) == (6, 6, 6, 1.0)


@pytest.mark.parametrize("core", [True, False])
@pytest.mark.parametrize("ratio", [0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", NETWORKS)
def test_densify_and_deploy_keep_the_function(name, ratio, core):
    """Deployment never stores more than the dense network; its size is what count_parameters promised, less what the
    folded batch normalizations had beside a bias."""
    make, shape = NETWORKS[name]
    model = make().eval()
    x = torch.rand(shape, dtype=DOUBLE)
    factorized = convert.factorize(model, ratio=ratio, core=core)
    expected = factorized(x)
    dense, small = convert.densify(factorized), deploy(factorized)
    for converted in (dense, small):
        torch.testing.assert_close(converted(x), expected, rtol=0, atol=1e-10)
        assert not converted.training
    torch.testing.assert_close(factorized(x), expected, rtol=0, atol=0)  # the argument is untouched
    counts = count_parameters(factorized)
    size = {m: sum(p.numel() for p in m.parameters()) for m in (model, dense, small)}
    assert size[dense] == size[model] == counts.dense
    width = {label: m.num_features for label, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    folded = [label for label in width if isinstance(small.get_submodule(label), nn.Identity)]
    assert size[small] + sum(width[label] for label in folded) == counts.deployed <= counts.dense
    assert all(layer.S is None for layer in low_rank_layers(small).values())


class TestFlops:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 4))

    def test_by_hand(self):
        """A multiply-add is 2: the kernel has 6 x 18 weights at 3 x 3 positions, the linear layer 54 x 4."""
        assert count_flops(self.model, (2, 5, 5)) == 2 * (6 * 18 * 9 + 54 * 4)

    def test_factorized_by_hand(self):
        """r(n + m) multiply-adds a position once U S is merged; at r = 2: conv 2(6 + 18), linear 2(4 + 54)."""
        small = deploy(convert.factorize(self.model, rank=2))
        assert count_flops(small, (2, 5, 5)) == 2 * (2 * 24 * 9 + 2 * 58)

    def test_modes_are_restored(self):
        model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.BatchNorm1d(3))
        model[1].eval()
        statistics = model[2].running_mean.clone()
        count_flops(model, (3,))
        assert [m.training for m in model] == [True, False, True]
        assert torch.equal(model[2].running_mean, statistics)


class Attention(nn.Module):
    """nn.MultiheadAttention reads its projections' weights itself instead of calling them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.encoder(x).mean(1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_attention_survives(training, grad):
    """In evaluation mode without gradients TransformerEncoderLayer takes its fast path, which reads linear1.weight."""
    model = Attention().double().train(training)
    factorized = convert.factorize(model, ratio=0)
    converted = {"embed", "head", "encoder.linear1", "encoder.linear2"}
    attention = {f"{name}.{part}_proj" for name in ("attention", "encoder.self_attn") for part in ("in", "out")}
    assert low_rank_layers(factorized).keys() == converted | attention
    x = randn(2, 7, 5)
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(factorized(x), model(x), rtol=0, atol=1e-10)
        assert convert.factorize(model, ratio=0.5).train(training)(x).shape == (2, 3)


def test_torchvision_resnet_stays_residual():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18(weights=None).eval()
    factorized = convert.factorize(model, ratio=0, skip=["layer3.*", "layer4.*"])  # the large SVDs add nothing
    assert isinstance(factorized.layer1[0].conv1, LowRankConv2d)
    assert isinstance(factorized.fc, LowRankLinear)
    x = torch.rand(1, 3, 32, 32)
    expected = model(x)
    # single precision through ten layers
    torch.testing.assert_close(factorized(x), expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    small = deploy(convert.factorize(model, rank=2, skip=["layer4.*"]))
    assert small(x).shape == (1, 1000)


@pytest.mark.parametrize("form", [{}, {"core": False}, {"convolution": Tucker2Conv2d}, None])
def test_decayed_spectra(form):
    """The k-th singular value of every weight is multiplied by α^-k, k = 0, 1, ...; vectors and biases stay."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 5)).double()
    make = (lambda: copy.deepcopy(dense)) if form is None else (lambda: convert.factorize(dense, rank=4, **form))
    start, model = make(), method.decay_spectra(make(), 3.0, skip=["2"])
    P, sigma, Qt = torch.linalg.svd(matricize(start[0].weight), full_matrices=False)
    powers = 3.0 ** -torch.arange(len(sigma), dtype=torch.float64)
    torch.testing.assert_close(matricize(model[0].weight), (P * (sigma * powers)) @ Qt)
    assert torch.equal(model[2].weight, start[2].weight)
    assert torch.equal(model[0].bias, start[0].bias)
    with pytest.raises(ValueError, match=r"decay = 0.5: must be >= 1"):
        method.decay_spectra(model, 0.5)
