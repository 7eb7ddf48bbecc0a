"""Momentum SGD on products of manifolds: the integrators of the study.

Each update rule is a pure function of tensors; `LowRankSGD` only loops over parameter groups and calls the rule that
the group names in ``"kind"``. Groups hold plain data, so ``state_dict``, resuming and learning-rate schedulers work as
for any torch optimizer. The kinds of the core, to which files of methods/ add theirs:

    kind                        parameters     rule
    euclidean                   any            heavy-ball SGD, as torch.optim.SGD
    lowrank                     [U, S, V]      lowrank_step_: projected gradient flow on rank-r matrices
    lowrank_plain               [U, S, V]      lowrank_step, its plain form, slower

Gradients with respect to the factors are those of autograd: with G = ∂L/∂W, g_U = G V Sᵀ, g_S = Uᵀ G V,
g_V = Gᵀ U S. Learning rates are in units of the gradient flow's time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wellcond.errors import NonFiniteGradient, invalid, unknown
from wellcond.integrator import Factors, lowrank_step, lowrank_step_
from wellcond.layers import low_rank_layers, matricize
from wellcond.linalg import full_float32, upcast
from wellcond.spectrum import CLIP_RULES, check_max_cond, clip_condition_number
from wellcond.stiefel import RETRACTIONS

State = dict[Tensor, Any]
Group = dict[str, Any]


def momentum_of(p: Tensor, state: State) -> Tensor:
    """The momentum of a parameter: zero at first, and when a state of another rank has been loaded."""
    buffer: Tensor | None = state[p].get("momentum_buffer")
    if buffer is None or buffer.shape != p.shape:
        buffer = state[p]["momentum_buffer"] = torch.zeros_like(p)
    return buffer


def euclidean(group: Group, state: State) -> None:
    params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
    if not params:
        return
    grads: list[Tensor] = [p.grad for p in params if p.grad is not None]
    if group["weight_decay"]:
        grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
    if group["momentum"]:
        buffers = [momentum_of(p, state) for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        grads = buffers
    torch._foreach_add_(params, grads, alpha=-group["lr"])


def clip_weight(weight: Tensor, max_cond: float, rule: str = "nearest", stacked: bool = False) -> None:
    """Replace a weight, in place, by the nearest one whose matrix has κ <= max_cond."""
    set_tall(weight, clip_condition_number(tall(weight, stacked), max_cond, rule), stacked)


def factors_of(group: Group, state: State) -> tuple[Factors, Factors, Factors]:
    W = Factors(*group["params"])
    g_U, g_S, g_V = (p.grad if p.grad is not None else torch.zeros_like(p) for p in W)
    # the gradient of wd/2 ||W||² is W, whose components on the tangent space are (0, S, 0)
    return W, Factors(g_U, g_S + group["weight_decay"] * W.S, g_V), Factors(*(momentum_of(p, state) for p in W))


def copy_(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def _lowrank_options(group: Group) -> dict[str, Any]:
    return {"beta": group["momentum"], **{key: group[key] for key in ("lr", *OF_POINT)}}


def _lowrank(group: Group, state: State) -> None:
    lowrank_step_(*factors_of(group, state), **_lowrank_options(group))


def _lowrank_together(groups: Sequence[Group], state: State) -> None:
    """`_lowrank` for groups of equal shapes and options as one stack, whose products are batched."""
    layers = [factors_of(group, state) for group in groups]
    W, grad, momentum = (Factors(*map(torch.stack, zip(*parts, strict=True))) for parts in zip(*layers, strict=True))
    lowrank_step_(W, grad, momentum, **_lowrank_options(groups[0]))
    for k, (W_k, _, momentum_k) in enumerate(layers):
        copy_((*W_k, *momentum_k), (p[k] for p in (*W, *momentum)))


def _stackable(group: Group) -> bool:
    """Low-rank layers on a GPU, where small products are slow one by one; on a CPU stacking only moves memory."""
    return (
        group["kind"] == "lowrank"
        and not group["stacked"]
        and all(p.is_cuda and p.grad is not None and upcast(p) is p for p in group["params"])
    )


def alike(groups: Iterable[Group], options: Iterable[str]) -> list[list[Group]]:
    """The groups, those of equal shapes and options in one list."""
    stacks: dict[Any, list[Group]] = {}
    for group in groups:
        shapes = tuple((p.shape, p.dtype, p.device) for p in group["params"])
        stacks.setdefault((shapes, *(group[key] for key in options)), []).append(group)
    return list(stacks.values())


def _lowrank_plain(group: Group, state: State) -> None:
    W, grad, momentum = factors_of(group, state)
    new, new_momentum = lowrank_step(W, grad, momentum, **_lowrank_options(group))
    copy_((*W, *momentum), (*new, *new_momentum))


def tall(weight: Tensor, stacked: bool = False) -> Tensor:
    """The tall orientation (max(n, m), min(n, m)) of a matricized weight: its rows, or columns if n > m.

    stacked: the first dimension of `weight` counts weights, and stays the first.
    """
    W = weight.flatten(2) if stacked else matricize(weight)
    return W.mT if W.shape[-2] <= W.shape[-1] else W


def set_tall(weight: Tensor, A: Tensor, stacked: bool = False) -> None:
    # by copy, not through a view: in channels-last memory the matricized weight is itself a copy
    n = weight.shape[1] if stacked else weight.shape[0]
    W = A.mT if n == A.shape[-1] else A
    weight.copy_(W.reshape(weight.shape))


UPDATES: dict[str, Callable[[Group, State], None]] = {
    "euclidean": euclidean,
    "lowrank": _lowrank,
    "lowrank_plain": _lowrank_plain,
}
"""The rule of each kind of group; a file of methods/ may add its own."""


def move(rule: Callable[[Group, State], None], group: Group, state: State) -> None:
    """Call the rule of a group for the parameters that have a gradient: what is frozen or unused stays where it is, and
    so do its momenta, as in torch.optim. Of a Frank-Wolfe set, which is one point, all move if one has a gradient.
    Half precision is moved in single precision, and rounded afterwards."""
    params: list[Tensor] = group["params"]
    moving = [p for p in params if p.grad is not None]
    if not moving:
        return
    if group["kind"] == "frank_wolfe":
        moving = params
    elif not group["kind"].startswith("lowrank"):
        params = moving
    if group["kind"] == "euclidean" or (len(moving) == len(params) and all(upcast(p) is p for p in params)):
        rule(group if params is group["params"] else {**group, "params": params}, state)
        return
    copies, memory = [upcast(p).clone() for p in params], {}
    for p, q in zip(params, copies, strict=True):
        q.grad = None if p.grad is None else upcast(p.grad)
        memory[q] = {key: upcast(v).clone() if isinstance(v, Tensor) else v for key, v in state[p].items()}
    rule({**group, "params": copies}, memory)
    for p, q in zip(params, copies, strict=True):
        if p.grad is not None or moving is params:
            p.copy_(q)
            state[p].update({k: v.to(p.dtype) if isinstance(v, Tensor) else v for k, v in memory[q].items()})


OF_POINT = ("max_cond", "rule", "retraction")  # the options that say how a step ends on the manifold
OF_TORCH = frozenset(
    {"params", "param_names", "initial_lr", "min_lr", "max_lr", "swa_lr", "base_momentum", "max_momentum"}
)
"""The keys of a group that torch's optimizers and schedulers put there."""


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """The loss that a closure evaluates again, with gradients; None without one."""
    with torch.enable_grad():
        return None if closure is None else closure()


