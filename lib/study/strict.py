"""Tables of an experiment file as frozen objects, strictly read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from wellcond.errors import unknown


class Strict(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def one_of(field: str, registry: Mapping[str, Any]) -> AfterValidator:
    """The value is a key of the registry, else an error that suggests the nearest."""

    def check(value: str) -> str:
        if value not in registry:
            raise unknown(field, value, registry)
        return value

    return AfterValidator(check)
