"""Any optimizer of torch on rank-r matrices W = U S Vᵀ with κ(S) <= c: it proposes a step, the manifold corrects it.

With P_X = I - XXᵀ, and Opt the step of the Euclidean optimizer on one factor, elementwise or not:

    g_U <- P_U g_U (SSᵀ)^-1,   g_V <- P_V g_V (SᵀS)^-1          the gradient in the horizontal space, preconditioned
    (U, S, V)~ = Opt(U, S, V; g_U, g_S, g_V)                     a step that leaves the manifold
    U <- R_U(P_U (U~ - U)),    V <- R_V(P_V (V~ - V)),    S <- nearest{κ <= c}(S~)
    m_U <- P_U m_U,            m_V <- P_V m_V                    first moments follow to the new horizontal spaces

For SGD without momentum this is `integrator.lowrank_step`, but the bases wait only where S is 0: how long a step will
be is for Opt to say. For optimizers that scale each entry by itself, as Adam does, it is a method of its own: U, V stay
orthonormal and κ bounded for any step; that it decreases the loss, or depends on W alone and not on the choice of U, S
and V, is not proved. Weight decay is that of W: it shrinks S, by Opt's own rule where that is decoupled, else as a part
of g_S; U and V have none, which entrywise scaling would turn into a rotation.

Source: Li et al., NeurIPS 2025 (StelLA), for a Euclidean step between two projections, there without κ or
preconditioner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from wellcond.errors import invalid, unknown
from wellcond.integrator import ORTHONORMALIZE, Factors, precondition
from wellcond.linalg import full_float32, upcast
from wellcond.optim import (
    OF_POINT,
    OF_TORCH,
    Group,
    LowRankSGD,
    alike,
    check_gradients,
    check_group,
    evaluated,
    warn_of_factors,
)
from wellcond.spectrum import clip_after_step
from wellcond.stiefel import project_horizontal, retract

OPTIONS = {"name": "", **{key: LowRankSGD.options[key] for key in ("kind", *OF_POINT)}}
MOMENTS = ("momentum_buffer", "exp_avg")  # what torch calls the average of past gradients, a tangent vector
DECOUPLED = (torch.optim.Adafactor, torch.optim.Muon)  # those whose decay is, without an option that says so


def horizontal_gradient(W: Factors, grad: Factors) -> Factors:
    """(P_U g_U (SSᵀ)^-1, g_S, P_V g_V (SᵀS)^-1): for autograd's gradients of the factors, the velocity of the flow."""
    left, right = precondition(W, torch.zeros_like(W.S))
    return Factors(project_horizontal(W.U, grad.U) @ left, grad.S, project_horizontal(W.V, grad.V) @ right)


def retract_horizontal(X: Tensor, xi: Tensor, retraction: str) -> Tensor:
    """R_X(ξ) for ξ with Xᵀξ = 0, by products where there is such a form."""
    if retraction not in ORTHONORMALIZE:
        return retract(X, xi, retraction)
    ORTHONORMALIZE[retraction](Y := X + xi)
    return Y


def back_on_manifold(W: Factors, new: Factors, *, max_cond: float, rule: str, retraction: str) -> Factors:
    """The point that a step from W to `new`, in the space of all factors, leads to."""
    U, V = (retract_horizontal(X, project_horizontal(X, Y - X), retraction) for X, Y in ((W.U, new.U), (W.V, new.V)))
    return Factors(U, clip_after_step(new.S, max_cond, rule), V)


def _stack(groups: Sequence[Group], of: Callable[[Tensor], Tensor | None] = upcast) -> Factors:
    """The factors of layers of equal shapes, or `of` each (else 0), with a leading dimension; stored by columns."""
    layers = zip(*(group["params"] for group in groups), strict=True)
    values = ([torch.zeros_like(p) if (x := of(p)) is None else x for p in factors] for factors in layers)
    return Factors(*(torch.stack([upcast(x).mT for x in factors]).mT for factors in values))


def _each(groups: Sequence[Group], stack: Factors) -> Iterator[tuple[Tensor, Tensor]]:
    """The factors, each with its part of the stack."""
    parts = (x for part in zip(*stack, strict=True) for x in part)
    return zip((p for group in groups for p in group["params"]), parts, strict=True)


@contextmanager
def in_single_precision(params: Iterable[Tensor], state: MutableMapping[Tensor, Any]) -> Iterator[None]:
    """Parameters in half precision, their gradients and what is remembered of them in single precision; afterwards the
    parameters are rounded. Squares of gradients, and the ε of Adam, are zero in float16."""
    half = [(p, p.data, p.grad) for p in params if p.is_floating_point() and upcast(p) is not p]
    for p, values, grad in half:
        p.grad, p.data = None, upcast(values)
        p.grad = None if grad is None else upcast(grad)
        if p in state:
            state[p] = {key: upcast(v) if isinstance(v, Tensor) else v for key, v in state[p].items()}
    try:
        yield
    finally:
        for p, values, grad in half:
            p.grad, p.data = None, values.copy_(p.data)
            p.grad = grad


