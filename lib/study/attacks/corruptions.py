"""Common corruptions of images at five severities: what nature does to a picture, without an adversary.

The constants are those of CIFAR-10-C, made for 32 x 32 pixels; 28 x 28 images get the same ones, since a pixel is
nearly as large a part of them. Pixels stay floats: unlike in the published files, nothing is rounded to
eight bits. Source: Hendrycks and Dietterich, ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from study.attacks.attack import AttackKind, register
from study.attacks.starts import image_generators
from wellcond.errors import invalid, unknown

BLUR_TRUNCATE = 4.0  # standard deviations at which the Gaussian kernel ends: beyond them is 6e-5 of its mass


def white_noise(shape: tuple[int, ...], index: Tensor, seed: int) -> Tensor:
    """Independent standard normal numbers (B, *shape), float32, on the CPU; those of image i depend on (seed, i)."""
    draws = [torch.randn(shape, generator=own, dtype=torch.float32) for own in image_generators(index, seed)]
    return torch.stack(draws) if draws else torch.empty(0, *shape)


def gaussian_noise(x: Tensor, sigma: float, index: Tensor, seed: int) -> Tensor:
    """x + sigma z, z standard normal, the same at every severity: only its size grows."""
    return x + sigma * white_noise(tuple(x.shape[1:]), index, seed).to(x)


def blur(x: Tensor, sigma: float, index: Tensor, seed: int) -> Tensor:
    """x convolved with a Gaussian of standard deviation `sigma` pixels; beyond its border an image is reflected."""
    from torchvision.transforms.v2 import functional

    size = 2 * int(BLUR_TRUNCATE * sigma + 0.5) + 1
    return functional.gaussian_blur(x, [size, size], [sigma, sigma])


def contrast(x: Tensor, factor: float, index: Tensor, seed: int) -> Tensor:
    """m + factor (x - m), m the mean over the pixels of each image and channel."""
    # torchvision's adjust_contrast takes one mean for all channels, that of the grey image
    mean = x.mean((2, 3), keepdim=True)
    return mean + factor * (x - mean)


@dataclass(frozen=True)
class Corruption:
    """A corruption: its title, its call (x, level, index, seed), and its level at the severities 1 to 5."""

    name: str
    title: str
    call: Callable[[Tensor, float, Tensor, int], Tensor]
    levels: tuple[float, float, float, float, float]


CORRUPTIONS: dict[str, Corruption] = {
    kind.name: kind
    for kind in (
        Corruption("gaussian_noise", "Gaussian noise", gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
        Corruption("blur", "blur", blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
        Corruption("contrast", "contrast", contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    )
}
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(name: str, x: Tensor, severity: float, index: Tensor, *, seed: int = 0) -> Tensor:
    """Corrupted images for x (B, C, H, W) in [0, 1], clipped to [0, 1].

    name: a key of CORRUPTIONS. severity: 1 to 5, or 0 for x as it is. index (B,): which images of the data set these
    are; with the seed it fixes their noise, whatever the batch. Raises ValueError for an unknown name or severity.
    """
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    if severity not in (0, *SEVERITIES):
        raise invalid("severity", severity, "0, 1, 2, 3, 4 or 5")
    if len(index) != len(x):
        raise invalid("index", f"{len(index)} images", f"one number for each of the {len(x)} images")
    if severity == 0:
        return x.clone()
    kind = CORRUPTIONS[name]
    return kind.call(x, kind.levels[int(severity) - 1], index, seed).clamp(0, 1)


def _attack(name: str) -> AttackKind:
    def corruption(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, index: Tensor, seed: int) -> Tensor:
        return corrupt(name, x, eps, index, seed=seed)

    return AttackKind(name, CORRUPTIONS[name].title, "corruption", corruption, nested=False)


for _name in CORRUPTIONS:
    register(_attack(_name))
