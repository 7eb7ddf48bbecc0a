"""Images reach a network in the layout that its own code expects, and attacks do not depend on strides."""

import pytest
import torch
from torch import nn

from study import data
from study import networks as models
from study.attacks import registry as attacks
from study.measurement import accuracy as evaluate

FEW = {"steps": 3, "queries": 20}
KINDS = [kind for kind in attacks.ATTACKS.values() if kind.norm != "corruption" and "auto" not in kind.name]


def few(kind):
    return {option.name: FEW[option.name] for option in kind.options if option.name in FEW}


class Viewed(nn.Module):
    """The convolutional network of many tutorials: it flattens by view, which only contiguous activations allow."""

    def __init__(self, in_channels=3, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 3, stride=4)
        self.fc = nn.Linear(4 * 8 * 8, num_classes)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return self.fc(x.view(x.size(0), -1))


def images(n=6):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return data.Images(pixels, torch.randint(10, (n,), generator=generator))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
def test_attacks_run_on_coloured_images_in_any_layout_and_agree(kind, layout):
    torch.manual_seed(0)
    network = models.build("resnet20", num_classes=10, in_channels=3).to(memory_format=layout).eval()
    some = images()
    x = some.pixels(slice(None))
    y = network(x).argmax(1)
    options = few(kind)
    expected = attacks.perturb(kind, network, x, y, 0.1, **options)
    strided = attacks.perturb(kind, network, x.to(memory_format=torch.channels_last), y, 0.1, **options)
    torch.testing.assert_close(strided, expected, rtol=0, atol=0)
    if "queries" not in options:  # a random search may find nothing, and then gives the image back
        assert (expected - x).abs().max() > 0


def test_distances_of_coloured_images():
    torch.manual_seed(0)
    network = models.build("resnet20", num_classes=10, in_channels=3).eval()
    x = images().pixels(slice(None))
    labels = network(x).argmax(1)
    assert (attacks.smallest_perturbation(network, x, labels, steps=5) > 0).all()


@pytest.mark.parametrize("augment", list(data.AUGMENTATIONS))
def test_a_network_that_flattens_by_view_is_trained_counted_and_attacked(augment):
    from study.training.adversarial import Adversary
    from study.training.loop import Recipe, fit

    network, some = Viewed(), images()
    for adversary in (None, Adversary("mix", 0.5, 0.1)):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
        fit(network, optimizer, some, Recipe(epochs=1, batch_size=4, augment=augment), adversary=adversary)
    assert evaluate.count_correct(network, some).n == 6
    for kind in KINDS:
        evaluate.robustness_curve(network, some, kind.name, [0.1], **few(kind))


def test_the_gradients_of_images_leave_no_hook_on_them():
    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    attacks.stride_free(Viewed())(x).sum().backward()
    assert x.grad is not None
    assert not x._backward_hooks
