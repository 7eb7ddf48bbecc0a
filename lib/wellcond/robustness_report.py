"""Tables and figures of the attack suite: what survives, with intervals, flags and paired tests. Never imports torch.

Rates are counted on the first test images, the same for every network; those under the strongest of several attacks
are of `wellcond.threat_model`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from wellcond.analysis import ordered, rate_text, suite_rates, summary
from wellcond.comparison import holm
from wellcond.figures import against_spectra, draw
from wellcond.flags import FLAGS, flags_of, symbols
from wellcond.outcomes import unpack_distances
from wellcond.report import ATTACKS, finish, look, number, panels, percent, signed, table
from wellcond.results import Results
from wellcond.settings import SETTINGS
from wellcond.threat_model import Threat, alive, compare, exposed, strongest


def coverage_text(results: Results) -> str:
    """How many networks and measurements of the suite there are; and, as networks whose weights were not kept are
    trained again for it, how close their clean counts are to those that the grid recorded."""
    counts = results.attacks["attack"].map(ATTACKS).value_counts()
    measured = ", ".join(f"{name} {n}" for name, n in counts.items()) or "none yet"
    text = (
        f"Networks attacked so far: {results.attacks['run_id'].nunique()} of {len(results.runs)}. "
        f"Measurements: {measured}. What is missing is shown as waiting."
    )
    counted = results.confidence[results.confidence["quantity"] == "n_correct"].merge(results.runs, on="run_id")
    counted = counted[counted["n_examples"].astype(float) == counted["n_test"].astype(float)]
    if counted.empty:
        return text
    off = (counted["value"].astype(float) - counted["n_correct"].astype(float)).abs()
    return (
        f"{text} Networks whose weights had not been kept were trained again: of {len(off)}, {int((off == 0).sum())} "
        f"have exactly the clean count that the grid recorded, the others differ by at most {off.max():.0f} images of "
        f"{counted['n_test'].max():,.0f} (the order of operations has changed since, and rounding with it)."
    )


def inheritance_text(results: Results, *attacks: str) -> str:
    """An image that withstands one of the attacks in a ball is counted as withstanding it in smaller balls. Where these
    were attacked in full all the same: how many of the images that had withstood the larger ball fell in the smaller;
    empty if there is no such case."""
    rows = results.attacks.astype({"eps": float, "n_examples": int, "n_attacked": int, "n_correct": int})
    networks, again, fell = set(), 0, 0
    for small in rows[rows["attack"].isin(attacks)].to_dict("records"):
        n, own = small["n_examples"], rows[rows["run_id"] == small["run_id"]]
        clean = own[(own["attack"] == "clean") & (own["n_examples"] >= n)].iloc[0]
        same = (own[["attack", "options", "n_examples"]] == [small["attack"], small["options"], n]).all(axis=1)
        before = own[same & (own["eps"] > small["eps"]) & (own["n_attacked"] > small["n_correct"])].to_dict("records")
        withstood = np.logical_or.reduce([np.zeros(n, dtype=bool), *(alive(larger, n) for larger in before)])
        if small["n_attacked"] + withstood.sum() > alive(clean, n).sum():  # they overlap: it was made in full
            networks.add(small["run_id"])
            again += int(withstood.sum())
            fell += int((withstood & ~alive(small, n)).sum())
    return (
        f"Smaller balls were attacked in full all the same (networks: {len(networks)}): {again:,} times an image that "
        f"had withstood the larger ball, and {fell or 'none'} of them fell."
        if again
        else ""
    )


# --- tables ----------------------------------------------------------------------------------------------------------


def flags(results: Results) -> pd.DataFrame:
    """The flags on all numbers of the suite; see `wellcond.flags`."""
    return flags_of(results.attacks, results.confidence)


def _at(eps: float) -> str:
    return f" ε\u00a0=\u00a0{eps:g}"


def _on(n: str) -> str:
    return f"N\u00a0=\u00a0{n}"


def _head(threat: Threat) -> str:
    return f"{threat.label}{_at(threat.eps)}, {_on(f'{threat.n:,}')}" if threat.n else threat.label


def trust_table(results: Results, attacks: Sequence[tuple[str, float]], threats: Sequence[Threat] = ()) -> Styler:
    """Deployed size, and the accuracy in % under each (attack, radius) and threat; after a number the symbols of its
    flags (of any seed). N: the number of images."""
    frame, raised, sizes = suite_rates(results), flags(results), summary(results)
    text = pd.DataFrame({"configuration": sizes["name"], "deployed": sizes["n_params_deployed_ratio"].map(percent)})
    for attack, eps in attacks:
        rows = frame[(frame["attack"] == attack) & np.isclose(frame["eps"], eps)]
        n = "/\u200b".join(f"{n:,.0f}" for n in sorted(rows["n_examples"].unique()))
        head = f"{ATTACKS[attack]}{_at(eps) if eps else ''}, {_on(n or '–')}"
        cells = {}
        for name, group in rows.groupby("name"):
            marks = {symbol for run_id in group["run_id"] for symbol in symbols(raised, run_id, attack, eps)}
            cells[name] = rate_text(group) + "".join(f" {mark}" for mark in sorted(marks))
        text[head] = [cells.get(name, "waiting") for name in sizes["name"]]
    for threat in threats:
        rows = strongest(results, threat)
        cells = {name: rate_text(group) for name, group in rows.groupby("name")}
        text[_head(threat)] = [cells.get(name, "waiting") for name in sizes["name"]]
    return table(text)


def comparison_table(results: Results, pairs: Sequence[tuple[str, str]], threats: Sequence[Threat]) -> Styler:
    """first - second in points, and below it a row a threat: the difference seed by seed with the Student interval over
    seeds; then the exact McNemar p-values of the seeds, each about two networks, adjusted by Holm over the whole table.
    """
    cells = {pair: [(threat, compare(results, *pair, threat)) for threat in threats] for pair in pairs}
    tests = [test for row in cells.values() for _, found in row for test in found.images.values()]
    adjusted = iter(holm([test.p_value for test in tests]))
    rows = []
    for (first, second), row in cells.items():
        rows.append((f"{first} − {second}", "", ""))
        for threat, found in row:
            p_values = [p_text(next(adjusted)) for _ in found.images]
            alike = len(p_values) > 1 and len(set(p_values)) == 1
            shown = f"{p_values[0]} each" if alike else ", ".join(p_values) or "–"
            rows.append((f"\u2003{_head(threat)}", str(found.gap), shown))
    return table(pd.DataFrame(rows, columns=["configurations", "difference in points", "p of each seed"]))


def p_text(p: float) -> str:
    """ "0.03", "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def flag_table(results: Results) -> Styler:
    """Each flag that is raised, on which attack and how many networks, with the evidence of one of them."""
    raised = flags(results)
    rows = [
        {
            "flag": f"{FLAGS[str(flag)].symbol}: {FLAGS[str(flag)].title}",
            "attack": ATTACKS.get(str(attack), str(attack)),
            "radius": f"{float(str(eps)):g}",
            "networks": str(group["run_id"].nunique()),
            "for example": f"{group['run_id'].iloc[0]}: {group['evidence'].iloc[0]}",
        }
        for (flag, attack, eps), group in raised.groupby(["flag", "attack", "eps"], sort=False)
    ]
    return table(pd.DataFrame(rows, columns=["flag", "attack", "radius", "networks", "for example"]))


