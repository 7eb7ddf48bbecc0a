"""The results folder: tidy tables of counts, and where each row comes from. The only module that writes there.

The tables are in tables.py. provenance.json has for each run its specification and the hash of it, commit, versions,
device, hash of the data, times, command.

What is saved becomes at first an addition (additions.py), which `fold` merges into the tables, as each command that
fills an experiment does when it begins, when it ends, and when there are more than FEW. Readers see both. A cell is
done when runs.csv has the hash of its specification.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from study.results.additions import adding, additions, last, text_of, texts
from study.results.files import check_writable, guard, lock, replacing
from study.results.tables import AFTERWARDS, COLUMNS, FLOAT_FORMAT, Row, framed, parsed, records, write_csv
from study.settings import SETTINGS
from wellcond.errors import invalid


class Tables(dict[str, pd.DataFrame]):
    """Tables by name, each made when it is first asked for."""

    def __init__(self, read: Callable[[str], pd.DataFrame]) -> None:
        super().__init__()
        self.read = read

    def __missing__(self, table: str) -> pd.DataFrame:
        frame = self[table] = self.read(table)
        return frame


@dataclass(frozen=True)
class Results:
    """The tables of an experiment, restricted to the completed cells of its grid, and the run_ids still missing.

    Each table is an attribute: results.runs, results.robustness, and so on.
    """

    tables: Mapping[str, pd.DataFrame]
    provenance: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def __getattr__(self, table: str) -> pd.DataFrame:
        if table not in COLUMNS and table not in AFTERWARDS:
            raise AttributeError(f"results have no table {table!r}; they have {', '.join((*COLUMNS, *AFTERWARDS))}")
        return self.tables[table]

    def select(self, table: str) -> pd.DataFrame:
        """One of the other tables with the descriptive columns of its runs joined on."""
        about = ["run_id", "method", "label", *SETTINGS, "seed"]
        return self.tables[table].merge(self.runs[about], on="run_id", validate="many_to_one")

    def restricted(self, run_ids: Iterable[str]) -> Results:
        """The part of these runs, done and missing."""
        kept = frozenset(run_ids)
        whole = self.tables

        def read(table: str) -> pd.DataFrame:
            frame = whole[table]
            return frame[frame["run_id"].isin(kept)]

        provenance = {run_id: entry for run_id, entry in self.provenance.items() if run_id in kept}
        return Results(Tables(read), provenance, tuple(run_id for run_id in self.missing if run_id in kept))


# --- reading ---------------------------------------------------------------------------------------------------------


def _version(path: Path) -> tuple[int, ...]:
    about = path.stat()
    return about.st_mtime_ns, about.st_size, about.st_ino


@lru_cache(maxsize=8)
def _large(path: Path, table: str, version: tuple[int, ...]) -> pd.DataFrame:
    return parsed(text_of(path) or "", table, path)


def _joined(old: pd.DataFrame, added: Mapping[str, str], table: str, path: Path) -> pd.DataFrame:
    """A large table with the texts of the additions in place of its rows of the same runs."""
    if not added:
        return old
    bodies: dict[str, list[str]] = {}
    for text in added.values():
        head, _, body = text.partition("\n")
        bodies.setdefault(head, []).append(body)
    new = [parsed(f"{head}\n{''.join(parts)}", table, path) for head, parts in bodies.items()]
    frames = [frame for frame in (old[~old["run_id"].isin(added)], *new) if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else framed(table, ())


def read_table(folder: Path, table: str, run_id: str | None = None) -> pd.DataFrame:
    """A table as it stands, with what has been added; empty if there is none. run_id: what it has on this run.

    Raises ValueError for a damaged file.
    """
    path = folder / f"{table}.csv"
    added = texts(folder, path.name, run_id)  # before the large table, which then has what is merged in between
    old = _large(path, table, _version(path)).copy(deep=False) if path.exists() else framed(table, ())
    return _joined(old if run_id is None else old[old["run_id"] == run_id], added, table, path)


def _as_it_stands(folder: Path, table: str) -> Callable[[], pd.DataFrame]:
    """What `read_table` gives now, made of what is read now when it is asked for: most of the time is the parsing."""
    path = folder / f"{table}.csv"
    added, text = texts(folder, path.name), text_of(path)

    def read() -> pd.DataFrame:
        old = framed(table, ()) if text is None else parsed(text, table, path)
        return _joined(old, added, table, path)

    return read


@lru_cache(maxsize=4)
def _large_provenance(path: Path, version: tuple[int, ...]) -> Mapping[str, dict[str, Any]]:
    try:
        return dict(json.loads(text_of(path) or "")["runs"])
    except (ValueError, KeyError, TypeError) as error:
        raise invalid("file", str(path), f"readable JSON with a key 'runs' ({error})") from error


def read_provenance(folder: Path) -> dict[str, dict[str, Any]]:
    """provenance.json as a dict by run_id, with what has been added; empty if there is none."""
    path = folder / "provenance.json"
    added = {run_id: json.loads(text) for run_id, text in texts(folder, path.name).items()}
    old = _large_provenance(path, _version(path)) if path.exists() else {}
    return {**old, **added}


def _entry(folder: Path, run_id: str, before: Path | None) -> dict[str, Any]:
    """The provenance of one run; before: the last addition of it."""
    if before and (text := text_of(before / "provenance.json")):
        return dict(json.loads(text))
    path = folder / "provenance.json"
    return dict(_large_provenance(path, _version(path)).get(run_id, {})) if path.exists() else {}


def rows_of(folder: Path, table: str, run_id: str) -> list[dict[str, Any]]:
    """What a table of `folder` has on a run."""
    return records(read_table(folder, table, run_id))


class Measurement(NamedTuple):
    """An attack at one radius, as a run must have it. n_examples None: all test images; options: all of the attack's,
    as text."""

    attack: str
    eps: float
    n_examples: int | None = None
    options: str = ""

    def among(self, n_images: int) -> Measurement:
        """As a row says it of a data set of n_images: more images than there are means all."""
        return self._replace(eps=_in_file(self.eps), n_examples=min(self.n_examples or n_images, n_images))


def measurement(row: Mapping[Any, Any]) -> Measurement:
    """What a row of robustness.csv, or of attacks.csv, measured."""
    options = "" if pd.isna(row["options"]) else row["options"]
    return Measurement(row["attack"], _in_file(row["eps"]), int(row["n_examples"]), options)


def _in_file(value: float) -> float:
    return float(FLOAT_FORMAT % value)


def done(folder: Path, hashes: Mapping[str, str], attacks: Iterable[Measurement]) -> set[str]:
    """The run_ids in `hashes` ({run_id: spec_hash}) completed in `folder` with that specification.

    attacks: what a run must have been measured under, unless it diverged.
    """
    runs, robustness = read_table(folder, "runs"), read_table(folder, "robustness")
    runs = runs[runs["spec_hash"] == runs["run_id"].map(hashes)]
    complete, measured = runs["status"] != "diverged", robustness.fillna({"options": ""})
    images = measured["run_id"].map(runs.set_index("run_id")["n_test"])
    for wanted in attacks:
        asked = images if wanted.n_examples is None else images.clip(upper=wanted.n_examples)
        hit = (measured["attack"] == wanted.attack) & (measured["eps"] == _in_file(wanted.eps))
        hit &= (measured["options"] == wanted.options) & (measured["n_examples"] == asked)
        complete &= runs["run_id"].isin(measured.loc[hit, "run_id"])
    return set(runs.loc[complete | (runs["status"] == "diverged"), "run_id"])


def measured_rows(folder: Path, run_id: str, spec_hash: str) -> list[dict[str, Any]]:
    """The rows of robustness.csv that a run of this specification already has."""
    known = (read_table(folder, "runs", run_id)["spec_hash"] == spec_hash).any()
    return rows_of(folder, "robustness", run_id) if known else []


def load(
    folder: Path,
    specs: Mapping[str, Mapping[str, Any]],
    hashes: Mapping[str, str],
    attacks: Iterable[Measurement],
) -> Results:
    """The completed cells among `specs` ({run_id: specification}, with their hashes); see `done` for attacks.

    Raises ValueError, naming the changed keys, if a run of that name is of another specification.
    """
    finished = done(folder, hashes, attacks)
    if (folder / "runs.csv").exists():
        for table in COLUMNS:
            if not (folder / f"{table}.csv").exists():
                raise invalid("results", str(folder), f"a folder with {table}.csv beside runs.csv")
    provenance = read_provenance(folder)
    runs = read_table(folder, "runs")
    for run_id, spec_hash in zip(runs["run_id"], runs["spec_hash"], strict=True):
        if run_id in hashes and hashes[run_id] != spec_hash:
            changed = _changes(provenance.get(run_id, {}).get("spec", {}), specs[run_id])
            raise ValueError(
                f"results = {str(folder)!r}: {run_id} is of another specification (changed: {changed}); "
                "rerun it, or restore the experiment file"
            )
    complete = [run_id for run_id in hashes if run_id in finished]
    stands = {table: _as_it_stands(folder, table) for table in (*COLUMNS, *AFTERWARDS)}

    def read(table: str) -> pd.DataFrame:
        frame = stands[table]()
        return frame[frame["run_id"].isin(complete)].reset_index(drop=True)

    missing = tuple(run_id for run_id in hashes if run_id not in finished)
    return Results(Tables(read), {r: provenance[r] for r in complete if r in provenance}, missing)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            if a != b:
                found.append(_changes(a, b, f"{prefix}{key}."))
        elif a != b:
            found.append(f"{prefix}{key} {a!r} -> {b!r}")
    return ", ".join(found) or "the definition of the hash"


# --- writing ---------------------------------------------------------------------------------------------------------


def save(folder: Path, run_id: str, tables: Mapping[str, Iterable[Row]], provenance: Mapping[str, Any]) -> None:
    """Add a completed cell: its rows replace those of the same run_id.

    What was measured afterwards stays where the weights are those that it was measured on, and goes where they are not.
    """
    with lock(guard(folder, "tables")):
        check_writable(folder)
        before = last(folder, run_id)
        old, new = _entry(folder, run_id, before), dict(provenance)
        same = same_weights(old, new)
        with adding(folder, run_id) as part:
            for table in AFTERWARDS:
                if same and table in old:
                    new[table] = old[table]
                    if before and (before / f"{table}.csv").exists():
                        shutil.copyfile(before / f"{table}.csv", part / f"{table}.csv")
                elif table in old:
                    write_csv(framed(table, ()), table, part / f"{table}.csv")
            for table in COLUMNS:
                write_csv(framed(table, tables.get(table, ())), table, part / f"{table}.csv")
            _write_entry(new, part / "provenance.json")


def add(folder: Path, run_id: str, table: str, rows: Iterable[Row], provenance: Mapping[str, Any]) -> None:
    """Add what was measured afterwards on a completed cell to one of the tables AFTERWARDS, in place of its old rows.

    provenance: where and how, kept under the table's name in the entry of the run.
    Raises ValueError, leaving everything as it was, for rows that the table could not be read with.
    """
    with lock(guard(folder, "tables")):
        check_writable(folder)
        before = last(folder, run_id)
        entry = _entry(folder, run_id, before)
        with adding(folder, run_id) as part:
            if before:
                shutil.copytree(before, part, dirs_exist_ok=True)
            file = part / f"{table}.csv"
            write_csv(framed(table, rows), table, file)
            parsed(text_of(file) or "", table, folder / file.name)  # refused now, not whenever the folder is read
            _write_entry({**entry, table: dict(provenance)}, part / "provenance.json")


def note(folder: Path, run_id: str, entries: Mapping[str, Any]) -> None:
    """Add entries to the provenance of a completed cell."""
    with lock(guard(folder, "tables")):
        known = read_provenance(folder)
        _write_provenance(folder, {**known, run_id: {**known.get(run_id, {}), **entries}})


def same_weights(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two records of provenance are of the same weights: by their hash, and in records that have none, by the
    specification and by where and from which code they were trained."""
    key = "weights" if "weights" in old and "weights" in new else "training"
    return bool(old) and all(old.get(k) == new.get(k) for k in ("spec_hash", key))


