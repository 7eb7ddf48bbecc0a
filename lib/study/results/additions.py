"""What has been added to a results folder since its tables were last written.

An addition is a folder .added/<run_id>@<n> with tables of the same form, which hold this run alone, and its entry of
provenance. Where an addition has a table, it replaces all rows that the large table has of the run. So saving costs the
same however many runs there are: nothing large is rewritten before the additions are merged. An addition takes its
place as a whole, by one renaming, and outlives its merging: a process may be killed anywhere, and several may fill one
experiment.
"""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wellcond.errors import invalid


def additions(folder: Path) -> dict[str, Path]:
    """{run_id: the folder of its last addition}, in the order in which they were made."""
    found: dict[str, tuple[int, int, str]] = {}
    try:
        with os.scandir(folder / ".added") as entries:
            for entry in entries:
                run_id, _, number = entry.name.partition("@")
                if number and (run_id not in found or int(number) > found[run_id][1]):
                    found[run_id] = (entry.stat().st_ctime_ns, int(number), entry.path)
    except FileNotFoundError:
        return {}
    return {
        run_id: Path(path) for run_id, (_, _, path) in sorted(found.items(), key=lambda item: (item[1][0], item[0]))
    }


def text_of(path: Path) -> str | None:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise invalid("file", str(path), f"a readable file ({error})") from error


def texts(folder: Path, name: str, run_id: str | None = None) -> dict[str, str]:
    """{run_id: the text of a file of its addition} where it has one; run_id: of this run alone."""
    while True:
        wanted = {run: path for run, path in additions(folder).items() if run_id in (None, run)}
        found = {run: (path, text_of(path / name)) for run, path in wanted.items()}
        if all(text is not None or path.exists() for path, text in found.values()):  # else one is replaced
            return {run: text for run, (_, text) in found.items() if text is not None}


def last(folder: Path, run_id: str) -> Path | None:
    """The last addition of a run."""
    every = (folder / ".added").glob(f"{glob.escape(run_id)}@*")
    return max(every, key=lambda path: int(path.name.partition("@")[2]), default=None)


@contextmanager
def adding(folder: Path, run_id: str) -> Iterator[Path]:
    """A folder that becomes the last addition of a run if the block succeeds. The caller holds the lock."""
    added = folder / ".added"
    added.mkdir(exist_ok=True)
    for dead in added.glob(".*"):
        shutil.rmtree(dead)
    before = list(added.glob(f"{glob.escape(run_id)}@*"))
    number = max((int(path.name.partition("@")[2]) for path in before), default=0) + 1
    with tempfile.TemporaryDirectory(dir=added, prefix=".", ignore_cleanup_errors=True) as part:
        yield Path(part)
        Path(part).chmod(0o755)
        Path(part).rename(added / f"{run_id}@{number}")
    for path in before:
        shutil.rmtree(path)
