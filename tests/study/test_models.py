"""The reference networks: sizes, shapes, normalization, skips; and networks of one's own by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import DOUBLE, Tiny
from study import networks as models

# The weights of methods.md 3.6 (see test_convert), biases, and scale and shift of each normalized channel:
# 430,500 + 580; 15,239,872 + 1,034 + 2 · 4,224; 2,745,264 + 10 + 2 · 1,808. ResNet-20: 0.27 M in He et al., table 6,
# counted with shortcuts that have no weights, 269,722; ours have 16 · 32 + 2 · 32 and 32 · 64 + 2 · 64. ResNet-18:
# torchvision's 11,689,512, whose first convolution is 7x7 and whose classes are 1000.
SIZES = {
    "lenet5": (1, 28, 431_080),
    "vgg16": (3, 32, 15_249_354),
    "vgg16_quarter": (3, 32, 1_255_674),
    "wrn16_4": (3, 32, 2_748_890),
    "resnet20": (3, 32, 269_722 + 576 + 2_176),
    "resnet18": (3, 32, 11_689_512 - 3 * 64 * (49 - 9) - 513 * 990),
    "vit": (3, 32, 48 * 192 + 192 + 64 * 192 + 6 * (12 * 192**2 + 13 * 192) + 2 * 192 + 193 * 10),
    "vit_narrow": (3, 32, 192 * 64 + 64 + 16 * 64 + 2 * (12 * 64**2 + 13 * 64) + 2 * 64 + 65 * 10),
    "vit_digits": (1, 28, 49 * 48 + 48 + 16 * 48 + 2 * (12 * 48**2 + 13 * 48) + 2 * 48 + 49 * 10),
}


@pytest.mark.parametrize("name", SIZES)
def test_shapes_and_parameter_counts(name):
    channels, size, count = SIZES[name]
    model = models.build(name, num_classes=10, in_channels=channels).eval()
    assert sum(p.numel() for p in model.parameters()) == count
    x = torch.rand(2, channels, size, size)
    assert model(x).shape == (2, 10)
    assert models.build(name, num_classes=7, in_channels=channels).eval()(x).shape == (2, 7)
    assert isinstance(next(model.children()), models.Normalize)
    assert all(p.requires_grad for p in model.parameters())


def test_lenet5_is_the_published_order_of_layers():
    """Activation before pooling, as written in the paper; the library pools first, which commutes."""
    torch.manual_seed(0)
    net = models.LeNet5().double()
    x = torch.rand(3, 1, 28, 28, dtype=DOUBLE)
    y = F.max_pool2d(F.leaky_relu(net.conv1(x), 0.01), 2)
    y = F.max_pool2d(F.leaky_relu(net.conv2(y), 0.01), 2).flatten(1)
    expected = net.fc2(F.leaky_relu(net.fc1(y), 0.01))
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-13)  # in another layout sums round otherwise


def test_vgg16_is_five_stages_of_published_widths():
    net = models.VGG16()
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == 2 * [64] + 2 * [128] + 3 * [256] + 6 * [512]
    assert {(c.kernel_size, c.padding, c.bias) for c in convolutions} == {((3, 3), (1, 1), None)}
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 13
    assert {m.momentum for m in norms} == {0.9}
    assert net.dropout.p == 0.2
    assert {m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)} == {0.01}


def test_vgg16_uses_batch_statistics_with_momentum_nine_tenths():
    """running = 0.1 old + 0.9 new."""
    torch.manual_seed(0)
    net = models.VGG16()
    x = torch.rand(4, 3, 32, 32)
    net(x)
    norm, expected = net.features[1], net.features[0](net.normalize(x)).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, 0.9 * expected)


def wide_resnet():
    torch.manual_seed(0)
    return models.WideResNet(num_classes=5, blocks=2, widen=1).double().eval()


def test_without_its_residual_branches_the_network_is_its_skips():
    """With the second convolution of every block zero, a block is the identity or its 1 x 1 shortcut alone."""
    net = wide_resnet()
    for block in net.blocks:
        nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 3, 16, 16, dtype=DOUBLE)
    y = net.conv(net.normalize(x))
    for block in net.blocks:
        assert (block.shortcut is None) == (block.conv1.in_channels == block.conv1.out_channels)
        if block.shortcut is not None:
            y = block.shortcut(F.leaky_relu(block.bn1(y)))
    expected = net.fc(F.leaky_relu(net.bn(y)).mean((2, 3)))
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-12)


def test_wide_resnet_is_a_sum_of_skip_and_branch():
    net = wide_resnet()
    x = torch.rand(2, 16, 8, 8, dtype=DOUBLE)
    for block in net.blocks[:2]:  # of equal width and stride 1
        branch = block.conv2(F.leaky_relu(block.bn2(block.conv1(F.leaky_relu(block.bn1(x))))))
        assert branch.abs().max() > 0.1
        torch.testing.assert_close(block(x), x + branch, rtol=0, atol=1e-12)


def test_wrn16_4_has_the_published_plan():
    net = models.build("wrn16_4", in_channels=3)
    plan = [(b.conv1.in_channels, b.conv2.out_channels, b.conv1.stride[0]) for b in net.blocks]
    assert plan == [(16, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)]
    # depth 16: the first convolution, two in each block, three shortcuts that depth does not count, the classifier
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 1 + 2 * 6 + 3


def test_resnet18_is_torchvisions_but_for_the_first_layers():
    """The same parameters in the same order; torchvision's network with our first convolution and no max-pooling."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    expected = resnet18(weights=None, num_classes=10)
    expected.conv1, expected.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    for module in expected.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
    net = models.build("resnet18", in_channels=3).eval()
    ours = [name for name in net.state_dict() if not name.startswith("normalize.")]
    net.load_state_dict(dict(zip(ours, expected.state_dict().values(), strict=True)), strict=False)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(net(x), expected.eval()(net.normalize(x)))


