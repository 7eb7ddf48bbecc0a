"""Where a figure of panels side by side can be cut, so that on a narrow screen they stand below each other (stack.js).

A figure is a picture on white. Its rows come in bands with white between them: titles, axes, ticks, labels, legends. In
the band of the axes a panel is as wide as the lines that go through it, spines and the grid; what is written in any
band belongs to the nearest panel. Bands below the axes with something coloured, with a text that reaches over two
panels or with none for some panel belong to all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WHITE, COLOURED, TICKS = 250, 40, 0x44  # of 255: no darker, channels further apart, the grey of the labels of ticks
TALL, WIDE = 0.15, 0.1  # of the figure, at least: the band of the axes, a panel
WORDS = 12  # pixels: what is nearer belongs to one text

Run = tuple[int, int]


class Piece(NamedTuple):
    """A rectangle of the picture, in pixels, and where its left edge comes to stand in the view."""

    left: int
    right: int
    top: int
    bottom: int
    at: int


class View(NamedTuple):
    """What stands on a line of its own: pieces of the rows from top to bottom, and how wide they are together."""

    width: int
    top: int
    bottom: int
    pieces: list[Piece]


def runs(dark: NDArray[np.bool_], apart: int = 0) -> list[Run]:
    """From where to where a vector is true, gaps of at most so many elements left aside."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], dark, [0]]).astype(int))).reshape(-1, 2)
    found: list[Run] = []
    for start, end in edges.tolist():
        if found and start - found[-1][1] <= apart:
            start = found.pop()[0]
        found.append((start, end))
    return found


def _gap(one: Run, other: Run) -> int:
    return max(one[0] - other[1], other[0] - one[1])


def _shares(panels: list[Run], texts: list[Run], ticks: list[Run]) -> list[Run]:
    """From where to where each panel reaches with its texts. Ticks are those of the panel at their right; then the
    nearest text comes first, as from there the next is near."""
    shares = list(panels)
    left = [text for text in texts if not any(panel[0] <= text[0] and text[1] <= panel[1] for panel in panels)]
    while left:
        found = [(k, text) for k in range(len(panels)) for text in left]
        own = [(k, text) for k, text in found if text in ticks and text[1] <= panels[k][0]]
        k, text = min(own or found, key=lambda of: _gap(shares[of[0]], of[1]))
        shares[k] = min(shares[k][0], text[0]), max(shares[k][1], text[1])
        left.remove(text)
    return shares


def _panels(axes: NDArray[np.bool_]) -> list[Run]:
    """From where to where lines go in the band of the axes: spines, and the grid."""
    least = WIDE * axes.shape[1]
    lined = np.zeros(axes.shape[1], dtype=bool)
    for row in axes[axes.sum(axis=1) >= least]:
        for start, end in runs(row):
            lined[start:end] |= end - start >= least
    return runs(lined)


def _reach(
    picture: NDArray[np.uint8], dark: NDArray[np.bool_], panels: list[Run], bands: list[Run], tall: list[Run]
) -> dict[Run, list[Run]]:
    """By band, from where to where each panel reaches in it; without the bands below that belong to all panels, and
    without any where a title does."""
    found: dict[Run, list[Run]] = {}
    for band in bands:
        rows = picture[slice(*band)]
        texts = runs(dark[slice(*band)].any(axis=0), WORDS)
        over = [[panel for panel in panels if _gap(panel, text) < 0] for text in texts]
        common = band not in tall and max(map(len, over)) > 1
        of_some = len({panel for met in over for panel in met}) < len(panels)
        if band[0] > tall[-1][0] and (common or of_some or np.ptp(rows, axis=2).max() > COLOURED):
            break
        if common:
            return {}
        ticks = [text for text in texts if band in tall and abs(int(rows[:, slice(*text)].min()) - TICKS) < 4]
        found[band] = _shares(panels, texts, ticks)
    return found


def cut(picture: NDArray[np.uint8]) -> list[View]:
    """The views of a picture (height, width, 3): a panel each, and last what belongs to all; none of a single panel."""
    dark = picture.min(axis=2) < WHITE
    height, width = dark.shape
    bands = runs(dark.any(axis=1))
    tall = [band for band in bands if band[1] - band[0] >= TALL * height]
    panels = _panels(np.concatenate([dark[:0], *(dark[slice(*band)] for band in tall)]))
    reach = _reach(picture, dark, panels, bands, tall) if len(panels) > 1 else {}
    if not reach:
        return []
    bottom = next((band[0] for band in bands if band not in reach), height)
    own = any(reach[band][k][0] < panels[k][0] for band in tall for k in range(1, len(panels)))
    strip = 0 if own else panels[0][0]  # labels at the left of the first panel, which hold for all of them
    views = []
    for k in range(len(panels)):
        labels = [Piece(0, strip, *band, 0) for band in tall] if strip and k else []
        start = min(shares[k][0] for shares in reach.values()) - (strip if k else 0)
        pieces = [Piece(*shares[k], *band, shares[k][0] - start) for band, shares in reach.items()]
        views.append(View(max(shares[k][1] for shares in reach.values()) - start, 0, bottom, labels + pieces))
    below = runs(dark[bottom:].any(axis=0), width)  # one, or none
    return views + [View(end - left, bottom, height, [Piece(left, end, bottom, height, 0)]) for left, end in below]


def cut_file(path: Path) -> tuple[tuple[int, int], list[View]]:
    """The size of a picture in a file, and its views."""
    with Image.open(path) as picture:
        return picture.size, cut(np.asarray(picture.convert("RGB")))