CONFIDENCE = {
    "ece": "calibration error, %",
    "nll": "negative log-likelihood",
    "logit_scale": "logit scale",
    "logit_margin_q50": "median margin",
    "gradient_l1_q50": "median ‖∇L‖₁",
    "zero_gradient": "zero gradients, %",
    "saturated": "loss exactly 0, %",
}
_PERCENT = {"ece", "zero_gradient", "saturated"}


def confidence_table(results: Results) -> Styler:
    """Calibration, logits and gradients on clean images, means over seeds."""
    frame = ordered(results.select("confidence"))
    means = frame.pivot_table("value", "name", "quantity", sort=False).reindex(columns=list(CONFIDENCE))
    percents = 100 * means[sorted(_PERCENT)]
    rows = [
        {"configuration": name, **{CONFIDENCE[key]: number(row[key]) for key in CONFIDENCE}}
        for name, row in means.assign(**percents).iterrows()
    ]
    return table(pd.DataFrame(rows, columns=["configuration", *CONFIDENCE.values()]))


def effort(results: Results, attack: str) -> pd.DataFrame:
    """Where an attack was run at one radius with several options: run_id, eps, n, and `more`, how many of the common n
    images survive the row on the most images and not the others."""
    rows = results.attacks[results.attacks["attack"] == attack].astype({"eps": float, "n_examples": int})
    found = []
    for (run_id, eps), group in rows.groupby(["run_id", "eps"], sort=False):
        widest, *others = group.sort_values("n_examples", ascending=False, kind="stable").to_dict("records")
        for other in others:
            n = int(other["n_examples"])
            found.append((run_id, eps, n, int((alive(widest, n) & ~alive(other, n)).sum())))
    return pd.DataFrame(found, columns=["run_id", "eps", "n", "more"])


