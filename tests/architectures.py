"""The networks of the study, for the tests of the library, which run where the study is not installed: there its
modules are found in a package without the `__init__` that loads pandas."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

found = importlib.util.find_spec("study")
if found is None or found.origin is None:  # the folder tests/study is a package without a file
    bare = ModuleType("study")
    bare.__path__ = [str(Path(__file__).resolve().parents[1] / "lib" / "study")]
    sys.modules["study"] = bare

networks = importlib.import_module("study.networks")
clocks = importlib.import_module("study.benches.clocks")
