"""What a linear minimization costs: the step of Frank-Wolfe beside that of momentum SGD, and the rivals' steps.

A step is everything that a training step does beyond the forward and backward pass of the dense network, on all weights
of two or more dimensions. The gradients are those of a network in training on scikit-learn's digits by momentum SGD, so
that singular values, and what a warm start knows of them, are real ones.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from study import data
from study.benches.clocks import interleaved, spread
from study.benches.training import Row, Trainee
from wellcond.methods import frank_wolfe, lorita
from wellcond.methods.constraint_sets import FAMILIES, ConstraintSet, constraint_set, coordinate_count, count
from wellcond.methods.penalties import group_lasso, nuclear_norm
from wellcond.methods.proximal import singular_value_threshold

LR, BETA = 0.01, 0.9
FRACTION = 0.1
"""k over the number of coordinates of a set."""
WEIGHT = 1e-3
"""Of a penalty, or of weight decay on LoRITa's factors; no time depends on it."""
IMAGES = {(1, 28, 28): "digits", (3, 32, 32): "digits32"}

# ------------------------------------------------------------------------ who takes a step


class Contender(NamedTuple):
    """optimizer: of its weights, or what they are products of; receive: takes gradients of the weights; step: the work
    to be timed."""

    optimizer: torch.optim.Optimizer
    receive: Callable[[Sequence[Tensor]], None]
    step: Callable[[], Any]


class Engine(NamedTuple):
    """engine and iterations: of FrankWolfe; warm: whether it keeps the singular vectors of the last step."""

    engine: str
    iterations: int
    warm: bool = True


ENGINES = {
    "closed_form": Engine("exact", 0),
    "svd": Engine("exact", 0),
    "power_warm": Engine("power", 1),
    "power_cold": Engine("power", 10, warm=False),
}
"""How coordinates are found: without or with singular values, or by block power iteration. The keys are the column
engine; rivals have one of the first two."""
SETS = {
    name: ("svd", "power_warm", "power_cold") if name in ("nuclear", "spectral_k_sparse", "spectral_k_support")
    else ("closed_form",)
    for name in ("l2", "linf", "k_sparse", "k_support", "group_k_support",
                 "nuclear", "spectral_k_sparse", "spectral_k_support")
}  # fmt: skip
"""The sets of constraint_sets.FAMILIES that are measured, and with which of ENGINES."""


def _weights(model: nn.Module) -> list[Tensor]:
    return [w for w in model.parameters() if w.ndim >= 2]


