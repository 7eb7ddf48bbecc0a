"""Networks for other programs: ONNX, torch.export and safetensors files, and weights of eight bits.

A program is read again and run on the example before its file takes its name: what cannot be written, or computes
something else, leaves nothing behind. `deploy` first, for plain layers.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wellcond.adaptation.adapters import low_rank_like
from wellcond.adaptation.files import mismatch, needed, read_tensors, replacing, write_tensors
from wellcond.convert import check_merged, copied, replace_module, unparametrized
from wellcond.deployment import close, outputs_of
from wellcond.errors import invalid, unknown
from wellcond.kinds.opening import Opened, close_, open_
from wellcond.layers import full_rank, kind_of, low_rank_layers, weight_matrix
from wellcond.methods.tucker import Tucker2Conv2d
from wellcond.tracing import BATCH_NORMS, call_arguments


def _check(found: list[Tensor], expected: list[Tensor], format: str) -> None:
    if not close(found, expected):
        raise RuntimeError(f"format = {format!r}: the file computes other outputs than the network; nothing is written")


def _onnx(model: nn.Module, path: Path, example: Any) -> None:
    for package in ("onnx", "onnxscript"):
        needed(package, "format = 'onnx'")
    args, kwargs = call_arguments(example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.onnx, about what it itself calls
        program: Any = torch.onnx.export(model, args, kwargs=kwargs, dynamo=True, verbose=False)
        program.save(path, external_data=False)
    try:
        runtime = needed("onnxruntime", "checking an ONNX file")
    except ImportError:
        return  # written all the same: who reads it may have another runtime
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, {name: value.numpy(force=True) for name, value in zip(names, tensors, strict=True)})
    _check([torch.from_numpy(value) for value in found], [y.cpu() for y in outputs_of(model, example)], "onnx")


def _torch(model: nn.Module, path: Path, example: Any) -> None:
    args, kwargs = call_arguments(example)
    torch.export.save(torch.export.export(model, args, kwargs), path)
    _check(outputs_of(torch.export.load(path).module(), example), outputs_of(model, example), "torch")


def _safetensors(model: nn.Module, path: Path, example: Any) -> None:
    check_merged(model)
    needed("safetensors", "format = 'safetensors'")
    write_tensors(model.state_dict(), path, {"ranks": json.dumps(ranks(model))})


FORMATS: dict[str, Callable[[nn.Module, Path, Any], None]] = {
    "onnx": _onnx,
    "torch": _torch,
    "safetensors": _safetensors,
}


SIZES = ("in_features", "in_channels", "num_embeddings")
"""What the plain layers in the place of a factorized one have, one of them, and no other sequence."""


def ranks(model: nn.Module) -> dict[str, int]:
    """The rank of every layer that is stored by factors, factorized or deployed, by name."""
    found = {name: layer.rank for name, layer in low_rank_layers(model).items()}
    for name, module in model.named_modules():
        if type(module) is nn.Sequential and any(hasattr(module, size) for size in SIZES):
            last: Any = module[-1]
            found[name] = last.in_features if isinstance(last, nn.Linear) else last.in_channels // last.groups
    return found


@torch.no_grad()
def export(model: nn.Module, path: str | Path, example: Any = None, *, format: str = "onnx") -> Path:
    """Write a network, in evaluation mode, for other programs; returns the path.

        wc.export(wc.deploy(model), "network.onnx", torch.rand(1, 3, 32, 32))

    example: as of `deploy`; the shapes of the program are those of its tensors. Safetensors, which hold numbers only,
    need none. format: a key of FORMATS: "onnx" by torch.onnx (needs onnx and onnxscript; run on the example and
    compared where onnxruntime is installed), "torch" by torch.export, read again and compared, or "safetensors" (needs
    safetensors; `load_factors` reads them), with the ranks by layer as JSON in the metadata. No half of a file stays.
    Raises ValueError for an unknown format or no example, ImportError, naming the package, where one is absent,
    RuntimeError if the program computes something else, and whatever torch raises for code that it cannot export.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if example is None and format != "safetensors":
        raise invalid("example", None, f"an input of the network, to write format = {format!r}")
    with replacing(path) as part:
        FORMATS[format](unparametrized(model), part, example)
    return Path(path)


def _like_stored(layer: Any, own: Mapping[str, Tensor]) -> nn.Module:
    """A layer of the shape of `layer` in the form of its tensors in the file, from whose shapes its rank follows."""
    bias = own.get("bias", own.get("1.bias", own.get("2.bias")))
    if bias is not None and getattr(layer, "bias", bias) is None:  # of the batch normalization that was folded into it
        layer.bias = nn.Parameter(layer.weight.new_empty(bias.shape))
    core = own["1.weight"] if "2.weight" in own else own.get("S")  # of three layers the core is the second
    if type(layer) is nn.Conv2d and core is not None and core.ndim == 4:
        new = low_rank_like(layer, tuple(core.shape[:2]), kind=Tucker2Conv2d)
        return new if "U" in own else new.plain_layers()
    factors = [own[key] for key in ("U", "V", "0.weight", "1.weight") if key in own]
    if len(factors) != 2:
        return layer
    W = weight_matrix(layer)
    rank = sum(map(Tensor.numel, factors)) // (W[..., 0].numel() + W[..., 0, :].numel())  # r(n + m), of each of a stack
    new = low_rank_like(layer, min(max(rank, 1), full_rank(layer)), core="S" in own)  # if not, `mismatch` tells
    return new if "U" in own else new.plain_layers()


def load_factors(path: str | Path, model: nn.Module) -> nn.Module:
    """A copy of the dense network `model`, in evaluation mode, with the ranks and numbers of a safetensors file that
    `export` wrote of its factorized or deployed form; batch normalization that is folded there becomes nn.Identity.

    Raises ValueError, naming a tensor, for the file of another network.
    """
    state, new = read_tensors(path), open_(copied(model))
    for name, layer in list(new.named_modules()):
        prefix = f"{name}." if name else ""
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if isinstance(layer, Opened) and any(parameter in own for parameter in layer.matrices):
            close_(new.get_submodule(name))  # dense there
        elif isinstance(layer, BATCH_NORMS) and layer.state_dict() and not own:
            new = replace_module(new, name, nn.Identity())
        elif kind_of(layer) is not None and (like := _like_stored(layer, own)) is not layer:
            new = replace_module(new, name, like)
    if difference := mismatch(state, new.state_dict()):
        raise invalid("path", str(path), f"the file of this network; there {difference}")
    new.load_state_dict(state)
    return new.eval()


def quantize(model: nn.Module) -> nn.Module:
    """A copy of a deployed network, in evaluation mode, whose linear layers hold their weights in eight bits, one scale
    an output, by torchao; inputs stay floats. Convolutions stay as they are: torchao has no such weights for them.

    Raises ImportError without torchao, ValueError for factorized layers or where there is no linear layer.
    """
    if factorized := low_rank_layers(model):
        raise invalid("model", f"one with factorized layers ({', '.join(factorized)})", "deployed, wc.deploy(model)")
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        raise invalid("model", type(model).__name__, "a network with a linear layer")
    torchao = needed("torchao.quantization", "quantize")
    new = unparametrized(model)
    torchao.quantize_(new, torchao.Int8WeightOnlyConfig())
    return new
