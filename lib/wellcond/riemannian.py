"""Any optimizer of torch on rank-r matrices W = U S Vᵀ with κ(S) <= c: it proposes a step, the manifold corrects it.

With P_X = I - XXᵀ, and Opt the step of the Euclidean optimizer on one factor, elementwise or not:

    g_U <- P_U g_U (SSᵀ)^-1,   g_V <- P_V g_V (SᵀS)^-1          the gradient in the horizontal space, preconditioned
    (U, S, V)~ = Opt(U, S, V; g_U, g_S, g_V)                     a step that leaves the manifold
    U <- R_U(P_U (U~ - U)),    V <- R_V(P_V (V~ - V)),    S <- nearest{κ <= c}(S~)
    m_U <- P_U m_U,            m_V <- P_V m_V                    first moments follow to the new horizontal spaces

For SGD without momentum this is `integrator.lowrank_step`. For optimizers that scale each entry by itself, as Adam
does, it is a method of its own: U, V stay orthonormal and κ bounded for any step; that it decreases the loss, or
depends on W alone and not on the choice of U, S and V, is not proved. Decoupled weight decay shrinks S, hence W.

Source: StelLA, NeurIPS 2025, for a Euclidean step between two projections, there without κ or preconditioner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from wellcond.errors import invalid, unknown
from wellcond.integrator import Factors, precondition
from wellcond.linalg import full_float32, upcast
from wellcond.optim import OF_TORCH, Group, LowRankSGD, check_gradients, check_group, evaluated
from wellcond.spectrum import clip_after_step
from wellcond.stiefel import project_horizontal, retract

OPTIONS = {"name": "", **{key: LowRankSGD.options[key] for key in ("kind", "max_cond", "rule", "retraction")}}
MOMENTS = ("momentum_buffer", "exp_avg")
"""What torch calls the average of past gradients, a tangent vector at the factor."""


def horizontal_gradient(W: Factors, grad: Factors) -> Factors:
    """(P_U g_U (SSᵀ)^-1, g_S, P_V g_V (SᵀS)^-1): for autograd's gradients of the factors, the velocity of the flow."""
    left, right = precondition(W, grad.S)
    return Factors(project_horizontal(W.U, grad.U) @ left, grad.S, project_horizontal(W.V, grad.V) @ right)


def back_on_manifold(W: Factors, new: Factors, *, max_cond: float, rule: str, retraction: str) -> Factors:
    """The point that a step from W to `new`, in the space of all factors, leads to."""
    U, V = (retract(X, project_horizontal(X, Y - X), retraction) for X, Y in ((W.U, new.U), (W.V, new.V)))
    return Factors(U, clip_after_step(new.S, max_cond, rule), V)


class OnManifold(torch.optim.Optimizer):
    """Mixed into an optimizer of torch before its own class: the groups of kind "lowrank" stay on the manifold.

    Options of a group beside those of the optimizer: kind, euclidean or lowrank; max_cond, rule and retraction as of
    LowRankSGD. A factor that has no gradient stays. Gradients that are not finite raise NonFiniteGradient (on a CPU).
    """

    def add_param_group(self, param_group: Group) -> None:
        for option in sorted(param_group.keys() - OF_TORCH - OPTIONS.keys() - self.defaults.keys()):
            raise unknown("option", option, ["params", *OPTIONS, *self.defaults])
        group = {**OPTIONS, **param_group}
        if group["kind"] not in (kinds := ("euclidean", "lowrank")):
            raise unknown("kind", group["kind"], kinds)
        group["params"] = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        check_group(group)
        super().add_param_group(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every group. closure: optional, re-evaluates the loss and returns it."""
        loss = evaluated(closure)
        check_gradients(self.param_groups)
        lowrank = [group for group in self.param_groups if group["kind"] == "lowrank"]
        moving = [group for group in lowrank if any(p.grad is not None for p in group["params"])]
        before = []
        with full_float32():
            for group in moving:
                W = Factors(*(upcast(p).clone() for p in group["params"]))
                given = [p.grad for p in group["params"]]
                grad = Factors(*(upcast(w * 0 if g is None else g) for w, g in zip(W, given, strict=True)))
                for p, g, new in zip(group["params"], given, horizontal_gradient(W, grad), strict=True):
                    p.grad = None if g is None else new.to(p.dtype)
                before.append((W, given))
            super().step()
            for group, (W, given) in zip(moving, before, strict=True):
                options = {key: group[key] for key in ("max_cond", "rule", "retraction")}
                back = back_on_manifold(W, Factors(*map(upcast, group["params"])), **options)
                for p, g, new in zip(group["params"], given, back, strict=True):
                    p.grad = g
                    if g is not None:
                        p.copy_(new)
                for X in (group["params"][0], group["params"][2]):
                    for moment in (self.state[X][key] for key in MOMENTS if self.state[X].get(key) is not None):
                        moment.copy_(project_horizontal(upcast(X), upcast(moment)))
        return loss


class LowRankAdamW(OnManifold, torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter, ICLR 2019) on {U S Vᵀ, κ(S) <= max_cond}; options and all else as torch's.

    optimizer = wc.LowRankAdamW(wc.param_groups(model, max_cond=1.1), lr=1e-3, weight_decay=0.01)
    """


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
    made: torch.optim.Optimizer = type(f"{optimizer.__name__}OnManifold", (OnManifold, optimizer), {})(
        params, **options
    )
    return made
