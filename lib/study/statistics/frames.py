"""What the tables of results say, as frames with a row for each network or configuration.

A configuration is a method with its settings (ratio, max_cond). Rates are computed here, from counts: a single count
has a Wilson interval, several seeds have a mean and a sample standard deviation, and two configurations are compared
seed by seed. A cell that is missing is "waiting", one that diverged is "diverged", never a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd

from study.results.outcomes import unpack_distances
from study.results.store import Results
from study.results.tables import framed
from study.settings import ADVERSARIAL, SETTINGS, label_suffix, name_suffix, parsed
from study.statistics.comparison import Gap, mean_std, student, wilson
from study.statistics.looks import LOOKS, look

_DENSE = {"n_params_trained": "n_params_dense", "n_params_deployed": "n_params_dense", "flops_deployed": "flops_dense"}


def ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """With a full name for each configuration, by method, then ratio and bound; numbers as floats."""
    frame = frame.astype(dict.fromkeys(frame.select_dtypes("number"), float))
    place = frame["method"].map({method: i for i, method in enumerate(LOOKS)}).fillna(len(LOOKS))
    about = frame[["label", *SETTINGS]]
    which = about.groupby([*about], dropna=False, sort=False).ngroup()  # few configurations in many rows
    names = [f"{row['label']}{name_suffix(_numbers(row))}" for row in about[~which.duplicated()].to_dict("records")]
    frame = frame.assign(name=np.array(names, dtype=object)[which] if names else "", place=place)
    by = ["place", "method", *SETTINGS]
    return frame.sort_values(by, kind="stable", na_position="first", ignore_index=True).drop(columns="place")


def _numbers(row: Mapping[Any, Any]) -> dict[str, float | None]:
    return {key: row[key] for key in SETTINGS}


def _settings(run_ids: Sequence[str]) -> pd.DataFrame:
    """What a run_id spells out (condlr-r0.8-c1.1-s0), for a cell that has no row yet."""
    rows = [parsed(run_id) for run_id in run_ids]
    labels = [f"{look(str(row['method'])).label}{label_suffix(_numbers(row))}" for row in rows]
    about = zip(rows, run_ids, labels, strict=True)
    return framed(
        "runs", ({**row, "run_id": run_id, "label": label, "status": "waiting"} for row, run_id, label in about)
    )


# --- parts of results ------------------------------------------------------------------------------------------------


def training(row: Mapping[Any, Any]) -> str:
    """ "PGD-AT, ε = 0.1": how the network of a row was trained; "plain" without an adversary."""
    return name_suffix({key: row[key] for key in ADVERSARIAL}).removeprefix(", ") or "plain"


def trainings(results: Results) -> dict[str, Results]:
    """The parts with plain training and with each adversarial one."""
    absent = _settings(results.missing)
    about = pd.concat([results.runs[["run_id", *ADVERSARIAL]], absent[["run_id", *ADVERSARIAL]]])
    kinds = {row["run_id"]: training(row) for row in about.to_dict("records")}
    order = dict.fromkeys(kinds[run_id] for run_id in sorted(kinds, key=lambda run_id: kinds[run_id] != "plain"))
    return {kind: results.restricted([run_id for run_id, own in kinds.items() if own == kind]) for kind in order}


def pick(
    results: Results,
    methods: Sequence[str] = (),
    ratios: Sequence[float] = (),
    bounds: Sequence[float] = (),
    decays: Sequence[float] = (),
) -> Results:
    """The part with these methods, ratios, bounds on κ and decays α; what has no such setting stays."""

    def chosen(frame: pd.DataFrame) -> list[str]:
        keep = frame["method"].isin(methods or list(frame["method"]))
        for column, allowed in (("ratio", ratios), ("max_cond", bounds), ("decay", decays)):
            values = frame[column]
            keep &= values.isna() | values.isin(allowed or list(values))
        return list(frame.loc[keep, "run_id"])

    return results.restricted([*chosen(results.runs), *chosen(_settings(results.missing))])


def matching(results: Results, *patterns: str) -> Results:
    """The part whose run_ids match one of these patterns, such as "condlr-*", done or missing."""
    run_ids = [*results.runs["run_id"], *results.missing]
    return results.restricted([name for name in run_ids if any(fnmatchcase(name, pattern) for pattern in patterns)])


def attacked(results: Results) -> Results:
    """The part that the attack suite has measured."""
    return results.restricted(results.attacks["run_id"])


# --- frames ----------------------------------------------------------------------------------------------------------


def with_rates(frame: pd.DataFrame, counts: str = "n_correct", of: str = "n_examples") -> pd.DataFrame:
    """With rate, low, high in %: a column of counts over another, and its Wilson interval."""
    bounds = [wilson(k, n) for k, n in zip(frame[counts], frame[of], strict=True)]
    low, high = ([100 * bound[end] for bound in bounds] for end in (0, 1))
    return frame.assign(rate=100 * frame[counts] / frame[of], low=low, high=high)


def beyond(results: Results, table: str, radius: float) -> pd.DataFrame:
    """Of each run of `table` (certified: radii that no attack can undercut; distortions: the smallest perturbations
    found) the rate of the images at least this far from another decision: `with_rates`, with the settings."""
    rows = results.select(table)
    far = [
        (unpack_distances(text, n) >= radius).sum()
        for text, n in zip(rows["distances"], rows["n_examples"], strict=True)
    ]
    return with_rates(rows.assign(n_correct=np.array(far, dtype=int)))


def rate_text(rows: pd.DataFrame, separator: str = "<br>") -> str:
    """Of `with_rates`: mean ± standard deviation over seeds, or one rate with its interval; of none, "waiting"."""
    if rows.empty:
        return "waiting"
    if len(rows) > 1:
        return mean_std(rows["rate"], 1)
    return f"{{rate:.1f}}{separator}[{{low:.1f}}, {{high:.1f}}]".format(**rows.iloc[0])


def rates(results: Results) -> pd.DataFrame:
    """One row per (run, attack, eps) of what was measured after training, attack "clean" included: `with_rates`."""
    runs = results.runs[results.runs["status"] == "done"]
    clean = runs.assign(attack="clean", eps=0.0, n_examples=runs["n_test"])
    attacked = results.select("robustness")
    frame = pd.concat([part[attacked.columns.intersection(part.columns)] for part in (clean, attacked)])
    return with_rates(ordered(frame))


def suite_rates(results: Results) -> pd.DataFrame:
    """One row per (run, attack, eps) of the attack suite: `with_rates`.

    Of several rows of an attack at a radius, with other options, the one on the most images.
    """
    frame = ordered(results.select("attacks"))
    frame = frame.sort_values("n_examples", ascending=False, kind="stable")
    return with_rates(frame.drop_duplicates(["run_id", "attack", "eps"]).sort_index())


def by_seed(results: Results, attack: str = "clean", eps: float = 0.0) -> pd.DataFrame:
    """Rates in %: one row a seed, one column a configuration, by its full name; nan where there is none."""
    frame = rates(results)
    frame = frame[(frame["attack"] == attack) & np.isclose(frame["eps"], eps)]
    names = list(dict.fromkeys(frame["name"]))
    return frame.pivot_table(index="seed", columns="name", values="rate").reindex(columns=names)


def compare(results: Results, first: str, second: str, attack: str = "clean", eps: float = 0.0) -> Gap:
    """Two configurations, by full name. They share split and initial draw of a seed, so the differences are paired."""
    return difference(by_seed(results, attack, eps), first, second)


def difference(rates: pd.DataFrame, first: str, second: str) -> Gap:
    """first - second in points, over the seeds that both have; rates: one row a seed, one column a configuration."""
    one, other = (rates.reindex(columns=[name])[name].astype(float) for name in (first, second))
    return student((one - other).dropna().tolist())


def kappas(results: Results) -> pd.DataFrame:
    return ordered(results.select("curves").query("quantity == 'kappa'"))


def final(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last epoch of each run."""
    return frame[frame["epoch"] == frame.groupby("run_id")["epoch"].transform("max")]


