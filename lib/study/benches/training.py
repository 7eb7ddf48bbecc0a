"""What a training step costs, its time, memory and products, and a deployed network, against the dense network."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from study import networks as models
from study.benches.clocks import clock, interleaved, peak_bytes, spread
from study.data import Images
from wellcond.counts import count_flops
from wellcond.deployment import deploy
from wellcond.errors import invalid, unknown
from wellcond.kinds.convolution import recompute
from wellcond.methods.registry import find
from wellcond.methods.settings import Settings

Row = dict[str, Any]
INPUTS = {"lenet5": (1, 28, 28), **dict.fromkeys(("vgg16", "wrn16_4", "resnet20", "resnet18", "vit"), (3, 32, 32))}
RECOMPUTED = "condlr_recomputed"
"""CondLR whose convolutions compute the tensors between their factors again in the backward pass (`recompute`)."""
METHODS = ("dense", "uv", "usv", "condlr", RECOMPUTED)
INTEGRATORS = ("dense", "usv", "condlr", "dlrt", "dlrt_adaptive", "robust_dlrt")
SETTINGS: dict[str, dict[str, float]] = {"condlr": {"max_cond": 1.1}, "robust_dlrt": {"beta": 0.03}}
SPLIT = ("forward", "backward", "optimizer")


def _product_flops(summand: Sequence[int], A: Sequence[int], B: Sequence[int], **_: object) -> int:
    """Of C + A B, A (..., n, k) and B (..., k, m)."""
    return 2 * math.prod(A) * B[-1]


PRODUCTS: Any = dict.fromkeys((torch.ops.aten.addmm_, torch.ops.aten.baddbmm_), _product_flops)
"""Products that torch's counter does not know: those that overwrite a summand."""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def product_flops(work: Callable[[], Any]) -> int:
    """The FLOPs of the convolutions and products in `work`, which is done once."""
    with FlopCounterMode(display=False, custom_mapping=PRODUCTS) as counter:
        work()
    return int(counter.get_total_flops())


def check(net: str, batch: int) -> None:
    """Raise ValueError for a network without a shape of inputs, or an empty batch."""
    if net not in INPUTS:
        raise unknown("net", net, INPUTS)
    if batch < 1:
        raise invalid("batch", batch, ">= 1")


class Trainee:
    """A network, its optimizer and one batch; `spent` adds up the seconds of the parts of its training steps."""

    def __init__(self, net: str, method: str, ratio: float, batch: int, layout: str, device: str) -> None:
        check(net, batch)
        torch.manual_seed(0)
        self.device, self.shape, self.layout = device, INPUTS[net], LAYOUTS[layout]
        recomputes, method = method == RECOMPUTED, "condlr" if method == RECOMPUTED else method
        entry, settings = find(method), Settings(ratio=ratio, **SETTINGS.get(method, {}))  # type: ignore[arg-type]
        network = entry.prepare(models.build(net, in_channels=self.shape[0]), settings).to(device).train()
        self.network = recompute(network.to(memory_format=self.layout), recomputes)
        self.optimizer = entry.optimizer(entry.groups(self.network, settings), lr=0.01, momentum=0.9)
        self.penalty = entry.penalty(settings)
        # an optimizer that changes the bases every few steps is measured over all of them
        self.cycle: int = max(group.get("coefficient_steps", 1) for group in self.optimizer.param_groups)
        self.spent = dict.fromkeys((*SPLIT, "passes"), 0.0)
        self.x = torch.rand(batch, *self.shape, device=device).to(memory_format=self.layout)
        self.y = torch.randint(10, (batch,), device=device)

    def evaluate(self) -> Tensor:
        """The closure of the optimizer: loss and gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        start = clock(self.device)
        loss = F.cross_entropy(self.network(self.x), self.y)
        if self.penalty is not None:
            loss = loss + self.penalty(self.network)
        middle = clock(self.device)
        loss.backward()  # type: ignore[no-untyped-call]
        self.spent["forward"] += middle - start
        self.spent["backward"] += clock(self.device) - middle
        self.spent["passes"] += 1
        return loss.detach()

    def step(self) -> None:
        self.optimizer.step(self.evaluate)  # type: ignore[arg-type]

    def split(self) -> dict[str, float]:
        """Seconds of forward, backward and optimizer, and the number of passes, of a step; the mean over a cycle."""
        self.spent = dict.fromkeys(self.spent, 0.0)
        start = clock(self.device)
        for _ in range(self.cycle):
            self.step()
        total = clock(self.device) - start
        self.spent["optimizer"] = total - self.spent["forward"] - self.spent["backward"]
        return {part: value / self.cycle for part, value in self.spent.items()}

    def memory(self) -> int:
        """Peak bytes of a training step: parameters, their momenta, gradients, activations, temporaries."""
        self.step()
        self.optimizer.zero_grad(set_to_none=True)
        kept = [*self.network.parameters(), *self.network.buffers()]
        kept += [v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        return sum(t.numel() * t.element_size() for t in kept) + peak_bytes(self.step, self.device)

    def flops(self) -> int:
        """Of a training step's convolutions and products, forward, backward and optimizer (factorizations not)."""

        def cycle() -> None:
            for _ in range(self.cycle):
                self.step()

        return product_flops(cycle) // self.cycle


