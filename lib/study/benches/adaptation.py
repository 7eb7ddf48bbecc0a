"""What a trained network gains and loses when it is moved to another task: all its weights, LoRA, and our adapters.

Three linear layers are trained on half of the training images of scikit-learn's digits, then moved to the other half,
turned by 90 degrees. The classes stay: no method needs a new classifier, and what the network still knows is its
accuracy on upright digits. A quarter turn keeps the images sharp, and the network is lost on them. All methods take the
same steps of AdamW without decay, each at the learning rate with the best mean accuracy on turned validation images.
"""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

import wellcond as wc
from study import data
from study.attacks.logits import correct
from study.attacks.registry import ATTACKS, frozen, perturb
from study.data import Images

Row = dict[str, Any]
SEEDS, RANK = (0, 1, 2, 3, 4), 8
LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
EPOCHS, FIRST_EPOCHS, FIRST_LR, BATCH = 15, 30, 1e-3, 64  # first: on upright digits
EPS, STEPS = 0.05, 20  # of the attacks in the maximum norm, and of PGD


def tasks(seed: int) -> dict[str, Images]:
    """Upright images to train on (first) and to test (old); turned ones: train, validation and new."""
    digits = data.load("digits", seed=seed, validation=0.2)
    half = len(digits.train) // 2
    parts = {"train": Images(digits.train.images[half:], digits.train.labels[half:])}
    parts |= {"validation": digits.validation, "new": digits.test}
    turned = {name: Images(part.images.rot90(1, (2, 3)), part.labels) for name, part in parts.items()}
    return {"first": digits.train.first(half), "old": digits.test, **turned}


def network() -> nn.Module:
    hidden = (nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10))


class Way(NamedTuple):
    """start: the network to train; optimizer: of it and a learning rate; plain: the trained one with dense weights."""

    start: Callable[[nn.Module], Any]
    optimizer: Callable[[nn.Module, float], torch.optim.Optimizer]
    plain: Callable[[Any], nn.Module]
    package: str = "torch"
    max_cond: float = math.nan


def _adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0)


def _lora(model: nn.Module) -> Any:
    peft = importlib.import_module("peft")
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(wc.weight_layers(model)))
    return peft.get_peft_model(copy.deepcopy(model), config)


def ways() -> dict[str, Way]:
    """The methods by name, of adapters with the bound on κ(S); LoRA where peft is installed."""
    found = {"full": Way(copy.deepcopy, _adamw, copy.deepcopy)}
    if importlib.util.find_spec("peft") is not None:
        found["lora"] = Way(_lora, _adamw, lambda model: model.merge_and_unload(), f"peft {version('peft')}")
    for bound in (math.inf, 10.0, 1.1):

        def step(model: nn.Module, lr: float, bound: float = bound) -> torch.optim.Optimizer:
            return wc.LowRankAdamW(wc.param_groups(model, max_cond=bound), lr=lr, weight_decay=0)

        found[f"adapter_{bound:g}"] = Way(partial(wc.adapt, rank=RANK), step, wc.adaptation.merge, "wellcond", bound)
    return found


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


def _measured(base: nn.Module, plain: nn.Module, images: Mapping[str, Images]) -> Row:
    pairs = [(W0.detach(), W.detach()) for W0, W in zip(base.parameters(), plain.parameters(), strict=True)]
    weights = [(W0, W, torch.linalg.svdvals((W - W0).double())) for W0, W in pairs if W.ndim == 2]
    new = images["new"]
    return {
        "n_validation": len(images["validation"]), "n_test": len(new),
        "new_correct": n_correct(plain, new), "old_correct": n_correct(plain, images["old"]),
        "fgsm_correct": n_correct(plain, new, "fgsm"), "pgd_correct": n_correct(plain, new, "pgd_linf", steps=STEPS),
        "kappa_update": max(float(sigma[0] / sigma[RANK - 1]) for _, _, sigma in weights),
        "kappa_weights": max(float(wc.condition_number(W.double())) for _, W, _ in weights),
        "change": max(float(sigma.norm() / W0.norm()) for W0, _, sigma in weights),
    }  # fmt: skip


def _adapted(base: nn.Module, way: Way, lr: float, images: Mapping[str, Images], seed: int) -> tuple[nn.Module, Row]:
    torch.manual_seed(seed)
    model = way.start(base)
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    plain = way.plain(train(model, way.optimizer(model, lr), images["train"], EPOCHS, seed))
    return plain, {"lr": lr, "n_trained": n_trained, "validation_correct": n_correct(plain, images["validation"])}


def adaptation_rows(*, seeds: Sequence[int] = SEEDS) -> list[Row]:
    """One row a method and seed, and one a seed of the network before (method "before").

    Columns: method, package, seed, max_cond, lr, n_trained (numbers), validation_correct (turned images, of
    n_validation), new_correct, old_correct, fgsm_correct and pgd_correct (turned test images, upright ones, turned ones
    after an attack too; of n_test), and of the layer where it is largest: kappa_update (σ_1/σ_RANK of W - W₀),
    kappa_weights (κ(W)) and change (‖W - W₀‖_F/‖W₀‖_F).
    """
    rows: list[Row] = []
    splits, bases = {seed: tasks(seed) for seed in seeds}, {}
    for seed, split in splits.items():
        torch.manual_seed(seed)
        base = bases[seed] = network()
        train(base, _adamw(base, FIRST_LR), split["first"], FIRST_EPOCHS, seed)
        rows.append({"method": "before", "package": "torch", "seed": seed, **_measured(base, base, split)})
    for name, way in ways().items():
        found = [[_adapted(bases[seed], way, lr, splits[seed], seed) for seed in seeds] for lr in LEARNING_RATES]
        best = max(found, key=lambda trained: sum(row["validation_correct"] for _, row in trained))
        for seed, (plain, row) in zip(seeds, best, strict=True):
            about = {"method": name, "package": way.package, "seed": seed, "max_cond": way.max_cond}
            rows.append({**about, **row, **_measured(bases[seed], plain, splits[seed])})
    return rows