def scale_control(results: Results) -> pd.DataFrame:
    """attack, run_id, eps, and `more`: by how many points the accuracy on scaled logits is lower than on plain ones."""
    frame = suite_rates(results)
    plain = frame[["run_id", "attack", "eps", "rate"]]
    scaled = plain[plain["attack"].str.endswith("_scaled")]
    scaled = scaled.assign(attack=scaled["attack"].str.removesuffix("_scaled"))
    both = plain.merge(scaled, on=["run_id", "attack", "eps"], suffixes=("", "_scaled"))
    return both.assign(more=both["rate"] - both["rate_scaled"])


def transfer_text(results: Results) -> str:
    """Whether any network is fooled better by images of another than by its own."""
    frame = results.transfer.assign(rate=lambda f: 100 * f["n_correct"].astype(float) / f["n_examples"].astype(float))
    own = frame[frame["run_id"] == frame["target"]].set_index("target")["rate"]
    foreign = frame[(frame["run_id"] != frame["target"]) & frame["target"].isin(own.index)]
    if foreign.empty:
        return "No transfer has been measured yet."
    least = foreign.groupby("target")["rate"].min()
    margin = (least - own[least.index]).sort_values()
    worst = margin.index[0]
    verdict = "No network" if margin.iloc[0] >= 0 else f"{int((margin < 0).sum())} of {len(margin)} networks"
    return (
        f"{verdict} is fooled better by foreign images than by its own: the smallest difference, of `{worst}`, is "
        f"{signed(margin.iloc[0], 1)} points. Averaged over targets, own images leave {own.mean():.1f} % and "
        f"foreign ones {foreign['rate'].mean():.1f} %."
    )


def partial_rank_correlations(frame: pd.DataFrame, of: str, predictors: tuple[str, str]) -> dict[str, float]:
    """Spearman's ρ of a column with each of two predictors, the other one held: (ρ_xy - ρ_xz ρ_yz) /
    √((1 - ρ_xz²)(1 - ρ_yz²)). nan for fewer than four rows."""
    rho = frame[[of, *predictors]].astype(float).rank().corr().to_numpy()
    found = {}
    for x, z in ((1, 2), (2, 1)):
        scale = math.sqrt(max(0.0, (1 - rho[x, z] ** 2) * (1 - rho[0, z] ** 2)))
        partial = (rho[x, 0] - rho[x, z] * rho[0, z]) / scale if len(frame) > 3 and scale > 0 else math.nan
        found[predictors[x - 1]] = float(partial)
    return found


