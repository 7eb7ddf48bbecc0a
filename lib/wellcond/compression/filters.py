"""What belongs to an output channel of a convolution: its filter, its normalization, and what later layers read of it.

From the convolution on, the traced forward code is followed through operations that keep channels apart (activations,
pooling, batch normalization, flattening) to the convolutions and linear layers that read them. A channel that is
removed in all these places leaves a network of the same forward code. Where channels meet others, as in a residual
sum, or where the code cannot be followed, a channel does not belong to the convolution alone.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from wellcond.compression.units import COMPRESSORS, AtAmount, Compressed, ranked
from wellcond.convert import densify, matching, tied
from wellcond.counts import count_parameters
from wellcond.layers import matricize, weight_layers
from wellcond.tracing import ELEMENTWISE, Uses, called_module, flattens, hooked, traced, uses_in

POOLING = (
    *(nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    *(F.dropout2d, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
)
TENSOR_METHODS = ("relu", "tanh", "sigmoid", "contiguous")
# By whether the maps are flattened: the operations that return each channel from its own alone, normalizations, readers
CHANNELWISE = {False: (*ELEMENTWISE, *TENSOR_METHODS, *POOLING), True: (*ELEMENTWISE, *TENSOR_METHODS)}
NORMS = {False: nn.BatchNorm2d, True: nn.BatchNorm1d}
READERS = {False: nn.Conv2d, True: nn.Linear}


@dataclass(frozen=True)
class Channels:
    """Names of modules, each with the number of its entries, or inputs, that one channel has, side by side.

    norms: the batch normalizations of the channels; readers: the layers that read them. The number is 1, or H·W where
    the maps of H x W pixels were flattened before.
    """

    norms: dict[str, int] = field(default_factory=dict)
    readers: dict[str, int] = field(default_factory=dict)


def channels(model: nn.Module) -> tuple[dict[str, Channels], dict[str, str]]:
    """{convolution: its channels} where they can be followed, and {convolution: why not} for all others, by name.

    The forward code is that of both modes; the model is not changed.
    """
    model = copy.deepcopy(model)  # forward code may keep what it is given, placeholders included
    hidden: set[nn.Module] = set()
    every: list[tuple[nn.Module, fx.Graph, Uses]] = []
    for mode in (False, True):
        graphs, unseen = traced(model.train(mode))
        hidden |= unseen
        every += [(root, graph, uses_in(root, graph)) for root, graph in graphs]
    names = {module: name for name, module in model.named_modules()}
    shared = tied(model)
    found: dict[str, Channels] = {}
    whole: dict[str, str] = {}
    for layer in names:
        if not isinstance(layer, nn.Conv2d):
            continue
        try:
            own = _in_all_graphs(layer, every, hidden, names)
            for name in (names[layer], *own.norms, *own.readers):
                if name in shared:
                    raise _Lost(f"{name} is tied to {shared[name]}")
            found[names[layer]] = own
        except _Lost as reason:
            whole[names[layer]] = str(reason)
    return found, whole


class _Lost(Exception):
    """Why the channels of a convolution cannot be followed."""


def _in_all_graphs(
    layer: nn.Conv2d,
    every: list[tuple[nn.Module, fx.Graph, Uses]],
    hidden: set[nn.Module],
    names: dict[nn.Module, str],
) -> Channels:
    if type(layer) is not nn.Conv2d or layer.groups > 1:
        raise _Lost("it is grouped, or no plain convolution")
    followed = [_follow(layer, *graph) for graph in every if layer in graph[2].calls]
    if not followed or any(other != followed[0] for other in followed):
        raise _Lost("it is called nowhere that can be traced, or in several ways")
    norms, readers = followed[0]
    group = [layer, *norms, *readers]
    others = [uses for _, _, uses in every if layer not in uses.calls]
    if not hidden.isdisjoint(group) or not all(uses.untouched(group) for uses in others):
        raise _Lost("it is used, or what reads it, where that cannot be traced")
    return Channels({names[m]: k for m, k in norms.items()}, {names[m]: k for m, k in readers.items()})


def _follow(
    layer: nn.Conv2d, root: nn.Module, graph: fx.Graph, uses: Uses
) -> tuple[dict[nn.Module, int], dict[nn.Module, int]]:
    """The normalizations and the readers of the output of `layer` in one graph."""
    norms: dict[nn.Module, int] = {}
    readers: dict[nn.Module, int] = {}
    _check_sole(layer, uses)
    todo = [(uses.calls[layer][0], False)]
    while todo:
        source, flat = todo.pop()
        for node in source.users:
            module = called_module(node, root)
            operation = node.target if module is None else type(module)  # exactly: a subclass may do more
            if _is_batch_size(node) or (_is_shape(node) and all(map(_is_batch_size, node.users))):
                continue
            if node.args[:1] != (source,) or _mentions(node, source) > 1:
                raise _Lost(f"it is read by {_said(node)}")
            if module is not None and operation in (NORMS[flat], READERS[flat]):
                _check_sole(module, uses)
                group = norms if operation is NORMS[flat] else readers
                group[module] = _share(module, layer)
            if operation is READERS[flat]:
                continue
            flattened = flattens(node, root) or _is_flat_view(node) or (not flat and _is_mean_of_maps(node))
            if not flattened and operation not in (NORMS[flat], *CHANNELWISE[flat]):
                raise _Lost(f"it is read by {_said(node)}")
            todo.append((node, flat or flattened))
    if not readers:
        raise _Lost("no layer reads it")
    return norms, readers


def _check_sole(module: nn.Module, uses: Uses) -> None:
    """Called once, without hooks, and its parameters read by nobody else."""
    if len(uses.calls[module]) > 1 or module in uses.reads or hooked(module):
        raise _Lost("it, or what reads it, is used more than once")


def _share(module: nn.Module, layer: nn.Conv2d) -> int:
    """How many of the inputs of `module` one channel of `layer` is."""
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        raise _Lost("it is read by a grouped convolution")
    inputs = next(getattr(module, a) for a in ("num_features", "in_channels", "in_features") if hasattr(module, a))
    share, rest = divmod(int(inputs), layer.out_channels)
    if rest:
        raise _Lost(f"its {layer.out_channels} channels do not divide {inputs} inputs")
    return share


def _mentions(node: fx.Node, source: fx.Node) -> int:
    count = 0

    def visit(argument: fx.Node) -> fx.Node:
        nonlocal count
        count += argument is source
        return argument

    fx.map_arg((node.args, node.kwargs), visit)
    return count


def _is_shape(node: object) -> bool:
    if not isinstance(node, fx.Node):
        return False
    return (node.target == "size" and len(node.args) == 1) or (node.target is getattr and node.args[1:] == ("shape",))


def _is_batch_size(node: object) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if node.target is operator.getitem:
        return _is_shape(node.args[0]) and node.args[1:] == (0,)
    return node.target == "size" and node.args[1:] == (0,)


def _is_flat_view(node: fx.Node) -> bool:
    return node.target in ("view", "reshape") and node.args[2:] == (-1,) and _is_batch_size(node.args[1])


def _is_mean_of_maps(node: fx.Node) -> bool:
    """Whether the node is the mean over H and W, which it drops."""
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    if node.target not in (torch.mean, "mean") or not isinstance(dims, list | tuple) or len(node.args) > 2:
        return False
    return {*dims} in ({2, 3}, {-1, -2}) and not node.kwargs.keys() - {"dim"}


def _said(node: fx.Node) -> str:
    if node.op == "output":
        return "the caller"
    return str(getattr(node.target, "__name__", node.target))


@torch.no_grad()
def pruned_filters(
    model: nn.Module, *, p: float = 2.0, together: bool = False, skip: str | Iterable[str] = ()
) -> AtAmount:
    """Remove filters of convolutions, with their normalization and what later layers read of them.

    The score is (Σ |w|^p / number)^(1/p) over the entries of a filter: of a layer that is the order of the l_p norms,
    and layers with filters of different sizes can be compared. Tensors become smaller; nothing is masked. The network
    is then the one whose later layers have zeros where they read the removed channels.

    Convolutions whose channels do not belong to them alone, as those that write into a residual sum, are left whole:
    `Compressed.whole` says which and why. skip: names or patterns of layers left whole.
    Source: Li et al., ICLR 2017.
    """
    dense = densify(model)
    found, whole = channels(dense)
    skipped = matching(skip, weight_layers(dense), "skip") & {*found, *whole}
    whole |= dict.fromkeys(sorted(skipped), "skipped")
    found = {name: own for name, own in found.items() if name not in skipped}
    filters = {name: matricize(dense.get_parameter(f"{name}.weight")) for name in found}
    scores = {name: torch.linalg.vector_norm(W, p, dim=1) / W.shape[1] ** (1 / p) for name, W in filters.items()}
    survivors = ranked(scores, together=together)

    @torch.no_grad()
    def at(amount: float) -> Compressed:
        new = copy.deepcopy(dense)
        masks = survivors(amount)
        for name, stays in masks.items():
            _remove_channels(new, name, found[name], stays)
        kept = {name: int(stays.sum()) for name, stays in masks.items()}
        return Compressed(new, count_parameters(new).deployed, kept, whole)

    return at


def _remove_channels(model: nn.Module, name: str, own: Channels, stays: Tensor) -> None:
    """In place: the channels of the convolution of that name that do not stay."""
    _select(model.get_submodule(name), ("weight", "bias"), "out_channels", stays)
    for norm, share in own.norms.items():
        entries = ("weight", "bias", "running_mean", "running_var")
        _select(model.get_submodule(norm), entries, "num_features", stays.repeat_interleave(share))
    for reader, share in own.readers.items():
        layer = model.get_submodule(reader)
        inputs = "in_features" if isinstance(layer, nn.Linear) else "in_channels"
        _select(layer, ("weight",), inputs, stays.repeat_interleave(share), dim=1)


def _select(module: nn.Module, names: Iterable[str], count: str, stays: Tensor, dim: int = 0) -> None:
    """In place: of the tensors of these names the entries that stay along `dim`; their number, an attribute."""
    index = stays.nonzero().flatten()
    for name in names:
        tensor = getattr(module, name)
        if tensor is not None:
            part = tensor.index_select(dim, index)
            own = isinstance(tensor, nn.Parameter)
            setattr(module, name, nn.Parameter(part, requires_grad=tensor.requires_grad) if own else part)
    setattr(module, count, len(index))


for _name, _p in (("filters_l1", 1.0), ("filters_l2", 2.0)):
    COMPRESSORS[_name] = partial(pruned_filters, p=_p)
    COMPRESSORS[f"{_name}_global"] = partial(pruned_filters, p=_p, together=True)
