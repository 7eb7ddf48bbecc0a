"""What training and inference cost: every number is a ratio of medians over interleaved repetitions in one process.

Times on a CPU are processor seconds of this process on one thread, which other processes on the machine disturb far
less than the clock; on a GPU, seconds until the queue is empty. The dense network is the reference, in the faster of
its two memory layouts. Nothing here is compared across runs.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from wellcond import models, paths
from wellcond.convert import count_flops
from wellcond.data import Images
from wellcond.deployment import deploy
from wellcond.errors import invalid, unknown
from wellcond.integrator import Factors, lowrank_step, lowrank_step_
from wellcond.layers import LowRankConv2d
from wellcond.method import Settings
from wellcond.methods import find
from wellcond.spectrum import nearest_rule
from wellcond.stiefel import (
    cholesky_qr,
    gram_polar,
    orthogonality_error,
    polar,
    project_horizontal,
    qr,
    random_stiefel,
    retract,
)

Row = dict[str, Any]
INPUTS = {"lenet5": (1, 28, 28), **dict.fromkeys(("vgg16", "wrn16_4", "resnet20", "resnet18"), (3, 32, 32))}
METHODS = ("dense", "uv", "usv", "condlr")
MAX_COND = 1.1
INTEGRATORS = ("dense", "usv", "condlr", "dlrt", "dlrt_adaptive", "robust_dlrt")
SETTINGS: dict[str, dict[str, float]] = {"condlr": {"max_cond": MAX_COND}, "robust_dlrt": {"beta": 0.03}}
SPLIT = ("forward", "backward", "optimizer")


def _product_flops(summand: Sequence[int], A: Sequence[int], B: Sequence[int], **_: object) -> int:
    """Of C + A B, A (..., n, k) and B (..., k, m)."""
    return 2 * math.prod(A) * B[-1]


IN_PLACE: Any = dict.fromkeys((torch.ops.aten.addmm_, torch.ops.aten.baddbmm_), _product_flops)
"""Products that overwrite a summand: torch's counter does not know them."""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def measure(
    table: str,
    *,
    net: str = "lenet5",
    ratios: Sequence[float] = (0.5, 0.8, 0.9),
    batch: int = 128,
    repeats: int = 15,
    device: str = "cpu",
) -> list[Row]:
    """The rows of a table: training, integrators, growth, retractions or ablation; only the first two read net, ratios
    and batch.

    Raises ValueError, naming the field, for a value out of range.
    """
    if repeats < 2:
        raise invalid("repeats", repeats, ">= 2")
    makers: dict[str, Callable[[], list[Row]]] = {
        "training": lambda: training_rows(net, ratios, batch=batch, repeats=repeats, device=device),
        "integrators": lambda: training_rows(
            net, ratios, batch=batch, repeats=repeats, device=device, methods=INTEGRATORS
        ),
        "growth": lambda: growth_rows(repeats=repeats, device=device),
        "ablation": lambda: ablation_rows(repeats=repeats, device=device),
        "retractions": lambda: retraction_rows(repeats=repeats, device=device),
    }
    if table not in makers:
        raise unknown("table", table, makers)
    return makers[table]()


def load_or_measure(table: str, *, run: bool = False, device: str = "cpu", **options: Any) -> pd.DataFrame:
    """What a chapter shows: the saved table (run=False; empty if there is none yet), or one measured now, see measure.

    Saved tables are results/bench/<device>/<table>.csv, written by ``python -m wellcond bench --save``.
    """
    if run:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return pd.DataFrame(measure(table, device=device, **options))
        finally:
            torch.set_num_threads(threads)
    path = paths.results() / "bench" / device / f"{table}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


# --- clocks ----------------------------------------------------------------------------------------------------------


def clock(device: str) -> float:
    """Seconds of work so far: of this process on a CPU, of the finished queue on a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def interleaved(tasks: Mapping[Any, Callable[[], Any]], repeats: int, device: str = "cpu") -> dict[Any, list[float]]:
    """Seconds of each task in each of `repeats` rounds; a round runs every task once, after one round to warm up."""
    seconds: dict[Any, list[float]] = {name: [] for name in tasks}
    for round_ in range(repeats + 1):
        for name, task in tasks.items():
            start = clock(device)
            task()
            if round_:
                seconds[name].append(clock(device) - start)
    return seconds


def peak_bytes(task: Callable[[], Any], device: str) -> int:
    """The most bytes of tensors alive at once during `task`, beyond those alive before.

    On a CPU it is the running sum of what each operator of torch leaves allocated; temporaries inside an operator and
    the workspaces of libraries are not counted.
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        task()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        task()
    alive = peak = 0
    for event in sorted(profile.events(), key=lambda event: event.time_range.end):  # frees between operators included
        alive += event.self_cpu_memory_usage
        peak = max(peak, alive)
    return peak


# --- training and deployed networks ----------------------------------------------------------------------------------


