"""One training loop; it knows no method, only a model, an optimizer and data.

Whatever an epoch draws (the order of the images, their augmentation, the starts of attacks, the masks of dropout) is a
function of the seed and the epoch alone, so that a training which was interrupted goes on from its last epoch and ends
with the bits of one that was not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.training.adversarial import Adversary
from study.training.distributed import ALONE, Processes
from study.training.precision import FORMATS, products_in
from wellcond.errors import invalid, unknown
from wellcond.linalg import upcast


class Images(Protocol):
    """Training data: batches of (pixels in [0, 1], labels), shuffled by (seed, epoch)."""

    def __len__(self) -> int: ...

    def batches(self, size: int, *, seed: int, epoch: int, augment: str) -> Iterable[tuple[Tensor, Tensor]]: ...


class Diverged(RuntimeError):
    """The loss or the weights are no longer finite."""


@contextmanager
def _divergence(optimizer: torch.optim.Optimizer, epoch: int) -> Iterator[None]:
    """LAPACK refuses NaN: then the run has diverged."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if all(t.isfinite().all() for p in parameters for t in (p, p.grad) if t is not None):
            raise
        raise Diverged(f"epoch {epoch}: {error}") from error


class Keeper(Protocol):
    """Where the state of a training is kept after each epoch, and found again."""

    def restore(self) -> Mapping[str, Any] | None:
        """The state after the last epoch that was kept; None to begin."""

    def keep(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Keep the state after `epoch`: plain data and tensors, as of state_dict."""


SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda t: 1 - t,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
}
"""The learning rate after the warm-up as a multiple of the largest, t in [0, 1) the fraction of those steps done."""

STEPS = "steps"  # the other schedule: multiplied by gamma at the milestones


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, whatever its optimizer: its protocol.

    augment: a key of data.AUGMENTATIONS. schedule: "steps", the learning rate is multiplied by gamma after the epochs
    in milestones; or a key of SCHEDULES, by which it falls step by step. warmup: epochs over which it rises first, step
    by step and linearly, from warmup_start (in (0, 1]) times itself ("steps") or from almost 0.
    label_smoothing s in [0, 1): the target is (1 - s) times the label's unit vector plus s/classes. autocast: "" or a
    key of FORMATS. Raises ValueError, naming the option, for one that is out of range or unknown.
    """

    epochs: int
    batch_size: int
    milestones: Sequence[int] = ()
    gamma: float = 0.3
    schedule: str = STEPS
    warmup: int = 0
    warmup_start: float = 1.0
    label_smoothing: float = 0.0
    autocast: str = ""
    augment: str = "none"

    def __post_init__(self) -> None:
        for field, least in (("epochs", 0), ("batch_size", 1), ("warmup", 0)):
            if getattr(self, field) < least:
                raise invalid(field, getattr(self, field), f">= {least}")
        if not 0 < self.warmup_start <= 1:
            raise invalid("warmup_start", self.warmup_start, "in (0, 1]")
        if self.schedule not in (STEPS, *SCHEDULES):
            raise unknown("schedule", self.schedule, (STEPS, *SCHEDULES))
        if self.schedule != STEPS and not self.warmup < max(self.epochs, 1):
            raise invalid("warmup", self.warmup, f"< epochs = {self.epochs}")
        if not 0 <= self.label_smoothing < 1:
            raise invalid("label_smoothing", self.label_smoothing, "in [0, 1)")
        if self.autocast and self.autocast not in FORMATS:
            raise unknown("autocast", self.autocast, FORMATS)


def derived_seed(*keys: int) -> int:
    """A seed in [0, 2^63) that differs for different keys."""
    return int.from_bytes(hashlib.blake2b(repr(keys).encode(), digest_size=8).digest(), "little") >> 1


Scheduler = torch.optim.lr_scheduler.LRScheduler


def _schedulers(
    optimizer: torch.optim.Optimizer, protocol: Recipe, epoch: int
) -> tuple[list[Scheduler], list[Scheduler]]:
    """Those that move with every step, and with every epoch of so many steps."""
    warmup, steps = protocol.warmup * epoch, protocol.epochs * epoch
    if protocol.schedule == STEPS:
        by_epoch = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(protocol.milestones), protocol.gamma)
        if not warmup:
            return [], [by_epoch]
        return [torch.optim.lr_scheduler.LinearLR(optimizer, protocol.warmup_start, 1.0, warmup)], [by_epoch]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return SCHEDULES[protocol.schedule]((step - warmup) / (steps - warmup)) if step < steps else 0.0

    return [torch.optim.lr_scheduler.LambdaLR(optimizer, factor)], []


