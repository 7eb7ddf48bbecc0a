"""The tables of an experiment: accuracy, size, κ and robustness of each configuration."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from study.presentation.style import ATTACKS, number, percent, table
from study.results.store import Results
from study.statistics.frames import compare, rate_text, rates, summary, training


def attack_name(attack: str, radius: float) -> str:
    return f"{ATTACKS[attack]} ε\u00a0=\u00a0{radius:g}"


def accuracy_text(row: Any) -> str:
    if not row.done:
        return "diverged" if row.diverged else "waiting"
    spread = f" ± {row.accuracy_std:.2f}" if len(row.done) > 1 else ""
    return f"{row.accuracy:.2f}{spread} ({len(row.done)}{f'; {len(row.diverged)} diverged' if row.diverged else ''})"


def _tests(measured: pd.DataFrame, radii: int, attacks: Iterable[str]) -> Iterator[tuple[str, float]]:
    """Each of the attacks that was measured, at so many radii > 0 at most: evenly, down from the largest."""
    for attack in attacks if radii else ():
        eps = sorted(measured.loc[(measured["attack"] == attack) & (measured["eps"] > 0), "eps"].unique())
        for radius in eps[:: -math.ceil(len(eps) / radii)][::-1] if eps else ():
            yield attack, float(radius)


def _table(results: Results, columns: Sequence[str], radii: int = 0, attacks: Iterable[str] = ATTACKS) -> Styler:
    """Some columns of the summary as text, and the rates under each of the attacks at so many radii at most."""
    frame = summary(results)
    texts: dict[str, Any] = {
        "method": frame["label"],
        "training": pd.Series([training(row) for row in frame.to_dict("records")], dtype=object),
        "rank removed": frame["ratio"].map(lambda r: "–" if math.isnan(r) else f"{100 * r:g} %"),
        "test accuracy, % (seeds)": pd.Series([accuracy_text(row) for row in frame.itertuples()], dtype=object),
        "rank kept": frame["rank_fraction"].map(percent),
        "κ before training": frame["kappa_start"].map(number),
        "κ after": frame["kappa"].map(number),
        "largest κ(S)": frame["kappa_max"].map(number),
        "relative excess": (frame["kappa_max"] / frame["max_cond"] - 1).map(number),
        "orthogonality error": frame["orth_error_max"].map(number),
        "deployed": frame["n_params_deployed_ratio"].map(percent),
        "FLOPs": frame["flops_deployed_ratio"].map(percent),
    }
    for count in ("trained", "deployed"):
        shares = zip(frame[f"n_params_{count}"], frame[f"n_params_{count}_ratio"], strict=True)
        texts[f"{count} parameters"] = [f"{n:,.0f} ({percent(share)})" if n > 0 else "–" for n, share in shares]
    text = pd.DataFrame({column: texts[column] for column in columns})
    measured = rates(results)
    for attack, radius in _tests(measured, radii, attacks):
        rows = measured[(measured["attack"] == attack) & (measured["eps"] == radius)]
        found = {name: rate_text(group, " ") for name, group in rows.groupby("name")}
        text[attack_name(attack, radius)] = frame["name"].map(found).fillna("–")
    return table(text)


def accuracy_table(results: Results) -> Styler:
    """Accuracy against compression, with all three counts and FLOPs, in percent of the dense network."""
    counts = ("rank kept", "trained parameters", "deployed parameters", "FLOPs")
    return _table(results, ("method", "rank removed", "test accuracy, % (seeds)", *counts))


def conditioning_table(results: Results) -> Styler:
    """Condition numbers and orthogonality errors, the largest of all layers and seeds, and by how much κ(S) exceeds its
    bound 1 + τ, which the method names."""
    kappas = ("κ before training", "κ after", "largest κ(S)", "relative excess", "orthogonality error")
    return _table(results, ("method", "rank removed", *kappas))


def robustness_table(results: Results, radii: int = 3) -> Styler:
    """Clean accuracy, and the percentage of images that are classified correctly before and after each attack."""
    return _table(results, ("method", "rank removed", "test accuracy, % (seeds)"), radii)


def training_table(results: Results, attack: str, radii: int = 3) -> Styler:
    """Each method under each training, plain or adversarial: size, accuracy, and accuracy under an attack."""
    columns = ("method", "training", "deployed", "test accuracy, % (seeds)")
    return _table(results, columns, radii, [attack])


def headline_table(results: Results) -> Styler:
    """Size, accuracy, condition number, and accuracy under each attack of many steps at its largest radius."""
    attacks = [attack for attack in ATTACKS if attack != "fgsm"]
    return _table(results, ("method", "rank removed", "deployed", "test accuracy, % (seeds)", "κ after"), 1, attacks)


def minus(first: str, second: str) -> str:
    """What the difference of two configurations is called: a ratio that both have is said once."""
    (a, _, ratio), (b, _, other) = first.partition(", ratio "), second.partition(", ratio ")
    return f"{a} − {b}, ratio {ratio}" if ratio and ratio == other else f"{first} − {second}"


def comparison_table(
    results: Results, pairs: Sequence[tuple[str, str]], attacks: Iterable[str] = ATTACKS, radii: int = 1
) -> Styler:
    """first - second in points for pairs of full names: clean, and under each of the attacks at so many radii at most,
    the largest among them."""
    tests = {"test accuracy": ("clean", 0.0)}
    tests |= {attack_name(*test): test for test in _tests(rates(results), radii, attacks)}
    rows = [[minus(*pair), *(str(compare(results, *pair, *test)) for test in tests.values())] for pair in pairs]
    return table(pd.DataFrame(rows, columns=["difference in points", *tests]))


def status_table(rows: Iterable[Mapping[str, Any]]) -> Styler:
    """What `study.status()` returns: cells done and missing of each experiment, and how many are diverged, failed, in
    progress or at work, where any is."""
    counts = pd.DataFrame({key: len(x) if isinstance(x, list | dict) else x for key, x in row.items()} for row in rows)
    always = ["experiment", "cells", "done", "missing"]
    return table(counts[[column for column in counts if column in always or counts[column].any()]])


def machines_table(provenance: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Styler:
    """On what the runs of each experiment were computed: {experiment: {run: its provenance}}, none without a run."""
    rows = []
    for experiment, runs in provenance.items():

        def said(*keys: str, runs: Mapping[str, Mapping[str, Any]] = runs) -> str:
            found = {
                str(functools.reduce(lambda part, key: part.get(key, {}), keys, run) or "–") for run in runs.values()
            }
            return ", ".join(sorted(found))

        if runs:
            days = sorted(str(run.get("finished", ""))[:10] for run in runs.values())
            rows.append(
                {
                    "experiment": experiment,
                    "runs": len(runs),
                    "processor or GPU": said("device"),
                    "threads": said("threads"),
                    "numbers": said("dtype"),
                    "Python, PyTorch": f"{said('versions', 'python')}; {said('versions', 'torch')}",
                    "finished": " to ".join(dict.fromkeys((days[0], days[-1]))),
                }
            )
    return table(pd.DataFrame(rows))


def validation_table(candidates: Mapping[str, Results]) -> Styler:
    """Validation images classified correctly at the end of training, in percent: a row a candidate, a column a method.

    candidates: the results of the same networks under different protocols, by what each is called.
    """
    rows = []
    for name, results in candidates.items():
        curves = results.select("curves")
        curves = curves[curves["epoch"] == curves.groupby("run_id")["epoch"].transform("max")]
        right, every = (
            curves[curves["quantity"] == quantity].groupby("label", sort=False)["value"].sum()
            for quantity in ("validation_n_correct", "validation_n")
        )
        rows.append({"protocol": name, **(100 * right / every).map("{:.1f}".format).to_dict()})
    return table(pd.DataFrame(rows))