class Trainee:
    """A network, its optimizer and one batch; `spent` adds up the seconds of the parts of its training steps."""

    def __init__(self, net: str, method: str, ratio: float, batch: int, layout: str, device: str) -> None:
        if net not in INPUTS:
            raise unknown("net", net, INPUTS)
        if batch < 1:
            raise invalid("batch", batch, ">= 1")
        torch.manual_seed(0)
        self.device, self.shape, self.layout = device, INPUTS[net], LAYOUTS[layout]
        entry, settings = find(method), Settings(ratio=ratio, **SETTINGS.get(method, {}))  # type: ignore[arg-type]
        network = entry.prepare(models.build(net, in_channels=self.shape[0]), settings).to(device).train()
        self.network = network.to(memory_format=self.layout)
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
        with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
            for _ in range(self.cycle):
                self.step()
        return int(counter.get_total_flops()) // self.cycle


def _append(results: list[dict[str, float]], task: Callable[[], dict[str, float]]) -> None:
    results.append(task())


def _spread(seconds: Sequence[float]) -> float:
    """Half the interquartile range over the median."""
    low, middle, high = statistics.quantiles(seconds, n=4)
    return (high - low) / 2 / middle


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
            "spread": _spread(step[key]),
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


# --- growth of the optimizer step ------------------------------------------------------------------------------------

SWEEPS: dict[str, list[tuple[int, int, int]]] = {
    "rank": [(1024, r, 1) for r in (16, 32, 64, 128, 256)],
    "size": [(n, 64, 1) for n in (256, 512, 1024, 2048, 4096)],
    "layers": [(512, 64, count) for count in (1, 2, 4, 8, 16)],
}
"""(n = m, r, number of layers): what varies is the name of the sweep."""


def _random_layer(n: int, m: int, r: int, device: str) -> tuple[Factors, Factors, Factors]:
    """W with κ(S) = 1, a gradient that moves the singular values out of the constraint, and no momentum."""
    W = Factors(random_stiefel(n, r, device=device), torch.eye(r, device=device), random_stiefel(m, r, device=device))
    gradient = Factors(*(0.1 * torch.randn_like(p) / math.sqrt(r) for p in W))
    return W, gradient, Factors(*(torch.zeros_like(p) for p in W))


def _steps(layers: Sequence[tuple[Factors, Factors, Factors]], step: Callable[..., Any]) -> None:
    for W, gradient, momentum in layers:
        step(W, gradient, momentum, lr=1e-3, beta=0.9, max_cond=MAX_COND)


def _products(layers: Sequence[tuple[Factors, Factors, Factors]]) -> None:
    """The tall products of lowrank_step_ and nothing else: five for each basis."""
    for W, gradient, _ in layers:
        for X, g in ((W.U, gradient.U), (W.V, gradient.V)):
            core = X.mT @ g
            for _ in range(4):
                X @ core


def growth_rows(*, repeats: int = 15, device: str = "cpu") -> list[Row]:
    """Seconds of one integrator step, and of its tall products alone, as each quantity of SWEEPS grows.

    Columns: sweep, n (= m), rank, layers, step_s, plain_s (the plain form), products_s. Theory: (n + m) r² a layer.
    """
    rows = []
    for sweep, sizes in SWEEPS.items():
        tasks: dict[Any, Callable[[], Any]] = {}
        for n, r, count in sizes:
            torch.manual_seed(0)
            layers = [_random_layer(n, n, r, device) for _ in range(count)]
            tasks[n, r, count, "products_s"] = partial(_products, layers)  # first: it brings the layer into the cache
            tasks[n, r, count, "step_s"] = partial(_steps, layers, lowrank_step_)
            tasks[n, r, count, "plain_s"] = partial(_steps, layers, lowrank_step)
        seconds = interleaved(tasks, repeats, device)
        for n, r, count in sizes:
            medians = {
                name: statistics.median(seconds[n, r, count, name]) for name in ("step_s", "plain_s", "products_s")
            }
            rows.append({"sweep": sweep, "n": n, "rank": r, "layers": count, **medians})
    return rows


# --- retractions -----------------------------------------------------------------------------------------------------

FORMS: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "QR by Householder": ("qr", lambda X, xi: qr(X + xi)),
    "QR by Cholesky": ("qr", lambda X, xi: cholesky_qr(X + xi)),
    "polar by singular vectors": ("polar", lambda X, xi: polar(X + xi)),
    "polar by the Gram matrix": ("polar", lambda X, xi: gram_polar(X + xi)),
    "Cayley": ("cayley", lambda X, xi: retract(X, xi, "cayley")),
}
"""Name: (key in stiefel.RETRACTIONS, one way to compute it for a horizontal ξ)."""


