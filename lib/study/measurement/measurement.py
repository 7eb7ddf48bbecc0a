"""What a measurement of trained networks is: a table in the experiment file, and the work that it declares."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from study.data import Data
from study.measurement.accuracy import Once
from study.results.tables import AFTERWARDS, Row, Table
from study.strict import Strict
from wellcond.errors import invalid

Cell = Any
"""A trained cell, `study.experiments.specification.Cell`."""


class Selective(Strict):
    """Something measured on the runs whose run_id matches a glob pattern of `only`; on all if it is empty."""

    only: tuple[str, ...] = ()

    def applies(self, run_id: str) -> bool:
        return not self.only or any(fnmatch.fnmatchcase(run_id, pattern) for pattern in self.only)


class Given(NamedTuple):
    """What a task works with: rows, what its table has of the run so far; the trained network of a cell; the data of
    its own cell; once, which remembers what an interrupted process has done of it."""

    rows: Sequence[Row]
    network: Callable[[Cell], nn.Module]
    data: Data
    once: Once


class Task(NamedTuple):
    """One measurement of one network: `measure` returns the new rows of `table`. what: is measured, in the table's
    words, which tell the tasks of a network apart. known: whether the rows of the run have it. against: other networks
    that it needs."""

    cell: Cell
    table: str
    what: str
    measure: Callable[[Given], list[dict[str, Any]]]
    known: Callable[[Sequence[Row]], bool] = bool
    against: Sequence[Cell] = ()

    @property
    def run_id(self) -> str:
        return str(self.cell.run_id)

    @property
    def name(self) -> str:
        """Of the note of a failure."""
        return f"{self.run_id}.{self.table}"


@dataclass(frozen=True)
class MeasurementKind:
    """A measurement of the registry, declared in experiment files by tables [name] or [[name]], which grid reads.

    tables: those of results that it fills. tasks(cell, grid, n_test, cells): its work on a completed cell with n_test
    test images; cells: all completed ones to which the grid applies. command: which one does it, attack or compress.
    cost: what costs less is measured first.
    """

    name: str
    grid: type[Selective]
    tables: Mapping[str, Table]
    tasks: Callable[[Cell, Any, int, Sequence[Cell]], Iterable[Task]]
    command: str = "attack"
    cost: int = 0


MEASUREMENTS: dict[str, MeasurementKind] = {}
"""The measurements by name."""


def register(kind: MeasurementKind) -> None:
    """Add a measurement to MEASUREMENTS. Raises ValueError if its name, or that of a table, is taken."""
    if kind.name in MEASUREMENTS or AFTERWARDS.keys() & kind.tables.keys():
        raise invalid("measurement", kind.name, "a name that is not yet registered, as are those of its tables")
    MEASUREMENTS[kind.name] = kind
    AFTERWARDS.update(kind.tables)


def tables_of(command: str) -> tuple[str, ...]:
    """The tables that a command fills."""
    return tuple(table for kind in MEASUREMENTS.values() if kind.command == command for table in kind.tables)
