"""What happened to each image, as text in a column of a table: bits in hexadecimal, distances in half precision.

Never imports torch.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wellcond.errors import invalid


def pack(outcomes: Iterable[Any]) -> str:
    """One bit an image, the first image in the highest bit of the first digit: ⌈n/8⌉ bytes, two digits each."""
    return np.packbits(np.fromiter(outcomes, dtype=bool)).tobytes().hex()


def unpack(text: str, n: int) -> NDArray[np.bool_]:
    """The n outcomes (n,) packed in `text`. Raises ValueError unless it holds exactly n bits and zero padding."""
    try:
        data = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    except ValueError:
        raise invalid("outcomes", text[:20], "hexadecimal digits") from None
    bits = np.unpackbits(data).astype(bool)
    if len(data) != -(-n // 8) or bits[n:].any():
        raise invalid("outcomes", f"{len(data)} bytes", f"{-(-n // 8)} bytes, the bits after {n} zero")
    return bits[:n]


def pack_distances(distances: Iterable[float]) -> str:
    """Half precision (relative error below 5e-4; from 65,520 on: inf) in base64."""
    with np.errstate(over="ignore"):
        return base64.b64encode(np.fromiter(distances, dtype=float).astype("<f2").tobytes()).decode()


def unpack_distances(text: str, n: int) -> NDArray[np.float64]:
    """The n distances (n,) packed in `text`. Raises ValueError unless it holds exactly n."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise invalid("distances", text[:20], "base64") from None
    if len(data) != 2 * n:
        raise invalid("distances", f"{len(data)} bytes", f"{2 * n} bytes")
    return np.frombuffer(data, dtype="<f2").astype(float)
