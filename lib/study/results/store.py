"""The results folder: tidy tables of counts, and where each row comes from. The only module that writes there.

    runs.csv         one row a trained network; see RUNS
    robustness.csv   one row per (run, attack, eps): how many of n_examples are still classified correctly
    curves.csv       long format: run_id, epoch, layer (or empty), quantity, value
    spectra.csv      run_id, epoch, layer, index, singular_value: at the end, and earlier if wanted
    conditioning.csv the same columns without epoch: κ_rel at test images and the factors of its bound, where measured
    attacks.csv      one row per (run, attack, eps, options): which of the first n_examples test images survive it
    distortions.csv  the smallest perturbation found of each image
    confidence.csv   calibration, logits and gradients on clean images: run_id, quantity, value
    transfer.csv     images crafted on one run against another, the target
    compressions.csv the network compressed afterwards: size and correct images, clean and attacked, at each amount
    filters.csv      the norms of the rows of each weight matrix, the filters
    provenance.json  per run: specification and its hash, commit, versions, device, data hash, times, command

A cell is done when its row in runs.csv, which is written last, carries the hash of its specification. Writes replace
whole files atomically under a lock, so several runners may fill one experiment.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from filelock import FileLock

from study import paths
from study.settings import SETTINGS
from wellcond.errors import invalid

Row = Mapping[str, Any]

RUNS = (
    "run_id", "dataset", "model", "method", "label", *SETTINGS, "seed", "epochs", "rank_fraction",
    "n_params_dense", "n_params_trained", "n_params_deployed", "flops_dense", "flops_deployed", "n_test", "n_correct",
    "kappa_max", "orth_error_max", "wall_s", "peak_bytes", "device", "status", "spec_hash",
)  # fmt: skip
ROBUSTNESS = (
    "run_id", "attack", "norm", "eps", "options", "n_examples", "n_correct", "n_zero_gradient",
)  # fmt: skip
COLUMNS: dict[str, tuple[str, ...]] = {
    "spectra": ("run_id", "epoch", "layer", "index", "singular_value"),
    "curves": ("run_id", "epoch", "layer", "quantity", "value"),
    "robustness": ROBUSTNESS,
    "runs": RUNS,  # last: its row says that the cell is complete
}
_OUTCOMES = ("attack", "norm", "eps", "options", "n_examples", "n_attacked", "n_correct", "outcomes")
AFTERWARDS = {
    "conditioning": ("run_id", "layer", "quantity", "value"),
    "attacks": ("run_id", *_OUTCOMES, "wall_s", "device", "commit"),
    "distortions": ("run_id", "attack", "norm", "options", "n_examples", "distances", "wall_s", "device", "commit"),
    "confidence": ("run_id", "n_examples", "quantity", "value"),
    "transfer": ("run_id", "target", *_OUTCOMES),
    "compressions": (
        *("run_id", "compressor", "amount", "phases", "epochs", "lr", "reestimated", "n_params_deployed"),
        *("flops_deployed", "kappa", "attack", "norm", "eps", "options", "n_examples", "n_correct", "device", "commit"),
    ),
    "filters": ("run_id", "layer", "index", "norm"),
}
"""Tables of what may be measured later, on the trained weights of a completed cell; a file only if there are rows."""

FLOAT_FORMAT = "%.9g"


@dataclass(frozen=True)
class Results:
    """The tables of an experiment, restricted to the completed cells of its grid, and the run_ids still missing."""

    runs: pd.DataFrame
    robustness: pd.DataFrame
    curves: pd.DataFrame
    spectra: pd.DataFrame
    conditioning: pd.DataFrame
    attacks: pd.DataFrame
    distortions: pd.DataFrame
    confidence: pd.DataFrame
    transfer: pd.DataFrame
    compressions: pd.DataFrame
    filters: pd.DataFrame
    provenance: dict[str, dict[str, Any]]
    missing: tuple[str, ...] = ()

    def select(self, table: str) -> pd.DataFrame:
        """One of the other tables with the descriptive columns of its runs joined on."""
        about = ["run_id", "method", "label", *SETTINGS, "seed"]
        frame: pd.DataFrame = getattr(self, table)
        return frame.merge(self.runs[about], on="run_id", validate="many_to_one")


def _columns(table: str) -> tuple[str, ...]:
    return {**COLUMNS, **AFTERWARDS}[table]


def read_table(folder: Path, table: str) -> pd.DataFrame:
    path = folder / f"{table}.csv"
    if not path.exists():
        return pd.DataFrame(columns=list(_columns(table)))
    try:
        frame = pd.read_csv(path, keep_default_na=True, dtype={"outcomes": str, "distances": str, "options": str})
    except (ValueError, OSError) as error:
        raise invalid("file", str(path), f"a readable CSV ({error})") from error
    # a setting that came later than the file: no run of it has it
    frame = frame.reindex(columns=[*frame, *(c for c in _columns(table) if c in SETTINGS and c not in frame)])
    absent = [column for column in _columns(table) if column not in frame]
    if absent:
        raise invalid("columns", list(frame.columns), f"including {', '.join(absent)} in {path}")
    _check(frame, path)
    return frame


COUNTS = ("n_examples", "n_test", "n_correct", "n_attacked", "n_zero_gradient", "epoch", "index")
STATUS = ("done", "diverged")


def _check(frame: pd.DataFrame, path: Path) -> None:
    """Raise ValueError, naming file, line and column, for what no run writes: a table that was edited by hand."""

    def refuse(bad: pd.Series[Any], column: str, accepted: str) -> None:
        if bad.any():
            line = int(bad.to_numpy().argmax())
            value = frame[column].iloc[line]
            value = value.item() if hasattr(value, "item") else value
            raise invalid(f"{path}, line {line + 2}: {column}", value, accepted)

    for column in (c for c in COUNTS if c in frame):
        number = pd.to_numeric(frame[column], errors="coerce")
        refuse(number.isna() & frame[column].notna() | (number < 0) | (number % 1 > 0), column, "a whole number >= 0")
    for column in ("n_correct", "n_attacked", "n_zero_gradient"):
        whole = "n_examples" if "n_examples" in frame else "n_test"
        if column in frame and whole in frame:
            refuse(frame[column] > frame[whole], column, f"at most {whole}")
    if "outcomes" in frame:
        refuse(~frame["outcomes"].fillna("").str.fullmatch(r"([0-9a-f]{2})*"), "outcomes", "hexadecimal digits")
    if "status" in frame:
        refuse(~frame["status"].isin(STATUS), "status", " or ".join(STATUS))
        refuse(frame["run_id"].duplicated(), "run_id", "given once")
        refuse((frame["status"] == "done") & frame["n_test"].isna(), "n_test", "given for a run that is done")


def read_runs(folder: Path) -> pd.DataFrame:
    """runs.csv as it stands; empty if there is none."""
    return read_table(folder, "runs")


def read_provenance(folder: Path) -> dict[str, dict[str, Any]]:
    """provenance.json as a dict by run_id; empty if there is none."""
    path = folder / "provenance.json"
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["runs"])
    except (ValueError, KeyError, TypeError) as error:
        raise invalid("file", str(path), f"readable JSON with a key 'runs' ({error})") from error


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
    runs, sources = read_table(folder, "runs"), read_provenance(folder)
    measured = {(row["run_id"], *measurement(row)) for row in read_table(folder, "robustness").to_dict("records")}
    wanted = list(attacks)
    complete = set()
    for run_id, spec_hash, status, n_test in zip(
        runs["run_id"], runs["spec_hash"], runs["status"], runs["n_test"], strict=True
    ):
        # a writer that was killed leaves the provenance of one specification beside the row of another
        source = sources.get(run_id, {}).get("spec_hash", spec_hash)
        if hashes.get(run_id) == spec_hash == source and (
            status == "diverged" or all((run_id, *attack.among(int(n_test))) in measured for attack in wanted)
        ):
            complete.add(run_id)
    return complete


def measured_rows(folder: Path, run_id: str, spec_hash: str) -> list[dict[str, Any]]:
    """The rows of robustness.csv that a run of this specification already has."""
    runs = read_table(folder, "runs")
    known = ((runs["run_id"] == run_id) & (runs["spec_hash"] == spec_hash)).any()
    return rows_of(folder, "robustness", run_id) if known else []


def rows_of(folder: Path, table: str, run_id: str) -> list[dict[str, Any]]:
    """What a table of `folder` has on a run."""
    frame = read_table(folder, table)
    return records(frame[frame["run_id"] == run_id])


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dicts."""
    return [{str(column): value for column, value in row.items()} for row in frame.to_dict("records")]


