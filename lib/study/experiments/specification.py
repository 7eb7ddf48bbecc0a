"""Experiments as data: a TOML file, strictly read, is resolved to cells; one cell is one trained and evaluated network.

A preset ("paper", "smoke", ...) is a set of overrides in the file. The specification of a cell is everything that
determines its trained weights; its hash identifies the results, so that an edited default or protocol is noticed.
Attacks are not part of it: they are identified by their own columns in robustness.csv.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    SerializeAsAny,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from study import paths
from study.data import content, source
from study.experiments.grids import MethodGrid, Train
from study.measurement.accuracy import AttackGrid
from study.measurement.attack_suite import SuiteGrid
from study.measurement.measurement import Selective
from study.measurement.registry import MEASUREMENTS
from study.networks import signature
from study.results.store import Measurement
from study.settings import ADVERSARIAL, suffix, title
from study.strict import Strict
from study.training.adversarial import Adversary, adversary_of
from wellcond.errors import invalid, unknown
from wellcond.methods.registry import METHODS, find
from wellcond.methods.settings import Settings

NAME = r"^[A-Za-z0-9_-]{1,80}$"
"""Names of experiments and presets: they become names of folders."""


class Cell(Strict):
    """One network to train and evaluate. `base`: the cell whose trained weights it starts from."""

    dataset: str
    model: str
    method: str
    settings: dict[str, int | float] = Field({})
    seed: int
    n_train: int | None = None
    n_test: int | None = None
    train: Train
    base: Cell | None = None
    architecture: str | None = None  # of a network by its factory: `networks.signature`
    content: str | None = None  # of data of your own: `data.content`

    @property
    def run_id(self) -> str:
        """condlr-r0.8-c1.1-s0: method, settings, seed."""
        return f"{self.method}{suffix(self.settings)}-s{self.seed}"

    @property
    def of_method(self) -> Settings:
        """The settings of the method."""
        return Settings(**{key: value for key, value in self.settings.items() if key not in ADVERSARIAL})  # type: ignore[arg-type]

    @property
    def adversary(self) -> Adversary | None:
        """That of adversarial training."""
        return adversary_of(self.settings)

    @property
    def label(self) -> str:
        return title(METHODS[self.method].label, METHODS[self.method].uses, self.settings)

    def spec(self) -> dict[str, Any]:
        """Everything that determines the trained weights, defaults included, as JSON data without absent options; JSON
        has no infinite numbers, and a bound that is none is the word "inf"."""
        own = self.model_dump(mode="json", exclude_none=True, exclude={"settings", "base"})
        base = {} if self.base is None else {"base": self.base.spec()}
        settings = {key: value if math.isfinite(value) else str(value) for key, value in self.settings.items()}
        return {**own, **settings, **base}

    @property
    def spec_hash(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical JSON of the specification."""
        return canonical_hash(self.spec())


