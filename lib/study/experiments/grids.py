"""The tables of an experiment file, strictly read: the protocol, methods swept over settings, and what is measured."""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from study.attacks.options import complete
from study.attacks.registry import ATTACKS, options_text
from study.data import AUGMENTATIONS
from study.results.store import Measurement
from study.settings import SETTINGS, check_setting
from study.training.adversarial import SETTINGS as ADVERSARIAL
from study.training.adversarial import adversary_of
from study.training.loop import SCHEDULES
from study.training.precision import FORMATS
from wellcond.compression.compressors import COMPRESSORS
from wellcond.errors import unknown
from wellcond.methods.method import Method
from wellcond.methods.registry import find


def one_of(field: str, registry: Mapping[str, Any]) -> AfterValidator:
    """The value is a key of the registry, else an error that suggests the nearest."""

    def check(value: str) -> str:
        if value not in registry:
            raise unknown(field, value, registry)
        return value

    return AfterValidator(check)


class Strict(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Train(Strict):
    """The protocol: momentum SGD with a schedule. milestones: epochs after which lr is multiplied by gamma; or, with a
    schedule of train.SCHEDULES, a fall of lr step by step after a rise over `warmup` epochs. label_smoothing in (0, 1);
    autocast: a format of precision.FORMATS for the products of training.

    batch_factor k: batches k times larger and k times the learning rate (linear scaling), which rises step by step
    from lr to k lr over the first `warmup` epochs (Goyal et al., arXiv:1706.02677)."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    lr: float = Field(gt=0, allow_inf_nan=False)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    milestones: tuple[int, ...] = ()
    gamma: float = Field(0.3, gt=0, allow_inf_nan=False)
    augment: Annotated[str, one_of("augment", AUGMENTATIONS)] = "none"
    validation: float = Field(0.25, ge=0, lt=1)
    batch_factor: int | None = Field(None, ge=1)
    schedule: Annotated[str, one_of("schedule", SCHEDULES)] | None = None
    warmup: int | None = Field(None, ge=1)
    label_smoothing: float | None = Field(None, gt=0, lt=1)
    autocast: Annotated[str, one_of("autocast", FORMATS)] | None = None

    @field_validator("warmup")
    @classmethod
    def _rises(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("batch_factor") is None and info.data.get("schedule") is None:
            raise ValueError("must be absent without batch_factor or schedule")
        if value is not None and info.data.get("schedule") and not value < info.data.get("epochs", math.inf):
            raise ValueError(f"must be < epochs = {info.data['epochs']}")
        return value

    @field_validator("schedule")
    @classmethod
    def _falls(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("milestones"):
            raise ValueError("must be absent where milestones are given")
        return value


def check_settings(method: Method, given: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the setting, unless exactly what the method uses is given, and all in range; a method
    that trains can be trained adversarially, with settings that are no concern of its own."""
    adversarial = {key: value for key, value in given.items() if key in ADVERSARIAL and method.trains}
    method.check({key: value for key, value in given.items() if key not in adversarial})
    for key, value in given.items():
        check_setting(key, value)
    adversary_of(adversarial)


class MethodGrid(Strict):
    """A method and the settings it is swept over; `train` overrides entries of the protocol for this method."""

    name: str
    ratio: tuple[float, ...] = ()
    rank: tuple[int, ...] = ()
    max_cond: tuple[float, ...] = ()
    tolerance: tuple[float, ...] = ()
    beta: tuple[float, ...] = ()
    decay: tuple[float, ...] = ()
    mix: tuple[float, ...] = ()
    trades: tuple[float, ...] = ()
    radius: tuple[float, ...] = ()
    depth: tuple[int, ...] = ()
    fraction: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    train: dict[str, Any] = {}

    @field_validator("train")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value.keys() - Train.model_fields.keys():
            raise unknown("key", key, Train.model_fields)
        return value

    def settings(self) -> Iterable[dict[str, Any]]:
        """The product of the swept settings, each checked against the method."""
        method = find(self.name)
        for values in itertools.product(*(getattr(self, key) or (None,) for key in SETTINGS)):
            given = {key: value for key, value in zip(SETTINGS, values, strict=True) if value is not None}
            check_settings(method, given)
            yield given


class AttackGrid(Strict):
    """An attack at several radii, on the first n_examples test images (all if absent)."""

    name: Annotated[str, one_of("attack", ATTACKS)]
    eps: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(min_length=1)
    n_examples: int | None = Field(None, ge=1)
    options: dict[str, Any] = {}

    @field_validator("eps")
    @classmethod
    def _once(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) < len(value):
            raise ValueError("must name each radius once")
        return value

    @field_validator("options")
    @classmethod
    def _accepted(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "name" in info.data:  # else its own error is reported
            complete(info.data["name"], ATTACKS[info.data["name"]].options, value)
        return value

    def measurements(self) -> list[Measurement]:
        """One for each eps."""
        options = options_text(ATTACKS[self.name], self.options)
        return [Measurement(self.name, eps, self.n_examples, options) for eps in self.eps]


class Selective(Strict):
    """Something measured on the runs whose run_id matches a glob pattern of `only`; on all if it is empty."""

    only: tuple[str, ...] = ()

    def applies(self, run_id: str) -> bool:
        return not self.only or any(fnmatch.fnmatchcase(run_id, pattern) for pattern in self.only)


class SuiteGrid(AttackGrid, Selective):
    """An attack of the suite that is run on trained networks."""


class DistortionGrid(Selective):
    """The smallest perturbation of each of the first n_examples test images, by DDN of so many steps."""

    n_examples: int | None = Field(None, ge=1)
    steps: int = Field(100, ge=1)


class ConfidenceGrid(Selective):
    """Calibration, logits and input gradients on the first n_examples test images (all if absent)."""

    n_examples: int | None = Field(None, ge=1)


class CompressionGrid(Selective):
    """A compressor at several amounts, applied to trained networks in so many phases, each followed by `epochs` epochs
    of training at the learning rate lr; reestimated: with the statistics of batch normalization computed again.
    attack: what the compressed networks are measured under, besides the clean test images."""

    compressor: Annotated[str, one_of("compressor", COMPRESSORS)]
    amount: tuple[Annotated[float, Field(ge=0, lt=1)], ...]
    phases: int = Field(1, ge=1)
    epochs: int = Field(0, ge=0, validate_default=True)
    lr: float = Field(0.01, gt=0, allow_inf_nan=False)
    momentum: float = Field(0.9, ge=0, lt=1)
    reestimated: bool = False
    attack: tuple[AttackGrid, ...] = ()

    @field_validator("epochs")
    @classmethod
    def _between(cls, value: int, info: ValidationInfo) -> int:
        if value == 0 and info.data.get("phases", 1) > 1:
            raise ValueError("must be >= 1 where phases is > 1")
        return value