def check_gradients(groups: Iterable[Group]) -> None:
    """Raise NonFiniteGradient, naming the group and the parameter, unless the gradients are finite."""
    named = [
        (p.grad, group.get("name", ""))
        for group in groups
        if not group.get("stacked", False)
        for p in group["params"]
        if p.grad is not None and not p.is_cuda and p.grad.layout == torch.strided and p.numel()
    ]
    largest = [torch.linalg.vector_norm(grad, math.inf).double() for grad, _ in named]  # squares could overflow
    if largest and not (finite := torch.stack(largest).isfinite()).all():
        grad, name = named[int(finite.logical_not().nonzero()[0])]
        raise NonFiniteGradient(
            f"gradient = nan or inf, of a parameter of shape {tuple(grad.shape)} in group {name!r}: must be finite"
        )


class CheckedOptimizer(torch.optim.Optimizer):
    """An optimizer that refuses a group with unknown options, or options out of range; the groups it has stay.

    A step with a gradient that is not finite raises NonFiniteGradient, before anything is changed. On a GPU it is not
    looked for, since reading the answer would stop the queue at every step, nor in a stack, whose members rest alone.
    updates: the rule of each kind of group, called with the group and the state. options: the defaults beside lr.
    """

    updates: Mapping[str, Callable[[Group, State], None]] = {}
    options: ClassVar[dict[str, Any]] = {"momentum": 0.0, "weight_decay": 0.0, "kind": "euclidean"}

    def __init__(self, params: Iterable[Any], lr: float = 0.1, **options: Any) -> None:
        for option in sorted(options.keys() - self.options.keys()):
            raise unknown("option", option, ["lr", *self.options])
        super().__init__(params, {"lr": lr, **self.options, **options})

    def check(self, group: Group) -> None:
        """Raise ValueError, naming the option, unless there is a rule for kind, lr >= 0, momentum is in [0, 1) and
        weight_decay >= 0."""
        if self.updates and group["kind"] not in self.updates:
            raise unknown("kind", group["kind"], self.updates)
        if not group["lr"] >= 0:
            raise invalid("lr", group["lr"], ">= 0")
        if not 0 <= group["momentum"] < 1:
            raise invalid("momentum", group["momentum"], "in [0, 1)")
        if not group["weight_decay"] >= 0:
            raise invalid("weight_decay", group["weight_decay"], ">= 0")

    def add_param_group(self, param_group: Group) -> None:
        """As torch.optim.Optimizer (whose constructor calls it too), with the options checked."""
        for option in sorted(param_group.keys() - OF_TORCH - {"name"} - self.defaults.keys()):
            raise unknown("option", option, ["name", "params", *self.defaults])
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self.check(group)
        except ValueError:
            del self.param_groups[-1]
            raise
        warn_of_factors(group)

    def check_gradients(self) -> None:
        check_gradients(self.param_groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every group. closure: optional, re-evaluates the loss and returns it."""
        loss = evaluated(closure)
        self.check_gradients()
        with full_float32():  # a frame is orthonormal to the precision of its products
            self.update()
        return loss

    def update(self) -> None:
        """Move the parameters of every group, by the rule of its kind."""
        for group in self.param_groups:
            move(self.updates[group["kind"]], group, self.state)


def warn_of_factors(group: Group) -> None:
    """Warn of three successive parameters in a Euclidean group that are a core between two frames, not both square."""
    params = group["params"]
    if group["kind"] == "euclidean" and any(
        U.ndim == V.ndim == 2 <= S.ndim
        and S.shape[:2] == (U.shape[1], V.shape[1]) != (len(U), len(V))
        and all(not X.is_meta and _is_frame(X) for X in (U, V))
        for U, S, V in zip(params, params[1:], params[2:], strict=False)
    ):
        warnings.warn(
            "U, S and V of a factorized layer in a Euclidean group: its steps leave the manifold, and bound no "
            "condition number; wc.param_groups(model) makes the groups of a factorized network",
            stacklevel=3,
        )


def _is_frame(X: Tensor) -> bool:
    X = upcast(X.detach())
    return X.shape[-2] >= X.shape[-1] and bool((X.mT @ X - torch.eye(X.shape[-1]).to(X)).norm(dim=(-2, -1)).max() < 0.1)


class LowRankSGD(CheckedOptimizer):
    """Momentum SGD whose groups say on which manifold their parameters live; see the table of this module.

    params: tensors, or groups as `param_groups` makes them. Options, of all groups or of one, with the defaults below:
        lr >= 0; momentum in [0, 1); weight_decay >= 0 (on W); kind: a key of UPDATES; max_cond >= 1: bound on κ(S);
        rule: a key of spectrum.CLIP_RULES; retraction: a key of stiefel.RETRACTIONS; stacked: whether the first
        dimension of the parameters counts networks (the low-rank and Euclidean rules see it without being told).
    Raises ValueError, naming the option, for anything else.
    """

    updates = UPDATES
    options: ClassVar[dict[str, Any]] = {
        **CheckedOptimizer.options,
        "max_cond": math.inf,
        "rule": "nearest",
        "retraction": "qr",
        "stacked": False,
    }

    def check(self, group: Group) -> None:
        super().check(group)
        check_group(group)

    def update(self) -> None:
        for groups in alike(self.param_groups, ("kind", "lr", "momentum", "weight_decay", *OF_POINT)):
            if len(groups) > 1 and all(map(_stackable, groups)):
                _lowrank_together(groups, self.state)
            else:
                for group in groups:
                    move(self.updates[group["kind"]], group, self.state)


def check_group(group: Group) -> None:
    """Raise ValueError, naming the option, for a group of LowRankSGD that is none."""
    if group["rule"] not in CLIP_RULES:
        raise unknown("rule", group["rule"], CLIP_RULES)
    if group["retraction"] not in RETRACTIONS:
        raise unknown("retraction", group["retraction"], RETRACTIONS)
    check_max_cond(group["max_cond"])
    if group["kind"].startswith("lowrank"):
        if len(group["params"]) != 3:
            raise invalid("params", f"{len(group['params'])} tensors", "[U, S, V] in a low-rank group")
        U, S, V = (tuple(p.shape) for p in group["params"])
        if U[-1:] != V[-1:] or (*U[:-2], *U[-1:], *V[-1:]) != S:
            raise invalid("params", [U, S, V], "U (n, r), S (r, r), V (m, r); methods.BUG trains Tucker cores")
        for X, factor in zip(group["params"][::2], "UV", strict=True):
            # else the first step would make it one, and W another matrix; of a stack of networks one may have diverged
            if not (group.get("stacked") or X.is_meta or _is_frame(X)):
                expected = "orthonormal columns; layer.set_matrix(layer.matrix()) gives a layer them"
                raise invalid("params", f"{factor} of {group.get('name', '')!r}", expected)


def param_groups(model: nn.Module, **lowrank: Any) -> list[Group]:
    """One {"params": [U, S, V], "kind": "lowrank", **lowrank} group a U S Vᵀ layer, and one euclidean group.

    lowrank: options of the low-rank groups (max_cond, rule, retraction, kind, ...). Layers without a core, biases,
    normalization and dense weights are euclidean.
    """
    layers = {name: layer for name, layer in low_rank_layers(model).items() if layer.S is not None}
    return with_rest(
        model,
        [
            {"params": [layer.U, layer.S, layer.V], "name": name, "kind": "lowrank", **lowrank}
            for name, layer in layers.items()
        ],
    )


def with_rest(model: nn.Module, groups: Sequence[Group]) -> list[Group]:
    """The groups, and a Euclidean one of the parameters of the model that are in none of them."""
    taken = {id(p) for group in groups for p in group["params"]}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [*groups, {"params": rest, "name": "", "kind": "euclidean"}]


@torch.no_grad()
def constrain(model: nn.Module, max_cond: float, rule: str = "nearest") -> nn.Module:
    """Clip κ(S) of every U S Vᵀ layer of `model` in place, so that training starts inside the constraint; of a Tucker
    core, κ of its unfolding along the output mode. A frozen core stays. Raises ValueError unless max_cond >= 1."""
    check_max_cond(max_cond)
    if rule not in CLIP_RULES:
        raise unknown("rule", rule, CLIP_RULES)
    for layer in low_rank_layers(model).values():
        if layer.S is None or not layer.S.requires_grad:
            continue
        if layer.S.ndim == layer.U.ndim:
            layer.S.copy_(clip_condition_number(layer.S, max_cond, rule))
        else:
            clip_weight(layer.S, max_cond, rule)
    return model
