"""How a method is named, ordered and drawn, everywhere: its label comes from the registry of methods."""

from __future__ import annotations

import math
import zlib
from typing import Literal, NamedTuple

from wellcond.methods.registry import METHODS


class Look(NamedTuple):
    """How a method is named and drawn, everywhere."""

    label: str
    color: str
    marker: str
    dash: str = "-"
    fill: Literal["full", "none"] = "full"


# Okabe and Ito's colours, which colour-blind readers can tell apart; one colour a family, marker and dash within it.
_DRAWN: dict[str, tuple[str, str] | tuple[str, str, str]] = {
    "dense": ("#000000", "o"),
    "uv": ("#E69F00", "s"),
    "svd": ("#CC79A7", "v", ":"),
    "svd_finetuned": ("#CC79A7", "^", "--"),
    "usv": ("#009E73", "D"),
    "condlr": ("#0072B2", "o"),
    "usv_band": ("#0072B2", "D"),
    "condlr_published": ("#56B4E9", "P"),
    "projected_sgd": ("#D55E00", "p"),
    "cayley_sgd": ("#D55E00", "X", "--"),
    "dlrt": ("#7A5195", "d"),
    "dlrt_adaptive": ("#7A5195", "*", "--"),
    "robust_dlrt": ("#A00000", "h"),
    "robust_dlrt_tucker": ("#A00000", "D", "--"),
    "soft_orthogonal_uv": ("#E69F00", "8", "--"),
    "soft_orthogonal": ("#666666", "s", "--"),
    "spectral_norm": ("#666666", "v", ":"),
    "dense_clipped": ("#666666", "^", "-."),
    "fw_l2": ("#009E73", "v", ":"),
    "fw_k_sparse": ("#E69F00", "p", "--"),
    "fw_k_support": ("#E69F00", "^", "--"),
    "fw_group_k_support": ("#CC79A7", "D", "-."),
    "fw_nuclear": ("#009E73", "s", "--"),
    "fw_spectral_k_sparse": ("#009E73", "d", "-."),
    "fw_spectral_k_support": ("#009E73", "P"),
    "fw_spectral_k_support_none": ("#009E73", "X", ":"),
    "fw_spectral_k_support_diameter": ("#009E73", "<", "--"),
    "fw_spectral_k_support_fast_gradient": ("#009E73", ">", "-."),
    "lorita": ("#7A5195", "o"),
    "nuclear_norm": ("#D55E00", "h", "--"),
    "proximal_sgd": ("#D55E00", "X"),
    "group_lasso": ("#CC79A7", "*", ":"),
    "dense_adamw": ("#000000", "P", "--"),
    "uv_adamw": ("#E69F00", "d", ":"),
    "usv_adamw": ("#009E73", "*", "--"),
    "condlr_adamw": ("#0072B2", "p", "--"),
    "stella_adamw": ("#7A5195", "v", ":"),
}

LOOKS = {name: Look(METHODS[name].label, *drawn) for name, drawn in _DRAWN.items()}
"""The methods in the order of tables and legends; others come after them, with a look that follows from their name."""

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195")


def _unplanned(method: str) -> Look:
    number = zlib.crc32(method.encode())
    color, marker, dash = _COLORS[number % 7], "HdpX*P8"[number // 7 % 7], ("-", "--", "-.", ":")[number // 49 % 4]
    return Look(METHODS[method].label if method in METHODS else method, color, marker, dash)


def look(
    method: str,
    max_cond: float = math.nan,
    tolerance: float = math.nan,
    beta: float = math.nan,
    depth: float = math.nan,
    **_: object,
) -> Look:
    """The look of a configuration: of τ, ϑ and the depth N the middle ones look as the method does, the smallest and
    the largest have their own marker and dash; without its penalty (β = 0) a marker is open. Other
    settings change nothing."""
    base = LOOKS.get(method) or _unplanned(method)
    if beta == 0:
        base = base._replace(fill="none")
    if max_cond == 1:
        return base._replace(marker="<", dash=":")
    if max_cond > 1.25:
        return base._replace(marker=">", dash="--")
    if depth == 1 or depth > 2:
        return base._replace(marker="<", dash=":") if depth == 1 else base._replace(marker=">", dash="--")
    if tolerance == 0:
        return base._replace(marker="s")
    return base._replace(marker="v", dash="-.") if tolerance > 0.15 else base
