"""Tables and figures of networks that are compressed after training.

A network is compressed at several amounts, each of which has a size: its deployed parameters, in percent of the dense
network. References are networks that were trained at their size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from study.presentation.figures import draw, layers_shown
from study.presentation.style import ATTACKS, finish, look, mean_std, panels, table
from study.results.store import Results
from study.settings import SETTINGS
from study.statistics.comparison import Gap, student
from study.statistics.frames import final, ordered, rate_text, rates, suite_rates, with_rates
from wellcond.compression import units as registry

COMPRESSORS = {
    "svd": "truncated SVD, the same share of every rank",
    "svd_global": "truncated SVD, one threshold on σᵢ/σ₁",
    "svd_global_norm": "truncated SVD, one threshold on σᵢ/‖σ‖₂",
    "filters_l1": "filters of least ℓ₁ norm",
    "filters_l2": "filters of least ℓ₂ norm",
    "filters_l1_global": "filters of least ℓ₁ norm, over all layers",
    "filters_l2_global": "filters of least ℓ₂ norm, over all layers",
    "magnitude": "single weights of least modulus",
}
"""What a compressor does; of another one, the first line of its docstring says it."""


def compressor_title(compressor: str) -> str:
    """What it does."""
    return COMPRESSORS.get(compressor) or str(registry.COMPRESSORS[compressor].__doc__).partition("\n")[0]


REFERENCES = ("condlr", "uv")
_SIZED = ["amount", "share", "flops", "eps", "n_examples", "rate", "low", "high", "kappa"]


# --- frames ----------------------------------------------------------------------------------------------------------


def compressed(
    results: Results,
    compressor: str,
    attack: str = "clean",
    *,
    epochs: int = 0,
    phases: int = 1,
    reestimated: bool = False,
) -> pd.DataFrame:
    """One row per (run, amount), at the largest radius of the attack: share (deployed parameters, % of dense), flops
    (% of dense), eps, n_examples, rate in %, low, high (its Wilson interval), kappa.

    reestimated: of the networks whose statistics of batch normalization were computed again after compression; else of
    those that kept them.
    """
    frame = results.select("compressions")
    how = {"compressor": compressor, "attack": attack, "epochs": epochs, "phases": phases, "reestimated": reestimated}
    frame = frame[np.logical_and.reduce([frame[column] == value for column, value in how.items()])]
    frame = frame[frame["eps"] == frame["eps"].max()]
    runs = results.runs.set_index("run_id")
    whole = {key: frame["run_id"].map(runs[f"{key}_dense"]) for key in ("n_params", "flops")}
    return _sized(
        with_rates(frame).assign(
            share=100 * frame["n_params_deployed"] / whole["n_params"],
            flops=100 * frame["flops_deployed"] / whole["flops"],
        )
    )


def as_trained(results: Results, attack: str = "clean") -> pd.DataFrame:
    """The same columns of all networks that are used as they were trained; amount is their ratio."""
    frame = pd.concat([rates(results), suite_rates(results)])
    frame = frame[frame["attack"] == attack].drop_duplicates(["run_id", "eps"])
    frame = frame[frame["eps"] == frame["eps"].max()]
    about = results.runs.set_index("run_id").loc[frame["run_id"]].reset_index()
    return _sized(
        frame.reset_index(drop=True).assign(
            amount=lambda f: f["ratio"],
            share=100 * about["n_params_deployed"] / about["n_params_dense"],
            flops=100 * about["flops_deployed"] / about["flops_dense"],
            kappa=math.nan,
        )
    )


def references(results: Results, attack: str = "clean", methods: Sequence[str] = REFERENCES) -> pd.DataFrame:
    """`as_trained` of the networks that were trained at their size, of these methods."""
    frame = as_trained(results, attack)
    return frame[frame["method"].isin(methods) & frame["amount"].notna()]


def _sized(frame: pd.DataFrame) -> pd.DataFrame:
    """With full names, of which the ratio is no part: all sizes of a method are one curve. error: 100 - rate."""
    frame = frame[["run_id", "method", "label", *SETTINGS, "seed", *_SIZED]].assign(ratio=math.nan)
    named = ordered(frame) if len(frame) else frame.assign(name="", place=0)
    return named.assign(error=100 - named["rate"])


def truncated_kappas(results: Results, frame: pd.DataFrame) -> pd.Series[float]:
    """For each row, a run and an amount: max σ_1/σ_r over all layers but the last, the classifier, which is left whole;
    r is what is left of the N singular values after training, N - ⌊amount N⌋."""
    spectra = final(results.select("spectra")).sort_values("index", kind="stable")
    layers = list(dict.fromkeys(final(results.spectra)["layer"]))[:-1]
    values = {
        run_id: [part["singular_value"].to_numpy(float) for _, part in rows.groupby("layer")]
        for run_id, rows in spectra[spectra["layer"].isin(layers)].groupby("run_id")
    }

    def kappa(run_id: str, amount: float) -> float:
        ends = [(sigma[0], sigma[-1 - math.floor(amount * len(sigma) + 1e-9)]) for sigma in values.get(run_id, ())]
        return max((first / last if last > 0 else math.inf for first, last in ends), default=math.nan)

    found = [kappa(run_id, amount) for run_id, amount in zip(frame["run_id"], frame["amount"], strict=True)]
    return pd.Series(found, frame.index, dtype=float)


def areas(frame: pd.DataFrame) -> pd.DataFrame:
    """The mean rate of each run over the logarithm of its size, between the sizes that all runs have: one row a run,
    with name, seed, area. A curve is linear between its points; nan where the runs share no interval of sizes."""
    spans = frame.groupby("run_id")["share"].agg(["min", "max"])
    low, high = (spans["min"].max(), spans["max"].min()) if len(spans) else (math.nan, math.nan)
    rows = []
    for _, curve in frame.groupby("run_id", sort=False):
        line = curve.sort_values("share")
        x, y = np.log(line["share"].to_numpy(float)), line["rate"].to_numpy(float)
        inside = (x > math.log(low)) & (x < math.log(high))
        at = np.concatenate([[math.log(low)], x[inside], [math.log(high)]])
        area = float(np.trapezoid(np.interp(at, x, y), at)) / math.log(high / low) if low < high else math.nan
        rows.append({**line.iloc[0][["run_id", "method", "name", "seed"]], "area": area})
    return pd.DataFrame(rows, columns=["run_id", "method", "name", "seed", "area"])


def compare_areas(frame: pd.DataFrame, first: str, second: str) -> Gap:
    """The difference of two configurations in area, seed by seed."""
    found = areas(frame).pivot_table(index="seed", columns="name", values="area")
    pairs = (found.reindex(columns=[first])[first] - found.reindex(columns=[second])[second]).dropna()
    return student(pairs.tolist())


def at_size(frame: pd.DataFrame, name: str, share: float) -> pd.Series[float]:
    """The rates of a configuration at one size, by seed: linear in the logarithm of the size between the amounts that
    were measured, nan beyond them."""
    found = {}
    for seed, curve in frame[frame["name"] == name].groupby("seed"):
        line = curve.sort_values("share")
        x, y = np.log(line["share"].to_numpy(float)), line["rate"].to_numpy(float)
        inside = x[0] - ROUNDING <= math.log(share) <= x[-1] + ROUNDING
        found[seed] = float(np.interp(math.log(share), x, y)) if inside else math.nan
    return pd.Series(found, dtype=float)


ROUNDING = 1e-9  # of the logarithm of a size that is a mean over seeds


def compare_at_size(frame: pd.DataFrame, first: str, other: pd.DataFrame, second: str, share: float) -> Gap:
    """A configuration of one frame minus one of another at the same size, seed by seed."""
    return student((at_size(frame, first, share) - at_size(other, second, share)).dropna().tolist())


def reference_sizes(results: Results) -> list[float]:
    """The sizes (share) that CondLR was trained at, largest first."""
    frame = references(results, methods=REFERENCES[:1])
    return sorted(frame.groupby("amount")["share"].mean(), reverse=True)


class Best(NamedTuple):
    """The best of the compressed networks at a size (share): its rate, that of dense SGD there (nan if there is none),
    and the best minus each network that was trained at the size, seed by seed."""

    share: float
    name: str
    rate: float
    dense: float
    gaps: dict[str, Gap]

    @property
    def words(self) -> str:
        against = "; ".join(f"against *{name}*: {gap.words}" for name, gap in self.gaps.items())
        dense = f" (dense SGD {self.dense:.2f} %)" if self.dense == self.dense else ""
        return f"{self.share:.0f} % of the size: *{self.name}*, with {self.rate:.2f} %{dense}, {against}."


def best_at_sizes(results: Results, compressor: str, attack: str = "clean", *, reestimated: bool = False) -> list[Best]:
    """For each size that CondLR was trained at, the compressed network with the best mean over seeds: picked with
    hindsight, on the images that it is measured on. Sizes that no compressed network has are left out."""
    once, trained = compressed(results, compressor, attack, reestimated=reestimated), references(results, attack)
    dense = once.loc[once["method"] == "dense", "name"].min()
    found = []
    for share in reference_sizes(results):
        means = {str(name): float(at_size(once, name, share).mean()) for name in once["name"].unique()}
        means = {name: mean for name, mean in means.items() if not math.isnan(mean)}
        if means:
            best = max(means, key=lambda name: means[name])
            gaps = {str(name): compare_at_size(once, best, trained, name, share) for name in trained["name"].unique()}
            found.append(Best(share, best, means[best], means.get(dense, math.nan), gaps))
    return found


def best_words(results: Results, compressor: str, attack: str = "clean", *, reestimated: bool = False) -> str:
    """`best_at_sizes` as a list in Markdown."""
    lines = [f"- {best.words}" for best in best_at_sizes(results, compressor, attack, reestimated=reestimated)]
    head = "The best of the compressed networks at each size that CondLR was trained at:\n\n"
    return head + "\n".join(lines) if lines else "Nothing of this has been measured yet."


# --- figures ---------------------------------------------------------------------------------------------------------


SIZES = {"share": "deployed parameters, % of dense", "flops": "floating-point operations, % of dense"}
GROUPS = {
    "Frank-Wolfe": ("dense", "fw_"),
    "Penalties and products": ("dense", "lorita", "proximal_sgd", "nuclear_norm", "group_lasso"),
}
"""The panels of a figure, by the beginnings of the names of methods: a dozen curves are too many for one."""


def _grouped(frame: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    for title, starts in GROUPS.items():
        yield title, frame[frame["method"].str.startswith(starts)]


def _draw_references(ax: Axes, frame: pd.DataFrame, x: str, y: str) -> None:
    """A marker a size: the mean over the seeds; each smaller than the one before, which it may hide."""
    for markersize, (_, rows) in zip((11, 7, 4), frame.groupby("name", sort=False), strict=False):
        centre = rows.groupby("amount")[[x, y]].mean()
        style = look(**rows.iloc[0][["method", *SETTINGS]])
        ax.plot(
            centre[x],
            centre[y],
            style.marker,
            color=style.color,
            markersize=markersize,
            markeredgecolor="white",
            label=f"{rows['label'].iloc[0]}, trained at its size",
            zorder=4,
        )


def _against(frame: pd.DataFrame, trained: pd.DataFrame, x: str, y: str, axis: str, height: float) -> Figure:
    # nominally equal sizes of two seeds may differ in a few parameters: one x for each amount of a configuration
    frame = frame.assign(**{x: frame.groupby(["name", "amount"])[x].transform("mean")})
    fig, axes = panels(list(GROUPS), 2, height)
    for i, (ax, (_, rows)) in enumerate(zip(axes, _grouped(frame), strict=True)):
        draw(ax, rows, x, y, log=True)
        _draw_references(ax, trained, x, y)
        ax.set(xscale="log", yscale="log", xlabel=SIZES[x], ylabel="" if i else axis)
    return finish(fig)


def plot_compression(
    results: Results, compressor: str, attack: str = "clean", *, size: str = "share", reestimated: bool = False
) -> Figure:
    """Error against size, a key of SIZES, one curve a method from one training; markers: networks that were trained at
    their size."""
    axis = "test error, %" if attack == "clean" else f"error under {ATTACKS[attack]}, %"
    frame = compressed(results, compressor, attack, reestimated=reestimated)
    return _against(frame, references(results, attack), size, "error", axis, 3.2)


def plot_kappa(results: Results) -> Figure:
    """The largest κ of any truncated layer (`truncated_kappas`) against size; markers: trained at their size."""
    frame = compressed(results, "svd")
    frame = frame.assign(kappa=truncated_kappas(results, frame))
    trained = references(results)
    trained = trained.assign(kappa=truncated_kappas(results, trained.assign(amount=0.0)))
    return _against(frame, trained, "share", "kappa", "κ, worst truncated layer", 2.6)


def plot_filter_norms(results: Results, layers: Sequence[str] = ()) -> Figure:
    """The norms of the rows of a weight matrix, the filters, over the largest: geometric mean over the seeds."""
    frame = ordered(results.select("filters"))
    largest = frame.groupby(["run_id", "layer"])["norm"].transform("max")
    frame = frame.assign(relative=frame["norm"] / largest, index=frame["index"] + 1)
    titles = layers_shown(frame, layers)
    fig, axes = panels(titles, 2, 2.4)
    for i, (ax, layer) in enumerate(zip(axes, titles, strict=True)):
        rows = frame[frame["layer"] == layer]
        draw(ax, rows, "index", "relative", log=True, mark=max(1, len(rows["index"].unique()) // 8))
        ax.set(yscale="log", xlabel="filter, in descending order", ylabel="" if i % 2 else "norm over the largest")
    return finish(fig)


# --- tables ----------------------------------------------------------------------------------------------------------


NORMALIZATION = {False: "as trained", True: "computed again"}
"""What the statistics of batch normalization are after compression."""


def area_table(results: Results, compressors: Sequence[str], *, reestimated: Sequence[str] = ()) -> Styler:
    """The mean accuracy over the logarithm of the size (`areas`): mean ± standard deviation over seeds. A column for
    each of these compressors, then for each of those with the statistics of batch normalization computed again."""
    columns: dict[str, Any] = {}
    names: dict[str, None] = {}
    ways = [*((name, False) for name in compressors), *((name, True) for name in reestimated)]
    for compressor, again in ways:
        frame = compressed(results, compressor, reestimated=again)
        found = areas(frame)
        names |= dict.fromkeys(found.sort_values("area", ascending=False)["name"])
        span = frame.groupby("run_id")["share"].agg(["min", "max"])
        interval = f"{span['min'].max():.1f} to {span['max'].min():.0f} %" if len(span) else "–"
        title = compressor_title(compressor) + (f"; statistics {NORMALIZATION[True]}" if again else "")
        columns[f"{title} ({interval})"] = found.groupby("name")["area"].apply(mean_std)
    texts = pd.DataFrame(columns, index=pd.Index(list(names), name="training")).fillna("–").reset_index()
    return table(texts.astype(object))


def robustness_at_size(results: Results, compressor: str, attacks: Sequence[str] = ("clean",)) -> Styler:
    """Accuracy (%) under each attack at its largest radius, of the networks that were trained at their size and of the
    compressed ones at that size (`at_size`): mean ± standard deviation over seeds."""
    parts = {
        attack: pd.concat([references(results, attack), compressed(results, compressor, attack)]) for attack in attacks
    }
    measured = set.intersection(*(set(part["name"]) for part in parts.values()))
    shares = reference_sizes(results)
    rows = []
    for name in dict.fromkeys(name for part in parts.values() for name in part["name"] if name in measured):
        for attack, part in parts.items():
            cells = [mean_std(at_size(part, name, share), 1) for share in shares]
            rows.append([name if attack == attacks[0] else "", ATTACKS[attack], *cells])
    return table(pd.DataFrame(rows, columns=["training", "under", *(f"{share:.0f} % of the size" for share in shares)]))


def strong_table(results: Results, compressor: str, amount: float, attacks: Sequence[str]) -> Styler:
    """Deployed size, and accuracy (%) under each attack at its largest radius: of the networks compressed by this
    amount, and of those that are used as they were trained; only networks that were measured under all of them."""
    parts = {}
    for attack in attacks:
        small = compressed(results, compressor, attack)
        small = small[np.isclose(small["amount"], amount)].assign(use="compressed")
        part = pd.concat([small, as_trained(results, attack).assign(use="as trained")])
        parts[attack] = part.fillna({"amount": 0.0}).set_index(["run_id", "use"])  # nan is no key
    common = functools.reduce(pd.Index.intersection, (part.index for part in parts.values()))
    rows: dict[Any, dict[str, str]] = {}
    heads = []
    for attack, part in parts.items():
        part = part.loc[common].reset_index()
        head = f"{ATTACKS[attack]}, ε = {_listed(part['eps'])} (N = {_listed(part['n_examples'])})"
        heads.append(head)
        for key, group in part.groupby(["name", "use", "amount"], sort=False):
            size = f"{group['share'].mean():.0f} %"
            row = rows.setdefault(key, {"training": group["name"].iloc[0], "used": group["use"].iloc[0], "size": size})
            row[head] = rate_text(group)
    return table(pd.DataFrame(list(rows.values()), columns=["training", "used", "size", *heads]))


def _listed(values: pd.Series[Any]) -> str:
    return "/".join(f"{value:,g}" for value in sorted(values.unique())) or "–"


def tuning_table(results: Results, ways: Sequence[tuple[str, int, int]]) -> Styler:
    """Accuracy (%) of each way to compress, (compressor, phases, epochs after each), at each amount, beside that of one
    phase without training, where it was measured."""
    rows = []
    for compressor, phases, epochs in ways:
        frame = compressed(results, compressor, phases=phases, epochs=epochs)
        straight = compressed(results, compressor)
        how = f"{phases} × {epochs} epoch{'s' if epochs > 1 else ''}"
        for _, part in frame.groupby(["name", "amount"], sort=False):
            name, amount = part.iloc[0][["name", "amount"]]
            before = straight[(straight["name"] == name) & np.isclose(straight["amount"], amount)]
            size = f"{part['share'].mean():.1f} %"
            removed = f"{100 * amount:g} %"
            rows.append([name, compressor, removed, size, mean_std(before["rate"]), how, mean_std(part["rate"])])
    columns = ["training", "compressor", "amount", "deployed", "straight after, %", "trained on", "then, %"]
    return table(pd.DataFrame(rows, columns=columns))


def sweep_table(results: Results, compressor: str = "svd", *, reestimated: Sequence[bool] = (False,)) -> Styler:
    """Test accuracy (%) before compression and at each amount, a row for each configuration: over the seeds.

    reestimated: as of `compressed`; of both values, each configuration has a row of each.
    """
    whole = rates(results)
    clean = whole[whole["attack"] == "clean"].groupby("name", sort=False)["rate"]
    before = {name: mean_std(rate) for name, rate in clean}
    frames = {again: compressed(results, compressor, reestimated=again) for again in reestimated}
    rows = []
    for name in dict.fromkeys(name for frame in frames.values() for name in frame["name"]):
        for again, frame in frames.items():
            part = frame[frame["name"] == name]
            amounts = part.groupby(part["amount"].map(lambda amount: f"{100 * amount:g} %"), sort=True)["rate"]
            after = {str(amount): mean_std(rate) for amount, rate in amounts}
            how = {"batch normalization": NORMALIZATION[again]} if len(frames) > 1 else {}
            rows.append({"training": name, **how, "nothing removed": before.get(str(name), "–"), **after})
    return table(pd.DataFrame(rows).fillna("–"))
