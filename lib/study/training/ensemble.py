"""Several networks of one architecture trained at once, each as if it were alone.

With k members, a parameter of shape (...) is stacked to (k, ...), the batches are (k, B, C, H, W), and torch.func.vmap
maps the forward pass of the first member over the stack: k small computations become one that fills a GPU. The losses
of the members are summed and differentiated once, which gives each member the gradient of its own loss, and the rules
of `optim` act on the last dimensions of a stack. So each member takes the steps that `train.fit` would take with it
alone, up to the rounding of the batched kernels.

Dropout is the exception: its masks are drawn for the whole stack, independent from member to member, but not those
that each would draw alone. Buffers are followed where they are updated in place, as torch's own layers do it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from study.training.adversarial import Adversary
from study.training.distributed import ALONE, Processes
from study.training.loop import (
    Diverged,
    Images,
    Keeper,
    Recipe,
    fit,
    in_format,
    training_epochs,
)
from wellcond.errors import invalid
from wellcond.optim import LowRankSGD


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(chain(model.named_parameters(), model.named_buffers()))


def _check_alike(models: Sequence[nn.Module]) -> None:
    """Raise ValueError, naming the first difference, unless all have the same parameters and buffers."""
    first, *others = ({name: tuple(t.shape) for name, t in _tensors(model).items()} for model in models)
    for other in others:
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                shapes = f"{name} of shapes {first.get(name)} and {other.get(name)}"
                raise invalid("models", shapes, "of one architecture, with the same ranks")


class Stack:
    """k models of one architecture as one: parameters and buffers (k, ...) by the names that they have in a model.

    `alive` (k,) tells the members whose gradients have been finite in every step. Raises ValueError if the models
    have not the same parameters and buffers, or if the first one, which computes for all, recomputes between its
    factors: vmap has left the layer by then.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        _check_alike(models)
        if any(getattr(layer, "recomputes", False) for layer in models[0].modules()):
            raise invalid("models", "layers that recompute", "wc.recompute(model, on=False) in several at once")
        for model in models:
            model.train()  # stack_module_state wants them in one mode
        self.models = models
        stacked, self.buffers = stack_module_state(list(models))
        # contiguous: the stack is one grouped convolution, and those are fast with the channels first
        self.start = {name: p.detach().contiguous() for name, p in stacked.items()}
        self.parameters = {
            name: p.clone().requires_grad_(stacked[name].requires_grad) for name, p in self.start.items()
        }
        self.alive = torch.ones(len(models), dtype=torch.bool, device=next(iter(self.parameters.values())).device)

    def losses(self, x: Tensor, y: Tensor, label_smoothing: float = 0.0, autocast: str = "") -> Tensor:
        """The mean cross-entropy (k,) of each member on its own batch x (k, B, C, H, W), y (k, B)."""

        def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            forward = in_format(lambda x: functional_call(self.models[0], (parameters, buffers), (x,)), autocast)
            return F.cross_entropy(forward(x), y, label_smoothing=label_smoothing)

        return vmap(loss, randomness="different")(self.parameters, self.buffers, x, y)

    def optimizer(self, template: LowRankSGD) -> LowRankSGD:
        """`template`, an optimizer of the first model, for the stack: its groups with each parameter by its name.

        Raises ValueError if it is of another model, or has taken steps, whose momenta the other members do not have.
        """
        if template.state:
            raise invalid("optimizer", "one that has taken steps", "new")
        names = {parameter: name for name, parameter in self.models[0].named_parameters()}
        unknown = sum(p not in names for group in template.param_groups for p in group["params"])
        if unknown:
            raise invalid("optimizer", f"one with {unknown} other parameters", "of the parameters of the first model")
        return LowRankSGD(
            {**group, "params": [self.parameters[names[p]] for p in group["params"]], "stacked": True}
            for group in template.param_groups
        )

    @torch.no_grad()
    def isolate(self, optimizer: torch.optim.Optimizer) -> None:
        """Between backward and step: a member whose gradient is not finite goes back to its start and rests there."""
        # One factorization serves all members, and LAPACK refuses it if one of them is NaN. The host reads nothing.
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        largest = [torch.linalg.vector_norm(g.reshape(len(g), -1), math.inf, dim=1) for g in gradients]
        self.alive &= torch.stack(largest).isfinite().all(0)
        for name, p in self.parameters.items():
            alive = self.alive.view(-1, *(1 for _ in p.shape[1:]))
            torch.where(alive, p, self.start[name], out=p)
            for value in (p.grad, *optimizer.state.get(p, {}).values()):
                if value is not None:
                    value.masked_fill_(~alive.view(-1, *(1 for _ in value.shape[1:])), 0)

    def state(self) -> dict[str, Any]:
        """What the stack is made of, for `restore`."""
        return {name: getattr(self, name) for name in ("parameters", "buffers", "start", "alive")}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the values of another stack of these models."""
        for name, tensor in _flat(self.state()).items():
            tensor.copy_(_flat(state)[name])

    def finite(self) -> Tensor:
        """The members (k,) whose gradients were finite in every step, and whose parameters are."""
        finite = [p.detach().reshape(len(p), -1).isfinite().all(1) for p in self.parameters.values()]
        return torch.stack(finite).all(0) & self.alive

    @torch.no_grad()
    def write_back(self, members: Iterable[int]) -> None:
        """Give these members their parameters and buffers."""
        stacked = {**self.parameters, **self.buffers}
        for k in members:
            for name, tensor in _tensors(self.models[k]).items():
                tensor.copy_(stacked[name][k])


def _flat(state: Mapping[str, Any]) -> dict[str, Tensor]:
    whole = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return whole | {f"{k}.{n}": t for k, d in state.items() if not isinstance(d, Tensor) for n, t in d.items()}


def _joined(streams: Iterable[Iterable[tuple[Tensor, Tensor]]]) -> Iterator[tuple[Tensor, Tensor]]:
    for batches in zip_longest(*streams):
        sizes = {0 if batch is None else len(batch[1]) for batch in batches}
        if len(sizes) > 1:
            raise invalid("data", f"batches of {min(sizes)} and {max(sizes)} images", "as many images for each model")
        yield torch.stack([x for x, _ in batches]), torch.stack([y for _, y in batches])


def fit_together(
    models: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    data: Sequence[Images],
    protocol: Recipe,
    *,
    seeds: Sequence[int],
    penalty: Callable[[nn.Module], Tensor] | None = None,
    adversary: Adversary | None = None,
    processes: Processes = ALONE,
    on_epoch: Callable[[int, int, float], None] | None = None,
    keeper: Keeper | None = None,
) -> list[Diverged | None]:
    """`fit` for each of k models of one architecture, with its own data and seed, in one batched computation.

    optimizer: a new LowRankSGD of the parameters of models[0]; every model is trained with its groups. on_epoch(k,
    epoch, mean training loss) is called for k = 0, 1, ... after each epoch, every model in evaluation mode and up to
    date. A single model goes through `fit` itself, and may have any optimizer, a penalty, an adversary and several
    processes. The other options are those of `fit`.
    Returns, for each model, None, or the reason why it diverged: it then keeps the parameters of its last whole epoch,
    is reported no further, and does not disturb the others.
    Raises ValueError for models that differ in more than their values, an optimizer that is not new or not of
    models[0], as many data or seeds as there are not models, or data of unequal sizes.
    """
    if not models:
        raise invalid("models", list(models), "one or more")
    for field, given in (("data", data), ("seeds", seeds)):
        if len(given) != len(models):
            raise invalid(field, f"{len(given)} of them", f"{len(models)}, one for each model")
    report = on_epoch or (lambda k, epoch, loss: None)
    if len(models) == 1:
        try:
            fit(
                models[0],
                optimizer,
                data[0],
                protocol,
                seed=seeds[0],
                penalty=penalty,
                adversary=adversary,
                processes=processes,
                on_epoch=lambda epoch, loss: report(0, epoch, loss),
                keeper=keeper,
            )
        except Diverged as error:
            return [error]
        return [None]

    if not isinstance(optimizer, LowRankSGD):
        raise invalid("optimizer", type(optimizer).__name__, "LowRankSGD for several models")
    for field, value, alone in (
        ("penalty", penalty, None),
        ("adversary", adversary, None),
        ("processes", processes, ALONE),
    ):
        if value != alone:
            raise invalid(field, value, f"{alone} for several models")
    stack = Stack(models)
    optimizer = stack.optimizer(optimizer)
    diverged: list[Diverged | None] = [None] * len(models)
    restored = None if keeper is None else keeper.restore()
    if restored is not None:
        for model, state in zip(models, restored["models"], strict=True):
            model.load_state_dict(state)
        stack.restore(restored["stack"])
        diverged = [Diverged(reason) if reason else None for reason in restored["diverged"]]

    def batches(epoch: int) -> Iterable[tuple[tuple[Tensor, Tensor], int]]:
        pairs = zip(data, seeds, strict=True)
        for x, y in _joined(
            d.batches(protocol.batch_size, seed=seed, epoch=epoch, augment=protocol.augment) for d, seed in pairs
        ):
            yield (x, y), y.shape[-1]

    def objective(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        losses = stack.losses(x, y, protocol.label_smoothing, protocol.autocast)
        return losses, losses.sum()

    for epoch, losses, state in training_epochs(
        models,
        optimizer,
        batches,
        objective,
        protocol,
        len(data[0]),
        seeds=seeds,
        after_backward=lambda: stack.isolate(optimizer),
        restored=restored,
    ):
        means = losses.where(stack.finite(), math.nan).tolist()
        for k, mean in enumerate(means):
            if diverged[k] is None and not math.isfinite(mean):
                diverged[k] = Diverged(f"epoch {epoch}: training loss {mean}")
        sound = [k for k, reason in enumerate(diverged) if reason is None]
        stack.write_back(sound)
        for k in sound:
            report(k, epoch, means[k])
        if not sound:
            break
        if keeper is not None:
            reasons = [str(reason or "") for reason in diverged]
            members = [model.state_dict() for model in models]
            keeper.keep(epoch, {**state(), "models": members, "stack": stack.state(), "diverged": reasons})
    for model in models:
        model.eval()
    return diverged
