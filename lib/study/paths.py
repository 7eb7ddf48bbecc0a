"""Where things are; nothing depends on the working directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The project: the folder that holds book/, lib/ and results/."""


def _named(variable: str, default: Path) -> Path:
    return Path(os.environ.get(variable) or default).expanduser()


def experiments() -> Path:
    """The TOML files that declare the experiments."""
    return ROOT / "book" / "experiments"


_ONLY_COMMITTED = ContextVar("only committed", default=False)


@contextmanager
def only_committed() -> Iterator[None]:
    """While it is open, results are those of the project, whatever $WELLCOND_RESULTS says."""
    before = _ONLY_COMMITTED.set(True)
    try:
        yield
    finally:
        _ONLY_COMMITTED.reset(before)


def results() -> Path:
    """$WELLCOND_RESULTS, or results/ of the project."""
    committed = ROOT / "results"
    return committed if _ONLY_COMMITTED.get() else _named("WELLCOND_RESULTS", committed)


def local() -> Path:
    """results/local: what a reader reruns, checkpoints and locks; never committed."""
    return results() / "local"


def data() -> Path:
    """$WELLCOND_DATA, or data/ of the project."""
    return _named("WELLCOND_DATA", ROOT / "data")
