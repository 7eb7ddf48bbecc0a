"""Who calls a layer, who reads its weight, and what becomes of its output: seen by tracing the forward code.

torch.fx runs the code once with placeholders, so no input is needed. What it cannot follow (control flow that depends
on values) is taken as a whole, and all that is inside it may be used in any way. Only what is certain is reported,
unless `assume` asks for what is likely: that such code calls the modules inside it, and does not reach into them.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from wellcond.layers import HOOKS, LowRankLayer, LowRankLinear, kind_of

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ELEMENTWISE = (
    *(nn.Identity, nn.Dropout, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid),
    *(torch.relu, torch.tanh, torch.sigmoid, F.relu, F.leaky_relu, F.elu, F.gelu, F.silu, F.dropout),
)
# What returns a matrix for a matrix, one row an example
ROW_BY_ROW = (nn.Linear, LowRankLinear, nn.BatchNorm1d, *ELEMENTWISE)


@dataclass(frozen=True)
class Dataflow:
    """Names of modules: `called`, and their parameters read by nobody else; `normalized`, {layer: the batch
    normalization that is the only reader of its output, and reads nothing else}."""

    called: set[str]
    normalized: dict[str, str]


def dataflow(model: nn.Module, *, assume: bool = False) -> Dataflow:
    """The data flow of `model` in evaluation mode; the model is not changed. assume: see this module."""
    model = copy.deepcopy(model).eval()  # forward code may keep what it is given, placeholders included
    graphs, hidden = traced(model, assume=assume)
    every = [uses_in(root, graph) for root, graph in graphs]
    called = {module for uses in every for module in uses.calls}
    for uses in every:
        called -= uses.reads
    pairs = {pair for uses in every for pair in uses.pairs if hidden.isdisjoint(pair)}
    for uses in every:  # other code may use the same modules in another way
        pairs = {pair for pair in pairs if pair in uses.pairs or uses.untouched(pair)}
    names = {module: name for name, module in model.named_modules()}
    return Dataflow({names[m] for m in called - hidden}, {names[layer]: names[norm] for layer, norm in pairs})


def call_arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and named arguments that an example stands for: an input, a tuple of them, or a mapping."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def evaluate(model: Callable[..., Any], example: Any) -> Any:
    """What the network returns for an example, see `call_arguments`."""
    args, named = call_arguments(example)
    return model(*args, **named)


Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]


def calls_of(layers: Mapping[str, nn.Module], model: nn.Module, example: Any) -> dict[str, Calls]:
    """The arguments, positional and named, of every call of each layer that one pass of the network makes."""
    seen: dict[str, Calls] = {name: [] for name in layers}

    def watch(name: str) -> Callable[..., None]:
        return lambda _, args, named: seen[name].append((args, named))

    hooks = [layer.register_forward_pre_hook(watch(name), with_kwargs=True) for name, layer in layers.items()]
    evaluate(model, example)
    for hook in hooks:
        hook.remove()
    return seen


def hooked(module: nn.Module) -> bool:
    """Whether somebody watches, or changes, what the module is given, returns, or passes back."""
    return any(getattr(module, hooks) for hooks in HOOKS)


def _is_leaf(module: nn.Module) -> bool:
    """The layers of torch.nn, and ours."""
    return isinstance(module, LowRankLayer) or fx.Tracer().is_leaf_module(module, "")


class _Tracer(fx.Tracer):
    """Layers are leaves, and so is every module whose code cannot be traced: `opaque`."""

    proxy_buffer_attributes = True  # running statistics are seen being read, as parameters are

    def __init__(self) -> None:
        super().__init__()
        self.opaque: set[nn.Module] = set()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_leaf(m)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        return super().getattr(attr, attr_val, {})  # no cache: it would outlive the nodes erased below

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        n_nodes, stack = len(self.graph.nodes), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # whatever the code raises when it is given a placeholder
            for node in reversed(list(self.graph.nodes)[n_nodes:]):
                self.graph.erase_node(node)
            self.module_stack = stack
            self.opaque.add(m)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def traced(model: nn.Module, *, assume: bool = False) -> tuple[list[tuple[nn.Module, fx.Graph]], set[nn.Module]]:
    """Graphs, each with the module whose code it is; and the modules that are used where no graph shows it.
    assume: see this module."""
    graphs: list[tuple[nn.Module, fx.Graph]] = []
    hidden: set[nn.Module] = set()
    todo, seen = [model], set()
    while todo:
        root = todo.pop()
        if root in seen:
            continue
        seen.add(root)
        if isinstance(root, nn.ModuleList | nn.ModuleDict):
            todo += root.children()
            continue
        if _is_leaf(root):
            hidden.update(root.modules())
            continue
        tracer = _Tracer()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of fx, that a default value is not checked
                graphs += [(root, tracer.trace(root, values)) for values in _arguments(root)]
        except Exception:
            tracer.opaque.add(root)
        inside = [child for module in tracer.opaque for child in module.children()]
        todo += inside
        if not assume:
            hidden.update(part for child in inside for part in child.modules())
    return graphs, hidden


def _arguments(root: nn.Module) -> list[dict[str, Any] | None]:
    """Optional arguments given, and not given: the code may branch on that."""
    parameters = inspect.signature(root.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return [None, defaults] if defaults else [None]


@dataclass
class Uses:
    """What one graph shows of the modules that it uses."""

    calls: dict[nn.Module, list[fx.Node]] = field(default_factory=dict)
    reads: set[nn.Module] = field(default_factory=set)  # their parameters are, or they are part of a leaf
    pairs: set[tuple[nn.Module, nn.Module]] = field(default_factory=set)

    def untouched(self, modules: Iterable[nn.Module]) -> bool:
        return not any(module in self.calls or module in self.reads for module in modules)


def uses_in(root: nn.Module, graph: fx.Graph) -> Uses:
    """The calls and reads of modules in a graph of the code of `root`."""
    uses = Uses()
    for node in graph.nodes:
        if node.op == "call_module":
            module = root.get_submodule(node.target)
            uses.calls.setdefault(module, []).append(node)
            if _is_leaf(module):
                uses.reads.update(part for part in module.modules() if part is not module)
        elif node.op == "get_attr":
            uses.reads.add(root.get_submodule(node.target.rpartition(".")[0]))
    uses.pairs.update(
        (layer, norm)
        for layer, norm in _adjacent(root, graph)
        if len(uses.calls[layer]) == len(uses.calls[norm]) == 1 and uses.reads.isdisjoint((layer, norm))
    )
    return uses


def _adjacent(root: nn.Module, graph: fx.Graph) -> Iterator[tuple[nn.Module, nn.Module]]:
    """A layer and a batch normalization with running statistics, where nothing else reads what the layer returns."""
    for node in graph.nodes:
        source = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if node.op != "call_module" or not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        layer, norm = root.get_submodule(str(source.target)), root.get_submodule(node.target)
        # Exact types: a subclass may do more than its parent, and so may hooks.
        if (
            type(norm) in BATCH_NORMS
            and norm.running_mean is not None
            and list(source.users) == [node]
            and _fits(layer, norm, source, root)
            and not (hooked(layer) or hooked(norm))
        ):
            yield layer, norm


def _fits(layer: nn.Module, norm: nn.Module, source: fx.Node, root: nn.Module) -> bool:
    kind = layer if isinstance(layer, LowRankLayer) else kind_of(layer)
    if kind is not None and kind.norm is type(norm):
        return True
    # Of three dimensions BatchNorm1d normalizes the second, and a linear layer writes the last.
    return type(norm) is nn.BatchNorm1d and type(layer) in (nn.Linear, LowRankLinear) and _is_matrix(source, root)


def called_module(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """The module that a node calls; None for a function or a method."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def flattens(node: fx.Node, root: nn.Module) -> bool:
    """Whether the node certainly flattens all dimensions but the first."""
    module, rest = called_module(node, root), list(node.args[1:])
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    return node.target in (torch.flatten, "flatten") and (rest, node.kwargs) in (([1], {}), ([], {"start_dim": 1}))


def _is_matrix(node: object, root: nn.Module) -> bool:
    """Whether the value certainly has two dimensions."""
    if not isinstance(node, fx.Node) or not node.args:
        return False
    module = called_module(node, root)
    operation = node.target if module is None else type(module)
    if flattens(node, root):
        return True
    if operation in ("view", "reshape"):
        return len(node.args) == 3
    return operation in ROW_BY_ROW and _is_matrix(node.args[0], root)
