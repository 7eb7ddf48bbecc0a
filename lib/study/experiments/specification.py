"""Experiments as data: a TOML file, strictly read, is resolved to cells; one cell is one trained and evaluated network.

A preset ("paper", "smoke", ...) is a set of overrides in the file. The specification of a cell is everything that
determines its trained weights; its hash identifies the results, so that an edited default or protocol is noticed.
Attacks are not part of it: they are identified by their own columns in robustness.csv.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, ValidationError

from study import paths
from study.data import DATASETS
from study.experiments.grids import (
    AttackGrid,
    CompressionGrid,
    ConfidenceGrid,
    DistortionGrid,
    MethodGrid,
    Strict,
    SuiteGrid,
    Train,
    one_of,
)  # fmt: skip
from study.results.store import Measurement
from study.settings import SETTINGS, suffix, title
from study.training.adversarial import SETTINGS as ADVERSARIAL
from study.training.adversarial import Adversary, adversary_of
from wellcond.errors import invalid, unknown
from wellcond.methods.method import Settings
from wellcond.methods.registry import METHODS, find


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
        """Those of the method."""
        return Settings(**{key: value for key, value in self.given.items() if key not in ADVERSARIAL})

    @property
    def adversary(self) -> Adversary | None:
        """That of adversarial training."""
        return adversary_of(self.given)

    @property
    def label(self) -> str:
        return title(METHODS[self.method].label, METHODS[self.method].uses, self.given)

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
    measured afterwards on the trained networks (`study.experiments.tasks`)."""

    name: str
    title: str
    dataset: Annotated[str, one_of("dataset", DATASETS)]
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
