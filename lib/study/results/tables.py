"""The tidy tables of a results folder: their columns with types, how they are read, checked and written.

runs.csv         one row a trained network
robustness.csv   one row per (run, attack, eps): how many of n_examples are still classified correctly
curves.csv       long format: run_id, epoch, layer (or empty), quantity, value
spectra.csv      run_id, epoch, layer, index, singular_value: at the end, and earlier if wanted

The tables AFTERWARDS are of what may be measured later, on the trained weights of a completed cell, each declared where
it is measured (`study.measurement`); there is a file only if there are rows.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_float_dtype

from study.settings import SETTINGS
from wellcond.errors import invalid

Row = Mapping[str, Any]


class Table(dict[str, type]):
    """The types of the columns by name: str, float, bool, or int for a whole number >= 0. key: no two rows agree in all
    of these columns."""

    def __init__(self, columns: Mapping[str, type], key: tuple[str, ...] = ()) -> None:
        super().__init__(columns)
        self.key = key


ATTACKED: dict[str, type] = {"attack": str, "norm": str, "eps": float, "options": str, "n_examples": int}
"""The columns that say which attack a row is of, and on how many images."""
COLUMNS: dict[str, Table] = {
    "spectra": Table({"run_id": str, "epoch": int, "layer": str, "index": int, "singular_value": float}),
    "curves": Table({"run_id": str, "epoch": int, "layer": str, "quantity": str, "value": float}),
    "robustness": Table({"run_id": str, **ATTACKED, "n_correct": int, "n_zero_gradient": int}),
    "runs": Table(  # last: its row says that the cell is complete
        {
            **dict.fromkeys(("run_id", "dataset", "model", "method", "label"), str),
            **dict.fromkeys(SETTINGS, float),
            "seed": int,
            "epochs": int,
            "rank_fraction": float,
            **dict.fromkeys(("n_params_dense", "n_params_trained", "n_params_deployed"), int),
            **dict.fromkeys(("flops_dense", "flops_deployed", "n_test", "n_correct"), int),
            "kappa_max": float,
            "orth_error_max": float,
            "wall_s": float,
            "peak_bytes": int,
            **dict.fromkeys(("device", "status", "spec_hash"), str),
        },
        key=("run_id",),
    ),
}
AFTERWARDS: dict[str, Table] = {}

FLOAT_FORMAT = "%.9g"
INTERRUPTED = "Calling read(nbytes) on source failed"
"""What pandas makes of Ctrl-C while it reads: a text in memory cannot fail otherwise."""


def columns(table: str) -> Table:
    """Its columns."""
    return {**COLUMNS, **AFTERWARDS}[table]


def parsed(text: str, table: str, path: Path) -> pd.DataFrame:
    """The table whose CSV is `text`. Raises ValueError, naming the file `path`, if it is not one."""
    try:
        texts = {column: str for column, kind in columns(table).items() if kind is str}
        frame = pd.read_csv(io.StringIO(text), dtype=texts)
    except ValueError as error:
        if INTERRUPTED in str(error):
            raise KeyboardInterrupt from error
        raise invalid("file", str(path), f"a readable CSV ({error})") from error
    # a setting that came later than the file: no run of it has it
    frame = frame.reindex(columns=[*frame, *(c for c in columns(table) if c in SETTINGS and c not in frame)])
    absent = [column for column in columns(table) if column not in frame]
    if absent:
        raise invalid("columns", list(frame.columns), f"including {', '.join(absent)} in {path}")
    _check(frame, columns(table), path)
    return _typed(frame, table)


def _typed(frame: pd.DataFrame, table: str) -> pd.DataFrame:
    """With the types of the table; whole numbers beside a blank are floats."""
    others = {
        column: float if kind is int and frame[column].isna().any() else kind
        for column, kind in columns(table).items()
        if (kind in (int, float) or (kind is bool and not frame[column].isna().any())) and frame[column].dtype != kind
    }
    return frame.astype(others) if others else frame


STATUS = ("done", "diverged")


def _check(frame: pd.DataFrame, table: Table, path: Path) -> None:
    """Raise ValueError, naming file, line and column, for what no run writes: a table that was edited by hand."""

    def refuse(bad: NDArray[np.bool_], column: str, accepted: str) -> None:
        if bad.any():
            line = int(bad.argmax())
            value = frame[column].iloc[line]
            value = value.item() if hasattr(value, "item") else value
            raise invalid(f"{path}, line {line + 2}: {column}", value, accepted)

    # in arrays: on the few rows of an addition each operation of pandas costs more than the rest of saving it
    for column in (c for c, kind in table.items() if kind is int or (kind is float and not is_float_dtype(frame[c]))):
        number = np.asarray(pd.to_numeric(frame[column], errors="coerce"), dtype=float)
        bad = np.isnan(number) & frame[column].notna().to_numpy()
        if table[column] is int:
            refuse(bad | (number < 0) | (number % 1 > 0), column, "a whole number >= 0")
        refuse(bad, column, "a number")
    for column in ("n_correct", "n_attacked", "n_zero_gradient"):
        whole = "n_examples" if "n_examples" in frame else "n_test"
        if column in frame and whole in frame:
            refuse(frame[column].to_numpy() > frame[whole].to_numpy(), column, f"at most {whole}")
    if table.key:
        refuse(frame.duplicated([*table.key]).to_numpy(), table.key[-1], "given once")
    if "outcomes" in frame:
        hexadecimal = frame["outcomes"].fillna("").str.fullmatch(r"([0-9a-f]{2})*")
        refuse(~hexadecimal.to_numpy(dtype=bool), "outcomes", "hexadecimal digits")
    if "status" in frame:
        refuse(~frame["status"].isin(STATUS).to_numpy(), "status", " or ".join(STATUS))
        uncounted = (frame["status"] == "done") & frame["n_test"].isna()
        refuse(uncounted.to_numpy(), "n_test", "given for a run that is done")


def _whole(column: pd.Series[Any]) -> pd.Series[Any]:
    """Counts as integers also beside a blank, where pandas makes them floats: they are written in full."""
    if column.dtype != float:
        return column
    known = column.dropna()
    return column.astype("Int64") if ((known % 1 == 0) & (known.abs() < 2**53)).all() else column


def framed(table: str, rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as a frame with the columns of the table and their types."""
    return _typed(pd.DataFrame([dict(row) for row in rows], columns=list(columns(table))), table)


def write_csv(frame: pd.DataFrame, table: str, path: Path) -> None:
    """The columns of the table; counts in full, measurements to nine digits."""
    chosen = pd.DataFrame({column: _whole(frame[column]) for column in columns(table)})
    chosen.to_csv(path, index=False, float_format=FLOAT_FORMAT)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dicts."""
    return [{str(column): value for column, value in row.items()} for row in frame.to_dict("records")]