def spectral(results: Results) -> pd.DataFrame:
    """By run_id, after training: kappa, the largest κ of any layer, and gain, the product of all ‖W‖₂."""
    values = final(results.spectra).groupby(["run_id", "layer"])["singular_value"]
    kappa = (values.max() / values.min()).groupby("run_id").max()
    return pd.DataFrame({"kappa": kappa, "gain": values.max().groupby("run_id").prod()})


def with_spectra(results: Results, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the networks that have spectra, joined with `spectral` by run_id."""
    measured = spectral(results)
    return frame[frame["run_id"].isin(measured.index)].join(measured, on="run_id")


def sensitivity(results: Results, attack: str) -> pd.DataFrame:
    """The rates under an attack at its largest radius, joined with `spectral`: one row a network."""
    frame = rates(results)
    frame = frame[frame["attack"] == attack]
    largest = frame[frame["eps"] == frame["eps"].max()]
    return with_spectra(results, largest)


def summary(results: Results) -> pd.DataFrame:
    """One row a configuration: cells done, diverged, waiting; accuracy (%); counts, and their ratios to dense.

    kappa_max, orth_error_max: the largest κ(S) and orthogonality error of any constrained layer, epoch and seed;
    kappa, kappa_start: the largest κ of any layer and seed after training and before it. Counts, and the rank kept, are
    means over the seeds: those of a rank-adaptive method differ.
    """
    absent = _settings(results.missing)
    cells = ordered(pd.concat([part for part in (results.runs, absent) if len(part)] or [absent]))
    start = kappas(results).query("epoch == 0").groupby("run_id")["value"].max()
    cells = cells.assign(
        accuracy=100 * cells["n_correct"] / cells["n_test"],
        kappa=cells["run_id"].map(spectral(results)["kappa"]),
        kappa_start=cells["run_id"].map(start),
    )
    groups = cells.groupby(cells["run_id"].str.replace(r"-s\d+$", "", regex=True), sort=False)
    frame = groups[["name", "method", "label", *SETTINGS]].first()
    frame["rank_fraction"] = groups["rank_fraction"].mean()
    for state in ("done", "diverged", "waiting"):
        seeds = cells["seed"].map("{:.0f}".format).where(cells["status"] == state, "")
        frame[state] = [[seed for seed in seeds.iloc[rows] if seed] for rows in groups.indices.values()]
    frame["accuracy"], frame["accuracy_std"] = groups["accuracy"].mean(), groups["accuracy"].std()
    for count, dense in _DENSE.items():
        frame[count], frame[f"{count}_ratio"] = groups[count].mean(), groups[count].mean() / groups[dense].first()
    extremes = groups[["kappa_start", "kappa", "kappa_max", "orth_error_max"]].max()
    return pd.concat([frame, extremes, groups["wall_s"].mean()], axis=1).reset_index(drop=True)
