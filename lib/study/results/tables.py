"""The tidy tables of a results folder: their columns, how they are read and checked, and how they are written.

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
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

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


def columns(table: str) -> tuple[str, ...]:
    """The names of its columns."""
    return {**COLUMNS, **AFTERWARDS}[table]


def parsed(text: str, table: str, path: Path) -> pd.DataFrame:
    """The table whose CSV is `text`. Raises ValueError, naming the file `path`, if it is not one."""
    try:
        frame = pd.read_csv(io.StringIO(text), dtype={"outcomes": str, "distances": str, "options": str})
    except ValueError as error:
        raise invalid("file", str(path), f"a readable CSV ({error})") from error
    # a setting that came later than the file: no run of it has it
    frame = frame.reindex(columns=[*frame, *(c for c in columns(table) if c in SETTINGS and c not in frame)])
    absent = [column for column in columns(table) if column not in frame]
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


def _whole(column: pd.Series[Any]) -> pd.Series[Any]:
    """Counts as integers also beside a blank, where pandas makes them floats: they are written in full."""
    if column.dtype != float:
        return column
    known = column.dropna()
    return column.astype("Int64") if ((known % 1 == 0) & (known.abs() < 2**53)).all() else column


def framed(table: str, rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as a frame with the columns of the table."""
    return pd.DataFrame([dict(row) for row in rows], columns=list(columns(table)))


def write_csv(frame: pd.DataFrame, table: str, path: Path) -> None:
    """The columns of the table; counts in full, measurements to nine digits."""
    chosen = frame[list(columns(table))].apply(_whole)
    chosen.to_csv(path, index=False, float_format=FLOAT_FORMAT)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dicts."""
    return [{str(column): value for column, value in row.items()} for row in frame.to_dict("records")]
