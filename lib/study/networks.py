"""Reference networks. Inputs are pixels in [0, 1]; normalization is each network's first layer."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.importing import FORM, factory_named, said
from wellcond.errors import invalid, unknown


class Normalize(nn.Module):
    """(x - mean)/std per channel; x (B, C, H, W), mean and std of C entries, std > 0. Buffers, not parameters.

    The result has its channels last in memory, and so has everything after it: the fast layout for convolutions.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise invalid("std", tuple(std), f"{len(mean)} positive numbers")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = (x - self.mean) / self.std  # then channels last, by what vmap can do
        return y.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def _normalize(in_channels: int) -> nn.Module:
    # grey images are only scaled to [0, 1], as in the published protocol
    return Normalize(CIFAR_MEAN, CIFAR_STD) if in_channels == 3 else Normalize([0.0] * in_channels, [1.0] * in_channels)


class LeNet5(nn.Module):
    """conv 20@5x5, pool, conv 50@5x5, pool, fc 500, fc classes; LeakyReLU(0.01); for 28 x 28 inputs.

    430,500 weights for one input channel and ten classes.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.normalize = _normalize(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalize(x)
        # LeakyReLU increases, so it commutes with max-pooling: pooling first gives the same map from fewer activations
        x = F.leaky_relu(F.max_pool2d(self.conv1(x), 2))
        x = F.leaky_relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.leaky_relu(self.fc1(x.flatten(1))))


class VGG16(nn.Module):
    """13 convolutions 3x3 with batch normalization (momentum 0.9: running = 0.1 old + 0.9 new), then 512-512-classes.

    LeakyReLU(0.01), five max-pools, dropout 0.2 before the last layer; for 32 x 32 inputs. 15,239,872 weights for
    three channels and ten classes (Simonyan and Zisserman, 2015, in the variant of the CondLR study). widths: the
    channels of the convolutions, stage by stage (default: WIDTHS).
    """

    WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, widths: Sequence[Sequence[int]] | None = None
    ) -> None:
        super().__init__()
        self.normalize = _normalize(in_channels)
        layers: list[nn.Module] = []
        width = in_channels
        for stage in widths or self.WIDTHS:
            for out in stage:
                layers += [
                    nn.Conv2d(width, out, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out, momentum=0.9),
                    nn.LeakyReLU(inplace=True),
                ]
                width = out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc1 = nn.Linear(width, 512)
        self.fc2 = nn.Linear(512, 512)
        self.dropout = nn.Dropout(0.2)
        self.fc3 = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(self.normalize(x)).flatten(1)
        x = F.leaky_relu(self.fc2(F.leaky_relu(self.fc1(x))))
        return self.fc3(self.dropout(x))


class PreactivationBlock(nn.Module):
    """x + conv(act(bn(conv(act(bn(x)))))), with a 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        changes = stride != 1 or width_in != width
        self.shortcut = nn.Conv2d(width_in, width, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.leaky_relu(self.bn1(x))
        # Zagoruyko and Komodakis: where the shape changes, the shortcut takes the activated input too
        skip = x if self.shortcut is None else self.shortcut(activated)
        out: Tensor = self.conv2(F.leaky_relu(self.bn2(self.conv1(activated))))
        return skip + out


class WideResNet(nn.Module):
    """Pre-activation wide residual network, depth 6·blocks + 4 and width factor `widen`; WRN16-4 by default.

    A 3x3 convolution to 16 channels, three groups of `blocks` blocks (16, 32, 64 times `widen` channels, strides
    1, 2, 2), batch normalization, LeakyReLU, global average pooling, one linear layer (Zagoruyko and Komodakis, 2016).
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, blocks: int = 2, widen: int = 4) -> None:
        super().__init__()
        self.normalize = _normalize(in_channels)
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        width = 16
        for out, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            for block in range(blocks):
                layers.append(PreactivationBlock(width, out, stride if block == 0 else 1))
                width = out
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.conv(self.normalize(x)))
        x = F.adaptive_avg_pool2d(F.leaky_relu(self.bn(x)), 1).flatten(1)
        return self.fc(x)


class ResNet(nn.Module):
    """Residual network for small images: a stage of `blocks` basic blocks for each of `widths`; ResNet-20 by default.

    A 3x3 convolution to widths[0] channels, then the stages, of which each but the first starts with stride 2, global
    average pooling and one linear layer. Batch normalization follows every convolution, ReLU is the activation. Where
    the shape changes, the shortcut is a 1x1 convolution with batch normalization (option B; option A of the paper,
    which pads with zero channels, has no weights there). Initialized as torchvision's, of which the blocks are.

    For three channels and ten classes ResNet-20 has 272,474 parameters, ResNet-18 with this first convolution, and
    without its max-pooling, 11,173,962. Source: He, Zhang, Ren, Sun, CVPR 2016.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, widths: Sequence[int] = (16, 32, 64), blocks: int = 3
    ) -> None:
        from torchvision.models.resnet import BasicBlock

        super().__init__()
        self.normalize = _normalize(in_channels)
        self.conv = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        layers: list[nn.Module] = []
        width = widths[0]
        for stage, out in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                changes = stride != 1 or width != out
                layers.append(BasicBlock(width, out, stride, _projection(width, out, stride) if changes else None))
                width = out
        self.blocks = nn.Sequential(*layers)
        self.fc = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(self.normalize(x)))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _projection(width_in: int, width: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width_in, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))


