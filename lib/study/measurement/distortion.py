"""The smallest perturbation found of each image."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from study.attacks.registry import smallest_perturbation
from study.data import Images
from study.measurement.accuracy import Once, at_once, attacked_together, part_key, predictions
from study.measurement.measurement import Cell, Given, MeasurementKind, Selective, Task, register
from study.results.outcomes import pack_distances
from study.results.tables import Table


def distortion_row(
    model: nn.Module, images: Images, steps: int, *, seed: int = 0, once: Once = at_once
) -> dict[str, Any]:
    """The l2 distance of the smallest perturbation that DDN finds for each image: 0 where an image is misclassified as
    it is, inf where none is found. Columns: attack, norm, options, n_examples, distances, wall_s."""
    started = time.perf_counter()
    right, _ = predictions(model, images)
    distances = torch.zeros(len(images), device=right.device)
    for index in attacked_together(right.nonzero().flatten()):

        def smallest(index: Tensor = index) -> list[float]:
            pixels, labels = images.pixels(index), images.labels[index]
            return smallest_perturbation(model, pixels, labels, steps=steps, seed=seed).float().tolist()

        key = f"ddn steps={steps} seed={seed} images={part_key(index)}"
        distances[index] = torch.tensor(once(key, smallest), device=distances.device)
    return {
        "attack": "ddn",
        "norm": "l2",
        "options": f"steps={steps}",
        "n_examples": len(images),
        "distances": pack_distances(distances.tolist()),
        "wall_s": time.perf_counter() - started,
    }


class Grid(Selective):
    """The smallest perturbation of each of the first n_examples test images, by DDN of so many steps."""

    n_examples: int | None = Field(None, ge=1)
    steps: int = Field(100, ge=1)


def tasks(cell: Cell, grid: Grid, n_test: int, cells: Sequence[Cell]) -> list[Task]:
    def measure(given: Given) -> list[dict[str, Any]]:
        images = given.data.test.first(grid.n_examples)
        return [distortion_row(given.network(cell), images, grid.steps, seed=cell.seed, once=given.once)]

    return [Task(cell, "distortions", f"ddn {grid.steps} {grid.n_examples}", measure)]


TABLE = Table(
    {
        "run_id": str,
        "attack": str,
        "norm": str,
        "options": str,
        "n_examples": int,
        "distances": str,
        "wall_s": float,
        "device": str,
        "commit": str,
    },
    key=("run_id",),
)

register(MeasurementKind("distortion", Grid, {"distortions": TABLE}, tasks))
