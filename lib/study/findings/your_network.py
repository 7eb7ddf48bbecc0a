"""Other networks and tasks: a small vision transformer, ranks from a budget, a trained network moved to a new task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from study.findings.cost import bench
from study.findings.finding import Number, clear, committed, finding, share, size, summarized, unclear
from study.presentation import budgets
from study.statistics.comparison import Gap, student
from study.statistics.frames import by_seed, compare

BOUNDED = "CondLR, AdamW, τ = 0.1, ratio {}"
RIVALS = ("dense AdamW", "U Vᵀ, AdamW, ratio {}", "projected U S Vᵀ, AdamW, ratio {}", "StelLA's step, ratio {}")


@finding("The bounded transformer has the highest mean of all, but only a few of the differences are clear.")
def transformer() -> Mapping[str, Number]:
    results = committed("digits_vit")
    pairs = [(BOUNDED.format(ratio), rival.format(ratio)) for ratio in (0.5, 0.8) for rival in RIVALS]
    clean = [compare(results, *pair) for pair in pairs]
    fgsm = [compare(results, *pair, "fgsm", 0.02) for pair in pairs]
    return {
        "pairs": Number(len(pairs), 8, 8, digits=0),
        "higher": Number(sum(found.difference > 0 for found in clean), 8, 8, digits=0),
        "clear": Number(sum(found.ahead for found in clean), 1, 4, digits=0),
        "uv": size(clean[1]),
        "usv": size(clean[2]),
        "fgsm_higher": Number(sum(found.difference > 0 for found in fgsm), 8, 8, digits=0),
        "fgsm_clear": Number(sum(found.ahead for found in fgsm), 1, 5, digits=0),
    }


CIFAR = "cifar10_vit_short"
NAMES = {
    "dense": "dense AdamW",
    "condlr": "CondLR, AdamW, τ = 0.1, ratio 0.8",
    "uv": "U Vᵀ, AdamW, ratio 0.8",
    "usv": "projected U S Vᵀ, AdamW, ratio 0.8",
    "stella": "StelLA's step, ratio 0.8",
}
"""The configurations of the transformer on CIFAR-10, by the names of their numbers."""


def ahead(rival: str, attack: str = "clean", eps: float = 0.0) -> Gap:
    """How far the bounded transformer is ahead of another of NAMES, in points over the seeds."""
    return compare(committed(CIFAR), NAMES["condlr"], NAMES[rival], attack, eps)


def right(name: str, attack: str = "clean", eps: float = 0.0) -> float:
    """The percentage of the images that one of NAMES has right, the mean over the seeds."""
    return float(by_seed(committed(CIFAR), attack, eps)[NAMES[name]].mean())


@finding("On CIFAR-10 the bounded transformer is clearly the most accurate at its size, and no worse than dense.")
def transformer_cifar() -> Mapping[str, Number]:
    kappa: Any = summarized(CIFAR)["kappa_max"][[NAMES["usv"], NAMES["stella"]]]
    return {
        "condlr": Number(right("condlr"), 38, 46, digits=1),
        "dense": Number(right("dense"), 38, right("condlr"), digits=1),
        **{rival: clear(ahead(rival)) for rival in ("uv", "usv", "stella")},
        "parameters": share(CIFAR, NAMES["condlr"], 25, 35),
        "kappa": Number(kappa.max(), 3, 10, digits=1),
    }


@finding("Of what is right before, attacks leave the bounded transformer no larger share.")
def transformer_cifar_attacked() -> Mapping[str, Number]:
    kept = {name: 100 * right(name, "fgsm", 0.004) / right(name, "fgsm") for name in NAMES}
    return {
        "fgsm": unclear(ahead("uv", "fgsm", 0.004)),
        "pgd": clear(ahead("uv", "pgd_linf", 0.002)),
        "pgd_large": unclear(ahead("uv", "pgd_linf", 0.004)),
        "kept_condlr": Number(kept["condlr"], 60, kept["uv"], digits=0),
        "kept_uv": Number(kept["uv"], 65, 75, digits=0),
    }


@finding("A budget pays where a trained network is cut once, and not where it is trained at its size.")
def budget() -> Mapping[str, Number]:
    def gaps(stage: str) -> list[Gap]:
        return [budgets.gap(bench("budgets"), "resnet8", "energy", stage, ratio) for ratio in (0.5, 0.8, 0.9)]

    cut, trained = gaps("truncated"), gaps("condlr")
    return {
        "least": Number(min(gap.difference for gap in cut), 5, 30, digits=0),
        "most": Number(max(gap.difference for gap in cut), 40, 80, digits=0),
        "trained": Number(max(abs(gap.difference) for gap in trained), 0, 2, digits=1),
        "clear": Number(sum(gap.clear for gap in cut) - sum(gap.clear for gap in trained), 3, 3, digits=0),
    }


@finding(
    "The update on the manifold learns nearly what all weights learn, LoRA less, and it forgets least of the three."
)
def adaptation() -> Mapping[str, Number]:
    frame = bench("adaptation")

    def rates(column: str) -> pd.DataFrame:
        share = frame.assign(rate=100 * frame[column] / frame["n_test"])
        return share.pivot_table(index="seed", columns="method", values="rate")

    new, old = rates("new_correct"), rates("old_correct")
    return {
        "full": size(student((new["full"] - new["adapter_1.1"]).tolist()), 0, 3),
        "lora": size(student((new["adapter_1.1"] - new["lora"]).tolist()), 5),
        "kept": Number(old["adapter_1.1"].mean(), 40, 60, digits=0),
        "before": Number(old["before"].mean(), 90, 100, digits=0),
        "full_kept": Number(old["full"].mean(), 5, 25, digits=0),
        "lora_kept": Number(old["lora"].mean(), 5, 25, digits=0),
        "kappa": Number(frame.loc[frame["method"] == "lora", "kappa_update"].median(), 500, 5000, digits=0),
    }