class AttentionBlock(nn.Module):
    """x + A(norm(x)), then x + M(norm(x)): self-attention A with `heads` heads, and M two layers with GELU between."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, N, ·)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class VisionTransformer(nn.Module):
    """Pre-norm vision transformer for images of size x size pixels, in patches of patch x patch.

    A linear map of each patch, learned positions, `depth` attention blocks, layer normalization, the mean over the
    patches, one linear layer. The default has 2,693,194 parameters. Source: Dosovitskiy et al., ICLR 2021, with the
    mean in place of their class token. Raises ValueError unless patch divides size, and heads the width.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        size: int = 32,
        patch: int = 4,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
    ) -> None:
        super().__init__()
        if size % patch:
            raise invalid("patch", patch, f"a divisor of size = {size}")
        if width % heads:
            raise invalid("heads", heads, f"a divisor of width = {width}")
        self.normalize = _normalize(in_channels)
        self.embed = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(AttentionBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(self.normalize(x)).flatten(2).transpose(1, 2)  # (B, N, width)
        x = self.norm(self.blocks(patches + self.positions))
        logits: Tensor = self.fc(x.mean(1))
        return logits


MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": LeNet5,
    "vgg16": VGG16,
    "vgg16_quarter": partial(VGG16, widths=[[width // 4 for width in stage] for stage in VGG16.WIDTHS]),
    "wrn16_4": WideResNet,
    "resnet20": ResNet,
    "resnet18": partial(ResNet, widths=(64, 128, 256, 512), blocks=2),
    "vit": VisionTransformer,
    "vit_narrow": partial(VisionTransformer, patch=8, width=64, depth=2, heads=4),
    "vit_digits": partial(VisionTransformer, size=28, patch=7, width=48, depth=2, heads=4),
}


def layout(name: str) -> torch.memory_format:
    """The layout of the weights of a network by name: channels last for those of MODELS, whose code allows it; that of
    your own stays as its factory leaves it."""
    return torch.channels_last if name in MODELS else torch.preserve_format


def build(name: str, *, num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """A network by name: a key of MODELS, or "package.module:factory" for your own.

    The factory gets the keyword arguments num_classes and in_channels if it accepts them, and returns an nn.Module
    that maps pixels in [0, 1], (B, C, H, W), to logits (B, num_classes).
    Raises ValueError for a name that is neither, a module that cannot be imported, or a result that is no module.
    """
    if ":" not in name:
        if name not in MODELS:
            raise unknown("model", name, [*MODELS, FORM])
        return MODELS[name](num_classes=num_classes, in_channels=in_channels)
    factory = factory_named("model", name, "nn.Module")
    arguments: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels}
    parameters = inspect.signature(factory).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        accepted = {p.name for p in parameters}
        arguments = {key: value for key, value in arguments.items() if key in accepted}
    try:
        model = factory(**arguments)
    except Exception as error:
        raise invalid("model", name, f"a factory that returns a network ({said(error)})") from error
    if not isinstance(model, nn.Module):
        raise invalid("model", name, f"a factory of nn.Module, not of {type(model).__name__}")
    return model


@functools.lru_cache(maxsize=8)
def signature(name: str, num_classes: int, in_channels: int) -> str:
    """What a factory of your own makes: a hash of the names and shapes of its parameters and buffers; "" for a network
    of MODELS, which the version of the code identifies. Raises ValueError as `build`, and if there is nothing to train.
    """
    if name in MODELS:
        return ""
    with torch.random.fork_rng([]):
        model = build(name, num_classes=num_classes, in_channels=in_channels)
    if not any(p.requires_grad for p in model.parameters()):
        raise invalid("model", name, "a factory of a network with parameters to train")
    state = model.state_dict()
    shapes = [f"{key} {tuple(value.shape)}" for key, value in state.items()]
    return hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:16]
