"""Performance engineering: the parts of an integrator's step, memory, other integrators and linear minimizations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from study.findings.cost import bench
from study.findings.finding import Number, finding
from study.presentation.costs import entry, slopes
from study.presentation.linear_minimization import entry as minimization


@finding("The fast form of a step is faster than the plain one, more so at a high rank, and grows more slowly than r².")
def growth() -> Mapping[str, Number]:
    frame = bench("growth")
    largest = frame[(frame["sweep"] == "rank") & (frame["rank"] == frame["rank"].max())].iloc[0]
    smallest = frame[(frame["sweep"] == "rank") & (frame["rank"] == frame["rank"].min())].iloc[0]
    fitted = slopes(frame)
    rank = fitted[(fitted["sweep"] == "rank") & (fitted["quantity"] == "step_s")].iloc[0]
    return {
        "gain": Number(largest["plain_s"] / largest["step_s"], 1.4, 2.5, digits=1),
        "small": Number(smallest["plain_s"] / smallest["step_s"], 1, 1.4, digits=1),
        "slope": Number(rank["slope"], 1.2, 1.8, digits=1),
    }


@finding("Unfolding makes the layer dearer than the dense one; dense projectors and general factorizations cost less.")
def published() -> Mapping[str, Number]:
    step = bench("ablation").set_index("variant")["step_ratio"]
    return {
        "ours": Number(step["fast"], 0.4, 0.9, digits=2),
        "unfolded": Number(step["unfolded patches"], 1.5, 3, digits=2),
        "projectors": Number(step["dense projectors, QR, SVD"], 0.8, 1.2, digits=2),
        "both": Number(step["both"], 1.8, 3.5, digits=2),
    }


@finding("The Cholesky form of QR takes half the time of Householder's, at the same orthogonality.")
def retractions() -> Mapping[str, Number]:
    frame = bench("retractions")
    last = frame[frame["rank"] == frame["rank"].max()].set_index("retraction")["seconds"]
    return {
        "cholesky": Number(100 * last["QR by Cholesky"] / last["QR by Householder"], 40, 60, digits=0),
        "worst": Number(1e7 * frame["orthogonality"].max(), 1, 10, digits=0),
    }


@finding("Recomputation brings the memory of every step below the dense one, for a tenth to a third more time.")
def recompute() -> Mapping[str, Number]:
    frame = bench("training").set_index(["method", "net", "ratio"])
    plain, again = frame.loc["condlr"], frame.loc["condlr_recomputed"]
    longer = again["step_ratio"] / plain["step_ratio"]
    return {
        "before": Number(plain["memory_ratio"].max(), 1.05, 1.4, digits=2),
        "after": Number(again["memory_ratio"].max(), 0.8, 1, digits=2),
        "least": Number(longer.min(), 1.02, 1.2, digits=2),
        "most": Number(longer.max(), 1.15, 1.5, digits=2),
    }


@finding("Integrators that change their bases first cost two to three times a step of the projected one.")
def bases() -> Mapping[str, Number]:
    def over(method: str) -> float:
        return entry(bench("integrators"), "lenet5", 0.8, method) / entry(bench("integrators"), "lenet5", 0.8, "usv")

    return {
        "fixed": Number(over("dlrt"), 1.7, 2.6, digits=1),
        "adaptive": Number(over("dlrt_adaptive"), 2.2, 3.4, digits=1),
        "robust": Number(over("robust_dlrt"), 1.1, 1.7, digits=1),
    }


@finding("One warm power iteration costs a fraction of a singular value decomposition where matrices are large.")
def linear_minimization() -> Mapping[str, Number]:
    frame = bench("lmo")

    def step(net: str, method: str, engine: str) -> float:
        return minimization(frame, net, method, engine, "training_ratio")

    warm = frame[frame["engine"] == "power_warm"]
    return {
        "penalty": Number(step("resnet18", "nuclear_penalty", "svd"), 1.1, 1.4, digits=2),
        "exact": Number(step("resnet18", "nuclear", "svd"), 1.3, 2, digits=2),
        "warm": Number(step("resnet18", "nuclear", "power_warm"), 1, 1.08, digits=2),
        "lenet5": Number(step("lenet5", "nuclear_penalty", "svd"), 4, 7, digits=1),
        "lenet5_warm": Number(step("lenet5", "nuclear", "power_warm"), 1, 1.3, digits=1),
        "error": Number(100 * warm["largest_error"].max(), 3, 30, digits=0),
        "typical": Number(100 * warm["lmo_error"].max(), 0.1, 2, digits=1),
    }


@finding("The gain of the iteration grows with the matrix.")
def minimization_growth() -> Mapping[str, Number]:
    frame = bench("lmo_growth")
    by_size = frame[frame["sweep"] == "size"].set_index("n")
    gain = by_size["svd_s"] / by_size["power_warm_s"]
    return {"small": Number(gain[128], 5, 20, digits=0), "large": Number(gain[2048], 150, 600, digits=0)}


@finding("Reading a folder of results costs fractions of a second, and grows more slowly than the folder.")
def folder() -> Mapping[str, Number]:
    frame: Any = bench("results_folder").set_index("cells")
    return {
        "load": Number(frame["load_s"][2000], 0, 0.3, digits=2),
        "growth": Number(frame["load_s"][2000] / frame["load_s"][125], 2, 8, digits=1),
        "save": Number(1e3 * frame["save_s"].max(), 0, 100, digits=0),
    }
