"""Stochastic Frank-Wolfe: training inside a convex set, without projections.

A parameter group is one point of one set C of `constraint_sets`: a tensor, or several as one vector, of which one that
is not used has the gradient 0. With the stochastic gradient g and the momentum m <- β m + g (at first m = g),

    V = argmin_{V in C} <V, m>,    γ = clip(lr · f, 0, 1),    W <- W + γ (V - W),

so that W stays in C if it starts there: `shift_inside` moves it there before the first step, and again where the set
was changed. The step length γ ‖V - W‖ depends on f:

    rescale          f                     lr is in units of
    none             1                     the way to the vertex
    diameter         1/D                   the weights
    gradient         ‖m‖/‖V - W‖           the gradient flow's time: the step is lr ‖m‖ long, as that of SGD
    fast_gradient    ‖m‖/(D/2)             the same, with the radius D/2 for the distance

D is the diameter of C; norms are Frobenius norms over the group. For convex losses, exact gradients and rescale "none",
γ = 2/(t + 2) gives loss(W_t) - min <= 2 L D²/(t + 2), L the Lipschitz constant of the gradient.

Sources: Frank, Wolfe, Naval Res. Logist. Quart. 3 (1956); Jaggi, ICML 2013 (rate, inexact minimizers); Pokutta,
Spiegel, Zimmer, arXiv:2010.07243 (rescaling in deep learning); arXiv:2205.11921 (sets for compression).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wellcond.convert import matching
from wellcond.errors import invalid, unknown
from wellcond.linalg import block_power_iteration
from wellcond.methods.constraint_sets import (
    FAMILIES,
    SINGULAR_VALUES,
    ConstraintSet,
    constraint_set,
    coordinate_count,
    count,
    split_triplets,
    unit_scale,
)
from wellcond.methods.method import Method, inner_layers, register, single_matrices
from wellcond.methods.settings import Settings
from wellcond.optim import CheckedOptimizer, Group, State, euclidean, momentum_of

# ------------------------------------------------------------------------ the step


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return a / b.clamp_min(torch.finfo(b.dtype).tiny)


RESCALINGS: dict[str, Callable[[ConstraintSet, Tensor, Tensor], Tensor | float]] = {
    "none": lambda C, m, way: 1.0,
    "diameter": lambda C, m, way: 1 / C.diameter,
    "gradient": lambda C, m, way: _ratio(m.norm(), way.norm()),
    "fast_gradient": lambda C, m, way: m.norm() / (C.diameter / 2),
}
"""f of the set, the momentum m, and the way V - W."""


def frank_wolfe_step(W: Tensor, m: Tensor, V: Tensor, C: ConstraintSet, *, lr: float, rescale: str = "none") -> Tensor:
    """W + γ (V - W) with γ = clip(lr · f, 0, 1), for V in C; rescale: a key of RESCALINGS.

    Raises ValueError if rescale is unknown.
    """
    if rescale not in RESCALINGS:
        raise unknown("rescale", rescale, RESCALINGS)
    gamma = torch.as_tensor(lr * RESCALINGS[rescale](C, m, V - W), dtype=W.dtype, device=W.device).clamp(0, 1)
    return W.lerp(V, gamma)


def _exact(C: ConstraintSet, m: Tensor, group: Group, state: dict[str, Any]) -> Tensor:
    return C.lmo(m)


def _power(C: ConstraintSet, m: Tensor, group: Group, state: dict[str, Any]) -> Tensor:
    A = unit_scale(m).flatten(1)
    triplets = block_power_iteration(A, C.norm.k, state.get("right"), iterations=group["iterations"])
    state["right"] = triplets.V
    return C.vertex(*split_triplets(triplets, m.shape)).to(m.dtype)


ENGINES: dict[str, Callable[[ConstraintSet, Tensor, Group, dict[str, Any]], Tensor]] = {
    "exact": _exact,
    "power": _power,
}
"""How argmin <V, m> is found: in closed form, or, for spectral sets, by block power iteration from the singular vectors
of the last step. Either V is in C; that of "power" minimizes up to an error that is felt once it is not small against
γ (`constraint_sets.lmo_error` measures it)."""


# ------------------------------------------------------------------------ groups


def _shape(params: list[Tensor]) -> tuple[int, ...]:
    return tuple(params[0].shape) if len(params) == 1 else (sum(p.numel() for p in params),)


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat([t.flatten() for t in tensors])


def _assign(params: list[Tensor], value: Tensor) -> None:
    sizes = [p.numel() for p in params]
    for p, part in zip(params, torch.split(value.flatten(), sizes), strict=True):
        p.copy_(part.view(p.shape))


def _set_of(group: Group) -> ConstraintSet:
    parameter = {key: group[key] for key in ("k", "p") if group[key] is not None}
    return constraint_set(group["constraint"], _shape(group["params"]), radius=group["radius"], **parameter)


def _momentum(p: Tensor, beta: float, state: State) -> Tensor:
    grad = torch.zeros_like(p) if p.grad is None else p.grad
    if not beta:
        return grad
    return momentum_of(p, state).mul_(beta).add_(grad)


def _frank_wolfe(group: Group, state: State) -> None:
    params = group["params"]
    C, W = _set_of(group), _joined(params)
    m = _joined([_momentum(p, group["momentum"], state) for p in params])
    V = ENGINES[group["engine"]](C, m, group, state[params[0]])
    _assign(params, frank_wolfe_step(W, m, V, C, lr=group["lr"], rescale=group["rescale"]))


UPDATES: dict[str, Callable[[Group, State], None]] = {"euclidean": euclidean, "frank_wolfe": _frank_wolfe}


@torch.no_grad()
def shift_inside(groups: Iterable[Group]) -> None:
    """Scale the parameters of every Frank-Wolfe group that lies outside its set to the boundary, in place; what is
    frozen stays. Raises ValueError for a group of which a part is frozen."""
    for group in groups:
        if group["kind"] == "frank_wolfe" and not _frozen(group):
            _assign(group["params"], _set_of(group).shift_inside(_joined(group["params"])))


def _frozen(group: Group) -> bool:
    """Whether the point of a group is frozen. Raises ValueError, naming the group, if a part of it is."""
    trained = {p.requires_grad for p in group["params"]}
    if len(trained) > 1:
        raise invalid("params", group.get("name", ""), "frozen all of them, or none, in one set")
    return trained == {False}


class FrankWolfe(CheckedOptimizer):
    """Stochastic Frank-Wolfe with momentum; see this module.

    params: groups as `frank_wolfe_groups` makes them. Options, of all groups or of one, with the defaults below:
        lr >= 0; momentum in [0, 1); kind: a key of UPDATES, "euclidean" being plain momentum SGD;
        weight_decay >= 0, of Euclidean groups only: a set bounds the weights by itself;
        constraint: a key of constraint_sets.FAMILIES, with its radius and its k or p;
        rescale: a key of RESCALINGS; engine: a key of ENGINES; iterations >= 1: of "power", a step.
    Groups hold plain data: radius and k may be changed between steps, followed by `shift_inside`.
    Raises ValueError, naming the option, for anything else.
    """

    updates = UPDATES
    options: ClassVar[dict[str, Any]] = {
        **CheckedOptimizer.options,
        "constraint": "l2",
        "radius": None,
        "k": None,
        "p": None,
        "rescale": "gradient",
        "engine": "exact",
        "iterations": 1,
    }

    def check(self, group: Group) -> None:
        super().check(group)
        _check_group(group)

    def check_gradients(self) -> None:
        """As of every optimizer here; and a set is frozen as a whole."""
        super().check_gradients()
        for group in self.param_groups:
            if group["kind"] == "frank_wolfe":
                _frozen(group)


def _check_group(group: Group) -> None:
    for key, choices in (("rescale", RESCALINGS), ("engine", ENGINES)):
        if group[key] not in choices:
            raise unknown(key, group[key], choices)
    if not group["iterations"] >= 1:
        raise invalid("iterations", group["iterations"], ">= 1")
    if group["kind"] == "frank_wolfe":
        if group["radius"] is None:
            raise invalid("radius", None, "given: the set's, in the units of the weights")
        C = _set_of(group)
        if group["engine"] == "power" and not C.spectral:
            raise invalid("engine", "power", f"'exact' for {group['constraint']}, which is no set of singular values")


# ------------------------------------------------------------------------ the sets of a network


def initial_norms(model: nn.Module, draws: int = 100, seed: int = 0) -> dict[str, float]:
    """E‖θ‖_2 of every parameter under the default initialization of its module, the mean of `draws` draws.

    Where it is 0 (biases that start at zero) it is 1, so that the parameter can move at all. The model and the random
    state are left as they are. Raises ValueError if a module has parameters and no reset_parameters, or draws < 1.
    """
    if draws < 1:
        raise invalid("draws", draws, ">= 1")
    norms: dict[str, float] = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs, whose state is not kept
        for prefix, module in model.named_modules():
            own = [name for name, _ in module.named_parameters(recurse=False)]
            if not own:
                continue
            redrawn: Any = copy.deepcopy(module).cpu()
            if not hasattr(redrawn, "reset_parameters"):
                raise invalid("model", type(module).__name__, "made of modules with reset_parameters")
            totals = dict.fromkeys(own, 0.0)
            for _ in range(draws):
                redrawn.reset_parameters()
                for name in own:
                    totals[name] += float(getattr(redrawn, name).detach().norm())
            norms |= {f"{prefix}.{name}".lstrip("."): total / draws or 1.0 for name, total in totals.items()}
    return norms


def _group(params: Mapping[str, Tensor], diameter: float, constraint: str, **options: Any) -> Group:
    """The Frank-Wolfe group of some parameters, with the set of this diameter."""
    tensors = list(params.values())
    group: Group = {"params": tensors, "name": " ".join(params), "kind": "frank_wolfe", "constraint": constraint}
    group |= {"k": None, "p": None, "radius": 1.0, **options}
    return group | {"radius": diameter / _set_of(group).diameter}


def frank_wolfe_groups(
    model: nn.Module,
    constraint: str,
    *,
    scale: float,
    fraction: float | None = None,
    k: int | None = None,
    p: float | None = None,
    rescale: str = "gradient",
    engine: str = "exact",
    iterations: int = 1,
    constrained: str | Iterable[str] | None = None,
    together: bool = False,
    rest: str = "euclidean",
    draws: int = 100,
) -> list[Group]:
    """The groups of a network: one set of diameter D = 2 · scale · E‖θ‖_2 for each constrained parameter.

    constraint: a key of FAMILIES; scale: w > 0; E‖θ‖_2: see `initial_norms`, with its draws;
    fraction in (0, 1]: k = max(1, ⌊fraction N⌋) of each set; or k, the same of each, at most its N; p, of "lp";
    rescale, engine, iterations: see FrankWolfe;
    constrained: names or patterns of parameters, by default the weights of two or more dimensions that are not frozen;
    together: one set for all of them as one vector, with the root of the sum of the squared norms (not for sets of
    rows or singular values, which are those of one matrix);
    rest: "euclidean", plain SGD of biases, normalization and what else is not constrained, or the name of a family
    without k or p ("l2" in the published code) for a set of each, with the same scale.
    Raises ValueError, naming the field, for anything else.
    """
    if not 0 < scale < math.inf:
        raise invalid("scale", scale, "a number > 0")
    if fraction is not None and k is not None:
        raise invalid("k", k, "absent where fraction is given")
    parameters = dict(model.named_parameters())
    if constrained is None:
        chosen = [name for name, w in parameters.items() if w.ndim >= 2 and w.requires_grad]
    else:
        found = matching(constrained, parameters, "constrained")
        chosen = [name for name in parameters if name in found]
    diameters = {name: 2 * scale * norm for name, norm in initial_norms(model, draws).items()}
    groups = []
    for names in [chosen] if together else [[name] for name in chosen]:
        params = {name: parameters[name] for name in names}
        N = coordinate_count(constraint, _shape(list(params.values())))
        size = {"k": k and min(k, N) if fraction is None else count(fraction, N), "p": p}
        how = {"rescale": rescale, "engine": engine, "iterations": iterations}
        diameter = math.hypot(*(diameters[name] for name in names))
        groups.append(_group(params, diameter, constraint, **size, **how))
    others = {name: w for name, w in parameters.items() if name not in set(chosen)}
    if rest == "euclidean":
        return [*groups, {"params": list(others.values()), "name": "", "kind": "euclidean"}]
    return [*groups, *(_group({name: w}, diameters[name], rest, rescale=rescale) for name, w in others.items())]


# ------------------------------------------------------------------------ methods


def _groups_of(constraint: str, rescale: str) -> Callable[[nn.Module, Settings], list[Group]]:
    has_k = FAMILIES[constraint].parameter == "k"
    spectral = FAMILIES[constraint].coordinates is SINGULAR_VALUES

    def groups(model: nn.Module, settings: Settings) -> list[Group]:
        layers = inner_layers(model)
        if spectral:
            single_matrices(layers)  # raises for a stack, whose singular values are not those of the kernel
        return frank_wolfe_groups(
            model,
            constraint,
            scale=settings.scale,
            fraction=settings.fraction if has_k else None,
            rescale=rescale,
            engine="power" if spectral else "exact",
            constrained=[f"{name}.weight" for name in layers],
            rest="l2",
        )

    return groups


def _method_of(constraint: str, rescale: str, name: str, label: str) -> Method:
    groups = _groups_of(constraint, rescale)

    def prepare(model: nn.Module, settings: Settings) -> nn.Module:
        shift_inside(groups(model, settings))
        return model

    return Method(
        name,
        label,
        f"Stochastic Frank-Wolfe: each weight in a set of the family {constraint}, rescaling {rescale}, "
        "and all else in l2 balls.",
        prepare,
        groups,
        frozenset({"scale"} | ({"fraction"} if FAMILIES[constraint].parameter == "k" else set())),
        optimizer=FrankWolfe,
        any_start=False,
    )


_LABELS = {
    "l2": "FW, l2",
    "k_sparse": "FW, k-sparse",
    "k_support": "FW, k-support",
    "group_k_support": "FW, k filters",
    "nuclear": "FW, nuclear",
    "spectral_k_sparse": "FW, spectral k-sparse",
    "spectral_k_support": "FW, spectral k-support",
}
_RESCALED = "spectral_k_support"  # the family of the ablation of the rescaling


def _methods() -> Iterator[Method]:
    for constraint, label in _LABELS.items():
        yield _method_of(constraint, "gradient", f"fw_{constraint}", label)
    for rescale in (rescale for rescale in RESCALINGS if rescale != "gradient"):
        label = f"{_LABELS[_RESCALED]}, rescaling {rescale.replace('_', ' ')}"
        yield _method_of(_RESCALED, rescale, f"fw_{_RESCALED}_{rescale}", label)


for _method in _methods():
    register(_method)
