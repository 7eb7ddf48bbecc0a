"""What a trained network gains and loses when it is moved to another task: all its weights, LoRA, and our adapters.

Three linear layers are trained on half of the training images of scikit-learn's digits, then moved to the other half,
turned by 90 degrees. The classes stay the same: no method needs a new classifier, which all would train alike, and what
the network still knows is its accuracy on upright digits. A quarter turn moves every pixel on to another one, without
interpolation, so that the images are as sharp as before, and a network that has seen upright digits only is lost on
them. All methods take the same steps of AdamW without decay, from the same network; each has the learning rate of
LEARNING_RATES with the best mean accuracy over the seeds on turned validation images.
"""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study import data
from study.attacks.logits import correct
from study.attacks.registry import ATTACKS, frozen, perturb
from study.data import Images
from wellcond.adaptation import adapt, merge
from wellcond.layers import matricize, weight_layers
from wellcond.optim import param_groups
from wellcond.riemannian import LowRankAdamW

Row = dict[str, Any]
SEEDS = (0, 1, 2, 3, 4)
RANK = 8
LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
EPOCHS, BATCH = 15, 64
FIRST_EPOCHS, FIRST_LR = 30, 1e-3
"""Of the training on upright digits."""
EPS, STEPS = 0.05, 20
"""Of the attacks on turned test images, in the maximum norm, and the steps of PGD."""


class Tasks(NamedTuple):
    """Upright images to train on and to test, and turned ones; they share no training image."""

    first: Images
    old: Images
    train: Images
    validation: Images
    new: Images


def tasks(seed: int) -> Tasks:
    digits = data.load("digits", seed=seed, validation=0.2)
    half = len(digits.train) // 2
    second = Images(digits.train.images[half:], digits.train.labels[half:])
    turned = (Images(part.images.rot90(1, (2, 3)), part.labels) for part in (second, digits.validation, digits.test))
    return Tasks(digits.train.first(half), digits.test, *turned)


def network() -> nn.Module:
    sizes = (784, 256, 256, 10)
    layers = [part for n, m in pairwise(sizes) for part in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


class Way(NamedTuple):
    """start: the network to train; optimizer: of it and a learning rate; plain: the trained one with dense weights."""

    start: Callable[[nn.Module], nn.Module]
    optimizer: Callable[[nn.Module, float], torch.optim.Optimizer]
    plain: Callable[[Any], nn.Module] = copy.deepcopy
    max_cond: float = math.nan
    package: str = "torch"


def _adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0)


def _on_manifold(max_cond: float, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return LowRankAdamW(param_groups(model, max_cond=max_cond), lr=lr, weight_decay=0)


def _lora(model: nn.Module) -> Any:
    peft = importlib.import_module("peft")
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(weight_layers(model)))
    return peft.get_peft_model(copy.deepcopy(model), config)


def ways() -> dict[str, Way]:
    """The methods by name; LoRA where peft is installed."""
    adapters = {
        f"adapter_{max_cond:g}": Way(
            partial(adapt, rank=RANK), partial(_on_manifold, max_cond), merge, max_cond, "wellcond"
        )
        for max_cond in (math.inf, 10.0, 1.1)
    }
    lora = {}
    if importlib.util.find_spec("peft") is not None:
        lora = {"lora": Way(_lora, _adamw, lambda model: model.merge_and_unload(), package=f"peft {version('peft')}")}
    return {"full": Way(copy.deepcopy, _adamw), **lora, **adapters}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, images: Images, epochs: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model.train()
    for epoch in range(epochs):
        for x, y in images.batches(BATCH, seed=seed, epoch=epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


def n_correct(model: nn.Module, images: Images, attack: str = "", **options: Any) -> int:
    """Of the images, those classified correctly as they are, and after the attack too."""
    with frozen(model):
        x, y = images.pixels(slice(None)), images.labels
        right = correct(model, x, y)
        if attack:
            index = torch.arange(len(y))
            right &= correct(model, perturb(ATTACKS[attack], model, x, y, EPS, index=index, seed=0, **options), y)
    return int(right.sum())


def _largest_condition(matrices: Sequence[Tensor], rank: int | None = None) -> float:
    """The largest σ_1/σ_r of the matrices; r = `rank`, or the full one if that is less."""
    spectra = [torch.linalg.svdvals(W.double())[:rank] for W in matrices]
    return max(float(sigma[0] / sigma[-1]) for sigma in spectra)


@torch.no_grad()
def _measured(base: nn.Module, plain: nn.Module, split: Tasks) -> Row:
    before, after = ([matricize(layer.weight) for layer in weight_layers(m).values()] for m in (base, plain))
    differences = [W - W0 for W0, W in zip(before, after, strict=True)]
    return {
        "n_validation": len(split.validation),
        "n_test": len(split.new),
        "new_correct": n_correct(plain, split.new),
        "old_correct": n_correct(plain, split.old),
        "fgsm_correct": n_correct(plain, split.new, "fgsm"),
        "pgd_correct": n_correct(plain, split.new, "pgd_linf", steps=STEPS),
        "kappa_update": _largest_condition(differences, RANK),
        "kappa_weights": _largest_condition(after),
        "change": max(float(D.norm() / W.norm()) for D, W in zip(differences, before, strict=True)),
    }


def _adapted(base: nn.Module, way: Way, lr: float, split: Tasks, seed: int) -> tuple[nn.Module, Row]:
    """The network with dense weights, and what its training was."""
    torch.manual_seed(seed)
    model = way.start(base)
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    plain = way.plain(train(model, way.optimizer(model, lr), split.train, EPOCHS, seed))
    return plain, {"lr": lr, "n_trained": n_trained, "validation_correct": n_correct(plain, split.validation)}


def adaptation_rows(*, seeds: Sequence[int] = SEEDS) -> list[Row]:
    """One row a method and seed, and one a seed of the network before (method "before").

    Columns: method, package, seed, max_cond, lr, n_trained (numbers), validation_correct (turned images, of
    n_validation), new_correct, old_correct, fgsm_correct and pgd_correct (turned test images, upright ones, turned ones
    after an attack with EPS too; of n_test), and of the layer where it is largest: kappa_update (σ_1/σ_RANK of W - W₀),
    kappa_weights (κ(W)) and change (‖W - W₀‖_F/‖W₀‖_F).
    """
    rows: list[Row] = []
    splits = {seed: tasks(seed) for seed in seeds}
    bases: dict[int, nn.Module] = {}
    for seed, split in splits.items():
        torch.manual_seed(seed)
        base = network()
        bases[seed] = train(base, _adamw(base, FIRST_LR), split.first, FIRST_EPOCHS, seed)
        rows.append({"method": "before", "package": "torch", "seed": seed, **_measured(base, base, split)})
    for name, way in ways().items():
        found = [[_adapted(bases[seed], way, lr, splits[seed], seed) for seed in seeds] for lr in LEARNING_RATES]
        best = max(found, key=lambda trained: sum(row["validation_correct"] for _, row in trained))
        for seed, (plain, row) in zip(seeds, best, strict=True):
            about = {"method": name, "package": way.package, "seed": seed, "max_cond": way.max_cond}
            rows.append({**about, **row, **_measured(bases[seed], plain, splits[seed])})
    return rows
