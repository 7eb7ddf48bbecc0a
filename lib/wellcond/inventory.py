"""What a network is made of: a row for each weight matrix, dense or factorized, and why what stayed dense did."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from wellcond.convert import densify, opened, sorted_out
from wellcond.diagnostics import layer_reports
from wellcond.layers import LowRankLayer, weight_layers, weight_matrix
from wellcond.tracing import evaluate

HEADS = ("layer", "type", "matrix", "rank", "kappa", "parameters", "deployed", "FLOPs", "now", "dense because")


@dataclass(frozen=True)
class LayerSummary:
    """One weight matrix, or stack of `stack` of them, of shape (n, m).

    parameters, flops: of the dense layer; deployed, flops_now: of the layer as it is, its core merged. The flops, of
    one forward pass on the input that was given, are 0 without one, and where code reads the weight itself.
    note: why the layer cannot be factorized; empty if it is, or could be.
    """

    name: str
    kind: str
    stack: int
    n: int
    m: int
    rank: int | None
    kappa: float
    parameters: int
    deployed: int
    flops: int = 0
    flops_now: int = 0
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """The texts of a row of the table."""
        shape = f"{self.n} x {self.m}" if self.n else ""
        numbers = (self.parameters, self.deployed, self.flops, self.flops_now)
        return (
            *(self.name, self.kind, shape if self.stack == 1 else f"{self.stack} of {shape}"),
            *("" if self.rank is None else str(self.rank), "" if math.isnan(self.kappa) else f"{self.kappa:.4g}"),
            *(f"{number:,}" if number else "" for number in numbers),
            self.note,
        )


@dataclass(frozen=True)
class Summary:
    """The rows of all weight matrices; printed, a table with their totals."""

    rows: tuple[LayerSummary, ...]

    @property
    def total(self) -> LayerSummary:
        """The sums over all rows."""
        keys = ("parameters", "deployed", "flops", "flops_now")
        sums = {key: sum(getattr(row, key) for row in self.rows) for key in keys}
        return LayerSummary("total", "", 1, 0, 0, None, math.nan, **sums)

    def __repr__(self) -> str:
        table = [HEADS, *(row.cells() for row in (*self.rows, self.total))]
        used = [k for k in range(len(HEADS)) if any(row[k] for row in table[1:])]
        widths = {k: max(len(row[k]) for row in table) for k in used}
        left = {0, 1, len(HEADS) - 1}
        return "\n".join(
            "  ".join(row[k].ljust(widths[k]) if k in left else row[k].rjust(widths[k]) for k in used).rstrip()
            for row in table
        )


@torch.no_grad()
def summary(model: nn.Module, example: Any = None) -> Summary:
    """The weight matrices of `model`, as it is: print it, or read its rows.

    example: an input, or a tuple of the arguments of the forward code, or a mapping of them by name, to count
    floating-point operations on; a multiply-add counts as 2. κ is that of the core S, of W where there is none, and
    the largest of a stack. Parameters are those of the matrices alone. Raises ValueError for adapters not yet merged.
    """
    now, dense = opened(model), opened(densify(model))
    reports = layer_reports(now)
    before, after = ({}, {}) if example is None else (_flops(dense, example), _flops(now, example))
    _, reasons = sorted_out(dense, {})
    rows = [
        replace(
            _row(name, layer),
            kappa=reports[name].kappa,
            flops=before.get(name, 0),
            flops_now=after.get(name, 0),
            note=reasons.pop(name, ""),
        )
        for name, layer in weight_layers(now).items()
    ]
    parameters = dict(dense.named_parameters())
    for name, note in reasons.items():
        size = parameters[name if name in parameters else f"{name}.weight".lstrip(".")].numel()
        rows.append(LayerSummary(name, "", 1, 0, 0, None, math.nan, size, size, note=note))
    return Summary(tuple(rows))


def _row(name: str, layer: Any) -> LayerSummary:
    if isinstance(layer, LowRankLayer):
        stack, (n, m), rank = math.prod(layer.U.shape[:-2]), layer.matrix_shape, layer.rank
        sizes = (layer.n_dense, layer.n_deployed)
    else:
        W = weight_matrix(layer)
        stack, (n, m), rank = math.prod(W.shape[:-2]), W.shape[-2:], None
        sizes = (W.numel(), W.numel())
    return LayerSummary(name, type(layer).__name__, stack, n, m, rank, math.nan, *sizes)


def _flops(model: nn.Module, example: Any) -> dict[str, int]:
    """By name of the module."""
    from torch.utils.flop_counter import FlopCounterMode  # imports compilers

    with FlopCounterMode(display=False) as counter:
        evaluate(model.eval(), example)
    prefix = f"{type(model).__name__}."
    return {path.removeprefix(prefix): sum(counts.values()) for path, counts in counter.get_flop_counts().items()}
