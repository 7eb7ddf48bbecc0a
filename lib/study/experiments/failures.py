"""What went wrong in a piece of work, noted where `status` finds it, so that the other pieces can go on."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from study import paths
from study.results.checkpoints import OutOfTime


class Failed(RuntimeError):
    """Some pieces of work raised an exception; the others are done."""


def note(folder: Path, name: str) -> Path:
    """The file with the traceback of a piece of the work on `folder`."""
    return paths.local() / "failed" / folder.name / f"{name}.txt"


def names(folder: Path) -> set[str]:
    """The pieces of the work on `folder` that have a note."""
    return {file.stem for file in note(folder, "").parent.glob("*.txt")}


@contextmanager
def noted(folder: Path, pieces: Sequence[str]) -> Iterator[None]:
    """Write the traceback of an exception as a note of each piece; what succeeds loses the note it had."""
    try:
        yield
    except OutOfTime:
        raise
    except Exception as error:
        for file in (note(folder, name) for name in pieces):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(traceback.format_exc(), encoding="utf-8")
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        tqdm.write(f"{', '.join(pieces)}: failed ({told})", file=sys.stderr)
        raise
    for name in pieces:
        note(folder, name).unlink(missing_ok=True)


def check(folder: Path, wanted: Iterable[str]) -> None:
    """Raise Failed, in one line, if one of these pieces has a note."""
    known = names(folder)
    failed = [name for name in wanted if name in known]
    if failed:
        file = note(folder, failed[0])
        why = file.read_text(encoding="utf-8").strip().splitlines()[-1]
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise Failed(f"{failed[0]}{more}: failed ({why}); traceback in {file}")
