"""The radius around each image within which no perturbation can change the decision: robustness without an attack.

Let f map pixels to logits, and let g be all of f but its last layer, so that f(x) = W g(x) + b. If ‖g(x) - g(x')‖ is at
most L ‖x - x'‖, an image with label y keeps it in the open l2 ball of radius

    r(x) = min_{k ≠ y} (f_y(x) - f_k(x)) / (‖w_y - w_k‖ L)

(Tsuzuku, Sato, Sugiyama, NeurIPS 2018, in the sharper form for the last layer). For a chain of layers L is a product:

    a linear layer, W of batch normalization folded in     ‖W‖₂ = σ₁,
    a convolution                                          max over frequencies ω of ‖K(ω)‖₂,
    an activation or normalization                         max |φ'|,
    a max-pooling                                          sqrt(the most windows that hold one entry).

K(ω) is the discrete Fourier transform of the kernel on a torus that images do not wrap around, where the convolution is
block diagonal (Sedghi, Gupta, Long, ICLR 2019); with zeros for a padding it is a part of that one, so its norm is no
larger. All is in float64. A certificate holds whatever the attack; the product is far from sharp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from study.data import Images
from study.measurement.conditioning import ConvolutionStep, Step, WeightStep, chain
from study.measurement.measurement import Cell, Given, MeasurementKind, Selective, Task, register
from study.results.outcomes import pack_distances
from study.results.tables import Table
from wellcond.diagnostics import in_double
from wellcond.errors import invalid

CHUNK = 500  # images at a time
SLOPES = torch.linspace(-10, 10, 200_001, dtype=torch.float64)  # where the largest slope of an activation is looked for


def convolution_norm(kernel: Tensor, size: tuple[int, int], dilation: tuple[int, int] = (1, 1)) -> Tensor:
    """max_ω ‖K(ω)‖₂ of a kernel (out, in, h, w): at least the norm of the convolution of images of this size, whatever
    its stride and its padding with zeros."""
    out, into, h, w = kernel.shape
    spread = kernel.new_zeros(out, into, (h - 1) * dilation[0] + 1, (w - 1) * dilation[1] + 1)
    spread[:, :, :: dilation[0], :: dilation[1]] = kernel
    torus = [n + k - 1 for n, k in zip(size, spread.shape[2:], strict=True)]
    blocks = torch.fft.rfft2(spread, s=torus).permute(2, 3, 0, 1)  # real kernels: half of the frequencies tell all
    return torch.linalg.matrix_norm(blocks, ord=2).max()


def _expansion(kind: str, step: Step, z: Tensor) -> Tensor:
    """The largest factor by which a step other than a weight layer can stretch a difference; z: an input of it."""
    if kind == "identity":
        return z.new_ones(())
    if kind == "pooling":  # one pixel at a time: in how many windows it is the largest
        pixels = math.prod(z.shape[2:])
        impulses = torch.eye(pixels, dtype=z.dtype).reshape(pixels, 1, *z.shape[2:])
        return step(impulses).flatten(1).sum(1).max().sqrt()
    points = torch.zeros_like(z) if kind == "normalization" else SLOPES.clone()
    with torch.enable_grad():
        points.requires_grad_()
        (slopes,) = torch.autograd.grad(step(points.clone()).sum(), points)
    return slopes.abs().max()


def _layer_norm(step: WeightStep, z: Tensor) -> Tensor:
    if not isinstance(step, ConvolutionStep):
        return step.norm
    kernel = step.W.reshape(len(step.W), -1, *step.layer.kernel_size)
    dilation: Any = step.layer.dilation
    both = dilation if isinstance(dilation, tuple) else (dilation, dilation)
    return convolution_norm(kernel, (z.shape[2], z.shape[3]), both)


@torch.no_grad()
def certified_radii(model: nn.Module, images: Images) -> tuple[Tensor, float]:
    """r(x) of each image (N,), zero where it is misclassified as it is, and the constant L of all but the last layer.

    model: a chain of layers that ends in a linear one, used in evaluation mode, in float64; pixels are in [0, 1].
    Raises ValueError, naming what, for no images, or for a model that is no such chain.
    """
    if not len(images):
        raise invalid("images", "0 images", "at least one")
    *steps, (_, _, last) = list(chain(in_double(model)))
    if not isinstance(last, WeightStep) or isinstance(last, ConvolutionStep):
        raise invalid("model", type(model).__name__, "a chain of layers that ends in a linear one")
    expansion = torch.ones((), dtype=torch.float64)
    z = images.pixels(slice(0, 1)).double()
    for _, kind, step in steps:
        expansion = expansion * (_layer_norm(step, z) if isinstance(step, WeightStep) else _expansion(kind, step, z))
        z = step(z)
    apart = torch.cdist(last.W, last.W)
    radii = []
    for x, y in images.chunks(CHUNK):
        z = x.double()
        for _, _, step in steps:
            z = step(z)
        logits = last(z)
        ahead = (logits.gather(1, y[:, None]) - logits) / (apart[y] * expansion)
        ahead[torch.arange(len(y)), y] = math.inf
        radii.append(ahead.amin(1).clamp(min=0))
    return torch.cat(radii), float(expansion)


class Grid(Selective):
    """Certified radii in l2 of the first n_examples test images (all if absent)."""

    n_examples: int | None = Field(None, ge=1)


def tasks(cell: Cell, grid: Grid, n_test: int, cells: Sequence[Cell]) -> list[Task]:
    def measure(given: Given) -> list[dict[str, Any]]:
        images = given.data.test.first(grid.n_examples)
        radii, expansion = certified_radii(given.network(cell), images)
        return [{"n_examples": len(images), "lipschitz": expansion, "distances": pack_distances(radii.tolist())}]

    return [Task(cell, "certified", "certified", measure)]


TABLE = Table({"run_id": str, "n_examples": int, "lipschitz": float, "distances": str}, key=("run_id",))

register(MeasurementKind("certified", Grid, {"certified": TABLE}, tasks))
