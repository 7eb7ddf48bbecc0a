"""Networks that others can attack: trained weights beside the tables.

results/<experiment>/weights/<run_id>.safetensors has the parameters and buffers of a finished network, in float32, and
says of which specification it is. Nothing but tensors is read from it. What measures trained networks finds them here
before it trains again.
"""

from __future__ import annotations

import math
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from study import paths
from study.experiments.engines.local import pick_device
from study.experiments.specification import Cell, Experiment
from study.experiments.weights import digest, kept, placed, skeleton, trained, weights_file
from study.results.checkpoints import anew
from wellcond.errors import invalid, unknown


def _about(path: Path) -> dict[str, str]:
    """What a file says of itself. Raises ValueError if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise invalid("weights", str(path), f"a readable safetensors file ({error})") from error


def published(cell: Cell, device: str = "cpu") -> nn.Module | None:
    """The network of a cell from a file beside any of the tables, ready to be evaluated; None if there is none.

    Raises ValueError for a damaged file.
    """
    for path in sorted(paths.results().glob("*/weights/*.safetensors")):
        about = _about(path)
        if about.get("spec_hash") == cell.spec_hash:
            model = skeleton(cell, device)
            try:
                state = anew(load_file(path))
                model.load_state_dict(state, strict=True, assign=True)
            except (RuntimeError, SafetensorError) as error:
                reason = str(error).splitlines()[0]
                raise invalid("weights", str(path), f"those of {cell.run_id} ({reason})") from error
            if digest(model) != about.get("digest"):
                raise invalid("weights", str(path), f"those of {cell.run_id}, unchanged")
            return placed(model.eval(), cell, device)
    return None


def trained_already(cell: Cell, device: str = "cpu") -> nn.Module | None:
    """The trained network of a cell, kept here or published; None if it is neither."""
    return kept(cell, device).model if weights_file(cell).exists() else published(cell, device)


def network(cell: Cell, device: str = "cpu", deadline: float = math.inf) -> nn.Module:
    """The trained network of a cell, trained now if it has not been. Raises OutOfTime as `trained` does."""
    model = trained_already(cell, device)
    return trained(cell, device, deadline).model if model is None else model


def load_network(experiment: str | Path, run_id: str, *, device: str = "cpu") -> nn.Module:
    """The trained network of a cell of an experiment, such as ("mnist_lenet5", "condlr-r0.8-c1.1-s0"), in eval mode.

    It takes images (B, C, H, W) with values in [0, 1] and returns logits (B, classes). experiment: a name or a path, as
    of `Experiment.load`; device: auto, cpu or cuda. Trains nothing.
    Raises ValueError for an unknown name, and for a cell whose weights are neither kept nor published.
    """
    cells = {cell.run_id: cell for cell in Experiment.load(experiment).cells()}
    if run_id not in cells:
        raise unknown("run_id", run_id, cells)
    found = trained_already(cells[run_id], pick_device(device))
    if found is None:
        raise invalid("run_id", run_id, f"one whose weights are here; python -m study run {experiment} trains it")
    return found
