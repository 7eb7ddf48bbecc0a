"""One training loop; it knows no method, only a model, an optimizer and data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wellcond.errors import invalid


class Images(Protocol):
    """Training data: batches of (pixels in [0, 1], labels), shuffled by (seed, epoch)."""

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
    batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]],
    objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    *,
    epochs: int,
    milestones: Sequence[int],
    gamma: float,
    after_backward: Callable[[], None] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """The steps and the schedule of `fit` and of `ensemble.fit_together`: yields (epoch, mean training losses (...)).

    batches(epoch): x (..., B, C, H, W) and y (..., B). objective(x, y): the mean losses (...) of a batch, and the
    number to differentiate. The optimizer gets a closure, which it may call more than once for a batch; after_backward
    is called whenever there are new gradients. An optimizer with a method end_epoch() has it called after each epoch.
    The models are in training mode during an epoch, in evaluation mode when it is yielded.
    Raises Diverged when a factorization fails because a gradient is not finite.
    """
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones), gamma)
    for epoch in range(1, epochs + 1):
        for model in models:
            model.train()
        total = torch.zeros((), dtype=torch.float64, device=next(models[0].parameters()).device)
        count = 0
        for x, y in batches(epoch):

            def evaluate(x: Tensor = x, y: Tensor = y) -> Tensor:
                optimizer.zero_grad(set_to_none=True)
                losses, differentiated = objective(x, y)
                differentiated.backward()  # type: ignore[no-untyped-call]
                if after_backward is not None:
                    after_backward()
                return losses.detach()

            with _divergence(optimizer, epoch):
                losses: Any = optimizer.step(evaluate)  # type: ignore[arg-type]
            total = total + (losses * y.shape[-1]).double()  # no host synchronization inside an epoch
            count += y.shape[-1]
        scheduler.step()
        with _divergence(optimizer, epoch):
            getattr(optimizer, "end_epoch", lambda: None)()
        for model in models:
            model.eval()
        yield epoch, total / count


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Images,
    *,
    epochs: int,
    batch_size: int,
    milestones: Sequence[int] = (),
    gamma: float = 0.3,
    seed: int = 0,
    augment: str = "none",
    penalty: Callable[[nn.Module], Tensor] | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> None:
    """Minimize the mean cross-entropy (plus penalty(model)) for `epochs` epochs; the last, short batch is used.

    milestones: epochs after which the learning rate is multiplied by gamma. on_epoch(epoch, mean training loss) is
    called with epoch = 1..epochs, the model in evaluation mode.
    Raises Diverged when the loss or a factorization stops being finite, ValueError for epochs < 0 or batch_size < 1.
    """
    check_protocol(epochs, batch_size)

    def batches(epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        return data.batches(batch_size, seed=seed, epoch=epoch, augment=augment)

    def objective(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        loss = F.cross_entropy(model(x), y)
        return loss, loss if penalty is None else loss + penalty(model)

    for epoch, loss in training_epochs(
        [model], optimizer, batches, objective, epochs=epochs, milestones=milestones, gamma=gamma
    ):
        mean = loss.item()
        if not math.isfinite(mean) or not all(p.isfinite().all() for p in model.parameters()):
            raise Diverged(f"epoch {epoch}: training loss {mean}")
        if on_epoch is not None:
            on_epoch(epoch, mean)
    model.eval()


def check_protocol(epochs: int, batch_size: int) -> None:
    """Raise ValueError unless epochs >= 0 and batch_size >= 1."""
    if epochs < 0:
        raise invalid("epochs", epochs, ">= 0")
    if batch_size < 1:
        raise invalid("batch_size", batch_size, ">= 1")
