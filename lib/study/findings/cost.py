"""What training and inference cost, as ratios to the dense network: the tables of results/bench/cpu."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import pandas as pd

from study.benches.tables import load_or_measure
from study.findings.finding import Number, finding
from study.presentation.costs import entry


@functools.cache
def bench(table: str) -> pd.DataFrame:
    """A committed table of the benches."""
    return load_or_measure(table)


def condlr(net: str, ratio: float, column: str) -> float:
    """One number of the training bench, of CondLR."""
    return entry(bench("training"), net, ratio, "condlr", column)


@finding("With four fifths of the rank removed a training step is cheaper than the dense one, also in LeNet5.")
def step() -> Mapping[str, Number]:
    return {
        "vgg16": Number(condlr("vgg16", 0.8, "step_ratio"), 0.3, 0.45, digits=2),
        "wrn16_4": Number(condlr("wrn16_4", 0.8, "step_ratio"), 0.3, 0.45, digits=2),
        "lenet5": Number(condlr("lenet5", 0.8, "step_ratio"), 0.6, 0.9, digits=2),
    }


@finding("LeNet5 at half the rank costs more to train than dense, and its products alone already do.")
def too_wide() -> Mapping[str, Number]:
    return {
        "step": Number(condlr("lenet5", 0.5, "step_ratio"), 1.2, 2, digits=2),
        "products": Number(condlr("lenet5", 0.5, "train_flop_ratio"), 1.05, 2, digits=2),
        "optimizer": Number(100 * condlr("lenet5", 0.5, "optimizer_share"), 40, 60, digits=0),
        "convolutional": Number(100 * condlr("wrn16_4", 0.8, "optimizer_share"), 0, 5, digits=0),
    }


@finding("A deployed network is faster than dense, but not by as much as its operations promise.")
def inference() -> Mapping[str, Number]:
    numbers = {}
    for net, low, high in (("vgg16", 0.25, 0.45), ("wrn16_4", 0.25, 0.45), ("lenet5", 0.4, 0.7)):
        latency = condlr(net, 0.8, "latency_ratio") * condlr(net, 0.8, "flop_ratio")
        numbers[net] = Number(latency, low, high, digits=2)
    promised = condlr("vgg16", 0.8, "flop_ratio")
    return {**numbers, "promised": Number(promised, 0, numbers["vgg16"].value - 0.05, digits=2)}


@finding("Memory falls where weights make it up, and rises at half the rank where activations do.")
def memory() -> Mapping[str, Number]:
    return {
        "vgg16": Number(condlr("vgg16", 0.8, "memory_ratio"), 0.6, 0.9, digits=2),
        "wrn16_4": Number(condlr("wrn16_4", 0.5, "memory_ratio"), 1.05, 1.4, digits=2),
    }


@finding("Where convolutions prevail, orthonormal bases cost little over U Vᵀ, and the bound next to nothing.")
def geometry() -> Mapping[str, Number]:
    def over(net: str, ratio: float, method: str) -> float:
        return 100 * (condlr(net, ratio, "step_ratio") / entry(bench("training"), net, ratio, method) - 1)

    return {
        "wrn16_4": Number(over("wrn16_4", 0.8, "uv"), 0, 6, digits=0),
        "vgg16": Number(over("vgg16", 0.8, "uv"), 5, 20, digits=0),
        "lenet5": Number(over("lenet5", 0.8, "uv"), 20, 60, digits=0),
        "bound": Number(max(over(net, 0.8, "usv") for net in ("wrn16_4", "vgg16", "lenet5")), 0, 12, digits=0),
    }


def peer_steps(net: str, column: str = "step_s") -> pd.DataFrame:
    """Of a step, the seconds: one row an optimizer and ratio, one column a form; the dense network's in all rows."""
    frame = bench("peers")
    frame = frame[frame["net"] == net]
    steps = frame.pivot_table(index=["optimizer", "ratio"], columns="method", values=column)
    dense = frame[frame["method"] == "dense"].groupby("optimizer")[column].min()
    return steps.assign(dense=steps.index.get_level_values("optimizer").map(dense.to_dict()))


@finding("geotorch takes several times as long; a differentiated QR decomposition takes as long.")
def peers() -> Mapping[str, Number]:
    steps = peer_steps("vit")
    ours, slower = steps["wellcond"], steps["geotorch"] / steps["wellcond"]
    qr, uv = ours / steps["qr"], ours / steps["uv"]
    return {
        "geotorch_least": Number(slower.min(), 2, 5, digits=1),
        "geotorch_most": Number(slower.max(), 4, 10, digits=1),
        "half": Number(100 * (ours / steps["dense"]).xs(0.5, level="ratio").max(), 85, 105, digits=0),
        "qr": Number(100 * (qr.max() - 1), -10, 20, digits=0),
        "uv_least": Number(100 * (uv.min() - 1), 5, 20, digits=0),
        "uv_most": Number(100 * (uv.max() - 1), 20, 50, digits=0),
    }


@finding(
    "On few images a manifold step of ResNet-18 takes longer than U Vᵀ or a differentiated QR; its memory is small."
)
def peers_resnet18() -> Mapping[str, Number]:
    steps, memory = peer_steps("resnet18"), peer_steps("resnet18", "memory_bytes")
    ours, by_hand, qr = steps["wellcond"], steps["uv"], steps["wellcond"] / steps["qr"]
    over, less = ours / by_hand - 1, 1 - memory["wellcond"] / memory["qr"]
    images = 128 / 16  # the optimizer works as long, and U Vᵀ this many times as long
    return {
        "uv_least": Number(100 * over.min(), 20, 50, digits=0),
        "uv_most": Number(100 * over.max(), 60, 130, digits=0),
        "large_least": Number(100 * over.min() / images, 2, 7, digits=0),
        "large_most": Number(100 * over.max() / images, 8, 15, digits=0),
        "qr_least": Number(100 * (qr.min() - 1), -5, 5, digits=0),
        "qr_most": Number(100 * (qr.max() - 1), 15, 40, digits=0),
        "memory_least": Number(100 * less.min(), 10, 20, digits=0),
        "memory_most": Number(100 * less.max(), 15, 30, digits=0),
        "dense_least": Number((ours / steps["dense"]).min(), 0.35, 0.5, digits=2),
        "dense_most": Number((ours / steps["dense"]).max(), 1.05, 1.4, digits=2),
    }
