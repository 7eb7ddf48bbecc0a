"""Parameters of a chapter: papermill injects any name, so the chapter itself refuses those it does not read."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from wellcond.errors import unknown


def _assigned(source: str) -> list[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a cell with IPython magics assigns no parameters
        return []
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def check_parameters(cells: Sequence[str]) -> None:
    """Raise ValueError if papermill passed a parameter that the chapter does not declare.

    cells: the sources of the executed cells, IPython's ``In``. The first one that assigns a name declares the
    parameters; papermill puts those it passes into a cell of its own that begins with "# Parameters".
    """
    declared: list[str] = []
    for source in cells:
        names = _assigned(source)
        if not declared:
            declared = names
        elif source.lstrip().startswith("# Parameters"):
            for name in names:
                if name not in declared:
                    raise unknown("parameter", name, declared)
