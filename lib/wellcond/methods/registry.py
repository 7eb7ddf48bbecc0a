"""The registry of methods: every file of this folder registers its own, and nothing lists them twice."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from wellcond.methods.method import METHODS as METHODS
from wellcond.methods.method import find as find
from wellcond.methods.method import register as register

for _file in pkgutil.iter_modules([str(Path(__file__).parent)]):
    importlib.import_module(f"wellcond.methods.{_file.name}")
