"""Experiments as data: a TOML file, strictly read, is resolved to cells; one cell is one trained and evaluated network.

A preset ("paper", "smoke", ...) is a set of overrides in the file. The specification of a cell is everything that
determines its trained weights; its hash identifies the results, so that an edited default or protocol is noticed.
Attacks are not part of it: they are identified by their own columns in robustness.csv.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from wellcond import paths
from wellcond.attacks import ATTACKS, options_text
from wellcond.compress import COMPRESSORS
from wellcond.data import AUGMENTATIONS, DATASETS
from wellcond.errors import invalid, unknown
from wellcond.method import Settings
from wellcond.methods import METHODS, find
from wellcond.results import Measurement
from wellcond.settings import SETTINGS, suffix


def _one_of(field: str, registry: Mapping[str, Any]) -> AfterValidator:
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
    """The protocol: momentum SGD with a step schedule. milestones: epochs after which lr is multiplied by gamma.

    batch_factor k: batches k times larger and k times the learning rate (linear scaling), which rises step by step
    from lr to k lr over the first `warmup` epochs (Goyal et al., arXiv:1706.02677)."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    lr: float = Field(gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    milestones: tuple[int, ...] = ()
    gamma: float = Field(0.3, gt=0)
    augment: Annotated[str, _one_of("augment", AUGMENTATIONS)] = "none"
    validation: float = Field(0.25, ge=0, lt=1)
    batch_factor: int | None = Field(None, ge=1)
    warmup: int | None = Field(None, ge=1)

    @field_validator("warmup")
    @classmethod
    def _rises(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("batch_factor") is None:
            raise ValueError("must be absent without batch_factor")
        return value


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
            method.check(given)
            yield given


class AttackGrid(Strict):
    """An attack at several radii, on the first n_examples test images (all if absent)."""

    name: Annotated[str, _one_of("attack", ATTACKS)]
    eps: tuple[Annotated[float, Field(ge=0)], ...]
    n_examples: int | None = Field(None, ge=1)
    options: dict[str, float | int] = {}

    @field_validator("options")
    @classmethod
    def _accepted(cls, value: dict[str, float | int], info: ValidationInfo) -> dict[str, float | int]:
        if "name" in info.data:  # else its own error is reported
            accepted = dict(ATTACKS[info.data["name"]].options)
            for key in value.keys() - accepted.keys():
                raise unknown(f"option of {info.data['name']}", key, accepted)
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

    compressor: Annotated[str, _one_of("compressor", COMPRESSORS)]
    amount: tuple[Annotated[float, Field(ge=0, lt=1)], ...]
    phases: int = Field(1, ge=1)
    epochs: int = Field(0, ge=0, validate_default=True)
    lr: float = Field(0.01, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    reestimated: bool = False
    attack: tuple[AttackGrid, ...] = ()

    @field_validator("epochs")
    @classmethod
    def _between(cls, value: int, info: ValidationInfo) -> int:
        if value == 0 and info.data.get("phases", 1) > 1:
            raise ValueError("must be >= 1 where phases is > 1")
        return value


class Cell(Strict):
    """One network to train and evaluate. `base`: the cell whose trained weights it starts from."""

    dataset: str
    model: str
    method: str
    ratio: float | None = None
    rank: int | None = None
    max_cond: float | None = None
    tolerance: float | None = None
    beta: float | None = None
    decay: float | None = None
    mix: float | None = None
    trades: float | None = None
    radius: float | None = None
    depth: int | None = None
    fraction: float | None = None
    scale: float | None = None
    seed: int
    n_train: int | None = None
    n_test: int | None = None
    train: Train
    base: Cell | None = None

    @property
    def run_id(self) -> str:
        """condlr-r0.8-c1.1-s0: method, settings, seed."""
        return f"{self.method}{suffix(self.given)}-s{self.seed}"

    @property
    def given(self) -> dict[str, Any]:
        """The settings of this cell."""
        return {key: value for key in SETTINGS if (value := getattr(self, key)) is not None}

    @property
    def settings(self) -> Settings:
        return Settings(**self.given)

    @property
    def label(self) -> str:
        return METHODS[self.method].title(**self.given)

    def spec(self) -> dict[str, Any]:
        """Everything that determines the trained weights, defaults included, as JSON data without absent options."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def spec_hash(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical JSON of the specification."""
        return canonical_hash(self.spec())


def canonical_hash(value: object) -> str:
    """The first 16 hex digits of the SHA-256 of the JSON with sorted keys: stable across processes and machines."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Experiment(Strict):
    """A grid of methods on one data set and model, with its attacks. spectra_epochs: the epochs whose singular values
    are recorded besides the last (0: before training). suite, confidence, distortion, transfer, compression: what is
    measured afterwards on the trained networks (`wellcond.assessment`)."""

    name: str
    title: str
    dataset: Annotated[str, _one_of("dataset", DATASETS)]
    model: str
    seeds: tuple[int, ...]
    train: Train
    method: tuple[MethodGrid, ...]
    attack: tuple[AttackGrid, ...] = ()
    suite: tuple[SuiteGrid, ...] = ()
    confidence: ConfidenceGrid | None = None
    distortion: DistortionGrid | None = None
    transfer: SuiteGrid | None = None
    compression: tuple[CompressionGrid, ...] = ()
    n_train: int | None = Field(None, ge=1)
    n_test: int | None = Field(None, ge=1)
    spectra_epochs: tuple[int, ...] = ()
    preset: str = "paper"

    @classmethod
    def load(cls, experiment: str | Path, preset: str = "paper", **overrides: Any) -> Self:
        """Read book/experiments/<experiment>.toml, or a path to a TOML file, and apply a preset and overrides.

        overrides: entries of the experiment (dataset, model, seeds, ...); empty strings and None are ignored.
        Raises ValueError in one line, with the nearest name, for an unknown experiment, preset, key, method, attack
        or data set, and for a value out of range.
        """
        known = {path.stem: path for path in sorted(paths.experiments().glob("*.toml"))}
        path = Path(experiment)
        if path.suffix != ".toml":
            if str(experiment) not in known:
                raise unknown("experiment", str(experiment), known)
            path = known[str(experiment)]
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise invalid("experiment", str(experiment), f"a readable TOML file ({error})") from error
        presets = {"paper": {}, **raw.pop("presets", {})}
        if preset not in presets:
            raise unknown("preset", preset, presets)
        chosen = dict(presets[preset])
        keep = chosen.pop("keep", {})
        raw = _merged(raw, chosen)
        raw = _merged(raw, {key: value for key, value in overrides.items() if value not in ("", None)})
        raw["preset"] = preset
        raw["method"] = [kept for entry in raw.get("method", []) if (kept := _kept(entry, keep))]
        try:
            spec = cls.model_validate(raw)
            run_ids = [cell.run_id for cell in spec.cells()]  # checks every method's settings and protocol
        except ValidationError as error:
            raise _one_line(error, path.name) from error
        for run_id in run_ids:
            if run_ids.count(run_id) > 1:
                raise ValueError(f"{path.name}: cell {run_id} is declared twice")
        return spec

    def cells(self) -> list[Cell]:
        """All cells, seed by seed, in the order of the file."""
        common: dict[str, Any] = {
            "dataset": self.dataset,
            "model": self.model,
            "n_train": self.n_train,
            "n_test": self.n_test,
        }
        cells = []
        for seed in self.seeds:
            for grid in self.method:
                method = find(grid.name)
                train, base = self._protocol(grid), None
                if method.starts_from:
                    source = next((other for other in self.method if other.name == method.starts_from), None)
                    base = Cell(**common, method=method.starts_from, seed=seed, train=self._protocol(source))
                for settings in grid.settings():
                    cells.append(Cell(**common, method=grid.name, seed=seed, train=train, base=base, **settings))
        return cells

    def _protocol(self, grid: MethodGrid | None) -> Train:
        return Train.model_validate({**self.train.model_dump(), **(grid.train if grid else {})})

    def hashes(self) -> dict[str, str]:
        """{run_id: spec_hash} of all cells."""
        return {cell.run_id: cell.spec_hash for cell in self.cells()}

    def attacks(self) -> list[Measurement]:
        """What every run is measured under."""
        return [measurement for attack in self.attack for measurement in attack.measurements()]

    def modified(self) -> bool:
        """Whether this is anything but the paper preset of the file book/experiments/<name>.toml as it stands."""
        path = paths.experiments() / f"{self.name}.toml"
        return not path.exists() or self != type(self).load(self.name)

    def folder(self) -> Path:
        """results/<name> for the paper preset as declared; results/local/<name>/<preset>-<hash> for anything else."""
        if not self.modified():
            return paths.results() / self.name
        return self.local_folder()

    def local_folder(self) -> Path:
        return paths.local() / self.name / f"{self.preset}-{canonical_hash(self.model_dump(mode='json'))[:8]}"


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[key] = _merged(old, value) if both and old is not None else value
    return merged


def _kept(entry: dict[str, Any], keep: Mapping[str, list[Any]]) -> dict[str, Any]:
    """A method entry reduced to the names and values a preset keeps; empty if nothing is left of it."""
    for key, allowed in keep.items():
        if key not in MethodGrid.model_fields:
            raise unknown("presets.keep", key, MethodGrid.model_fields)
        value = entry.get(key)
        if isinstance(value, list):
            entry = {**entry, key: [v for v in value if v in allowed]}
            if not entry[key]:
                return {}
        elif value is not None and value not in allowed:
            return {}
    return entry


_TABLES: dict[str, type[BaseModel]] = {
    "train": Train,
    "method": MethodGrid,
    "attack": AttackGrid,
    "suite": SuiteGrid,
    "confidence": ConfidenceGrid,
    "distortion": DistortionGrid,
    "transfer": SuiteGrid,
    "compression": CompressionGrid,
}


def _one_line(error: ValidationError, file: str) -> ValueError:
    errors = error.errors(include_url=False)
    # a misspelt key says more than the key that is then missing
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    *parents, last = first["loc"] or ("",)
    field = ".".join(str(part) for part in (*parents, last) if not isinstance(part, int))
    if first["type"] == "extra_forbidden":
        table = next((_TABLES[str(p)] for p in parents if p in _TABLES), Experiment)
        return unknown(f"{file}: key", str(last), table.model_fields)
    if first["type"] == "missing":
        return ValueError(f"{file}: {field}: missing")
    message = first["msg"].removeprefix("Value error, ")
    return ValueError(f"{file}: {field} = {first.get('input')!r}: {message}")
