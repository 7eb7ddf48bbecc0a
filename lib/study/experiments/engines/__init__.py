"""Where work is carried out: here, or by an engine, of which each file of this folder adds its own to ENGINES."""

import importlib
import pkgutil

from study.experiments.engines.local import ENGINES as ENGINES

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
