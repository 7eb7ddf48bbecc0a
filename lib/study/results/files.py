"""Files that other processes may read, write or be killed over: replaced whole, and guarded by locks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from study import paths
from wellcond.errors import invalid


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
