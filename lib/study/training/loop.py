"""One training loop; it knows no method, only a model, an optimizer and data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.training.adversarial import Adversary
from study.training.distributed import ALONE, Processes
from wellcond.errors import invalid


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


def training_epochs(
    models: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int], Iterable[tuple[tuple[Any, ...], int]]],
    objective: Callable[..., tuple[Tensor, Tensor]],
    *,
    epochs: int,
    milestones: Sequence[int],
    gamma: float,
    warmup_steps: int = 0,
    warmup_start: float = 1.0,
    after_backward: Callable[[], None] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """The steps and the schedule of `fit` and of `ensemble.fit_together`: yields (epoch, mean training losses (...)).

    batches(epoch): the arguments of objective, and the number of images, of each batch, made when its step is due.
    objective(...): the mean losses (...) of a batch, and the number to differentiate. The optimizer gets a closure,
    which it may call more than once for a batch; after_backward is called whenever there are new gradients. An
    optimizer with a method end_epoch() has it called after each epoch.
    The models are in training mode during an epoch, in evaluation mode when it is yielded.
    Raises Diverged when a factorization fails because a gradient is not finite.
    """
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones), gamma)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, warmup_start, 1.0, warmup_steps) if warmup_steps else None
    for epoch in range(1, epochs + 1):
        for model in models:
            model.train()
        total = torch.zeros((), dtype=torch.float64, device=next(models[0].parameters()).device)
        count = 0
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
            if warmup is not None:
                warmup.step()
            total = total + (losses * n).double()  # no host synchronization inside an epoch
            count += n
        scheduler.step()
        with _divergence(optimizer, epoch):
            getattr(optimizer, "end_epoch", lambda: None)()
        for model in models:
            model.eval()
        yield epoch, total / count


def _cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Images,
    *,
    epochs: int,
    batch_size: int,
    milestones: Sequence[int] = (),
    gamma: float = 0.3,
    warmup: int = 0,
    warmup_start: float = 1.0,
    seed: int = 0,
    augment: str = "none",
    penalty: Callable[[nn.Module], Tensor] | None = None,
    adversary: Adversary | None = None,
    processes: Processes = ALONE,
    on_epoch: Callable[[int, float], None] | None = None,
) -> None:
    """Minimize the mean cross-entropy (plus penalty(model)) for `epochs` epochs; the last, short batch is used.

    milestones: epochs after which the learning rate is multiplied by gamma. warmup: epochs over which it rises, step
    by step and linearly, from warmup_start (in (0, 1]) times itself.
    adversary: minimize its loss in place of the cross-entropy. Its images of a batch are made once, at the network
    before the step, from starts drawn by (seed, epoch); an optimizer that evaluates the loss again within the step
    meets the same images.
    processes: those that call this function with models of one architecture, whose weights become those of the first,
    and with equal other arguments; each computes a part of every batch, and all end with the same weights.
    on_epoch(epoch, mean training loss) is called with epoch = 1..epochs, the model in evaluation mode; the loss is the
    one that is minimized, in training mode and without the penalty.
    Raises Diverged when the loss or a factorization stops being finite, ValueError for epochs < 0, batch_size < 1,
    warmup < 0, warmup_start out of range, or several processes for batch normalization on a CPU.
    """
    check_protocol(epochs, batch_size, warmup, warmup_start)
    processes.copy_first(model)
    data_loss: Callable[..., Tensor] = _cross_entropy if adversary is None else adversary.loss

    def batches(epoch: int) -> Iterable[tuple[tuple[Any, ...], int]]:
        starts = torch.Generator().manual_seed(_STARTS + 1_000_003 * seed + epoch)
        for x, y in data.batches(batch_size, seed=seed, epoch=epoch, augment=augment):
            part, weight = processes.share(len(y))
            images = [x[part]]
            if adversary is not None:
                start = adversary.start(x, starts)  # of the whole batch: the same for any number of processes
                images.append(adversary.images(model, x[part], y[part], start[part]))
            yield (images, y[part], weight), len(y)

    def objective(images: Sequence[Tensor], y: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        loss = weight * data_loss(model, *images, y)
        return loss, loss if penalty is None else loss + weight * penalty(model)

    def after_backward() -> None:
        processes.sum_gradients(p for group in optimizer.param_groups for p in group["params"])

    with processes.synchronized(model):
        for epoch, loss in training_epochs(
            [model],
            optimizer,
            batches,
            objective,
            epochs=epochs,
            milestones=milestones,
            gamma=gamma,
            warmup_steps=warmup_steps(data, batch_size, warmup),
            warmup_start=warmup_start,
            after_backward=after_backward,
        ):
            mean = processes.sum(loss).item()
            if not math.isfinite(mean) or not all(p.isfinite().all() for p in model.parameters()):
                raise Diverged(f"epoch {epoch}: training loss {mean}")
            processes.check_equal(model)
            if on_epoch is not None:
                on_epoch(epoch, mean)
    model.eval()


_STARTS = 500_000  # the starts of attacks and the order of the images are not drawn from one seed


def warmup_steps(data: Images, batch_size: int, warmup: int) -> int:
    """The number of steps in `warmup` epochs."""
    return warmup * math.ceil(len(data) / batch_size) if warmup else 0


def check_protocol(epochs: int, batch_size: int, warmup: int, warmup_start: float) -> None:
    """Raise ValueError unless epochs >= 0, batch_size >= 1, warmup >= 0 and 0 < warmup_start <= 1."""
    if epochs < 0:
        raise invalid("epochs", epochs, ">= 0")
    if batch_size < 1:
        raise invalid("batch_size", batch_size, ">= 1")
    if warmup < 0:
        raise invalid("warmup", warmup, ">= 0")
    if not 0 < warmup_start <= 1:
        raise invalid("warmup_start", warmup_start, "in (0, 1]")