def load(
    folder: Path,
    specs: Mapping[str, Mapping[str, Any]],
    hashes: Mapping[str, str],
    attacks: Iterable[Measurement],
) -> Results:
    """The completed cells among `specs` ({run_id: specification}, with their hashes); see `done` for attacks.

    Raises ValueError, naming the changed keys, if a run of that name is of another specification.
    """
    finished = done(folder, hashes, attacks)  # before the tables: a run is listed last, so these have all of its rows
    if (folder / "runs.csv").exists():
        for table in COLUMNS:
            if not (folder / f"{table}.csv").exists():
                raise invalid("results", str(folder), f"a folder with {table}.csv beside runs.csv")
    provenance = read_provenance(folder)
    tables = {table: read_table(folder, table) for table in (*COLUMNS, *AFTERWARDS)}
    runs = tables["runs"]
    for run_id, spec_hash in zip(runs["run_id"], runs["spec_hash"], strict=True):
        if run_id in hashes and hashes[run_id] != spec_hash:
            changed = _changes(provenance.get(run_id, {}).get("spec", {}), specs[run_id])
            raise ValueError(
                f"results = {str(folder)!r}: {run_id} is of another specification (changed: {changed}); "
                "rerun it, or restore the experiment file"
            )
    complete = [run_id for run_id in hashes if run_id in finished]
    kept = {table: frame[frame["run_id"].isin(complete)].reset_index(drop=True) for table, frame in tables.items()}
    missing = tuple(run_id for run_id in hashes if run_id not in finished)
    return Results(**kept, provenance={r: provenance[r] for r in complete if r in provenance}, missing=missing)


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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place if the block succeeds, and vanishes otherwise.

    The caller holds the lock that guards `path`: temporaries that are there are those of writers that were killed.
    """
    for dead in path.parent.glob(f".{path.name}.*"):
        dead.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Create `folder`; raise ValueError if files cannot be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise invalid("results", str(folder), f"a writable folder ({error.strerror})") from error


def check_locks() -> None:
    """Raise ValueError if files cannot be locked in the results folder, as in some network file systems."""
    try:
        with lock("check"):
            pass
    except OSError as error:
        raise invalid("results", str(paths.local()), f"on a file system with locks ({error.strerror})") from error


def lock_file(name: str) -> Path:
    """The file that is locked for a name: a path, or a key of results/local."""
    return paths.local() / "locks" / f"{name}.lock"


def lock(name: str, timeout: float = -1) -> FileLock:
    """A lock between processes; the system frees it when its holder ends, however it ends. name: a path-like key.

    Entering it raises OSError on a file system without locks: a file that merely exists would outlive its holder.
    """
    path = lock_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, timeout=timeout, fallback_to_soft=False)


def guard(folder: Path, name: str) -> str:
    """The name of a lock that lives in the folder which it guards: the same under every path that leads there."""
    return str(folder.resolve() / ".locks" / name)


def _whole(column: pd.Series[Any]) -> pd.Series[Any]:
    """Counts as integers also beside a blank, where pandas makes them floats: they are written in full."""
    if column.dtype != float:
        return column
    known = column.dropna()
    return column.astype("Int64") if ((known % 1 == 0) & (known.abs() < 2**53)).all() else column


def _record(folder: Path, entries: Mapping[str, Any]) -> None:
    """provenance.json with these entries, in place of those of the same names."""
    known = {**read_provenance(folder), **entries}
    with replacing(folder / "provenance.json") as part:
        part.write_text(json.dumps({"runs": known}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def save(folder: Path, run_id: str, tables: Mapping[str, Iterable[Row]], provenance: Mapping[str, Any]) -> None:
    """Add a completed cell: its rows replace those of the same run_id; runs.csv is written last.

    What was measured afterwards stays where the weights are those that it was measured on, and goes where they are not.
    """
    with lock(guard(folder, "tables")):
        check_writable(folder)
        old, new = read_provenance(folder).get(run_id, {}), dict(provenance)
        same = same_weights(old, new)
        _record(folder, {run_id: {**{table: old[table] for table in AFTERWARDS if same and table in old}, **new}})
        if not same:
            for table in (t for t in AFTERWARDS if (folder / f"{t}.csv").exists()):
                _replace_rows(folder, table, run_id, ())
        for table in COLUMNS:
            _replace_rows(folder, table, run_id, tables.get(table, ()))


def same_weights(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two records of provenance are of the same weights: by their hash, and in records that have none, by the
    specification and by where and from which code they were trained."""
    key = "weights" if "weights" in old and "weights" in new else "training"
    return bool(old) and all(old.get(k) == new.get(k) for k in ("spec_hash", key))


def _replace_rows(folder: Path, table: str, run_id: str, rows: Iterable[Row]) -> None:
    old = read_table(folder, table)
    new = pd.DataFrame([dict(row) for row in rows], columns=list(_columns(table)))
    old = old[old["run_id"] != run_id]
    frame = pd.concat([f for f in (old, new) if len(f)], ignore_index=True) if len(old) or len(new) else new
    frame = frame[list(_columns(table))].apply(_whole)
    with replacing(folder / f"{table}.csv") as part:
        frame.to_csv(part, index=False, float_format=FLOAT_FORMAT)


def add(folder: Path, run_id: str, table: str, rows: Iterable[Row], provenance: Mapping[str, Any]) -> None:
    """Add what was measured afterwards on a completed cell to one of the tables AFTERWARDS, in place of its old rows.

    provenance: where and how, kept under the table's name in the entry of the run.
    """
    with lock(guard(folder, "tables")):
        check_writable(folder)
        _record(folder, {run_id: {**read_provenance(folder).get(run_id, {}), table: dict(provenance)}})
        _replace_rows(folder, table, run_id, rows)


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
        _record(folder, {name: dict(provenance) for name in names})
        with replacing(path) as part:
            new.to_csv(part, index=False, float_format="%.4g")