def retraction_rows(*, n: int = 1024, repeats: int = 15, device: str = "cpu") -> list[Row]:
    """Each of FORMS in float32 for a horizontal step of Frobenius norm 0.1, against the same retraction in float64.

    Columns: retraction, n, rank, seconds, orthogonality (||XᵀX - I||_2 after the step), error (largest entry).
    """
    rows = []
    for r in (n // 16, n // 4):
        torch.manual_seed(0)
        X = random_stiefel(n, r, device=device)
        xi = project_horizontal(X, torch.randn_like(X))
        xi *= 0.1 / xi.norm()
        tasks = {name: partial(form, X, xi) for name, (_, form) in FORMS.items()}
        seconds = interleaved(tasks, repeats, device)
        for name, (kind, form) in FORMS.items():
            found, exact = form(X, xi), retract(X.double(), xi.double(), kind)
            rows.append(
                {
                    "retraction": name, "n": n, "rank": r, "seconds": statistics.median(seconds[name]),
                    "orthogonality": float(orthogonality_error(found)), "error": float((found - exact).abs().amax()),
                }
            )  # fmt: skip
    return rows


# --- what the design choices of the published implementation cost ----------------------------------------------------


class UnfoldedConv2d(LowRankConv2d):
    """The same layer applied to unfolded patches (B, C_in·kh·kw, positions) by two matrix products."""

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, self.kernel_size, padding=1)
        return (self.left() @ (self.V.mT @ patches)).reshape(x.shape[0], -1, *x.shape[-2:])  # stride 1, padding 1


def _project_by_matrix(X: Tensor, Z: Tensor) -> Tensor:
    return (torch.eye(X.shape[0], device=X.device) - X @ X.mT) @ Z


def published_choices_step(
    W: Factors, grad: Factors, momentum: Factors, *, lr: float, beta: float, max_cond: float
) -> tuple[Factors, Factors]:
    """`lowrank_step` as one would transcribe it: n x n projectors, explicit inverses, Householder QR, SVD of S."""
    U, S, V = W
    m_U = _project_by_matrix(U, beta * momentum.U + grad.U)
    m_S = beta * momentum.S + grad.S
    m_V = _project_by_matrix(V, beta * momentum.V + grad.V)
    P, sigma, Qt = torch.linalg.svd(S - lr * m_S)
    new = Factors(
        torch.linalg.qr(U - lr * m_U @ torch.linalg.inv(S @ S.mT))[0],
        P * nearest_rule(sigma, max_cond) @ Qt,
        torch.linalg.qr(V - lr * m_V @ torch.linalg.inv(S.mT @ S))[0],
    )
    return new, Factors(m_U, m_S, m_V)


VARIANTS: dict[str, tuple[type[LowRankConv2d], Callable[..., Any]]] = {
    "fast": (LowRankConv2d, lowrank_step_),
    "plain": (LowRankConv2d, lowrank_step),
    "dense projectors, QR, SVD": (LowRankConv2d, published_choices_step),
    "unfolded patches": (UnfoldedConv2d, lowrank_step_),
    "both": (UnfoldedConv2d, published_choices_step),
}


PARTS = ("forward_backward_s", "optimizer_s")


def ablation_rows(
    *, channels: int = 256, positions: int = 8, batch: int = 128, repeats: int = 9, device: str = "cpu"
) -> list[Row]:
    """One 3 x 3 convolution (channels to channels, on positions x positions) at half its rank, in each of VARIANTS.

    Columns: variant, forward_backward_s, optimizer_s, step_ratio (to the dense convolution with SGD).
    """
    torch.manual_seed(0)
    dense = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device)
    dense = dense.to(memory_format=torch.channels_last)
    sgd = torch.optim.SGD(dense.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(batch, channels, positions, positions, device=device).to(memory_format=torch.channels_last)
    x.requires_grad_()

    def train(layer: torch.nn.Module) -> None:
        layer.zero_grad(set_to_none=True)
        layer(x).square().mean().backward()

    tasks: dict[Any, Callable[[], Any]] = {
        ("dense", "forward_backward_s"): partial(train, dense),
        ("dense", "optimizer_s"): sgd.step,
    }
    for name, (kind, step) in VARIANTS.items():
        layer = kind.from_dense(dense, channels // 2)
        momentum = Factors(*(torch.zeros_like(p) for p in (layer.U, layer.S, layer.V) if p is not None))

        def update(layer: Any = layer, momentum: Factors = momentum, step: Any = step) -> None:
            with torch.no_grad():
                W, grad = Factors(layer.U, layer.S, layer.V), Factors(layer.U.grad, layer.S.grad, layer.V.grad)
                step(W, grad, momentum, lr=1e-3, beta=0.9, max_cond=MAX_COND)

        tasks[name, "forward_backward_s"] = partial(train, layer)
        tasks[name, "optimizer_s"] = update
    seconds = interleaved(tasks, repeats, device)
    total = {
        name: statistics.median(map(sum, zip(*(seconds[name, part] for part in PARTS), strict=True)))
        for name in ("dense", *VARIANTS)
    }
    return [
        {
            "variant": name,
            **{part: statistics.median(seconds[name, part]) for part in PARTS},
            "step_ratio": total[name] / total["dense"],
        }
        for name in total
    ]
