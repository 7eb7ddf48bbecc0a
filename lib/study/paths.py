"""Where things are; nothing depends on the working directory."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The project: the folder that holds book/, lib/ and results/."""


def _named(variable: str, default: Path) -> Path:
    return Path(os.environ.get(variable) or default).expanduser()


def experiments() -> Path:
    """The TOML files that declare the experiments."""
    return ROOT / "book" / "experiments"


def results() -> Path:
    """$WELLCOND_RESULTS, or results/ of the project."""
    return _named("WELLCOND_RESULTS", ROOT / "results")


def local() -> Path:
    """results/local: what a reader reruns, checkpoints and locks; never committed."""
    return results() / "local"


def data() -> Path:
    """$WELLCOND_DATA, or data/ of the project."""
    return _named("WELLCOND_DATA", ROOT / "data")