def canonical_hash(value: object) -> str:
    """The first 16 hex digits of the SHA-256 of the JSON with sorted keys: stable across processes and machines."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _there(dataset: str) -> str:
    source(dataset)
    return dataset


class Experiment(Strict):
    """A grid of methods on one data set and model, with its attacks. spectra_epochs: the epochs whose singular values
    are recorded besides the last (0: before training). measurements: what is measured afterwards on the trained
    networks, each kind of MEASUREMENTS under its name, in the file one table or several (`study.experiments.tasks`)."""

    name: str = Field(pattern=NAME)
    title: str
    dataset: Annotated[str, AfterValidator(_there)]
    model: str
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31, strict=True)], ...] = Field(min_length=1)
    train: Train
    method: tuple[MethodGrid, ...] = Field(min_length=1)
    attack: tuple[AttackGrid, ...] = ()
    measurements: dict[str, tuple[SerializeAsAny[Selective], ...]] = Field({})
    n_train: int | None = Field(None, ge=1)
    n_test: int | None = Field(None, ge=1)
    spectra_epochs: tuple[int, ...] = ()
    preset: str = "paper"

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """The tables of measurements under one key."""
        own = {name: raw[name] for name in MEASUREMENTS if name in raw}
        tables = {name: [entry] if isinstance(entry, dict) else entry for name, entry in own.items()}
        rest = {key: value for key, value in raw.items() if key not in own}
        return {**rest, "measurements": {**rest.get("measurements", {}), **tables}}

    @field_validator("measurements", mode="before")
    @classmethod
    def _read(cls, raw: dict[str, Any]) -> dict[str, Any]:
        fields: Any = {name: (Sequence[kind.grid], ()) for name, kind in MEASUREMENTS.items()}  # type: ignore[name-defined]
        read = create_model("Measurements", __base__=Strict, **fields).model_validate(raw)
        return {name: tuple(getattr(read, name)) for name in raw}

    @property
    def suite(self) -> tuple[SuiteGrid, ...]:
        """The attacks of the suite."""
        return tuple(grid for grid in self.measurements.get("suite", ()) if isinstance(grid, SuiteGrid))

    @classmethod
    def load(cls, experiment: str | Path, preset: str = "paper", **overrides: Any) -> Self:
        """Read book/experiments/<experiment>.toml, or a path to a TOML file, and apply a preset and overrides.

        overrides: entries of the experiment (dataset, model, seeds, ...); epochs, of its protocol, which methods with
        their own keep; ratios, a list of those of its ratios that are kept. Empty strings and None are ignored, and
        measurements of networks alone that are then left out.
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
            raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors write a byte order mark
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise invalid("experiment", str(experiment), f"a readable TOML file in UTF-8 ({error})") from error
        presets = {"paper": {}, **_table(raw.pop("presets", {}), f"{path.name}: presets")}
        for name in presets:
            if not re.match(NAME, name):
                raise invalid(f"{path.name}: preset", name, "1 to 80 letters, digits, _ and -")
        if preset not in presets:
            raise unknown("preset", preset, presets)
        chosen = dict(_table(presets[preset], f"{path.name}: presets.{preset}"))
        keep = _table(chosen.pop("keep", {}), f"{path.name}: presets.{preset}.keep")
        raw = _merged(raw, chosen)
        given = {key: value for key, value in overrides.items() if value not in ("", None)}
        overridden = bool(given)
        epochs, ratios = given.pop("epochs", None), given.pop("ratios", None)
        raw = _merged(raw, given | ({} if epochs is None else {"train": {"epochs": epochs}}))
        raw["preset"] = preset
        methods = raw.get("method", [])
        if not isinstance(methods, list) or not all(isinstance(entry, dict) for entry in methods):
            raise invalid(f"{path.name}: method", methods, "tables [[method]]")
        if ratios is not None:
            keep["ratio"] = _among(ratios, [ratio for entry in methods for ratio in entry.get("ratio", ())])
        raw["method"] = [kept for entry in methods if (kept := _kept(entry, keep))]
        try:
            spec = cls.model_validate(raw)
            run_ids = [cell.run_id for cell in spec.cells()]  # checks every method's settings and protocol
        except ValidationError as error:
            raise _one_line(error, path.name) from error
        twice = next((run_id for run_id, count in Counter(run_ids).items() if count > 1), None)
        if twice:
            raise ValueError(f"{path.name}: cell {twice} is declared twice")
        if overridden:
            spec = spec._of_its_networks(run_ids)
        spec._check_measurements(path.name, run_ids)
        return spec

    def _of_its_networks(self, run_ids: Sequence[str]) -> Self:
        """Without the measurements of networks alone that it has not."""
        kept = {
            name: tuple(entry for entry in selective if any(map(entry.applies, run_ids)))
            for name, selective in self.measurements.items()
        }
        return self.model_copy(update={"measurements": kept})

    def _check_measurements(self, file: str, run_ids: Sequence[str]) -> None:
        """Raise ValueError for what is declared twice, or of no network."""
        for grids, table in ((self.attack, "attack"), (self.suite, "suite")):
            declared = Counter((*m, *getattr(grid, "only", ())) for grid in grids for m in grid.measurements())
            for (name, eps, *_), count in declared.items():
                if count > 1:
                    raise ValueError(f"{file}: {table} {name} at eps = {eps:g} is declared twice")
        for name, selective in self.measurements.items():
            for entry in selective:
                if not any(entry.applies(run_id) for run_id in run_ids):
                    raise unknown(f"{file}: {name}.only", ", ".join(entry.only), run_ids)

    def cells(self) -> list[Cell]:
        """All cells, seed by seed, in the order of the file."""
        images = source(self.dataset)
        common: dict[str, Any] = {
            "dataset": self.dataset,
            "model": self.model,
            "n_train": self.n_train,
            "n_test": self.n_test,
            "architecture": signature(self.model, images.num_classes, images.channels) or None,
            "content": content(self.dataset) or None,
        }
        swept = []
        for grid in self.method:
            start, protocol = find(grid.name).starts_from, self._protocol(grid)
            first = self._protocol(next((other for other in self.method if other.name == start), None))
            swept += [(grid.name, settings, protocol, start, first) for settings in grid.swept()]
        cells = []
        for seed in self.seeds:
            for name, settings, protocol, start, first in swept:
                base = Cell(**common, method=start, seed=seed, train=first) if start else None
                cells.append(Cell(**common, method=name, seed=seed, train=protocol, base=base, settings=settings))
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

    def local_folder(self, base: Path | None = None) -> Path:
        """<base>/<name>/<preset>-<hash>; base: results/local."""
        return (base or paths.local()) / self.name / f"{self.preset}-{canonical_hash(self.model_dump(mode='json'))[:8]}"