def _append(results: list[dict[str, float]], task: Callable[[], dict[str, float]]) -> None:
    results.append(task())


def training_rows(
    net: str,
    ratios: Sequence[float],
    *,
    batch: int = 128,
    repeats: int = 15,
    device: str = "cpu",
    methods: Sequence[str] = METHODS,
) -> list[Row]:
    """One row a network: the split of its training step and its ratios to the fastest dense network.

    Columns: net, method, ratio, layout, batch, forward_s, backward_s, optimizer_s, data_s (medians), passes (forward
    and backward, a step), spread (half the interquartile range of the step over its median), step_ratio,
    optimizer_share, data_share (of a training loop), flop_ratio (deployed), train_flop_ratio (the products of a whole
    training step), memory_ratio (peak of a step), latency_s and latency_ratio (deployed latency / dense, over the FLOP
    ratio).
    Raises ValueError for an unknown network, or a batch or ratio out of range.
    """
    configurations = [("dense", math.nan, layout) for layout in LAYOUTS]
    configurations += [(method, ratio, "channels_last") for ratio in ratios for method in methods if method != "dense"]
    trainees = {key: Trainee(net, key[0], 0.0 if math.isnan(key[1]) else key[1], batch, key[2], device)
                for key in configurations}  # fmt: skip
    splits: dict[Any, list[dict[str, float]]] = {key: [] for key in trainees}
    tasks: dict[Any, Callable[[], Any]] = {"data": _batch_maker(INPUTS[net], batch, device)}
    for key, trainee in trainees.items():
        tasks[key] = partial(_append, splits[key], trainee.split)
    seconds = interleaved(tasks, repeats, device)
    split = {key: [[times[part] for times in splits[key][1:]] for part in SPLIT] for key in trainees}  # 0 warms up
    step = {key: [sum(times) for times in zip(*split[key], strict=True)] for key in trainees}
    deployed = {key: deploy(trainee.network).to(memory_format=trainee.layout) for key, trainee in trainees.items()}
    with torch.inference_mode():
        tasks = {key: partial(network, trainees[key].x) for key, network in deployed.items()}
        latency = {key: statistics.median(times) for key, times in interleaved(tasks, repeats, device).items()}
    flops = {key: count_flops(network, INPUTS[net]) for key, network in deployed.items()}
    train_flops = {key: trainee.flops() for key, trainee in trainees.items()}
    memory = {key: trainee.memory() for key, trainee in trainees.items()}
    dense = [key for key in trainees if key[0] == "dense"]
    data = statistics.median(seconds["data"])

    def to_dense(values: Mapping[Any, float], key: Any) -> float:
        return values[key] / min(values[other] for other in dense)

    median = {key: statistics.median(times) for key, times in step.items()}
    return [
        {
            "net": net, "method": key[0], "ratio": key[1], "layout": key[2], "batch": batch,
            **{f"{part}_s": statistics.median(times) for part, times in zip(SPLIT, split[key], strict=True)},
            "data_s": data,
            "passes": splits[key][-1]["passes"],
            "spread": spread(step[key]),
            "step_ratio": to_dense(median, key),
            "optimizer_share": statistics.median(o / s for o, s in zip(split[key][2], step[key], strict=True)),
            "data_share": data / (data + median[key]),
            "flop_ratio": to_dense(flops, key),
            "train_flop_ratio": to_dense(train_flops, key),
            "memory_ratio": to_dense(memory, key),
            "latency_s": latency[key],
            "latency_ratio": to_dense(latency, key) / to_dense(flops, key),
        }
        for key in trainees
    ]  # fmt: skip


def _batch_maker(shape: tuple[int, int, int], batch: int, device: str) -> Callable[[], Any]:
    """The data path of one training step: shuffled, scaled and, for colour images, augmented."""
    images = torch.randint(256, (batch, *shape), dtype=torch.uint8, device=device)
    data = Images(images.to(memory_format=torch.channels_last), torch.zeros(batch, dtype=torch.int64, device=device))
    augment = "crop_flip" if shape[0] == 3 else "none"
    return lambda: next(iter(data.batches(batch, seed=0, epoch=0, augment=augment)))
