"""What several test files share: random instances, orders of accuracy, a network small enough to train in a test.

It needs nothing of the study, for the tests of the library run where that is not installed.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

DOUBLE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def matrix_with(sigma: Sequence[float], *, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    """A square matrix with these singular values and random singular vectors."""
    r = len(sigma)
    P, _ = torch.linalg.qr(randn(r, r, seed=seed))
    Q, _ = torch.linalg.qr(randn(r, r, seed=seed + 1))
    return (P * torch.tensor(sigma, dtype=DOUBLE) @ Q.mT).to(dtype)


STEPS = 2.0 ** -np.arange(3, 9)


def order(error: Callable[[float], float], steps: np.ndarray = STEPS) -> float:
    """The fitted slope of log error(h) against log h."""
    return float(np.polyfit(np.log(steps), np.log([error(float(h)) for h in steps]), 1)[0])


class Tiny(nn.Module):
    """A convolution and two linear layers with a residual connection, for 28 x 28 inputs; 1,500 parameters."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 6, 7, stride=7)
        self.hidden = nn.Linear(24, 24)
        self.classifier = nn.Linear(24, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.leaky_relu(self.conv(x)), 2).flatten(1)
        return self.classifier(x + F.leaky_relu(self.hidden(x)))


class SmallLeNet(nn.Module):
    """LeNet5 with fewer channels: a chain of two convolutions and two linear layers, for 28 x 28 inputs."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 4, 5)
        self.conv2 = nn.Conv2d(4, 8, 5)
        self.fc1 = nn.Linear(128, 32)
        self.fc2 = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(F.max_pool2d(self.conv1(x), 2))
        x = F.leaky_relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.leaky_relu(self.fc1(x.flatten(1))))


class Unhurried(Tiny):
    """`Tiny`, which stops in each step of its training for as many seconds as PAUSE says."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            time.sleep(float(os.environ.get("PAUSE", "0")))
        return super().forward(x)


class Dropping(Tiny):
    """`Tiny` with dropout before the classifier, so that training draws random numbers."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__(num_classes, in_channels)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.leaky_relu(self.conv(x)), 2).flatten(1)
        return self.classifier(self.dropout(x + F.leaky_relu(self.hidden(x))))


def chain(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """A network without branches."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784 * in_channels, 12), nn.LeakyReLU(), nn.Linear(12, num_classes))


def noise(**_: int) -> nn.Module:
    """A factory that ignores its arguments."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def no_module() -> str:
    return "not a network"


NUMBER = 3


def convolutional() -> nn.Module:
    """A convolution with batch normalization and a classifier, for 28 x 28 inputs; whole filters can be removed."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(8), nn.Flatten(), nn.Linear(72, 10)
    )


def with_tables(results, **tables):
    """Results with other tables in place of some."""
    return replace(results, tables={**results.tables, **tables})
