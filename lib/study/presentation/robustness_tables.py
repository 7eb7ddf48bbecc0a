"""Tables and sentences on the attack suite: what survives, with intervals, flags, paired tests.

Rates are counted on the first test images, the same for every network; those under the strongest of several attacks
are of `study.statistics.threat_model`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from study.presentation.style import ATTACKS, number, percent, signed, table
from study.results.store import Results
from study.statistics.comparison import holm
from study.statistics.flags import FLAGS, felled_only, flags_of, symbols
from study.statistics.frames import ordered, rate_text, suite_rates, summary
from study.statistics.threat_model import Threat, alive, compare, standing, strongest


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
    counted = counted[counted["n_examples"] == counted["n_test"]]
    if counted.empty:
        return text
    off = (counted["value"] - counted["n_correct"]).abs()
    return (
        f"{text} Networks whose weights had not been kept were trained again: of {len(off)}, {int((off == 0).sum())} "
        f"have exactly the clean count that the grid recorded, the others differ by at most {off.max():.0f} images of "
        f"{counted['n_test'].max():,.0f} (the order of operations has changed since, and rounding with it)."
    )


def inheritance_text(results: Results, *attacks: str) -> str:
    """An image that withstands one of the attacks in a ball is counted as withstanding it in smaller balls. Where these
    were attacked in full all the same: how many of the images that had withstood the larger ball fell in the smaller;
    empty if there is no such case."""
    rows = results.attacks
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


def flags(results: Results) -> pd.DataFrame:
    """The flags on all numbers of the suite; see `study.statistics.flags`."""
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
    rows = results.attacks[results.attacks["attack"] == attack]
    found = []
    for (run_id, eps), group in rows.groupby(["run_id", "eps"], sort=False):
        widest, *others = group.sort_values("n_examples", ascending=False, kind="stable").to_dict("records")
        for other in others:
            n = int(other["n_examples"])
            found.append((run_id, eps, n, felled_only(alive(widest, n), alive(other, n))[0]))
    return pd.DataFrame(found, columns=["run_id", "eps", "n", "more"])


def additions(results: Results, attack: str) -> pd.DataFrame:
    """What an attack adds to all others of its norm: eps, run_id, left (how many of its images survive the others, at
    this radius and at smaller ones) and felled (how many of these fall to it)."""
    rows = results.attacks
    found = []
    for row in rows[rows["attack"] == attack].to_dict("records"):
        n, own = row["n_examples"], rows[(rows["run_id"] == row["run_id"]) & (rows["attack"] != attack)]
        inside = own[(own["eps"] <= row["eps"]) & (own["n_examples"] >= n)]
        left = standing(inside[(inside["attack"] == "clean") | (inside["norm"] == row["norm"])], n)
        found.append((row["eps"], row["run_id"], int(left.sum()), felled_only(left, alive(row, n))[0]))
    return pd.DataFrame(found, columns=["eps", "run_id", "left", "felled"])


def additions_text(results: Results, *attacks: str) -> str:
    """A line for each attack and radius: how many images, and at most on any network, fall to it alone."""
    lines = []
    for attack in attacks:
        for eps, rows in additions(results, attack).groupby("eps"):
            networks = "1 network" if len(rows) == 1 else f"{len(rows)} networks"
            most = rows.nlargest(1, "felled").iloc[0]
            felled = f"{rows['felled'].sum():,} more, at most {most['felled']} of {most['left']} on any network"
            lines.append(
                f"- {ATTACKS[attack]} at ε = {eps:g} is left {rows['left'].sum():,} images by the others, on {networks}"
                f", and fells {felled if most['felled'] else 'none of them'}."
            )
    return "\n".join(lines)


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
    frame = results.transfer.assign(rate=lambda f: 100 * f["n_correct"] / f["n_examples"])
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
    rho = frame[[of, *predictors]].rank().corr().to_numpy()
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
