"""The registry of measurements: every file of this folder registers its own, and nothing lists them twice."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from study.measurement.measurement import MEASUREMENTS as MEASUREMENTS
from study.measurement.measurement import tables_of as tables_of

for _file in pkgutil.iter_modules([str(Path(__file__).parent)]):
    importlib.import_module(f"study.measurement.{_file.name}")
