"""Data-parallel training: several processes train one network, each on its part of every batch.

With n images in a batch and the parts B_1, ..., B_P of P processes,

    ∇ (1/n) Σ_i ℓ_i  =  Σ_p  (|B_p| / n)  ∇ (1/|B_p|) Σ_{i in B_p} ℓ_i,

so every process differentiates its own mean loss times its weight |B_p|/n, and the gradients are summed between
backward and step. Each then takes the same step from the same weights: that of a single process, up to rounding.
(Dropout is the exception: every process draws its own masks.) Large batches need other learning rates; see
`experiments.Train` (Goyal et al., arXiv:1706.02677).

The sum is taken over whatever gradients there are at that moment, hence for every optimizer, including the
rank-adaptive ones, whose parameters change their shapes in the middle of a step. torch's DistributedDataParallel
cannot do that: it files the parameters into buckets of fixed size when it is constructed.

`torchrun --nproc-per-node 2 -m study run EXPERIMENT` starts the processes; they talk by gloo on a CPU and by NCCL
between GPUs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wellcond.errors import invalid

PATIENCE = timedelta(days=2)  # the others wait while the first one measures a network


@dataclass(frozen=True)
class Processes:
    """The processes that train one network: this one is number `rank` of `size`. Alone, every method is trivial.

    Except for `share`, a method is called by all of them, in the same order.
    """

    rank: int = 0
    size: int = 1

    def share(self, n: int) -> tuple[slice, float]:
        """This process's part of a batch of n images, and its weight in the mean over the batch.

        Parts are contiguous and differ by at most one image. A batch with fewer images than processes is everyone's.
        """
        if n < self.size:
            return slice(0, n), 1 / self.size
        start, stop = (k * n // self.size for k in (self.rank, self.rank + 1))
        return slice(start, stop), (stop - start) / n

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients of these parameters, in place, by their sums over the processes."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes, which may overwrite `value`."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def first(self, value: Any) -> Any:
        """The value of the first process, any object that can be pickled."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    @torch.no_grad()
    def copy_first(self, model: nn.Module) -> None:
        """Give every process the parameters and buffers of the first one, for models of equal shapes."""
        for tensor in _tensors(model) if self.size > 1 else ():
            value = tensor.contiguous()
            dist.broadcast(value, src=0)
            tensor.copy_(value)

    def check_equal(self, model: nn.Module) -> None:
        """Raise RuntimeError unless all hold the same parameters and buffers, bit by bit."""
        if self.size == 1:
            return
        digest = hashlib.sha256()
        for tensor in _tensors(model):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        if digest.hexdigest() != self.first(digest.hexdigest()):
            raise RuntimeError(f"process {self.rank} of {self.size} has other weights than the first")

    @contextmanager
    def synchronized(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model with its batch normalizations over the whole batch, not over the part of a process.

        Raises ValueError for such a network on a CPU, where torch cannot do it: with statistics of parts, several
        processes would train another network than one does.
        """
        layers = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
        if self.size == 1 or not layers:
            yield model
            return
        if next(model.parameters()).device.type == "cpu":
            raise invalid("processes", self.size, "1 for a network with batch normalization on a CPU")
        # in place, and with the same parameters and buffers
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        try:
            yield model
        finally:
            for name, layer in layers.items():
                model.set_submodule(name, layer.train(model.training))


ALONE = Processes()


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def current() -> Processes:
    """The processes of the default group of torch.distributed; ALONE if there is none."""
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size())
    return ALONE


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """`current`, with a default group of the processes that torchrun has started, if it has.

    device: "cpu", or "cuda", where each process gets a GPU of its own. If the block fails, the group is left as it is:
    torchrun ends the others when this process ends.
    Raises ValueError for more processes than GPUs.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield current()
        return
    if device == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise invalid("nproc-per-node", int(os.environ["LOCAL_WORLD_SIZE"]), f"at most {gpus}, one for each GPU")
        torch.cuda.set_device(local)
    # objects travel between the hosts' memories, gradients between GPUs
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    yield current()
    dist.destroy_process_group()
