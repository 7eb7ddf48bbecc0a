"""Networks of other people: each is factorized, trained, deployed and made dense again; small ones of each family."""

import warnings

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock, Bottleneck

import wellcond as wc
from study.benches import architectures as bench

IMAGES = (2, 3, 32, 32)


class Narrow(models.ResNet):
    """An eighth of the channels."""

    def _make_layer(self, block, planes, *arguments, **options):
        return super()._make_layer(block, planes // 8, *arguments, **options)


def narrow(block, **options):
    model = Narrow(block, [1, 1, 1, 1], num_classes=10, **options)
    model.fc = nn.Linear(64 * block.expansion, 10)
    return model


SMALL = {
    "resnet": lambda: narrow(BasicBlock),
    "resnext": lambda: narrow(Bottleneck, groups=4, width_per_group=32),
    "densenet": lambda: models.DenseNet(8, (2, 2), 16, num_classes=10),
    "mobilenet": lambda: models.MobileNetV2(10, 0.25, [[1, 16, 1, 1], [6, 24, 2, 2]]),
    "convnext": lambda: models.ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=10),
    "vision transformer": lambda: models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10),
    "swin": lambda: models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=10),
    "squeezenet": lambda: models.SqueezeNet("1_1", num_classes=10),
}
OTHERS = ("BERT", "GPT-2", "Llama", "U-Net", "GPT, tied", "LSTM", "convolutions 1d", "convolutions 3d")


def check(row):
    """Single precision, and all of the way there and back."""
    assert row["matrices"] > 2
    for key in ("full_rank_difference", "deploy_difference", "densify_difference"):
        assert 0 <= row[key] < 1e-4, key
    assert row["max_kappa"] < bench.MAX_COND * (1 + 1e-4)
    assert row["max_orthogonality"] < 1e-5
    assert row["moved"] > 0.3  # buffers stay, and what has no gradient
    assert row["same_keys_and_types"]
    assert row["deployed_parameters"] < row["dense_parameters"]


@pytest.mark.parametrize("name", SMALL)
def test_networks_of_torchvision(name):
    torch.manual_seed(0)
    model, x = SMALL[name](), torch.rand(IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = bench.tried(bench.settle(model, x), x, 0.6)
    check(row)
    depthwise = {"mobilenet", "convnext"}
    assert row["left_dense"] < (0.2 if name in depthwise else 0.1)


@pytest.mark.parametrize("name", OTHERS)
def test_networks_of_other_packages(name):
    torch.manual_seed(0)
    try:
        model, x = bench.ARCHITECTURES[name]()
    except ImportError as error:
        pytest.skip(f"{error.name} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(bench.tried(bench.settle(model, x), x, 0.8))


def test_a_row_for_each_network_that_is_there(monkeypatch):
    def absent():
        raise ImportError

    some = {"absent": absent, "LSTM": bench.ARCHITECTURES["LSTM"]}
    monkeypatch.setattr(bench, "ARCHITECTURES", some)
    (row,) = bench.architecture_rows()
    assert row["architecture"] == "LSTM"
    assert row["left_dense"] == 0


def test_a_difference_is_seen():
    """The check could fail: of a network whose way back is broken."""
    torch.manual_seed(0)
    x = torch.rand(4, 6)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    assert bench._difference(bench.answer(wc.factorize(model, rank=1), x), bench.answer(model, x)) > 0.1
    assert bench.answer(nn.Identity(), {"input": x}) is x
