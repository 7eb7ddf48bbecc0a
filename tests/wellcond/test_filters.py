"""What belongs to the channels of a convolution, in forward code that keeps them apart and in code that does not."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from architectures import networks
from wellcond.compression.filters import Channels, channels

VGG16, LeNet5, ResNet, WideResNet = networks.VGG16, networks.LeNet5, networks.ResNet, networks.WideResNet


def test_lenet5():
    """A channel of the last convolution is 4 x 4 inputs of the linear layer behind the flattening."""
    found, whole = channels(LeNet5())
    assert found == {"conv1": Channels({}, {"conv2": 1}), "conv2": Channels({}, {"fc1": 16})}
    assert not whole


def test_vgg16():
    model = VGG16()
    found, whole = channels(model)
    assert not whole
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    readers = [*convolutions[1:], "fc1"]
    expected = zip(convolutions, norms, readers, strict=True)
    assert found == {conv: Channels({norm: 1}, {reader: 1}) for conv, norm, reader in expected}


def test_in_a_residual_network_only_the_inner_channels_of_a_block_are_its_own():
    model = WideResNet(blocks=2, widen=1)
    found, whole = channels(model)
    inner = {f"blocks.{i}.conv1": Channels({f"blocks.{i}.bn2": 1}, {f"blocks.{i}.conv2": 1}) for i in range(6)}
    assert found == inner
    every = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert whole.keys() == every - inner.keys()
    assert {*whole.values()} == {"it is read by add"}


def test_in_a_residual_network_with_normalized_branches_too():
    """The first convolution, the second of a block and the shortcuts write into the sum."""
    model = ResNet(widths=(4, 8), blocks=2)
    found, whole = channels(model)
    inner = {f"blocks.{i}.conv1": Channels({f"blocks.{i}.bn1": 1}, {f"blocks.{i}.conv2": 1}) for i in range(4)}
    assert found == inner
    summed = ["conv", *(f"blocks.{i}.conv2" for i in range(4)), "blocks.2.downsample.0"]
    assert whole == dict.fromkeys(summed, "it is read by add")


class Net(nn.Module):
    """Two convolutions and a linear layer; the subclasses say how the first is read."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(4)
        self.rows, self.fc, self.wide = nn.BatchNorm1d(4 * 36), nn.Linear(4 * 36, 7), nn.Linear(4, 7)
        self.last, self.grouped = nn.Linear(6, 2), nn.Conv2d(4, 4, 1, groups=2)


class SizeView(Net):
    def forward(self, x):
        x = torch.relu(self.a(x))
        return self.fc(x.view(x.size(0), -1))


class ShapeView(Net):
    def forward(self, x):
        x = self.a(x)
        return self.fc(x.reshape(x.shape[0], -1))


class RowsNormalized(Net):
    def forward(self, x):
        return self.fc(F.relu(self.rows(self.a(x).flatten(1))))


class Mean(Net):
    def forward(self, x):
        return self.wide(self.norm(self.a(x)).mean((2, 3)))


class TwoReaders(Net):
    def forward(self, x):
        x = F.avg_pool2d(self.norm(self.a(x)), 1)
        return self.b(x).mean((1, 2, 3)) + self.fc(x.flatten(1)).sum(1)


FOLLOWED = [
    (SizeView, Channels({}, {"fc": 36})),
    (ShapeView, Channels({}, {"fc": 36})),
    (RowsNormalized, Channels({"rows": 36}, {"fc": 36})),
    (Mean, Channels({"norm": 1}, {"wide": 1})),
    (TwoReaders, Channels({"norm": 1}, {"b": 1, "fc": 36})),
]


@pytest.mark.parametrize(("kind", "expected"), FOLLOWED)
def test_followed(kind, expected):
    model = kind()
    before = copy.deepcopy(model.state_dict())
    assert model(torch.rand(2, 3, 6, 6)).shape[0] == 2
    assert channels(model.eval())[0]["a"] == expected
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if k.startswith("a"))


class Returned(Net):
    def forward(self, x):
        return self.a(x)


class Concatenated(Net):
    def forward(self, x):
        return torch.cat([self.a(x), x], 1)


class Squared(Net):
    def forward(self, x):
        x = self.a(x)
        return self.b(x * x)


class FixedView(Net):
    def forward(self, x):
        return self.fc(self.a(x).view(-1, 144))


class CountsChannels(Net):
    def forward(self, x):
        x = self.a(x)
        return self.b(x) / x.size(1)


class AcrossPixels(Net):
    def forward(self, x):
        return self.last(self.a(x))


class PooledRows(Net):
    def forward(self, x):
        return self.last(F.adaptive_avg_pool2d(self.a(x).flatten(1), 6))


class AcrossChannels(Net):
    def forward(self, x):
        return self.b(torch.softmax(self.a(x), 1))


class ReadByGroups(Net):
    def forward(self, x):
        return self.grouped(self.a(x))


class Twice(Net):
    def forward(self, x):
        x = self.a(x)
        return self.b(x) + self.b(x.relu())


class WeightRead(Net):
    def forward(self, x):
        return self.b(self.a(x)) + self.b.weight.sum()


class Unread(Net):
    def forward(self, x):
        self.norm(self.a(x))
        return x


class Untraceable(Net):
    def forward(self, x):
        return self.b(self.a(x)) if x.sum() > 0 else x


class Optional(Net):
    def forward(self, x, features=False):
        x = self.a(x)
        return x if features else self.b(x)


class InTrainingOnly(Net):
    def forward(self, x):
        x = self.a(x)
        return (self.b(x), x.mean((2, 3))) if self.training else self.b(x)


class Inside(Net):
    """Untraceable code around a block that could be followed by itself."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3))

    def forward(self, x):
        return self.block(x) if x.sum() > 0 else self.block[0](x)


NOT_FOLLOWED = [
    (Returned, "the caller"),
    (Concatenated, "cat"),
    (Squared, "mul"),
    (FixedView, "view"),
    (CountsChannels, "size"),
    (AcrossPixels, "last"),
    (PooledRows, "adaptive_avg_pool2d"),
    (AcrossChannels, "softmax"),
    (ReadByGroups, "grouped convolution"),
    (Twice, "more than once"),
    (WeightRead, "more than once"),
    (Unread, "no layer reads it"),
    (Untraceable, "nowhere that can be traced"),
    (Optional, "several ways|the caller"),
    (InTrainingOnly, "several ways|the caller|mean"),
]


@pytest.mark.parametrize(("kind", "reason"), NOT_FOLLOWED)
def test_not_followed(kind, reason):
    found, whole = channels(kind())
    assert "a" not in found
    assert any(word in whole["a"] for word in reason.split("|"))


def test_nothing_inside_untraceable_code_is_followed():
    found, whole = channels(Inside())
    assert not found
    assert "where that cannot be traced" in whole["block.0"]


def test_modules_that_others_use_too():
    """A hook, a layer that untraceable code calls as well, a kind of layer of one's own."""

    class Own(nn.Conv2d):
        pass

    def net():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3))

    assert channels(net())[0] == {"0": Channels({"1": 1}, {"3": 1})}
    hooked = net()
    hooked[1].register_forward_hook(lambda *_: None)
    own = net()
    own[3] = Own(4, 5, 3)
    shared = net()
    other = Untraceable()
    other.b = shared[3]
    shared.append(nn.Identity()).append(other)
    for model in (hooked, own, shared):
        assert "0" not in channels(model)[0]
