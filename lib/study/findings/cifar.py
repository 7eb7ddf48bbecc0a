"""CIFAR-10: three networks that have been trained by the papers' protocol, its pilots; the methods side by side in a
narrow one; and a small residual network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from study.findings.finding import Number, clear, committed, finding, unclear
from study.presentation.compression import compressed, references
from study.statistics.frames import by_seed, difference, final, rates, suite_rates, summary

NETWORK = "cifar10_vgg16_short"
CONDLR = "CondLR, τ = 0.1, ratio 0.8"
PUBLISHED = {0.0: 89.33, 0.002: 68.23, 0.004: 48.54, 0.006: 36.66}
"""Accuracy under FGSM, in percent, quoted for CondLR, τ = 0.5, with 80 % of the rank removed, after 120 epochs."""


@finding("With less than a quarter of the parameters CondLR comes within three points of the published accuracy.")
def network() -> Mapping[str, Number]:
    row: Any = summary(committed(NETWORK)).set_index("name").loc[CONDLR]
    return {
        "accuracy": Number(row["accuracy"], 87, 89, digits=1),
        "parameters": Number(100 * row["n_params_deployed_ratio"], 20, 25, digits=0),
        "missing": Number(90.48 - row["accuracy"], 2, 3.5, digits=1),
        "minutes": Number(row["wall_s"] / 60, 60, 120, digits=0),
    }


@finding("Of three networks of one size and seed CondLR is the most accurate; without its bound κ grows by thousands.")
def wide() -> Mapping[str, Number]:
    results = committed(NETWORK)
    names = {key: NAMES[key] for key in ("condlr", "uv", "usv")}
    fgsm: Any = rates(results).query("attack == 'fgsm'").pivot_table(index="name", columns="eps", values="rate")
    fgsm = fgsm.loc[[*names.values()]].set_axis([*names], axis="index")
    clean = fgsm[0.0]
    kappa: Any = results.select("curves").query("quantity == 'kappa'").groupby(["method", "epoch"])["value"].max()
    return {
        "uv": Number(clean["uv"], clean["usv"], clean["condlr"] - 0.9, digits=2),
        "usv": Number(clean["usv"], 79, clean["uv"] - 4, digits=2),
        "uv_behind": Number(clean["condlr"] - clean["uv"], 0.9, 1.5, digits=1),
        "usv_behind": Number(clean["condlr"] - clean["usv"], 5, 8, digits=1),
        **{
            f"{name}_{place}": Number(fgsm.loc[name, eps], 30, fgsm.loc["condlr", eps], digits=2)
            for name in ("uv", "usv")
            for place, eps in (("small", 0.002), ("middle", 0.004), ("large", 0.006))
        },
        "usv_kappa": Number(float(kappa["usv"].max()), 5000, math.inf, digits=0),
        "uv_kappa": Number(float(kappa["uv"].max()), 2, 6, digits=1),
    }


@finding(
    "At the two smaller radii FGSM finds of it what was published for a looser bound; at the largest, less stands."
)
def quoted() -> Mapping[str, Number]:
    fgsm = rates(committed(NETWORK)).query("attack == 'fgsm' and name == @CONDLR").set_index("eps")["rate"]
    differences = {eps: fgsm[eps] - PUBLISHED[eps] for eps in PUBLISHED}
    return {
        "clean": Number(fgsm[0.0], 87, 89, digits=2),
        "small": Number(fgsm[0.002], 66, 71, digits=2),
        "middle": Number(fgsm[0.004], 47, 51, digits=2),
        "large": Number(fgsm[0.006], 33, 36.6, digits=2),
        "most": Number(max(abs(differences[0.002]), abs(differences[0.004])), 0, 1, digits=1),
        "less": Number(-differences[0.006], 1, 3, digits=1),
    }


@finding("Many steps find what one step misses, and at 8/255 nothing stands.")
def attacks() -> Mapping[str, Number]:
    counts = suite_rates(committed(NETWORK)).query("name == @CONDLR").set_index(["attack", "eps"])["n_correct"]
    bands = {
        ("fgsm", 0.002): (650, 710), ("fgsm", 0.004): (440, 510), ("fgsm", 0.0078431): (220, 290),
        ("fgsm", 0.0313725): (10, 40), ("pgd_linf", 0.002): (600, 675), ("pgd_linf", 0.004): (340, 410),
        ("pgd_linf", 0.0078431): (60, 130), ("pgd_linf", 0.0313725): (0, 0),
    }  # fmt: skip
    names = {0.002: "002", 0.004: "004", 0.0078431: "2of255", 0.0313725: "8of255"}
    return {
        f"{attack.removesuffix('_linf')}_{names[eps]}": Number(counts[attack, eps], low, high, digits=0)
        for (attack, eps), (low, high) in bands.items()
    }


@finding("The papers' schedule is the best of four for both methods, which it does not tell apart.")
def pilots() -> Mapping[str, Number]:
    def right(schedule: str, method: str) -> float:
        curves = committed(f"cifar10_vgg16_pilot_{schedule}").select("curves").query(f"method == '{method}'")
        last = curves[curves["epoch"] == curves["epoch"].max()].groupby("quantity")["value"].sum()
        return float(100 * last["validation_n_correct"] / last["validation_n"])

    others = max(
        right(schedule, method) for schedule in ("gentle", "cosine", "smoothed") for method in ("condlr", "uv")
    )
    condlr, uv = right("published", "condlr"), right("published", "uv")
    return {
        "condlr": Number(condlr, others + 1, 72, digits=1),
        "uv": Number(uv, others + 1, 72, digits=1),
        "next": Number(others, 60, min(condlr, uv) - 1, digits=1),
    }


@finding("New statistics of batch normalization bring back much, but not what training at the size reaches.")
def statistics() -> Mapping[str, Number]:
    small = committed("cifar10_small_compression_aware")
    kept, again = (
        compressed(small, "svd", reestimated=new).query("amount == 0.8").set_index("name")["rate"]
        for new in (False, True)
    )
    trained: Any = references(small).set_index("method")["rate"]
    dense, best = "dense SGD", str(again.idxmax())
    return {
        "dense_kept": Number(kept[dense], 5, 15, digits=0),
        "dense_again": Number(again[dense], 20, 35, digits=0),
        "best_kept": Number(kept[best], 15, 35, digits=0),
        "best_again": Number(again[best], 45, 58, digits=0),
        "condlr": Number(trained["condlr"], again[best] + 3, 70, digits=0),
        "uv": Number(trained["uv"], again[best] + 3, 70, digits=0),
    }


NARROW = "cifar10_vgg16_quarter"
NAMES = {
    "dense": "dense SGD",
    "condlr": CONDLR,
    "uv": "U Vᵀ, ratio 0.8",
    "usv": "projected U S Vᵀ, ratio 0.8",
    "cut": "SVD of dense, fine-tuned, ratio 0.8",
    "published": "CondLR as published, τ = 0.1, ratio 0.8",
}
"""The configurations that the text compares, by the names of their numbers."""


def under_fgsm(eps: float) -> pd.DataFrame:
    """The percentage of images that each of NAMES withstands: one row a seed, one column a configuration."""
    return by_seed(committed(NARROW), "fgsm", eps)[[*NAMES.values()]].set_axis([*NAMES], axis="columns")


@finding("In the narrow network CondLR is clearly more accurate than all of its size but U S Vᵀ, and far below dense.")
def narrow() -> Mapping[str, Number]:
    accuracy: Any = under_fgsm(0.0)
    found = accuracy.mean()
    return {
        "dense": Number(found["dense"], 81, 85, digits=1),
        "condlr": Number(found["condlr"], found[["uv", "usv", "cut"]].max(), found["dense"] - 5, digits=1),
        "uv": Number(found["uv"], 70, found[["usv", "cut", "published"]].min(), digits=1),
        "least": clear(difference(accuracy, "dense", "condlr")),
        "ahead": clear(difference(accuracy, "condlr", "uv")),
        "free": unclear(difference(accuracy, "condlr", "usv")),
        "integrator": clear(difference(accuracy, "usv", "uv")),
        "tuned": clear(difference(accuracy, "condlr", "cut")),
        "exact": clear(difference(accuracy, "condlr", "published")),
    }


@finding("At half the rank CondLR is a point below dense, clearly; nothing tells it from the SVD of dense, fine-tuned.")
def narrow_half() -> Mapping[str, Number]:
    clean, attacked = (by_seed(committed(NARROW), "fgsm", eps) for eps in (0.0, 0.006))
    methods = ("CondLR, τ = 0.1", "SVD of dense, fine-tuned")
    condlr, cut = (f"{name}, ratio 0.5" for name in methods)
    size = summary(committed(NARROW)).set_index("name")["n_params_deployed_ratio"]
    found: Any = clean.mean()
    withstood: Any = attacked.mean()
    dense = NAMES["dense"]
    return {
        "condlr": Number(found[condlr], found[dense] - 1.5, found[dense], digits=1),
        "cut": Number(found[cut], 75, found[condlr], digits=1),
        "behind": clear(difference(clean, dense, condlr)),
        "ahead": unclear(difference(clean, condlr, cut)),
        "size": Number(100 * float(size[condlr]), 45, 70, digits=0),
        "condlr_fgsm": Number(withstood[condlr], withstood[cut], withstood[dense] - 2, digits=1),
        "cut_fgsm": Number(withstood[cut], 25, withstood[condlr], digits=1),
        "ahead_fgsm": unclear(difference(attacked, condlr, cut)),
        "more": clear(difference(attacked, condlr, NAMES["condlr"])),
    }


@finding("Under FGSM three seeds do not tell CondLR from U Vᵀ and projected U S Vᵀ; dense withstands clearly more.")
def narrow_fgsm() -> Mapping[str, Number]:
    withstood: Any = under_fgsm(0.006)
    found, spread = withstood.mean(), withstood.max() - withstood.min()
    return {
        "condlr": Number(found["condlr"], 20, 30, digits=1),
        "usv": Number(found["usv"], found["condlr"] - 2, found["condlr"] + 2, digits=1),
        "uv": Number(found["uv"], 18, 28, digits=1),
        "cut": Number(found["cut"], 15, found["condlr"], digits=1),
        "dense": Number(found["dense"], found.drop("dense").max() + 5, 40, digits=1),
        "ahead": unclear(difference(withstood, "condlr", "uv")),
        "free": unclear(difference(withstood, "condlr", "usv")),
        "behind": clear(difference(withstood, "dense", "condlr")),
        "spread": Number(spread["uv"], 3, 7, digits=1),
        "spread_condlr": Number(spread["condlr"], 0, 2, digits=1),
    }


@finding("Under PGD dense withstands most, and three seeds do not tell CondLR from U Vᵀ either.")
def narrow_pgd() -> Mapping[str, Number]:
    rows = suite_rates(committed(NARROW)).query("attack == 'pgd_linf' and eps == 0.004")
    withstood: Any = rows.pivot_table(index="seed", columns="name", values="rate")
    withstood = withstood[[*NAMES.values()]].set_axis([*NAMES], axis="columns")
    found = withstood.mean()
    condlr = found["condlr"]
    return {
        "condlr": Number(condlr, 20, 30, digits=0),
        "usv": Number(found["usv"], condlr - 4, condlr + 4, digits=0),
        "uv": Number(found["uv"], condlr - 6, condlr + 4, digits=0),
        "cut": Number(found["cut"], 10, condlr, digits=0),
        "dense": Number(found["dense"], condlr + 5, 50, digits=0),
        "ahead": unclear(difference(withstood, "condlr", "uv")),
    }


@finding("Of CondLR at half the rank AutoAttack leaves next to nothing at the l2 radius of 0.3.")
def narrow_auto() -> Mapping[str, Number]:
    rows = suite_rates(committed(NARROW)).query("name == 'CondLR, τ = 0.1, ratio 0.5' and eps == 0.3 and seed == 0")
    by_attack: Any = rows.set_index("attack")
    auto, pgd = by_attack.loc["autoattack_l2"], by_attack.loc["pgd_l2"]
    return {
        "auto": Number(auto["n_correct"], 0, 10, digits=0),
        "images": Number(auto["n_examples"], 200, 200, digits=0),
        "pgd": Number(pgd["rate"], 0, 15, digits=0),
    }


@finding("Batch normalization does not keep κ of a core from growing; U Vᵀ stays well conditioned by itself.")
def narrow_growth() -> Mapping[str, Number]:
    curves = committed(NARROW).select("curves").query("quantity == 'kappa'")
    worst: Any = curves.groupby(["method", "epoch"])["value"].max()
    ends = sorted(final(curves).query("method == 'usv'").groupby("seed")["value"].max())
    return {
        "start": Number(float(worst["usv", 0]), 1, 2, digits=1),
        **{f"usv_{place}": Number(float(end), 500, math.inf, digits=0) for place, end in enumerate(ends)},
        "usv": Number(float(worst["usv"].max()), 500, math.inf, digits=0),
        "uv": Number(float(worst["uv"].max()), 2, 6, digits=1),
    }


@finding("The norms of the weights as stored, without batch normalization, do not order the networks by robustness.")
def narrow_sizes() -> Mapping[str, Number]:
    curves = committed(NARROW).select("curves").query("quantity == 'sigma_max'")
    last = final(curves)
    last = last[last["ratio"].isna() | (last["ratio"] == 0.8)]
    mean: Any = last.groupby(["method", "seed"])["value"].prod().groupby("method").mean()
    return {
        "dense": Number(float(mean["dense"]), 60, 90, digits=0),
        "uv": Number(float(mean["uv"]), 1000, 3000, digits=0),
        "condlr": Number(float(mean["condlr"]), 0.1, 0.3, digits=1),
    }
