"""The registry of the methods of the study."""

from __future__ import annotations

from wellcond.errors import invalid, unknown
from wellcond.methods.compression_aware_methods import COMPRESSION_AWARE_METHODS
from wellcond.methods.low_rank_methods import LOW_RANK_METHODS
from wellcond.methods.method import Method

METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method to METHODS. Raises ValueError if its name is taken or it starts from an unknown method."""
    if method.name in METHODS:
        raise invalid("method", method.name, "a name that is not yet registered")
    if method.starts_from:
        find(method.starts_from)
    METHODS[method.name] = method
    return method


def find(name: str) -> Method:
    """The method of that name. Raises ValueError, suggesting the nearest name."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


for _method in (*LOW_RANK_METHODS, *COMPRESSION_AWARE_METHODS):
    register(_method)