def causes_text(frame: pd.DataFrame, under: str) -> str:
    """What the accuracy under an attack follows: κ with the norms held, or the norms with κ held. frame: one row a
    network with rate, kappa and gain, as of `threat_model.exposed` or `analysis.sensitivity`."""
    found = partial_rank_correlations(frame, "rate", ("kappa", "gain"))
    if not all(math.isfinite(value) for value in found.values()):
        return f"Under {under} too few different networks are measured for a correlation."
    leader = "the product of the norms" if abs(found["gain"]) > abs(found["kappa"]) else "κ"
    return (
        f"Under {under}, over {len(frame)} networks, the rank correlation of the accuracy with the largest κ of a "
        f"layer is {signed(found['kappa'])} with the product of the spectral norms held, and with that product "
        f"{signed(found['gain'])} with κ held: of the two, it follows {leader}."
    )


# --- figures ---------------------------------------------------------------------------------------------------------


def _from_clean(results: Results, attack: str) -> pd.DataFrame:
    """The rows of an attack, and those of the same networks without one."""
    frame = suite_rates(results)
    rows = frame[frame["attack"] == attack]
    clean = frame[(frame["attack"] == "clean") & frame["run_id"].isin(rows["run_id"])].drop_duplicates("run_id")
    return pd.concat([clean, rows])


def plot_radii(results: Results, attacks: Sequence[str], largest: Mapping[str, float]) -> Figure:
    """Accuracy under each attack against the radius, up to `largest` of its norm, where all configurations have it."""
    fig, axes = panels([ATTACKS[attack] for attack in attacks], 3, 2.5, "row")
    for i, (ax, attack) in enumerate(zip(axes, attacks, strict=True)):
        rows = _from_clean(results, attack)
        rows = rows[rows["eps"] <= rows["norm"].map(largest).fillna(math.inf)]
        shared = rows.groupby("eps")["name"].transform("nunique") == rows["name"].nunique()
        draw(ax, rows[shared], "eps", "rate")
        ax.set(xlabel="radius ε", ylabel="" if i % 3 else "accuracy, %")
        ax.locator_params(axis="x", nbins=4)
    return finish(fig)


def plot_corruptions(results: Results, corruptions: Sequence[str]) -> Figure:
    """Error on corrupted images against the severity, each corruption on a logarithmic scale of its own."""
    fig, axes = panels([ATTACKS[corruption] for corruption in corruptions], 3, 2.8, "none")
    for i, (ax, corruption) in enumerate(zip(axes, corruptions, strict=True)):
        rows = _from_clean(results, corruption)
        draw(ax, rows.assign(error=100 - rows["rate"]), "eps", "error", log=True)
        ax.set(xlabel="severity", ylabel="" if i % 3 else "error, %", xticks=range(6))
    return finish(fig)


def plot_pareto(results: Results, threats: Sequence[Threat]) -> Figure:
    """Accuracy under each threat against deployed parameters: the mean of each configuration, and a line from its worst
    to its best seed. Those of one size stand side by side, so that none hides another."""
    fig, axes = panels([f"{threat.label}, ε = {threat.eps:g}" for threat in threats], 2, 3.0, "none")
    for i, (ax, threat) in enumerate(zip(axes, threats, strict=True)):
        frame = strongest(results, threat)
        frame = frame.assign(size=100 * frame["n_params_deployed"] / frame["n_params_dense"])
        points = frame.groupby(["label", "name"], sort=False).agg(
            {**dict.fromkeys(["method", *SETTINGS], "first"), "size": "mean", "rate": ["mean", "min", "max"]}
        )
        alike = points.groupby(points["size", "mean"].round(1).to_numpy(), sort=False)
        place = alike.cumcount() - (alike["rate"].transform("size").to_numpy() - 1) / 2
        x = points["size", "mean"] * 1.03**place
        for label, rows in points.groupby(level="label", sort=False):
            _, color, marker, _, fill = look(**rows.iloc[0][["method", *SETTINGS]].droplevel(1))
            at = x[rows.index]
            ax.vlines(at, rows["rate", "min"], rows["rate", "max"], color=color, linewidth=0.9)
            ax.plot(at, rows["rate", "mean"], color=color, marker=marker, fillstyle=fill, linestyle="", label=label)
        ax.set(xscale="log", xlabel="deployed parameters, %", ylabel="" if i else "accuracy, %")
    return finish(fig)


