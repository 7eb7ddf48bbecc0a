"""One training loop; it knows no method, only a model, an optimizer and data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wellcond.errors import invalid


class Images(Protocol):
    """Training data: batches of (pixels in [0, 1], labels), shuffled by (seed, epoch)."""

    def batches(self, size: int, *, seed: int, epoch: int, augment: str) -> Iterable[tuple[Tensor, Tensor]]: ...


class Diverged(RuntimeError):
    """The loss or the weights are no longer finite."""


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
    if epochs < 0:
        raise invalid("epochs", epochs, ">= 0")
    if batch_size < 1:
        raise invalid("batch_size", batch_size, ">= 1")
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones), gamma)
    for epoch in range(1, epochs + 1):
        model.train()
        total, count = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device), 0
        for x, y in data.batches(batch_size, seed=seed, epoch=epoch, augment=augment):
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(x), y)
            objective = loss if penalty is None else loss + penalty(model)
            objective.backward()  # type: ignore[no-untyped-call]
            try:
                optimizer.step()
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                gradients = [p.grad for p in model.parameters() if p.grad is not None]
                if all(value.isfinite().all() for value in (loss, *gradients)):
                    raise
                raise Diverged(f"epoch {epoch}: {error}") from error  # LAPACK refuses NaN
            total += loss.detach() * len(y)  # no host synchronization inside an epoch
            count += len(y)
        scheduler.step()
        mean = total.item() / count if count else math.nan
        if not math.isfinite(mean) or not all(p.isfinite().all() for p in model.parameters()):
            raise Diverged(f"epoch {epoch}: training loss {mean}")
        model.eval()
        if on_epoch is not None:
            on_epoch(epoch, mean)
    model.eval()