class OnManifold(torch.optim.Optimizer):
    """Mixed into an optimizer of torch before its own class: the groups of kind "lowrank" stay on the manifold.

    Options of a group beside those of the optimizer: kind, euclidean or lowrank; max_cond, rule and retraction as of
    LowRankSGD. A factor that has no gradient stays. Gradients that are not finite raise NonFiniteGradient (on a CPU).
    Half precision is moved in single precision, in which its moments stay, and rounded afterwards.
    """

    gradient = staticmethod(horizontal_gradient)

    def add_param_group(self, param_group: Group) -> None:
        for option in sorted(param_group.keys() - OF_TORCH - OPTIONS.keys() - self.defaults.keys()):
            raise unknown("option", option, ["params", *OPTIONS, *self.defaults])
        group = {**OPTIONS, **param_group}
        if group["kind"] not in (kinds := ("euclidean", "lowrank")):
            raise unknown("kind", group["kind"], kinds)
        group["params"] = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        check_group(group)
        super().add_param_group(group)
        warn_of_factors(group)

    def _all(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which gives what is remembered the type of the parameter."""
        with in_single_precision(self._all(), self.state):
            super().load_state_dict(state_dict)

    @contextmanager
    def _decay_of_cores(self) -> Iterator[None]:
        """Decay that would be added to the gradients of all factors is added to that of S alone."""
        scale = getattr(self, "grad_scale", None)  # of gradients that GradScaler leaves a fused optimizer to unscale
        coupled = [
            (group, group["weight_decay"])
            for group in self.param_groups
            if group["kind"] == "lowrank" and group.get("weight_decay")
            if not group.get("decoupled_weight_decay", isinstance(self, DECOUPLED))
        ]
        for group, decay in coupled:
            S, sign = group["params"][1], -1 if group.get("maximize") else 1
            if S.grad is not None:
                S.grad = S.grad + sign * decay * S * (1 if scale is None else scale)
            group["weight_decay"] = 0
        try:
            yield
        finally:
            for group, decay in coupled:
                group["weight_decay"] = decay

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every group, layers of equal shapes as one stack. closure: optional, re-evaluates the loss."""
        loss = evaluated(closure)
        overflow = getattr(self, "found_inf", None)  # GradScaler leaves it to a fused optimizer to skip the step
        if overflow is not None and not overflow.is_cuda and overflow:
            return loss
        check_gradients(self.param_groups)
        with full_float32(), in_single_precision(self._all(), self.state):
            stacks = alike((group for group in self.param_groups if group["kind"] == "lowrank"), OF_POINT)
            given = {p: p.grad for groups in stacks for group in groups for p in group["params"]}
            points = [_stack(groups) for groups in stacks]
            for groups, W in zip(stacks, points, strict=True):
                for p, g in _each(groups, self.gradient(W, _stack(groups, lambda p: given[p]))):
                    p.grad = None if p.grad is None else g.to(p.dtype)
            with self._decay_of_cores():
                super().step()
            for groups, W in zip(stacks, points, strict=True):
                options = {key: groups[0][key] for key in OF_POINT}
                for p, new in _each(groups, back_on_manifold(W, _stack(groups), **options)):
                    p.grad = given[p]
                    if p.grad is not None:
                        p.copy_(new)
                for X in (X for group in groups for X in group["params"][::2]):  # U and V
                    for moment in (self.state[X][key] for key in MOMENTS if self.state[X].get(key) is not None):
                        moment.copy_(project_horizontal(upcast(X), upcast(moment)))
        return loss


def on_manifold(optimizer: type[torch.optim.Optimizer], params: Iterable[Any], **options: Any) -> torch.optim.Optimizer:
    """An optimizer of torch, by its class, that keeps low-rank groups on {U S Vᵀ, κ(S) <= max_cond}.

        optimizer = wc.on_manifold(torch.optim.RMSprop, wc.param_groups(model, max_cond=1.1), lr=1e-3)

    options: those of the class. What is returned is one of its instances: schedulers, state_dict and GradScaler work.
    Raises ValueError for a class that is none, or that evaluates the loss several times in a step (LBFGS).
    """
    if not (isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)):
        raise invalid("optimizer", optimizer, "a class of torch.optim, such as torch.optim.AdamW")
    if issubclass(optimizer, torch.optim.LBFGS):
        raise invalid("optimizer", optimizer.__name__, "one that evaluates the loss once in a step")
    mixed: type[torch.optim.Optimizer] = type(f"{optimizer.__name__}OnManifold", (OnManifold, optimizer), {})
    return mixed(params, **options)