def _write_provenance(folder: Path, entries: Mapping[str, Any]) -> None:
    with replacing(folder / "provenance.json") as part:
        part.write_text(json.dumps({"runs": entries}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _write_entry(entry: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(entry, sort_keys=True) + "\n", encoding="utf-8")


FEW = 256
"""As many additions cost a reader little."""


def fold(folder: Path, unless: int = 0) -> None:
    """Merge the additions into the tables, unless there are only so many."""
    if len(additions(folder)) <= unless:
        return
    with lock(guard(folder, "tables")):
        added = additions(folder)
        if len(added) <= unless:
            return
        _write_provenance(folder, read_provenance(folder))
        for table in (*AFTERWARDS, *COLUMNS):
            if table in COLUMNS or any((path / f"{table}.csv").exists() for path in added.values()):
                frame = read_table(folder, table)
                with replacing(folder / f"{table}.csv") as part:
                    write_csv(frame, table, part)
        shutil.rmtree(folder / ".added")


@contextmanager
def folded(folder: Path) -> Iterator[None]:
    """Merge the additions before and after a block that makes some, also if it is interrupted."""
    fold(folder)
    try:
        yield
    finally:
        fold(folder)


def save_table(folder: Path, table: str, rows: Iterable[Row], provenance: Mapping[str, Any], key: str = "") -> None:
    """Write `rows` as <table>.csv, keeping the old rows with other values of the column `key` (none if key is "").

    provenance.json of the folder gains an entry "<table>" or "<table>/<value>" for each value written.
    """
    new = pd.DataFrame([dict(row) for row in rows])
    path = folder / f"{table}.csv"
    with lock(guard(folder, "tables")):
        check_writable(folder)
        names = [f"{table}/{value}" for value in new[key].unique()] if key else [table]
        if key and path.exists():
            old = pd.read_csv(path)
            new = pd.concat([old[~old[key].isin(new[key])], new], ignore_index=True)
        _write_provenance(folder, {**read_provenance(folder), **{name: dict(provenance) for name in names}})
        with replacing(path) as part:
            new.to_csv(part, index=False, float_format="%.4g")
