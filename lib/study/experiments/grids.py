"""The tables of an experiment file that say what is trained: the protocol, and methods swept over settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from study.data import AUGMENTATIONS
from study.settings import ADVERSARIAL, SETTINGS, check_setting
from study.strict import Strict, one_of
from study.training.adversarial import adversary_of
from study.training.loop import SCHEDULES, Recipe
from study.training.precision import FORMATS
from wellcond.errors import unknown
from wellcond.methods.method import Method
from wellcond.methods.registry import find


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

    @property
    def factor(self) -> int:
        """By which batches and learning rate are larger."""
        return self.batch_factor or 1

    @property
    def recipe(self) -> Recipe:
        """What `fit` is told; momentum SGD is the optimizer's part."""
        given = ("milestones", "gamma", "schedule", "warmup", "label_smoothing", "autocast", "augment")
        options = {key: value for key in given if (value := getattr(self, key)) is not None}
        return Recipe(self.epochs, self.factor * self.batch_size, warmup_start=1 / self.factor, **options)


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
    settings: dict[str, tuple[int | float, ...]]
    train: dict[str, Any] = Field({})

    KEYS: ClassVar = ("name", *SETTINGS, "train")

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, raw: Any) -> Any:
        """The settings, which stand beside the name in the file, under one key."""
        if not isinstance(raw, dict) or "settings" in raw:
            return raw
        own = {key: raw[key] for key in SETTINGS if key in raw}
        return {**{key: value for key, value in raw.items() if key not in own}, "settings": own}

    @field_validator("train")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value.keys() - Train.model_fields.keys():
            raise unknown("key", key, Train.model_fields)
        return value

    def swept(self) -> Iterable[dict[str, float]]:
        """The product of the values of its settings, each checked against the method."""
        method, given = find(self.name), {key: self.settings[key] for key in SETTINGS if self.settings.get(key)}
        for values in itertools.product(*given.values()):
            chosen = dict(zip(given, values, strict=True))
            check_settings(method, chosen)
            yield {key: SETTINGS[key].kind(value) for key, value in chosen.items()}