def _received(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    for w, g in zip(weights, gradients, strict=True):
        w.grad = g.clone()


def _sgd(model: nn.Module, after: Callable[[Sequence[Tensor]], None] = lambda weights: None) -> Contender:
    """Momentum SGD, and what is done to the weights after each step."""
    weights = _weights(copy.deepcopy(model))
    optimizer = torch.optim.SGD(weights, lr=LR, momentum=BETA)

    def step() -> None:
        optimizer.step()
        after(weights)

    return Contender(optimizer, partial(_received, weights), step)


def _frank_wolfe(model: nn.Module, name: str, engine: Engine) -> Contender:
    how: dict[str, Any] = {"engine": engine.engine, "iterations": max(1, engine.iterations)}
    how |= {"fraction": FRACTION} if FAMILIES[name].parameter == "k" else {}
    # the radius decides nothing about the time: one draw of the initial norms will do
    groups = frank_wolfe.frank_wolfe_groups(copy.deepcopy(model), name, scale=1.0, draws=1, **how)
    groups = [group for group in groups if group["kind"] == "frank_wolfe"]
    frank_wolfe.shift_inside(groups)
    optimizer = frank_wolfe.FrankWolfe(groups, lr=LR, momentum=BETA)
    weights = [w for group in groups for w in group["params"]]

    def step() -> None:
        for w in () if engine.warm else weights:
            optimizer.state[w].pop("right", None)
        optimizer.step()

    return Contender(optimizer, partial(_received, weights), step)


def _penalized(model: nn.Module, penalty: Callable[[Tensor], Tensor]) -> Contender:
    """The value and the gradient of a penalty, then momentum SGD."""
    weights = _weights(copy.deepcopy(model))
    optimizer = torch.optim.SGD(weights, lr=LR, momentum=BETA)

    def step() -> None:
        loss = WEIGHT * torch.stack([penalty(w.flatten(1)) for w in weights]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return Contender(optimizer, partial(_received, weights), step)


@torch.no_grad()
def _threshold(weights: Sequence[Tensor]) -> None:
    for w in weights:
        w.copy_(singular_value_threshold(w.flatten(1), LR * WEIGHT).view_as(w))


def _lorita(model: nn.Module, depth: int) -> Contender:
    """The products of the factors, their backward pass, and momentum SGD with weight decay on the factors."""
    product = lorita.overparametrize(model, depth)
    names = [name.removesuffix(".weight") for name, w in model.named_parameters() if w.ndim >= 2]
    layers: list[Any] = [product.get_submodule(name) for name in names]
    optimizer = torch.optim.SGD(lorita.param_groups(product, WEIGHT)[:1], lr=LR, momentum=BETA)
    gradients: list[Tensor] = []

    def receive(received: Sequence[Tensor]) -> None:
        gradients[:] = received

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward([layer.weight for layer in layers], gradients)
        optimizer.step()

    return Contender(optimizer, receive, step)


CONTENDERS: dict[tuple[str, str], Callable[[nn.Module], Contender]] = {
    ("sgd", "closed_form"): _sgd,
    **{
        (name, engine): partial(_frank_wolfe, name=name, engine=ENGINES[engine])
        for name, engines in SETS.items()
        for engine in engines
    },
    ("nuclear_penalty", "svd"): partial(_penalized, penalty=nuclear_norm),
    ("singular_value_threshold", "svd"): partial(_sgd, after=_threshold),
    ("group_lasso", "closed_form"): partial(_penalized, penalty=group_lasso),
    ("lorita_2", "closed_form"): partial(_lorita, depth=2),
    ("lorita_3", "closed_form"): partial(_lorita, depth=3),
}
"""(method, engine): how it is made from the network whose weights it starts from."""

# ------------------------------------------------------------------------ a network in training


class _Reference(Trainee):
    """The dense network in training on digits, enlarged to the size of its inputs."""

    def __init__(self, net: str, batch: int, device: str) -> None:
        super().__init__(net, "dense", 0.0, batch, "channels_last", device)
        self.train = data.load(IMAGES[self.shape]).train.to(device)
        self.generator = torch.Generator().manual_seed(0)

    def draw(self) -> None:
        """The next batch, with replacement."""
        index = torch.randint(len(self.train), (len(self.y),), generator=self.generator).to(self.device)
        self.x, self.y = self.train.pixels(index), self.train.labels[index]

    def gradients(self) -> list[Tensor]:
        return [w.grad for w in _weights(self.network) if w.grad is not None]

    def momenta(self, steps: int) -> Iterator[list[Tensor]]:
        """m <- β m + g of every weight at each of `steps` steps of training."""
        m = [torch.zeros_like(w) for w in _weights(self.network)]
        for _ in range(steps):
            self.draw()
            self.step()
            m = [BETA * old + g for old, g in zip(m, self.gradients(), strict=True)]
            yield m


def lmo_rows(net: str, *, batch: int = 128, repeats: int = 15, device: str = "cpu") -> list[Row]:
    """One row for each of CONTENDERS, with the step of momentum SGD (torch.optim.SGD) as the reference.

    Columns: net, method (a key of SETS, or a rival), engine (a key of ENGINES), iterations (of the power method, else
    0), batch, step_s (median), spread (half the interquartile range over it), passes_s (forward and backward of the
    dense network), step_ratio (to SGD's step), training_ratio ((passes + step)/(passes + SGD's step)), lmo_error and
    largest_error (median and maximum of `lmo_errors`; nan for the rivals).
    Raises ValueError for an unknown network or a batch out of range.
    """
    reference = _Reference(net, batch, device)
    contenders = {key: make(reference.network) for key, make in CONTENDERS.items()}

    def share() -> None:
        for contender in contenders.values():
            contender.receive(reference.gradients())
        reference.optimizer.step()

    tasks: dict[Any, Callable[[], Any]] = {"draw": reference.draw, "passes": reference.evaluate, "share": share}
    # an SVD slows what comes after it, through the caches and the memory that it gives back: those come last
    for key in sorted(contenders, key=lambda key: key[1] == "svd"):
        tasks[key] = contenders[key].step
    seconds = interleaved(tasks, repeats, device)
    median = {key: statistics.median(times) for key, times in seconds.items()}
    sgd, passes = median["sgd", "closed_form"], median["passes"]
    errors = lmo_errors(net, batch=batch, device=device)
    return [
        {
            "net": net, "method": method, "engine": engine, "iterations": ENGINES[engine].iterations, "batch": batch,
            "step_s": median[method, engine],
            "spread": spread(seconds[method, engine]),
            "passes_s": passes,
            "step_ratio": median[method, engine] / sgd,
            "training_ratio": (passes + median[method, engine]) / (passes + sgd),
            "lmo_error": statistics.median(errors.get((method, engine), [math.nan])),
            "largest_error": max(errors.get((method, engine), [math.nan])),
        }
        for method, engine in CONTENDERS
    ]  # fmt: skip


def _set(name: str, shape: Sequence[int]) -> ConstraintSet:
    k = {"k": count(FRACTION, coordinate_count(name, shape))} if FAMILIES[name].parameter == "k" else {}
    return constraint_set(name, shape, radius=1.0, **k)


def lmo_errors(
    net: str, *, batch: int = 128, steps: int = 30, checked: int = 3, device: str = "cpu"
) -> dict[tuple[str, str], list[float]]:
    """By (method, engine): the `constraint_sets.lmo_error` of each weight at the last `checked` of `steps` steps.

    A warm start has followed the momentum from the first step on.
    """
    reference = _Reference(net, batch, device)
    sets = {name: [_set(name, w.shape) for w in _weights(reference.network)] for name in SETS}
    kept: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
    errors: dict[tuple[str, str], list[float]] = {(name, engine): [] for name in SETS for engine in SETS[name]}
    for step, momenta in enumerate(reference.momenta(steps)):
        check = step >= steps - checked
        for name, engines in SETS.items():
            for i, (C, m) in enumerate(zip(sets[name], momenta, strict=True)):
                found = {}
                for engine in engines:
                    kind, iterations, warm = ENGINES[engine]
                    if check or (kind == "power" and warm):
                        state = kept[name, i] if warm else {}
                        found[engine] = frank_wolfe.ENGINES[kind](C, m, {"iterations": iterations}, state)
                if check:
                    best = C.support(m)  # takes an SVD: once for all engines
                    for engine, V in found.items():
                        errors[name, engine].append(float(1 + (m.double() * V).sum() / best))
    return errors


# ------------------------------------------------------------------------ growth

SWEEPS: dict[str, list[tuple[int, int]]] = {
    "k": [(512, k) for k in (4, 8, 16, 32, 64, 128)],
    "size": [(n, 16) for n in (128, 256, 512, 1024, 2048)],
}
"""(n = m, k): what varies is the name of the sweep."""
QUANTITIES = ("power_cold_s", "power_warm_s", "products_s", "single_svd_s", "svd_s")


def _product_pair(A: Tensor, V: Tensor) -> None:
    (V.mT @ A.mT) @ A


def _power(C: ConstraintSet, A: Tensor, engine: str, start: Tensor | None = None) -> None:
    state = {} if start is None else {"right": start}
    frank_wolfe.ENGINES["power"](C, A, {"iterations": ENGINES[engine].iterations}, state)


def lmo_growth_rows(*, repeats: int = 15, device: str = "cpu") -> list[Row]:
    """Seconds of one LMO of the spectral k-support ball for random matrices, as each quantity of SWEEPS grows.

    Columns: sweep, n (= m), k, svd_s, power_warm_s and power_cold_s (see ENGINES), single_svd_s (the SVD alone, in
    single precision, which `precision.svd` avoids), products_s (the two products of one iteration with k columns,
    which no other can undercut). Theory: n³ for an SVD, n² k for the others.
    """
    rows = []
    for sweep, sizes in SWEEPS.items():
        tasks: dict[Any, Callable[[], Any]] = {}
        for n, k in reversed(sizes):
            torch.manual_seed(0)
            A, V = torch.randn(n, n, device=device), torch.randn(n, k, device=device)
            C = constraint_set("spectral_k_support", A.shape, radius=1.0, k=k)
            tasks[n, k, "products_s"] = partial(_product_pair, A, V)
            tasks[n, k, "power_warm_s"] = partial(_power, C, A, "power_warm", V)
            tasks[n, k, "power_cold_s"] = partial(_power, C, A, "power_cold")
            tasks[n, k, "single_svd_s"] = partial(torch.linalg.svd, A, full_matrices=False)
            tasks[n, k, "svd_s"] = partial(C.lmo, A)
        # what follows a large SVD pays for the memory it gives back: milliseconds, of which a large task has many
        tasks = dict(sorted(tasks.items(), key=lambda item: QUANTITIES.index(item[0][2])))
        seconds = interleaved(tasks, repeats, device)
        for n, k in sizes:
            medians = {name: statistics.median(seconds[n, k, name]) for name in QUANTITIES}
            rows.append({"sweep": sweep, "n": n, "k": k, **medians})
    return rows