def training_epochs(
    models: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int], Iterable[tuple[tuple[Any, ...], int]]],
    objective: Callable[..., tuple[Tensor, Tensor]],
    protocol: Recipe,
    n_images: int,
    *,
    seeds: Sequence[int] = (0,),
    after_backward: Callable[[], None] | None = None,
    restored: Mapping[str, Any] | None = None,
) -> Iterator[tuple[int, Tensor, Callable[[], dict[str, Any]]]]:
    """The steps and the schedule of `fit` and of `ensemble.fit_together`: yields (epoch, mean training losses (...),
    state), where state() is what `restored` takes to go on after this epoch with models in the state they are in then.

    n_images: how many make an epoch. batches(epoch): the arguments of objective, and the number of images, of each
    batch, made when its step is due.
    objective(...): the mean losses (...) of a batch, and the number to differentiate. The optimizer gets a closure,
    which it may call more than once for a batch; after_backward is called whenever there are new gradients. An
    optimizer with a method end_epoch() has it called after each epoch. seeds: what the masks of dropout are drawn from.
    The models are in training mode during an epoch, in evaluation mode when it is yielded.
    Raises Diverged when a factorization fails because a gradient is not finite.
    """
    by_step, by_epoch = _schedulers(optimizer, protocol, math.ceil(n_images / protocol.batch_size))
    done = 0
    if restored is not None:
        done = int(restored["epoch"])
        optimizer.load_state_dict(dict(restored["optimizer"]))
        for scheduler, state in zip((*by_step, *by_epoch), restored["schedulers"], strict=True):
            scheduler.load_state_dict(dict(state))
    device = next(models[0].parameters()).device
    for epoch in range(done + 1, protocol.epochs + 1):
        for model in models:
            model.train()
        total = torch.zeros((), dtype=torch.float64, device=device)
        count = 0
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derived_seed(epoch, *seeds))
            for batch, n in batches(epoch):

                def evaluate(batch: tuple[Any, ...] = batch) -> Tensor:
                    optimizer.zero_grad(set_to_none=True)
                    losses, differentiated = objective(*batch)
                    differentiated.backward()  # type: ignore[no-untyped-call]
                    if after_backward is not None:
                        after_backward()
                    return losses.detach()

                with _divergence(optimizer, epoch):
                    losses: Any = optimizer.step(evaluate)  # type: ignore[arg-type]
                for scheduler in by_step:
                    scheduler.step()
                total = total + (losses * n).double()  # no host synchronization inside an epoch
                count += n
        for scheduler in by_epoch:
            scheduler.step()
        with _divergence(optimizer, epoch):
            getattr(optimizer, "end_epoch", lambda: None)()
        for model in models:
            model.eval()

        def state(epoch: int = epoch) -> dict[str, Any]:
            schedulers = [scheduler.state_dict() for scheduler in (*by_step, *by_epoch)]
            return {"epoch": epoch, "optimizer": optimizer.state_dict(), "schedulers": schedulers}

        yield epoch, total / count, state


def _cross_entropy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(model(x), y, label_smoothing=label_smoothing)


def in_format(model: Callable[[Tensor], Tensor], autocast: str) -> Callable[[Tensor], Tensor]:
    """x -> logits in float32, computed with products in a format of FORMATS; the model itself for ""."""
    if not autocast:
        return model

    def forward(x: Tensor) -> Tensor:
        with products_in(autocast, x.device):
            return upcast(model(x))

    return forward


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Images,
    protocol: Recipe,
    *,
    seed: int = 0,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    adversary: Adversary | None = None,
    processes: Processes = ALONE,
    on_epoch: Callable[[int, float], None] | None = None,
    keeper: Keeper | None = None,
) -> None:
    """Minimize the mean cross-entropy (plus penalty(model)) as the protocol says; the last, short batch is used.

    adversary: minimize its loss in place of the cross-entropy. Its images of a batch are made once, at the network
    before the step, from starts drawn by (seed, epoch); an optimizer that evaluates the loss again within the step
    meets the same images.
    processes: those that call this function with models of one architecture, whose weights become those of the first,
    and with equal other arguments; each computes a part of every batch, and all end with the same weights.
    on_epoch(epoch, mean training loss) is called with epoch = 1..epochs, the model in evaluation mode; the loss is the
    one that is minimized, in training mode and without the penalty.
    keeper: gets the state after each epoch, when on_epoch has been called; a training for which it has one goes on.
    Raises Diverged when the loss or a factorization stops being finite, ValueError for label smoothing with an
    adversary, or several processes for batch normalization on a CPU.
    """
    if adversary is not None and protocol.label_smoothing:
        raise invalid("label_smoothing", protocol.label_smoothing, "0 in adversarial training")
    restored = processes.first(None if keeper is None else keeper.restore())
    if restored is not None:
        model.load_state_dict(restored["models"][0])
    processes.copy_first(model)
    forward = in_format(model, protocol.autocast)
    data_loss: Callable[..., Tensor] = (
        partial(_cross_entropy, label_smoothing=protocol.label_smoothing) if adversary is None else adversary.loss
    )

    def batches(epoch: int) -> Iterable[tuple[tuple[Any, ...], int]]:
        starts = torch.Generator().manual_seed(_STARTS + 1_000_003 * seed + epoch)
        for x, y in data.batches(protocol.batch_size, seed=seed, epoch=epoch, augment=protocol.augment):
            part, weight = processes.share(len(y))
            images = [x[part]]
            if adversary is not None:
                start = adversary.start(x, starts)  # of the whole batch: the same for any number of processes
                images.append(adversary.images(model, x[part], y[part], start[part]))
            yield (images, y[part], weight), len(y)

    def objective(images: Sequence[Tensor], y: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        loss = weight * data_loss(forward, *images, y)
        return loss, loss if penalty is None else loss + weight * penalty(model)

    def after_backward() -> None:
        processes.sum_gradients(p for group in optimizer.param_groups for p in group["params"])

    with processes.synchronized(model):
        for epoch, loss, state in training_epochs(
            [model],
            optimizer,
            batches,
            objective,
            protocol,
            len(data),
            seeds=(seed, processes.rank),
            after_backward=after_backward,
            restored=restored,
        ):
            mean = processes.sum(loss).item()
            if not math.isfinite(mean) or not all(p.isfinite().all() for p in model.parameters()):
                raise Diverged(f"epoch {epoch}: training loss {mean}")
            processes.check_equal(model)
            if on_epoch is not None:
                on_epoch(epoch, mean)
            if keeper is not None:
                keeper.keep(epoch, {**state(), "models": [model.state_dict()]})
    model.eval()


_STARTS = 500_000  # the starts of attacks and the order of the images are not drawn from one seed
