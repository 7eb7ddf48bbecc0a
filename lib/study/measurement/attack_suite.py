"""The attack suite on one network: which images survive each attack at each radius.

Outcomes are kept image by image. An attack is spared the images that a cheaper one has felled, and those that have
withstood it in a larger ball: each radius decides only about the images between its neighbours, and a curve over many
radii costs little more than one of them. An interrupted suite is continued where it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from study.attacks.logits import correct
from study.attacks.registry import ATTACKS, AttackKind, options_text, perturb, smallest_perturbation
from study.data import Images
from study.measurement.accuracy import Once, at_once, attacked_together, part_key, predictions, survivors
from study.results.outcomes import pack, pack_distances, unpack
from study.results.store import Measurement, measurement

Row = Mapping[str, Any]
CLEAN = "clean"


class Trial(NamedTuple):
    """One attack at one radius on the first n_examples images (all if None)."""

    attack: str
    eps: float
    n_examples: int | None
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def measurement(self) -> Measurement:
        """What its row measures."""
        options = options_text(ATTACKS[self.attack], dict(self.options))
        return Measurement(self.attack, self.eps, self.n_examples, options)


def _row(kind: str, norm: str, eps: float, options: str, attacked: int, alive: Tensor) -> dict[str, Any]:
    return {
        "attack": kind,
        "norm": norm,
        "eps": eps,
        "options": options,
        "n_examples": len(alive),
        "n_attacked": attacked,
        "n_correct": int(alive.sum()),
        "outcomes": pack(alive.tolist()),
    }


def _known(row: Row, n: int, device: torch.device) -> Tensor:
    outcomes = unpack(str(row["outcomes"]), int(row["n_examples"]))
    return torch.from_numpy(outcomes[:n].copy()).to(device)


def _felled(kind: AttackKind, trial: Trial, row: Row) -> bool:
    """Whether an image that falls in the row has fallen in the trial: clean, in a smaller ball, or to an attack that
    this one follows."""
    smaller = kind.nested and _same(kind, trial, row) and row["eps"] < trial.eps
    return row["attack"] == CLEAN or smaller or (row["attack"] in kind.follows and row["eps"] <= trial.eps)


def _withstood(kind: AttackKind, trial: Trial, row: Row) -> bool:
    """Whether an image that stands in the row stands in the trial: the same attack has failed in a larger ball."""
    return kind.nested and _same(kind, trial, row) and row["eps"] > trial.eps


def _same(kind: AttackKind, trial: Trial, row: Row) -> bool:
    return row["attack"] == kind.name and measurement(row).options == trial.measurement.options


def clean_row(model: nn.Module, images: Images) -> dict[str, Any]:
    """The row of the images as they are."""
    alive, _ = predictions(model, images)
    return _row(CLEAN, "", 0.0, "", 0, alive)


def attack_row(
    model: nn.Module, images: Images, trial: Trial, rows: Sequence[Row], *, seed: int = 0, once: Once = at_once
) -> dict[str, Any]:
    """The outcome of one trial: image i survives if it is classified correctly as it is and stands in the rows of what
    the attack follows and of smaller balls, and if it withstands the attack, now or in the row of a larger ball.
    rows: what is known of this network, the clean row included.

    Columns: attack, norm, eps, options, n_examples, n_attacked (now), n_correct, wall_s, and outcomes
    (`study.results.outcomes.pack`).
    """
    kind, started = ATTACKS[trial.attack], time.perf_counter()
    images = images.first(trial.n_examples)
    standing = torch.ones(len(images), dtype=torch.bool, device=images.labels.device)
    withstood = torch.zeros_like(standing)
    for row in rows:
        if row["n_examples"] >= len(images):
            alive = _known(row, len(images), standing.device)
            if _felled(kind, trial, row):
                standing &= alive
            elif _withstood(kind, trial, row):
                withstood |= alive
    attacked = standing & ~withstood
    after = survivors(kind, model, images, attacked, trial.eps, seed=seed, once=once, **dict(trial.options))
    after |= standing & withstood
    row = _row(kind.name, kind.norm, trial.eps, trial.measurement.options, int(attacked.sum()), after)
    return {**row, "wall_s": time.perf_counter() - started}


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
            found: list[float] = smallest_perturbation(model, pixels, labels, steps=steps, seed=seed).float().tolist()
            return found

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


def transfer_rows(
    source: nn.Module,
    targets: Mapping[str, nn.Module],
    images: Images,
    trial: Trial,
    *,
    seed: int = 0,
    once: Once = at_once,
) -> list[dict[str, Any]]:
    """Images crafted on `source`, all of them, against each target; the source itself is the white-box attack.

    Columns: target (its key), and those of `attack_row`.
    """
    kind = ATTACKS[trial.attack]
    images = images.first(trial.n_examples)
    alive = {name: torch.zeros(len(images), dtype=torch.bool, device=images.labels.device) for name in targets}
    for index in attacked_together(torch.arange(len(images), device=images.labels.device)):

        def outcomes(index: Tensor = index) -> dict[str, list[int]]:
            x, y = images.pixels(index), images.labels[index]
            crafted = perturb(kind, source, x, y, trial.eps, index=index, seed=seed, **dict(trial.options))
            with torch.no_grad():
                stands = {name: correct(f, crafted, y) & correct(f, x, y) for name, f in targets.items()}
            return {name: [int(value) for value in bits] for name, bits in stands.items()}

        about = f"transfer {','.join(targets)} {trial.measurement} seed={seed} images={part_key(index)}"
        for name, bits in once(about, outcomes).items():
            alive[name][index] = torch.tensor(bits, dtype=torch.bool, device=index.device)
    options = trial.measurement.options
    return [
        {"target": name, **_row(kind.name, kind.norm, trial.eps, options, len(images), alive[name])} for name in targets
    ]