def _table(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(field, value, "a table")
    return value


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[key] = _merged(old, value) if both and old is not None else value
    return merged


def _among(ratios: Any, known: Sequence[float]) -> list[float]:
    if not isinstance(ratios, list | tuple) or not ratios or any(ratio not in known for ratio in ratios):
        shown = ", ".join(f"{ratio:g}" for ratio in sorted(set(known))) or "none"
        raise invalid("ratios", ratios, f"a list of ratios of the experiment, which has {shown}")
    return list(ratios)


def _kept(entry: dict[str, Any], keep: Mapping[str, list[Any]]) -> dict[str, Any]:
    """A method entry reduced to the names and values a preset keeps; empty if nothing is left of it."""
    for key, allowed in keep.items():
        if key not in MethodGrid.KEYS:
            raise unknown("presets.keep", key, MethodGrid.KEYS)
        if not isinstance(allowed, list):
            raise invalid(f"presets.keep.{key}", allowed, "a list of what is kept")
        value = entry.get(key)
        if isinstance(value, list):
            entry = {**entry, key: [v for v in value if v in allowed]}
            if not entry[key]:
                return {}
        elif value is not None and value not in allowed:
            return {}
    return entry


GATHERED = ("measurements", "settings")
"""Keys of ours, of which the file knows nothing: their contents stand one level higher there."""


def _one_line(error: ValidationError, file: str) -> ValueError:
    errors = error.errors(include_url=False)
    # a misspelt key says more than the key that is then missing
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    *parents, last = [str(part) for part in first["loc"] if not isinstance(part, int) and part not in GATHERED] or [""]
    field = ".".join((*parents, last))
    if first["type"] == "extra_forbidden":
        grids = {name: kind.grid for name, kind in MEASUREMENTS.items()}
        tables: dict[str, type[BaseModel]] = {**grids, "train": Train, "method": MethodGrid, "attack": AttackGrid}
        inner = next((tables[part] for part in reversed(parents) if part in tables), None)
        keys = (
            {*Experiment.model_fields, *MEASUREMENTS} if inner is None else getattr(inner, "KEYS", inner.model_fields)
        )
        return unknown(f"{file}: key", last, {*keys} - {*GATHERED})
    if first["type"] == "missing":
        return ValueError(f"{file}: {field}: missing")
    message = first["msg"].removeprefix("Value error, ")
    return ValueError(f"{file}: {field} = {first.get('input')!r}: {message}")
