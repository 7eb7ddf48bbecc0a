"""What an interrupted process has done so far: the state of a training, and the parts of a long measurement.

A checkpoint (results/local/checkpoints/<key>.ckpt) is a line of JSON, which says of what and after which epoch, and
the bytes of torch.save, whose SHA-256 stands in that line. A new one replaces the old one only when it is complete.
A journal (results/local/journals/<key>.jsonl) has a line for each part that is done; a torn last line is one that is
not. Both are removed when the result is recorded.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from study import paths
from study.results.files import replacing


class OutOfTime(Exception):
    """The deadline has passed inside a cell, which goes on in the next run."""


class Header(NamedTuple):
    """Cells, by the hashes of their specifications, that have been trained together for `epoch` of `epochs` epochs."""

    cells: tuple[str, ...]
    epoch: int
    epochs: int


def _folder() -> Path:
    return paths.local() / "checkpoints"


def checkpoint_file(cells: Sequence[str]) -> Path:
    """Where the state of these cells, by the hashes of their specifications, is kept."""
    key = cells[0] if len(cells) == 1 else hashlib.sha256("-".join(sorted(cells)).encode()).hexdigest()[:16]
    return _folder() / f"{key}.ckpt"


def write_checkpoint(header: Header, state: Mapping[str, Any]) -> None:
    """Keep a state of plain data and tensors in place of the one before it."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    body = buffer.getvalue()
    line = json.dumps({**header._asdict(), "sha256": hashlib.sha256(body).hexdigest()}, sort_keys=True)
    path = checkpoint_file(header.cells)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("wb") as file:
        file.write(line.encode() + b"\n")
        file.write(body)
        file.flush()
        os.fsync(file.fileno())  # the name must not point to what has not reached the disk


def _parts(path: Path) -> tuple[Header, str, bytes]:
    line, _, body = path.read_bytes().partition(b"\n")
    about = json.loads(line)
    return Header(tuple(about["cells"]), int(about["epoch"]), int(about["epochs"])), about["sha256"], body


def anew(value: Any) -> Any:
    """The same with every tensor in memory of its own: those of torch.load may begin anywhere in the file, and MKL adds
    in another order where a matrix is not aligned."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {key: anew(part) for key, part in value.items()}
    return type(value)(map(anew, value)) if isinstance(value, list | tuple) else value


def read_checkpoint(cells: Sequence[str], device: str) -> dict[str, Any] | None:
    """The state that was kept for these cells, None if there is none.

    One whose checksum or whose cells are not those expected is not used: a warning says so, and training begins anew.
    """
    path = checkpoint_file(cells)
    try:
        header, sha256, body = _parts(path)
        if sorted(header.cells) != sorted(cells) or hashlib.sha256(body).hexdigest() != sha256:
            raise ValueError("its content is not what its first line says")
        return anew(torch.load(io.BytesIO(body), map_location=device, weights_only=True))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        warnings.warn(f"checkpoint {path.name} is not used, training begins anew ({error})", stacklevel=2)
        return None


def in_progress() -> dict[str, Header]:
    """{hash of a specification: how far its training is} for all checkpoints."""
    found = {}
    for path in sorted(_folder().glob("*.ckpt")) if _folder().exists() else ():
        try:
            with path.open("rb") as file:
                about = json.loads(file.readline())
            header = Header(tuple(about["cells"]), int(about["epoch"]), int(about["epochs"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it will be refused, in words, where it is used
        found.update(dict.fromkeys(header.cells, header))
    return found


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            yield str(entry["key"]), entry["value"]
        except (ValueError, KeyError, TypeError):
            continue


class Journal:
    """The parts of a measurement that are done. key: of the weights that are measured, and of the measurement.

    deadline: time.monotonic() after which the next part that is done raises OutOfTime, when it has been written.
    """

    def __init__(self, key: str, deadline: float = math.inf) -> None:
        self.path = paths.local() / "journals" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.jsonl"
        self.deadline = deadline

    @cached_property
    def entries(self) -> dict[str, Any]:
        """What is noted, by key; read when a part is asked for, not by who only closes."""
        return dict(_lines(self.path))

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """The value of a part, plain data: what was noted, else what compute() returns, noted now."""
        if key not in self.entries:
            value = compute()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps({"key": key, "value": value}) + "\n")  # apart from a torn line
            self.entries[key] = value
            if time.monotonic() > self.deadline:
                raise OutOfTime
        return self.entries[key]

    def close(self) -> None:
        """The measurement is recorded: what is noted is no longer needed."""
        self.path.unlink(missing_ok=True)