def plot_causes(results: Results, threat: Threat) -> Figure:
    """Accuracy under a threat against κ and against the norms, one point a network."""
    return against_spectra(exposed(results, threat), f"{threat.label},{_at(threat.eps)}")


def plot_transfer(results: Results) -> Figure:
    """Accuracy of each network (column) on images crafted against each network (row); the diagonal is white-box."""
    names = ordered(results.runs).set_index("run_id")["name"]
    frame = results.transfer[results.transfer["target"].isin(names.index)]
    frame = frame.assign(rate=100 * frame["n_correct"].astype(float) / frame["n_examples"].astype(float))
    order = [run_id for run_id in names.index if run_id in set(frame["run_id"])]
    matrix = frame.pivot_table("rate", "run_id", "target").reindex(index=order, columns=order)
    fig, (ax,) = panels([""], 1, 0.45 * max(4, len(order)) + 1.2)
    if not order:
        return finish(fig)
    labels = [names[run_id] for run_id in order]
    values = matrix.to_numpy(dtype=float)
    lowest = 10 * math.floor(np.nanmin(values) / 10)
    sns.heatmap(
        matrix, annot=True, fmt=".1f", cmap="cividis", vmin=lowest, vmax=100, ax=ax, linewidths=0.5,
        xticklabels=labels, yticklabels=labels, cbar_kws={"label": "accuracy, %"},
    )  # fmt: skip
    ax.set(xlabel="attacked network", ylabel="images crafted on")
    shades = np.asarray(ax.collections[0].get_facecolor())[np.isfinite(values).ravel()]
    for text, shade in zip(ax.texts, shades, strict=True):
        text.set_color("black" if sns.utils.relative_luminance(shade) > 0.18 else "white")  # of equal contrast at 0.18
    ax.tick_params(axis="x", rotation=30)
    for text in ax.get_xticklabels():
        text.set_horizontalalignment("right")
    return fig


def distances(results: Results) -> pd.DataFrame:
    """One row an image and network: name and settings of the run, distance (l2; 0 if misclassified as it is)."""
    frame = ordered(results.select("distortions"))
    parts = [
        pd.DataFrame({**{key: row[key] for key in ("run_id", "name", "label", "method", *SETTINGS, "seed")},
                      "distance": unpack_distances(row["distances"], int(row["n_examples"]))})
        for row in frame.to_dict("records")
    ]  # fmt: skip
    columns = ["run_id", "name", "label", "method", *SETTINGS, "seed", "distance"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def plot_distances(results: Results) -> Figure:
    """The fraction of images whose smallest adversarial perturbation is longer than a distance; seeds pooled."""
    frame = distances(results)
    fig, (ax,) = panels([""], 1, 3.2)
    for name, rows in frame.groupby("name", sort=False):
        _, color, _, dash, _ = look(**rows.iloc[0][["method", *SETTINGS]])
        ordered_distances = np.sort(rows["distance"].to_numpy(dtype=float))
        above = 100 * (1 - np.arange(1, len(ordered_distances) + 1) / len(ordered_distances))
        median = f", median {np.median(ordered_distances):.2f}"
        ax.step(ordered_distances, above, where="post", color=color, linestyle=dash, label=f"{name}{median}")
    ax.set(xlabel="ℓ₂ distance", ylabel="images farther away, %", ylim=(0, 101))
    finite = frame["distance"][np.isfinite(frame["distance"].astype(float))]
    if len(finite):
        ax.set_xlim(0, float(np.quantile(finite.astype(float), 0.999)))
    return finish(fig)
