"""Tables on the attack suite: what survives, with intervals and flags; and differences, seed by seed.

Rates are counted on the first test images, the same for every network; those under the strongest of several attacks
are of `study.statistics.threat_model`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from study.presentation.style import ATTACKS, number, table
from study.presentation.tables import minus
from study.results.store import Results
from study.statistics.flags import FLAGS, felled_only, flags_of, symbols
from study.statistics.frames import by_seed as clean_by_seed
from study.statistics.frames import difference, ordered, rate_text, suite_rates, summary
from study.statistics.threat_model import Threat, alive, by_seed, standing, strongest


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
    """The accuracy in % under each (attack, radius) and threat; after a number the symbols of its flags (of any seed).
    N: the number of images."""
    frame, raised, names = suite_rates(results), flags(results), summary(results)["name"]
    text = pd.DataFrame({"configuration": names})
    for attack, eps in attacks:
        rows = frame[(frame["attack"] == attack) & np.isclose(frame["eps"], eps)]
        n = "/\u200b".join(f"{n:,.0f}" for n in sorted(rows["n_examples"].unique()))
        at = f" severity\u00a0{eps:g}" if (rows["norm"] == "corruption").any() else _at(eps) if eps else ""
        head = f"{ATTACKS[attack]}{at}, {_on(n or '–')}"
        cells = {}
        for name, group in rows.groupby("name"):
            marks = {symbol for run_id in group["run_id"] for symbol in symbols(raised, run_id, attack, eps)}
            cells[name] = rate_text(group) + "".join(f" {mark}" for mark in sorted(marks))
        text[head] = [cells.get(name, "waiting") for name in names]
    for threat in threats:
        rows = strongest(results, threat)
        cells = {name: rate_text(group) for name, group in rows.groupby("name")}
        text[_head(threat)] = [cells.get(name, "waiting") for name in names]
    return table(text)


def comparison_table(results: Results, pairs: Sequence[tuple[str, str]], threats: Sequence[Threat]) -> Styler:
    """first - second in points for pairs of full names, paired seed by seed, with the 95 % Student interval over seeds:
    on clean images, and under each threat. Pairs without a common seed are left out."""
    tests = {"test accuracy": clean_by_seed(results)} | {_head(threat): by_seed(results, threat) for threat in threats}
    rows = []
    for first, second in pairs:
        gaps = {head: difference(rates, first, second) for head, rates in tests.items()}
        if any(gap.seeds for gap in gaps.values()):
            rows.append([minus(first, second), *map(str, gaps.values())])
    return table(pd.DataFrame(rows, columns=["difference in points", *tests]))


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
    rows = rows[rows.duplicated(["run_id", "eps"], keep=False)]
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


def scale_control(results: Results) -> pd.DataFrame:
    """attack, run_id, eps, and `more`: by how many points the accuracy on scaled logits is lower than on plain ones."""
    frame = suite_rates(results)
    plain = frame[["run_id", "attack", "eps", "rate"]]
    scaled = plain[plain["attack"].str.endswith("_scaled")]
    scaled = scaled.assign(attack=scaled["attack"].str.removesuffix("_scaled"))
    both = plain.merge(scaled, on=["run_id", "attack", "eps"], suffixes=("", "_scaled"))
    return both.assign(more=both["rate"] - both["rate_scaled"])
