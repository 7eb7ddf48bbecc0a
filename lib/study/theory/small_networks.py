"""The small networks of the related systems, for images of one size each; weights start as of He et al., ICCV 2015."""

from __future__ import annotations

from torch import nn

from wellcond.layers import weight_layers


def _leaky(*layers: nn.Module) -> list[nn.Module]:
    """LeakyReLU(0.01) behind each layer."""
    return [part for layer in layers for part in (layer, nn.LeakyReLU())]


def _start(model: nn.Sequential, slope: float = 0.01) -> nn.Sequential:
    for layer in weight_layers(model).values():
        nn.init.kaiming_normal_(layer.weight, slope)
    return model


def _zero_biases(model: nn.Sequential) -> nn.Sequential:
    """The same network, with its biases at zero in place of torch's start."""
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(p)
    return model


def lenet28() -> nn.Sequential:
    """conv 16@5x5 and 16@5x5 of stride 2, fc 64, fc 10, for 28 x 28 pixels; starts as torch does: 23,824 weights."""
    hidden = _leaky(nn.Conv2d(1, 16, 5, stride=2), nn.Conv2d(16, 16, 5, stride=2))
    return nn.Sequential(*hidden, nn.Flatten(), *_leaky(nn.Linear(256, 64)), nn.Linear(64, 10))


def lenet14() -> nn.Sequential:
    """conv 16@5x5 of stride 3, conv 32@3x3, fc 64, fc 10, for 14 x 14 pixels: 13,840 weights."""
    hidden = _leaky(nn.Conv2d(1, 16, 5, stride=3), nn.Conv2d(16, 32, 3))
    return _zero_biases(_start(nn.Sequential(*hidden, nn.Flatten(), *_leaky(nn.Linear(128, 64)), nn.Linear(64, 10))))


def convnet14() -> nn.Sequential:
    """conv 16@5x5 of stride 3, conv 64@3x3, conv 64@2x2, fc 10, for 14 x 14 pixels: 26,640 weights."""
    hidden = _leaky(nn.Conv2d(1, 16, 5, stride=3), nn.Conv2d(16, 64, 3), nn.Conv2d(64, 64, 2))
    return _start(nn.Sequential(*hidden, nn.Flatten(), nn.Linear(64, 10)))


def convnet32() -> nn.Sequential:
    """conv 16@4x4 of stride 4, conv 32@3x3 of stride 2, conv 64@3x3, fc 10, for 3 x 32 x 32 pixels: 24,448 weights."""
    hidden = _leaky(nn.Conv2d(3, 16, 4, stride=4), nn.Conv2d(16, 32, 3, stride=2), nn.Conv2d(32, 64, 3))
    return _zero_biases(_start(nn.Sequential(*hidden, nn.Flatten(), nn.Linear(64, 10))))


def perceptron14() -> nn.Sequential:
    """fc 128, fc 64, fc 10 with ReLU, for 14 x 14 pixels: 33,920 weights."""
    layers = nn.Linear(196, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    return _zero_biases(_start(nn.Sequential(nn.Flatten(), *layers), slope=0))
