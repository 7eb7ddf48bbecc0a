"""Functions of a user, by name: "package.module:function"."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

from wellcond.errors import invalid

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
FORM = "package.module:factory"


def factory_named(field: str, name: str, of: str) -> Callable[..., Any]:
    """The factory of that name. field, of: what it is for and makes, for the message. Raises ValueError, in one line,
    for a module that cannot be imported, or what is no function in it."""
    module, _, attribute = name.partition(":")
    if not NAME.fullmatch(name):
        raise invalid(field, name, f"an importable {FORM}")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise invalid(field, name, f"an importable {FORM} ({error})") from error
    except Exception as error:  # the module runs, and may raise anything
        raise invalid(field, name, f"an importable {FORM} ({said(error)})") from error
    if not callable(factory):
        raise invalid(field, name, f"a factory of {of}, not a {type(factory).__name__}")
    return factory


def said(error: Exception) -> str:
    """The first line of what an exception says."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
