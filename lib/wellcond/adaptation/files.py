"""Files of tensors, whole or not at all, and packages that only some functions need."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def needed(module: str, what: str) -> Any:
    """The module of another package. Raises ImportError, in a line, that says what needs it, where it is absent."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"{what} needs {package}, which is not installed: pip install {package}") from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place at the end; after an error nothing is left of it."""
    path = Path(path)
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_tensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Tensors by name, and texts by name: as safetensors where the path ends so, otherwise by torch.save."""
    own = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    with replacing(path) as part:
        if Path(path).suffix == ".safetensors":
            save = needed("safetensors.torch", "a file that ends in .safetensors").save_file
            save(own, part, {"format": "pt", **(metadata or {})})
        else:
            torch.save(own, part)


def mismatch(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """The first tensor whose shape is not the expected one, with both, in words; empty where all fit."""
    theirs, ours = ({key: tuple(value.shape) for key, value in tensors.items()} for tensors in (found, expected))
    wrong = (key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key))
    return next((f"{key} is {theirs.get(key, 'absent')}, not {ours.get(key, 'absent')}" for key in wrong), "")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """What `write_tensors` wrote; nothing in the file is executed."""
    if Path(path).suffix == ".safetensors":
        read: dict[str, Tensor] = needed("safetensors.torch", "a file that ends in .safetensors").load_file(path)
        return read
    tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors
