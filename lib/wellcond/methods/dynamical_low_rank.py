"""Basis update and Galerkin (BUG) integrators: dynamical low-rank training, for layers U S Vᵀ and Tucker-2 kernels.

Where `integrator` moves U, S and V at once, by the inverse of S, these first choose new bases from the gradient and
then train the core in them. No S^-1 appears, so small singular values do not limit the step; the price is a second
pass over the batch. With Y = U S Vᵀ and G = ∂L/∂W at Y, one cycle is

    bases         "fixed"      U¹ = qf(U S - h G V),    V¹ = qf(V Sᵀ - h Gᵀ U)          (K-L-S, rank r)
                  "augmented"  Û  = qf([U | G V]),      V̂  = qf([V | Gᵀ U])             (rank 2r)
    projection    Ŝ = (ÛᵀU) S (VᵀV̂)
    core          S <- S - h m_S,  `coefficient_steps` times, the first on the batch of the bases
    truncation    Ŝ = P diag(σ) Qᵀ; keep the smallest r' with ||σ[r':]|| <= tolerance ||σ||, at most max_rank

The rank-adaptive K-L-S step of Schotthöfer et al. takes [K¹ | U] for Û; as K¹ = U S - h G V, that has the span of
[U | G V]: it is the augmented step with one coefficient step.

Sources: Ceruti, Lubich, BIT 62 (2022); Ceruti, Kusch, Lubich, BIT 62 (2022); Schotthöfer et al., NeurIPS 2022 and
arXiv:2505.08022. Their truncation multiplies V̂ by Qᵀ in place of Q in one code; the formulas here are the papers'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wellcond.convert import factorize
from wellcond.errors import invalid, unknown
from wellcond.integrator import Factors
from wellcond.layers import resize_
from wellcond.linalg import full_float32, svd_in_double
from wellcond.methods.method import Method, decayed, last_layer, register
from wellcond.methods.penalties import robustness_penalty
from wellcond.methods.settings import Settings
from wellcond.optim import CheckedOptimizer, Group, State, euclidean, evaluated, momentum_of, param_groups
from wellcond.stiefel import qr


def multilinear(S: Tensor, M: Tensor, N: Tensor) -> Tensor:
    """S ×₀ M ×₁ N: M S Nᵀ for a matrix; for a Tucker core (p, q, kh, kw), the same for every position of the kernel."""
    return torch.einsum("ap,pq...,bq->ab...", M, S, N)


def unfold(S: Tensor, mode: int) -> Tensor:
    """The matrix whose rows are the slices of S along `mode` (0 or 1)."""
    return S.movedim(mode, 0).flatten(1)


def truncated_rank(sigma: Tensor, tolerance: float, max_rank: int) -> int:
    """The smallest r >= 1 with ||σ[r:]||_2 <= tolerance ||σ||_2, at most max_rank; σ (k,) descending."""
    tails = sigma.double().square().flip(0).cumsum(0).sqrt().flip(0)  # tails[j] = ||σ[j:]||
    return min(max(1, int((tails > tolerance * tails[0]).sum())), max_rank)


def truncation_bases(S: Tensor, tolerance: float, max_ranks: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """P, Q with orthonormal columns such that S ≈ S ×₀ PPᵀ ×₁ QQᵀ, of the smallest ranks that the tolerance allows.

    For a matrix the leading singular vectors, so that Pᵀ S Q is diagonal; for a Tucker core those of each unfolding
    (the truncated higher-order SVD of De Lathauwer, De Moor and Vandewalle, 2000), each mode with its own rank.
    """
    if S.ndim == 2:
        P, sigma, Qt = svd_in_double(S)
        r = truncated_rank(sigma, tolerance, min(max_ranks))
        return P[:, :r], Qt[:r].mT
    bases = []
    for mode in (0, 1):
        P, sigma, _ = svd_in_double(unfold(S, mode))
        bases.append(P[:, : truncated_rank(sigma, tolerance, max_ranks[mode])])
    return bases[0], bases[1]


def _raised(sigma: Tensor) -> Tensor:
    """σ with zeros raised to a number whose effect on the weight is below rounding, so that one can divide by it."""
    return sigma.clamp(min=torch.finfo(sigma.dtype).tiny ** 0.8)


def diagonalized(W: Factors) -> Factors:
    """The same U S Vᵀ with a diagonal S, descending; a zero singular value is raised to a number without effect.

    With S diagonal, the gradients of the factors are those of K = U S and L = V Sᵀ with scaled columns (see
    `basis_gradients`), each column to full relative accuracy, so that one pass serves both.
    """
    P, sigma, Qt = svd_in_double(W.S)
    return Factors(W.U @ P, torch.diag(_raised(sigma)), W.V @ Qt.mT)


def basis_gradients(W: Factors, grad: Factors) -> tuple[Tensor, Tensor]:
    """G V and Gᵀ U from the autograd gradients g_U = G V Sᵀ, g_V = Gᵀ U S at a diagonal S."""
    sigma = W.S.diagonal()
    return grad.U / sigma, grad.V / sigma


def augmented_basis(X: Tensor, direction: Tensor) -> Tensor:
    """qf([X | D]): an orthonormal basis of span X + span D whose first columns are X (to rounding); (n, min(2r, n)).

    Columns of D are scaled to the same length, which changes neither the span nor, where they are small, its accuracy.
    """
    scale = torch.linalg.vector_norm(direction, dim=0).clamp(min=torch.finfo(X.dtype).tiny)
    return qr(torch.cat([X, direction / scale], dim=1)[:, : X.shape[0]])


def _resize(p: Tensor, value: Tensor) -> None:
    """Give a parameter a value of any shape."""
    resize_(p, value.shape)
    p.data = value.to(p.dtype).contiguous()


def _gradients(group: Group) -> tuple[Factors, Factors]:
    W = Factors(*group["params"])
    return W, Factors(*(p.grad if p.grad is not None else torch.zeros_like(p) for p in W))


def _fixed_bases(group: Group, state: State) -> tuple[Tensor, Tensor]:
    """K-L-S: Euler steps for K = U S and L = V Sᵀ, with their momenta m_K Vᵀ and U m_Lᵀ taken to the new bases."""
    W, grad = _gradients(group)
    GV, GtU = basis_gradients(W, grad)
    K, L = W.U @ W.S, W.V @ W.S.mT
    m_K, m_L = momentum_of(W.U, state), momentum_of(W.V, state)
    m_K = group["momentum"] * m_K + GV + group["weight_decay"] * K
    m_L = group["momentum"] * m_L + GtU + group["weight_decay"] * L
    U, V = qr(K - group["lr"] * m_K), qr(L - group["lr"] * m_L)
    state[W.U]["momentum_buffer"], state[W.V]["momentum_buffer"] = m_K @ (W.V.mT @ V), m_L @ (W.U.mT @ U)
    return U, V


def _augmented_bases(group: Group, state: State) -> tuple[Tensor, Tensor]:
    W, grad = _gradients(group)
    return augmented_basis(W.U, grad.U), augmented_basis(W.V, grad.V)


BASES: dict[str, Callable[[Group, State], tuple[Tensor, Tensor]]] = {
    "fixed": _fixed_bases,
    "augmented": _augmented_bases,
}
"""How the bases of a cycle are chosen from the gradients at its start."""


def _change_bases(group: Group, state: State, U: Tensor, V: Tensor) -> None:
    """Express the core and its momentum in other bases: S ×₀ (UᵀU_old) ×₁ (VᵀV_old)."""
    W = Factors(*group["params"])
    M, N = U.mT @ W.U, V.mT @ W.V
    state[W.S]["momentum_buffer"] = multilinear(momentum_of(W.S, state), M, N)
    for p, value in zip(W, (U, multilinear(W.S, M, N), V), strict=True):
        _resize(p, value)


def _rotate_basis_momenta(group: Group, state: State, P: Tensor, Q: Tensor) -> None:
    """m_K Vᵀ and U m_Lᵀ do not change when V becomes V Q and U becomes U P."""
    if group["basis"] == "fixed":
        U, _, V = group["params"]
        state[U]["momentum_buffer"] = momentum_of(U, state) @ Q
        state[V]["momentum_buffer"] = momentum_of(V, state) @ P


class BUG(CheckedOptimizer):
    """Momentum SGD by basis update and Galerkin; see the table of this module.

    params: groups as `param_groups` makes them: kind "lowrank" with [U, S, V], S (r, r) or a Tucker core
    (r_o, r_i, kh, kw), and kind "euclidean". Options, of all groups or of one, with the defaults below:
        lr >= 0; momentum in [0, 1); weight_decay >= 0; basis: a key of BASES ("fixed" for matrices only);
        tolerance in [0, 1): relative truncation error a cycle; max_rank >= 1, or None: the ranks at the start;
        coefficient_steps >= 1: steps of the core in each pair of bases.
    `step` needs a closure that clears the gradients, evaluates the loss, and calls backward; it is called twice in the
    first step of a cycle, else once. Between cycles S is diagonal (matrices) and the ranks are those of the network;
    `end_epoch` ends a cycle early. Parameters change their shapes in place.
    Raises ValueError, naming the option, for anything else.
    """

    options: ClassVar[dict[str, Any]] = {
        **CheckedOptimizer.options,
        "basis": "augmented",
        "tolerance": 0.0,
        "max_rank": None,
        "coefficient_steps": 1,
        "steps_taken": 0,  # in the present bases
        "max_ranks": None,
    }

    def check(self, group: Group) -> None:
        super().check(group)
        _check_group(group)

    def add_param_group(self, param_group: Group) -> None:
        """As of every optimizer here; the cap on the ranks, None for those of the start, becomes a pair of numbers."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["kind"] == "lowrank":
            U, _, V = group["params"]
            cap = group["max_rank"]
            group["max_ranks"] = (
                (U.shape[1], V.shape[1]) if cap is None else (min(cap, U.shape[0]), min(cap, V.shape[0]))
            )

    def _lowrank(self) -> list[Group]:
        """The groups of low rank that are not frozen: a basis cannot change without the core."""
        groups = [group for group in self.param_groups if group["kind"] == "lowrank"]
        return [group for group in groups if all(p.requires_grad for p in group["params"])]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on the batch of `closure`; returns the loss before it, detached."""
        if closure is None:
            raise invalid("closure", closure, "given: a function that evaluates the loss and calls backward")
        before = {id(group): self._values(group) for group in self._lowrank()}
        starting = [group for group in self._lowrank() if group["steps_taken"] == 0]
        try:
            with full_float32():
                for group in starting:
                    self._diagonalize(group)
            loss = _evaluated(closure)
            self.check_gradients()
            for group in self._lowrank():
                if any(p.grad is None for p in group["params"]):  # unused: as it was
                    self._restore(before.pop(id(group)))
            if starting := [group for group in starting if id(group) in before]:
                with full_float32():
                    for group in starting:
                        _change_bases(group, self.state, *BASES[group["basis"]](group, self.state))
                _evaluated(closure)
                self.check_gradients()
        except BaseException:
            for values in before.values():
                self._restore(values)
            raise
        with full_float32():
            for group in self.param_groups:
                if group["kind"] != "lowrank":
                    euclidean(group, self.state)
                elif id(group) in before:
                    euclidean({**group, "params": [group["params"][1]]}, self.state)
                    group["steps_taken"] += 1
                    if group["steps_taken"] == group["coefficient_steps"]:
                        self._truncate(group)
        return loss

    def _values(self, group: Group) -> list[tuple[Tensor, Tensor, dict[str, Any]]]:
        """The factors, what they hold, and their state: nothing is copied, since bases are replaced as a whole."""
        return [(p, p.data, dict(self.state[p])) for p in group["params"]]

    def _restore(self, values: Iterable[tuple[Tensor, Tensor, dict[str, Any]]]) -> None:
        for p, value, state in values:
            _resize(p, value)
            self.state[p] = state

    def end_epoch(self) -> None:
        """End the cycle, so that the network has the ranks that it is measured with."""
        with torch.no_grad(), full_float32():
            for group in self._lowrank():
                if group["steps_taken"]:
                    self._truncate(group)

    def _diagonalize(self, group: Group) -> None:
        W = Factors(*group["params"])
        if W.S.ndim == 2 and not torch.equal(W.S, torch.diag(_raised(W.S.diagonal()))):
            new = diagonalized(W)
            P, Q = W.U.mT @ new.U, W.V.mT @ new.V
            _rotate_basis_momenta(group, self.state, P, Q)
            state = self.state[W.S]
            state["momentum_buffer"] = multilinear(momentum_of(W.S, self.state), P.mT, Q.mT)
            for p, value in zip(W, new, strict=True):
                _resize(p, value)

    def _truncate(self, group: Group) -> None:
        W = Factors(*group["params"])
        P, Q = truncation_bases(W.S, group["tolerance"], group["max_ranks"])
        S = multilinear(W.S, P.mT, Q.mT)
        if S.ndim == 2:
            S = torch.diag(_raised(S.diagonal()))  # what is off the diagonal is rounding
        self.state[W.S]["momentum_buffer"] = multilinear(momentum_of(W.S, self.state), P.mT, Q.mT)
        _rotate_basis_momenta(group, self.state, P, Q)
        for p, value in zip(W, (W.U @ P, S, W.V @ Q), strict=True):
            _resize(p, value)
        group["steps_taken"] = 0


def _evaluated(closure: Callable[[], Any]) -> Any:
    """The loss without its graph, which would remember the old shapes of the parameters."""
    loss = evaluated(closure)
    return loss.detach() if isinstance(loss, Tensor) else loss


def _check_group(group: Group) -> None:
    if group["kind"] not in ("euclidean", "lowrank"):
        raise unknown("kind", group["kind"], ("euclidean", "lowrank"))
    if group["basis"] not in BASES:
        raise unknown("basis", group["basis"], BASES)
    if not 0 <= group["tolerance"] < 1:
        raise invalid("tolerance", group["tolerance"], "in [0, 1)")
    if group["max_rank"] is not None and not group["max_rank"] >= 1:
        raise invalid("max_rank", group["max_rank"], ">= 1, or None for the rank at the start")
    if not group["coefficient_steps"] >= 1:
        raise invalid("coefficient_steps", group["coefficient_steps"], ">= 1")
    if group["kind"] == "lowrank":
        if len(group["params"]) != 3:
            raise invalid("params", f"{len(group['params'])} tensors", "[U, S, V] in a low-rank group")
        if group["params"][0].ndim != 2:
            stack = f"a stack of {len(group['params'][0])} matrices in {group.get('name', '')!r}"
            raise invalid("params", stack, "one matrix a group, as of a convolution without groups")
        if group["basis"] == "fixed" and group["params"][1].ndim != 2:
            raise invalid("basis", "fixed", "'augmented' for a Tucker core")


def _dlrt(model: nn.Module, settings: Settings) -> nn.Module:
    return decayed(factorize(model, **settings.size(), skip=last_layer(model)), settings)


def bug_groups(basis: str, coefficient_steps: int = 1) -> Callable[[nn.Module, Settings], list[Group]]:
    def groups(model: nn.Module, settings: Settings) -> list[Group]:
        options = {"basis": basis, "coefficient_steps": coefficient_steps, "tolerance": settings.tolerance}
        return param_groups(model, **options)

    return groups


register(
    Method(
        "dlrt",
        "DLRT",
        "Dynamical low-rank training by K-L-S steps at fixed rank; the classifier is dense.",
        _dlrt,
        bug_groups("fixed"),
        frozenset({"ratio"}),
        optimizer=BUG,
    )
)

register(
    Method(
        "dlrt_adaptive",
        "rank-adaptive DLRT",
        "K-L-S steps with augmented bases, truncated to a relative tolerance; ratio caps the rank.",
        _dlrt,
        bug_groups("augmented"),
        frozenset({"ratio", "tolerance"}),
        optimizer=BUG,
    )
)

register(
    Method(
        "robust_dlrt",
        "RobustDLRT",
        "Augmented bases with nine coefficient steps, and the penalty β R(S) on the spread of the singular values.",
        _dlrt,
        bug_groups("augmented", 9),
        frozenset({"ratio", "tolerance", "beta"}),
        optimizer=BUG,
        penalty=robustness_penalty,
    )
)
