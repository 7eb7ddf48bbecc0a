"""Compressors: what is removed scores least, sizes really shrink, and the function is that of the masked network."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from architectures import networks
from helpers import DOUBLE, Tiny, generator
from wellcond.compression.batch_norm import reestimate_batch_norm
from wellcond.compression.compressors import COMPRESSORS, compress, iterated
from wellcond.compression.filters import channels
from wellcond.compression.units import ranked
from wellcond.convert import densify, factorize, rank_for_ratio
from wellcond.counts import count_flops, count_parameters
from wellcond.deployment import deploy
from wellcond.layers import LowRankLayer, low_rank_layers, matricize, weight_layers

VGG16, LeNet5, ResNet, WideResNet = networks.VGG16, networks.LeNet5, networks.ResNet, networks.WideResNet


class SmallVGG16(VGG16):
    WIDTHS = ((6, 6), (6, 6), (8, 8, 8), (8, 8, 8), (8, 8, 512))


class SmallLeNet5(LeNet5):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 8, 5)
        self.fc1, self.fc2 = nn.Linear(128, 20), nn.Linear(20, 10)


class RowsNormalized(nn.Module):
    """A normalization of flattened channels, and two readers of the same convolution."""

    def __init__(self):
        super().__init__()
        self.conv, self.rows, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm1d(6 * 900), nn.Linear(6 * 900, 4)
        self.side = nn.Conv2d(6, 4, 3)

    def forward(self, x):
        x = F.leaky_relu(self.conv(x))
        return self.fc(self.rows(x.view(x.size(0), -1))) + self.side(x).mean((2, 3))


def settled(model):
    """Double precision; biases, and batch normalizations far from the identity."""
    torch.manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return model.double().eval()


NETWORKS = {
    "lenet5": (SmallLeNet5, (1, 28, 28)),
    "vgg16": (SmallVGG16, (3, 32, 32)),
    "wide residual network": (lambda: WideResNet(blocks=1, widen=1), (3, 32, 32)),
    "residual network": (lambda: ResNet(widths=(4, 8), blocks=1), (3, 32, 32)),
    "flattened channels": (RowsNormalized, (3, 32, 32)),
}
SVD = [name for name in COMPRESSORS if name.startswith("svd")]
FILTERS = [name for name in COMPRESSORS if name.startswith("filters")]


def network(name, n_images=2):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    return settled(make()), torch.rand(n_images, *shape, dtype=DOUBLE, generator=generator(1))


def matrices(model):
    return {name: matricize(layer.weight.detach()) for name, layer in weight_layers(model).items()}


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_given_network_is_unchanged_and_nothing_removed_changes_nothing(name, compressor):
    model, x = network(name)
    before, y = copy.deepcopy(model.state_dict()), model(x)
    same, small = compress(model, compressor, amount=0), compress(model, compressor, amount=0.5)
    torch.testing.assert_close(same.model(x), y, rtol=0, atol=1e-10)
    assert same.size == count_parameters(model).dense - sum(int((W == 0).sum()) for W in matrices(model).values())
    assert small.size < same.size
    assert small.model(x).isfinite().all()
    assert type(small.model) is type(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    stored = {p.data_ptr() for p in model.parameters()}
    assert stored.isdisjoint(p.data_ptr() for p in small.model.parameters())
    assert {*small.kept, *small.whole} <= weight_layers(model).keys()
    assert not {*small.kept} & {*small.whole}


@pytest.mark.parametrize("compressor", SVD)
@pytest.mark.parametrize("amount", [0.3, 0.7, 0.95])
def test_the_truncation_error_of_each_layer_is_that_of_eckart_and_young(compressor, amount):
    """||W - W_r||_F² is the sum of the squares of the removed singular values, whether stored as factors or dense."""
    model, _ = network("vgg16")
    small = compress(model, compressor, amount=amount)
    after = matrices(small.model)
    assert small.kept.keys() == matrices(model).keys()
    for name, W in matrices(model).items():
        sigma, r = torch.linalg.svdvals(W), small.kept[name]
        n, m = W.shape
        assert 1 <= r <= min(n, m)
        assert torch.linalg.matrix_rank(after[name]) == r
        error = (W - after[name]).square().sum()
        torch.testing.assert_close(error, sigma[r:].square().sum(), rtol=1e-8, atol=1e-16)
        layer = small.model.get_submodule(name)
        assert isinstance(layer, LowRankLayer) == (r * (n + m) < n * m and r < min(n, m))
        assert sum(p.numel() for p in layer.parameters() if p.ndim > 1) <= n * m
    assert small.size == sum(p.numel() for p in small.model.parameters())


@given(amount=st.floats(0, 0.999))
def test_uniform_ranks_are_those_of_the_ratio(amount):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 7, 3), nn.Flatten(), nn.Linear(63, 10))
    assert compress(model, "svd", amount=amount).kept == {
        "0": rank_for_ratio(amount, 7),
        "2": rank_for_ratio(amount, 10),
    }


@pytest.mark.parametrize("compressor", ["svd_global", "svd_global_norm"])
@pytest.mark.parametrize("amount", [0.2, 0.6, 0.9])
def test_a_global_spectrum_is_one_threshold(compressor, amount):
    """By brute force: of all thresholds, the one that leaves as many singular values as were to be left."""
    model, _ = network("lenet5")
    spectra = {name: torch.linalg.svdvals(W) for name, W in matrices(model).items()}
    scaled = {
        name: sigma / (sigma[0] if compressor == "svd_global" else sigma.square().sum().sqrt())
        for name, sigma in spectra.items()
    }
    total = sum(len(sigma) for sigma in spectra.values())
    left = total - math.floor(amount * total + 1e-9)

    def ranks(threshold):
        return {name: max(1, int((sigma > threshold).sum())) for name, sigma in scaled.items()}

    every = [ranks(threshold) for threshold in sorted(torch.cat([*scaled.values()]).tolist())]
    assert compress(model, compressor, amount=amount).kept == next(r for r in every if sum(r.values()) <= left)


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_a_target_is_met_by_the_smallest_amount_that_does(compressor):
    model, _ = network("lenet5")
    dense = count_parameters(model).dense
    sizes = [COMPRESSORS[compressor](model)(i / 100).size for i in range(0, 100, 3)]
    assert sizes == sorted(sizes, reverse=True)
    for share in (0.8, 0.6):
        small = compress(model, compressor, share=share)
        assert small.size == max(small.size, *(size for size in sizes if size <= share * dense)) <= share * dense
    assert compress(model, compressor, share=1).size == sizes[0]


def masked(model, kept, p):
    """`model`, whose layers read zeros from the channels of all but the `kept` filters of largest l_p norm."""
    new = copy.deepcopy(model)
    for name, count in kept.items():
        norms = model.get_parameter(f"{name}.weight").flatten(1).abs().pow(p).sum(1)
        stays = torch.zeros(len(norms), dtype=DOUBLE)
        stays[norms.topk(count).indices] = 1
        for reader, share in channels(model)[0][name].readers.items():
            mask = stays.repeat_interleave(share)
            new.get_submodule(reader).register_forward_pre_hook(
                lambda module, args, mask=mask: args[0] * mask.view(1, -1, *[1] * (args[0].ndim - 2))
            )
    return new


@pytest.mark.parametrize("compressor", FILTERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_pruned_network_is_the_masked_one_and_smaller(name, compressor):
    model, x = network(name)
    p = int(compressor[len("filters_l")])
    for amount in (0.3, 0.6, 0.99):
        small = compress(model, compressor, amount=amount)
        torch.testing.assert_close(small.model(x), masked(model, small.kept, p)(x), rtol=0, atol=1e-10)
        assert small.size == sum(w.numel() for w in small.model.parameters()) < count_parameters(model).deployed
        assert count_flops(small.model, tuple(x.shape[1:])) < count_flops(model, tuple(x.shape[1:]))
        for layer, count in small.kept.items():
            conv = small.model.get_submodule(layer)
            assert conv.out_channels == len(conv.weight) == count >= 1
            if "global" not in compressor:
                assert count == rank_for_ratio(amount, model.get_submodule(layer).out_channels)
    assert not torch.allclose(small.model(x), model(x), atol=1e-3)  # or the masks would do nothing


def test_operations_and_parameters_of_a_pruned_lenet5():
    """24·24 and 8·8 positions, 4·4 inputs of the linear layer a channel."""
    model, _ = network("lenet5")
    small = compress(model, "filters_l2", amount=0.5)
    assert small.kept == {"conv1": 3, "conv2": 4}
    assert not small.whole
    weights = 3 * 25, 4 * 3 * 25, 20 * 4 * 16, 200
    assert small.size == sum(weights) + 3 + 4 + 20 + 10
    positions = 24 * 24, 8 * 8, 1, 1
    assert count_flops(small.model, (1, 28, 28)) == 2 * sum(w * n for w, n in zip(weights, positions, strict=True))


def test_global_ranking_compares_root_mean_squares():
    model, _ = network("lenet5")
    model.conv1.weight.data *= 100
    small = compress(model, "filters_l2_global", amount=0.5)
    assert small.kept == {"conv1": 6, "conv2": 1}
    model.conv1.weight.data *= 1e-6
    assert compress(model, "filters_l2_global", amount=0.5).kept == {"conv1": 1, "conv2": 6}


def test_of_a_residual_network_what_feeds_the_sums_is_left_whole():
    model, _ = network("wide residual network")
    small = compress(model, "filters_l1", amount=0.5)
    assert small.kept == {"blocks.0.conv1": 8, "blocks.1.conv1": 16, "blocks.2.conv1": 32}
    assert {"conv", "blocks.0.conv2", "blocks.1.shortcut"} < small.whole.keys()
    assert small.whole["blocks.0.conv2"] == "it is read by add"
    norm = small.model.blocks[1].bn2
    assert (
        norm.num_features == len(norm.weight) == len(norm.bias) == len(norm.running_mean) == len(norm.running_var) == 16
    )


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_a_smaller_network_trains_deploys_and_is_copied(compressor):
    model, x = network("vgg16")
    small = compress(model, compressor, amount=0.5).model
    torch.testing.assert_close(deploy(small)(x), small(x), rtol=0, atol=1e-10)
    other = copy.deepcopy(small)
    other.load_state_dict(small.state_dict())
    other.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in other.parameters())


@pytest.mark.parametrize("amount", [0.25, 0.9])
def test_magnitude_pruning_is_one_threshold_on_all_weights(amount):
    model, _ = network("lenet5")
    small = compress(model, "magnitude", amount=amount)
    before, after = (torch.cat([W.flatten() for W in matrices(m).values()]) for m in (model, small.model))
    gone = after == 0
    assert gone.sum() == math.floor(amount * len(before))
    largest = torch.stack([W.abs().max() for W in matrices(model).values()])  # of a layer: it stays
    assert before[gone].abs().max() <= before[~gone & ~torch.isin(before.abs(), largest)].abs().min()
    assert torch.equal(after[~gone], before[~gone])
    assert small.kept == {name: int(W.count_nonzero()) for name, W in matrices(small.model).items()}
    biases = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    assert small.size == sum(small.kept.values()) + biases
    assert small.size == sum(int(p.count_nonzero()) for p in small.model.parameters())


@pytest.mark.parametrize("compressor", ["svd", "svd_global", "filters_l2", "magnitude"])
def test_a_factorized_network_is_compressed_as_the_dense_one_it_stands_for(compressor):
    model, x = network("vgg16")
    factorized = factorize(model, ratio=0.3)
    small = compress(factorized, compressor, amount=0.6)
    expected = compress(densify(factorized), compressor, amount=0.6)
    assert small.kept == expected.kept
    torch.testing.assert_close(small.model(x), expected.model(x), rtol=0, atol=1e-10)
    assert low_rank_layers(factorized)


@pytest.mark.parametrize(("compressor", "skip"), [("svd", "fc*"), ("filters_l1", "conv1"), ("magnitude", "fc*")])
def test_skipped_layers_are_left_whole(compressor, skip):
    model, _ = network("lenet5")
    small = compress(model, compressor, amount=0.5, skip=[skip])
    assert small.whole
    assert all("skipped" in reason for reason in small.whole.values())
    for name in small.whole:
        assert torch.equal(small.model.get_parameter(f"{name}.bias"), model.get_parameter(f"{name}.bias"))
        if compressor != "filters_l1":
            assert torch.equal(small.model.get_parameter(f"{name}.weight"), model.get_parameter(f"{name}.weight"))
    with pytest.raises(ValueError, match=r"^skip = 'conv9': unknown"):
        compress(model, compressor, amount=0.5, skip=["conv9"])


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    amount=st.floats(0, 0.999),
    together=st.booleans(),
    seed=st.integers(0, 99),
)
def test_ranking(sizes, amount, together, seed):
    """What goes scores no more than what stays, the largest of a layer excepted; ties included."""
    scores = {
        str(i): torch.randint(0, 5, (size,), generator=generator(seed + i)).double() for i, size in enumerate(sizes)
    }
    masks = ranked(scores, together=together)(amount)
    assert {name: len(mask) for name, mask in masks.items()} == {name: len(score) for name, score in scores.items()}
    groups = [list(scores)] if together else [[name] for name in scores]
    for group in groups:
        total = sum(len(scores[name]) for name in group)
        gone = torch.cat([scores[name][~masks[name]] for name in group])
        assert len(gone) == min(math.floor(amount * total + 1e-9), total - len(group))
        others = torch.cat([scores[name][masks[name]].sort().values[:-1] for name in group])
        if len(gone) and len(others):
            assert gone.max() <= others.min()
        assert all(scores[name][masks[name]].max() == scores[name].max() for name in group)


def test_zero_weights_are_no_obstacle():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    for compressor in COMPRESSORS:
        assert not compress(model, compressor, amount=0.5).model(torch.rand(1, 1, 8, 8, dtype=DOUBLE)).any()


def test_reestimated_statistics_are_those_of_the_images():
    """One batch: mean and unbiased variance of what each normalization reads, itself normalized by the ones before."""
    model, images = network("vgg16", 8)
    model.features[1].momentum, model.features[4].momentum = 0.3, None
    before = copy.deepcopy(model.state_dict())
    new = reestimate_batch_norm(model, images)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    seen = {}
    for name, module in new.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    copy.deepcopy(new).train()(images)
    assert len(seen) == 13
    for name, x in seen.items():
        norm = new.get_submodule(name)
        torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, x.var((0, 2, 3)))
    assert (new.features[1].momentum, new.features[4].momentum) == (0.3, None)
    assert not any(module.training for module in new.modules())
    assert reestimate_batch_norm(model.train(), images).dropout.training


@pytest.mark.parametrize(
    ("norm", "dims"), [(nn.BatchNorm1d, 1), (nn.BatchNorm2d, 2), (nn.BatchNorm3d, 3), (nn.SyncBatchNorm, 2)]
)
def test_statistics_are_estimated_again_in_any_dimension(norm, dims):
    images = 5 + torch.rand(40, 2, *(5,) * dims, dtype=DOUBLE, generator=generator())
    new = reestimate_batch_norm(nn.Sequential(norm(2)).double(), images)[0]
    torch.testing.assert_close(new.running_mean, images.transpose(0, 1).flatten(1).mean(1))


def test_reestimation_averages_over_batches():
    model = nn.Sequential(nn.BatchNorm2d(2)).double()
    images = torch.rand(7, 2, 3, 3, dtype=DOUBLE, generator=generator())
    norm = reestimate_batch_norm(model, images, batch_size=3)[0]
    batches = images[:4], images[4:]
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))


@pytest.mark.parametrize("compressor", ["svd", "svd_global", "filters_l2", "magnitude"])
def test_phases_lead_to_what_one_phase_leaves(compressor):
    """Geometrically, each on the network of the phase before; a step that changes nothing gives the one-shot result."""
    torch.manual_seed(0)
    model, seen = SmallLeNet5(), []

    def train(network):
        seen.append(sum(compress(network, compressor, amount=0.0).kept.values()))
        return network

    once = compress(model, compressor, amount=0.6)
    found = iterated(model, compressor, 0.6, phases=3, train=train)
    assert found.kept == once.kept
    assert found.size == once.size
    assert len(seen) == 3
    x = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(found.model(x), once.model(x), rtol=0, atol=1e-5)
    units = sum(compress(model, compressor, amount=0.0).kept.values())
    if compressor in ("filters_l2", "magnitude"):  # of which at(0) counts what is left
        assert seen == sorted(seen, reverse=True)
        for phase, left in enumerate(seen, 1):
            assert left == pytest.approx(units * 0.4 ** (phase / 3), abs=2)


def test_the_trained_network_is_what_the_next_phase_compresses():
    model = SmallLeNet5()

    def train(network):
        network = copy.deepcopy(network)
        with torch.no_grad():
            network.conv1.weight.mul_(0).add_(1)  # now the largest of all
        return network

    found = iterated(model, "magnitude", 0.5, phases=2, train=train)
    assert found.kept["conv1"] == model.conv1.weight.numel()
    assert (found.model.conv1.weight == 1).all()


MLP = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compress(Tiny(), "sdv", amount=0.5), r"^compressor = 'sdv': unknown; did you mean 'svd'\? accepted: "),
        (lambda: compress(Tiny(), "svd"), r"^amount = None, share = None: give exactly one of them$"),
        (lambda: compress(Tiny(), "svd", amount=0.5, share=0.5), r"^amount = 0.5, share = 0.5: give exactly one"),
        (lambda: compress(Tiny(), "svd", amount=1), r"^amount = 1: must be in \[0, 1\), the fraction that is removed$"),
        (lambda: compress(Tiny(), "magnitude", amount=-0.1), r"^amount = -0.1: must be in \[0, 1\)"),
        (lambda: compress(Tiny(), "svd", share=0), r"^share = 0: must be in \(0, 1\], a fraction of the parameters"),
        (
            lambda: compress(Tiny(), "svd", share=0.01),
            r"^share = 0.01: must be at least 0.\d+, all that 'svd' can remove",
        ),
        (lambda: iterated(Tiny(), "svd", 0.5, phases=0, train=copy.copy), r"^phases = 0: must be >= 1$"),
        (lambda: compress(MLP, "filters_l1", amount=0.5), r"^scores = {}: must be those of one layer at least"),
        (lambda: reestimate_batch_norm(MLP, torch.rand(1, 4)), r"^images = \(1, 4\): must be a batch of at least two"),
        (lambda: reestimate_batch_norm(MLP, torch.rand(4, 4), 1), r"^batch_size = 1: must be >= 2$"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
