"""Figures with a slider: a page of the book replaces a picture by a drawing of its data, which the slider changes.

book/_static/sliders.js says what the data of each kind are. In a notebook the picture stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple


class Slider(NamedTuple):
    """figure: the name of the picture that is replaced; kind: the name of the drawing; data: what it draws, as JSON."""

    figure: str
    kind: str
    data: Mapping[str, Any]

    def _repr_html_(self) -> str:
        data = json.dumps(self.data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
        return f'<script type="application/json" data-figure="{self.figure}" data-kind="{self.kind}">{data}</script>'

    def __repr__(self) -> str:
        return f"slider of {self.figure}"