def test_resnet20_has_the_published_plan():
    net = models.build("resnet20", in_channels=3)
    plan = [(b.conv1.in_channels, b.conv2.out_channels, b.conv1.stride[0]) for b in net.blocks]
    first, rest = [(16, 16, 1)] * 3, [(32, 32, 1)] * 2
    assert plan == [*first, (16, 32, 2), *rest, (32, 64, 2), (64, 64, 1), (64, 64, 1)]
    shortcuts = {i: block.downsample[0] for i, block in enumerate(net.blocks) if block.downsample is not None}
    assert {i: (c.kernel_size, c.stride) for i, c in shortcuts.items()} == dict.fromkeys((3, 6), ((1, 1), (2, 2)))
    # depth 20: the first convolution, two in each block, the classifier
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 1 + 2 * 9 + len(shortcuts)
    assert net.blocks(net.conv(torch.rand(1, 3, 32, 32))).shape == (1, 64, 8, 8)


def test_residual_networks_start_with_unit_gain():
    """He et al.: the entries of a convolution have variance 2/(filters · positions of the kernel)."""
    torch.manual_seed(0)
    for block in models.ResNet().blocks:
        W = block.conv2.weight
        assert W.std().item() == pytest.approx((2 / (9 * len(W))) ** 0.5, rel=0.1)


def test_every_parameter_of_every_network_gets_a_gradient():
    """A residual sum that is computed and thrown away would leave the shortcuts without one."""
    for name, (channels, size, _) in SIZES.items():
        model = models.build(name, in_channels=channels)
        model(torch.rand(2, channels, size, size)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters()), name


def test_normalize_is_a_layer_without_parameters():
    layer = models.Normalize([0.1, 0.2, 0.3], [0.5, 1.0, 2.0])
    x = torch.rand(4, 3, 5, 5)
    for c, (mean, std) in enumerate(((0.1, 0.5), (0.2, 1.0), (0.3, 2.0))):
        torch.testing.assert_close(layer(x)[:, c], (x[:, c] - mean) / std)
    assert not list(layer.parameters())
    assert layer.state_dict().keys() == {"mean", "std"}
    assert "mean=[0.1" in repr(layer)


def test_grey_images_are_not_shifted_and_colours_are_cifars():
    x = torch.rand(1, 1, 28, 28)
    assert torch.equal(models.LeNet5().normalize(x), x)
    assert models.VGG16().normalize.mean.flatten().tolist() == pytest.approx([0.4914, 0.4822, 0.4465])
    assert models.VGG16().normalize.std.flatten().tolist() == pytest.approx([0.2023, 0.1994, 0.2010])


@pytest.mark.parametrize("std", [[1.0], [1.0, 0.0], [1.0, -1.0]])
def test_normalize_refuses_bad_deviations(std):
    with pytest.raises(ValueError, match=r"std = .*: must be 2 positive numbers"):
        models.Normalize([0.0, 0.0], std)


@pytest.mark.parametrize(
    ("name", "kind", "outputs"),
    [
        ("helpers:Tiny", Tiny, 4),
        ("helpers:noise", nn.Sequential, 10),  # takes any keyword and reads none
        ("study.networks:LeNet5", models.LeNet5, 4),
        ("torch.nn:Identity", nn.Identity, 28),
    ],
)
def test_a_network_of_ones_own(name, kind, outputs):
    """The factory is given the arguments that it accepts, and only those."""
    model = models.build(name, num_classes=4, in_channels=1)
    assert type(model) is kind
    assert model(torch.rand(2, 1, 28, 28)).shape[-1] == outputs


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lenet", r"model = 'lenet': unknown; did you mean 'lenet5'\? accepted: .*package.module:factory"),
        ("no_such_package.nets:tiny", r"model = .*: must be an importable package.module:factory \(No module named"),
        ("helpers:Tyni", r"must be an importable package.module:factory \(module 'helpers' has no attribute 'Tyni'\)"),
        ("helpers:", "must be an importable package.module:factory"),
        (":Tiny", "model = ':Tiny': must be an importable package.module:factory"),
        ("helpers:no_module", "model = 'helpers:no_module': must be a factory of nn.Module, not of str"),
        ("helpers:NUMBER", "model = 'helpers:NUMBER': must be a factory of nn.Module, not a int"),
    ],
)
def test_names_that_give_no_network(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        models.build(name)
    assert "\n" not in str(caught.value)
