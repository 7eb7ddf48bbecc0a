"""The networks of the study, read from their files: the tests of the library run where the study is not installed."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

STUDY = Path(__file__).resolve().parents[1] / "lib" / "study"


def _read(name: str) -> ModuleType:
    """A file of the study that needs the library alone."""
    spec = importlib.util.spec_from_file_location(f"read_{name}", (STUDY / name).with_suffix(".py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


networks = _read("networks")
clocks = _read("benches/clocks")
