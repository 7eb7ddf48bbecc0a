"""Flags on robustness numbers that may say more about the attack than about the network.

The accuracy under an attack bounds the robust accuracy from above, and the bound is worthless where the attack failed.
Each rule looks for one trace of failure in the tables `attacks` and `confidence` of one run, by counting images. A
count becomes a flag if it is beyond chance and beyond what matters: more than `TOLERATED` of all images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import bdtrc

from study.results.outcomes import unpack
from wellcond.errors import invalid

TOLERATED = 0.005
"""Share of all images. Half a point is less than the half-width of the 95 % interval of a rate from 10 to 90 % that is
counted on 10,000 images or fewer (0.59 points at 90 %): too small an error to change a comparison here."""
AUTOATTACK_TOLERATED = 0.05
"""Share of all images that AutoAttack may fell after PGD. Its other losses and targeted steps fell some per cent more
on sound networks too; that one in twenty is too many is a judgement, ten times what is tolerated elsewhere."""
SIGNIFICANCE = 0.01
"""Level of the one-sided exact test against a tolerated share; a run has some fifty numbers, so not 5 %."""
GREY_RADIUS = {"linf": 0.5, "l2": 28.0}
"""From here on every ball contains the image that is 1/2 everywhere: ||x - 1/2|| <= 1/2 in linf and <= √d/2 in l2, 27.8
for d = 3 x 32 x 32 numbers, the most that an image has here."""
LARGEST_CLASS = 0.12
"""Share of the most frequent class, 11.4 % in MNIST and at most that in the other data sets. At a radius beyond
GREY_RADIUS all images share a point, so that no network keeps more than the images of one class."""

NORMS = ("linf", "l2")
SCALED = {
    "fgsm": "fgsm_scaled",
    **{f"{name}_{norm}": f"pgd_{norm}_scaled" for norm in NORMS for name in ("pgd", "mim")},
}
"""Gradient attacks on the cross-entropy, and the one on logits of a fixed scale that each is measured against."""
GRADIENT = (*SCALED, *dict.fromkeys(SCALED.values()))
SINGLE_STEP = ("fgsm", "fgsm_scaled")
EFFORT = ("steps", "restarts", "queries")

ATTACK_COLUMNS = ("run_id", "attack", "norm", "eps", "options", "n_examples", "outcomes")
CONFIDENCE_COLUMNS = ("run_id", "quantity", "value", "n_examples")
COLUMNS = ("run_id", "attack", "norm", "eps", "flag", "evidence")

Bits = NDArray[np.bool_]


class Row(NamedTuple):
    """An attack of a run at one radius; alive (n,): correct as it is and after the attack, by image."""

    attack: str
    norm: str
    eps: float
    options: str
    alive: Bits

    @property
    def effort(self) -> float:
        """Forward and backward passes, up to a constant: the product of the EFFORT options that it has."""
        options = dict(option.split("=", 1) for option in self.options.split())
        return math.prod(float(options[name]) for name in EFFORT if name in options)


class Share(NamedTuple):
    """A share of n images."""

    value: float
    n: int


@dataclass(frozen=True)
class Run:
    """The tables of one run: its attacks at positive radii, and the shares among its confidence quantities."""

    rows: tuple[Row, ...]
    shares: Mapping[str, Share]

    def of(self, *attacks: str) -> list[Row]:
        """The rows of these attacks."""
        return [row for row in self.rows if row.attack in attacks]

    def radii(self, attack: str) -> dict[float, list[Row]]:
        """The rows of an attack by radius; several with different options."""
        rows = self.of(attack)
        return {eps: [row for row in rows if row.eps == eps] for eps in dict.fromkeys(row.eps for row in rows)}


class Concern(NamedTuple):
    """A number that a rule doubts, and the measured evidence."""

    attack: str
    norm: str
    eps: float
    evidence: str


Rule = Callable[[Run], Iterator[Concern]]


@dataclass(frozen=True)
class Flag:
    """A flag of the registry: what it means and what to do, in a sentence each, and the rule that raises it."""

    name: str
    symbol: str
    title: str
    meaning: str
    remedy: str
    rule: Rule


def clearly_above(k: float, n: int, share: float) -> bool:
    """Whether k or more of n images are improbable, P(X >= k) < SIGNIFICANCE, for X ~ Binomial(n, share)."""
    return k > 0 and float(bdtrc(k - 1, n, share)) < SIGNIFICANCE


def survivors(rows: list[Row]) -> Bits:
    """Images that survive all of these rows, on their common first images."""
    n = min(len(row.alive) for row in rows)
    return np.logical_and.reduce([row.alive[:n] for row in rows])


def felled_only(first: Bits, second: Bits) -> tuple[int, int]:
    """How many of the common first images survive the first and fall to the second; the number of common images."""
    n = min(len(first), len(second))
    return int((first[:n] & ~second[:n]).sum()), n


# --- rules -----------------------------------------------------------------------------------------------------------


def _zero_gradients(run: Run) -> Iterator[Concern]:
    share = run.shares.get("zero_gradient")
    if share and clearly_above(round(share.value * share.n), share.n, TOLERATED):
        for row in run.of(*GRADIENT):
            yield Concern(*row[:3], f"{100 * share.value:.1f} % of {share.n:,} images have no gradient")


def _beaten_by(stronger: Mapping[str, str], tolerated: float) -> Rule:
    """{attack: another one}: the other fells more than the tolerated share of images among those that survive the
    attack with any options."""

    def rule(run: Run) -> Iterator[Concern]:
        for attack, other in stronger.items():
            others = run.radii(other)
            for eps, rows in run.radii(attack).items():
                if eps not in others:
                    continue
                k, n = felled_only(survivors(rows), survivors(others[eps]))
                if clearly_above(k, n, tolerated):
                    yield Concern(attack, rows[0].norm, eps, f"{k:,} of {n:,} images survive {attack}, not {other}")

    return rule


def _keeps_more_than_a_class(run: Run) -> Iterator[Concern]:
    for row in run.rows:
        k, n = int(row.alive.sum()), len(row.alive)
        enough = row.eps >= GREY_RADIUS.get(row.norm, math.inf) and row.attack not in SINGLE_STEP
        if enough and clearly_above(k, n, LARGEST_CLASS):
            yield Concern(*row[:3], f"{k:,} of {n:,} images survive where all could be made the same grey")


def _more_steps_help(run: Run) -> Iterator[Concern]:
    for attack in dict.fromkeys(row.attack for row in run.rows):
        for eps, rows in run.radii(attack).items():
            least, most = (choice(rows, key=lambda row: row.effort) for choice in (min, max))
            k, n = felled_only(least.alive, most.alive)
            back, _ = felled_only(most.alive, least.alive)  # random starts also lose images
            if most.effort > least.effort and clearly_above(k - back, n, TOLERATED):
                change = f"{least.options} to {most.options}"
                yield Concern(attack, least.norm, eps, f"from {change}, {k - back:,} more of {n:,} images fall")


def _logit_scale(run: Run) -> Iterator[Concern]:
    share = run.shares.get("saturated")
    saturated = share if share and clearly_above(round(share.value * share.n), share.n, TOLERATED) else None
    for attack, counterpart in SCALED.items():
        scaled = run.radii(counterpart)
        for eps, rows in run.radii(attack).items():
            norm = rows[0].norm
            if eps in scaled:
                plain, other = survivors(rows), survivors(scaled[eps])
                k, n = felled_only(plain, other)
                back, _ = felled_only(other, plain)
                if clearly_above(k - back, n, TOLERATED):
                    yield Concern(attack, norm, eps, f"on scaled logits {k - back:,} more of {n:,} images fall")
            elif saturated and not scaled:  # tried at one radius, it speaks for the others
                text = f"{100 * saturated.value:.1f} % of {saturated.n:,} images have a loss of exactly 0"
                yield Concern(attack, norm, eps, text)


# --- the registry ----------------------------------------------------------------------------------------------------

FLAGS: dict[str, Flag] = {
    flag.name: flag
    for flag in (
        Flag(
            "zero_gradient",
            "Z",
            "Zero gradients",
            "The loss of some images has no gradient at all, so that a gradient attack cannot move them.",
            "Believe only attacks that use no gradient, or remove what cuts the gradient from the attacked network.",
            _zero_gradients,
        ),
        Flag(
            "fgsm_stronger",
            "F",
            "PGD weaker than FGSM",
            "One step fells images that many steps in the same ball leave standing.",
            "Repair PGD before reading it: step size, random start, or a loss without useful gradients.",
            _beaten_by({"pgd_linf": "fgsm"}, TOLERATED),
        ),
        Flag(
            "square_stronger",
            "S",
            "Square stronger than PGD",
            "A random search that sees only the logits fells images that PGD with full access leaves standing.",
            "Report the accuracy after Square instead, and look for what hides the gradient.",
            _beaten_by({f"pgd_{norm}": f"square_{norm}" for norm in NORMS}, TOLERATED),
        ),
        Flag(
            "keeps_more_than_a_class",
            "G",
            "Right about grey images",
            "More images survive than any one class has, at a radius where all can be made the same grey image.",
            "Read no accuracy of this attack at any radius: the attack fails, and the curve is that of its failure.",
            _keeps_more_than_a_class,
        ),
        Flag(
            "more_steps_help",
            "M",
            "More steps still help",
            "The same attack with more steps or restarts fells more of the same images, so that it has not converged.",
            "Raise steps and restarts until the count stays, and report the largest effort.",
            _more_steps_help,
        ),
        Flag(
            "autoattack_stronger",
            "A",
            "AutoAttack much stronger than PGD",
            "AutoAttack fells many of the images that PGD leaves standing, more than other losses explain.",
            "Report AutoAttack, and do not compare networks by their accuracy under PGD.",
            _beaten_by({f"pgd_{norm}": f"autoattack_{norm}" for norm in NORMS}, AUTOATTACK_TOLERATED),
        ),
        Flag(
            "logit_scale",
            "L",
            "Logits too large",
            "The size of the logits weakens the attack: on scaled logits it fells more, or, where that was not tried, "
            "many losses are exactly zero in float32.",
            "Attack logits of a fixed scale, or a loss that does not depend on their scale.",
            _logit_scale,
        ),
    )
}


def _check(frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    absent = [column for column in columns if column not in frame]
    if absent:
        raise invalid("columns", list(frame.columns), f"including {', '.join(absent)}")


def _text(value: object) -> str:
    """A blank of a CSV file is read as nan."""
    return value if isinstance(value, str) else ""


def _run(attacks: pd.DataFrame, confidence: pd.DataFrame) -> Run:
    rows = (
        Row(row["attack"], _text(row["norm"]), row["eps"], _text(row["options"]), _alive(row))
        for row in attacks[attacks["eps"] > 0].to_dict("records")
    )
    shares = {row["quantity"]: Share(row["value"], int(row["n_examples"])) for row in confidence.to_dict("records")}
    return Run(tuple(rows), shares)


def _alive(row: Mapping[Any, Any]) -> Bits:
    return unpack(row["outcomes"], int(row["n_examples"]))


def flags_of(attacks: pd.DataFrame, confidence: pd.DataFrame) -> pd.DataFrame:
    """One row for each number and each flag on it: run_id, attack, norm, eps, flag (a key of FLAGS), evidence.

    attacks, confidence: the tables of any number of runs. What was not measured raises no flag: silence is no proof.
    Raises ValueError for a table without the columns that are read, or outcomes of another length than n_examples.
    """
    _check(attacks, ATTACK_COLUMNS)
    _check(confidence, CONFIDENCE_COLUMNS)
    found = []
    for run_id, part in attacks.groupby("run_id", sort=False):
        run = _run(part, confidence[confidence["run_id"] == run_id])
        for flag in FLAGS.values():
            found += [(run_id, c.attack, c.norm, c.eps, flag.name, c.evidence) for c in flag.rule(run)]
    # several rows of an attack at a radius, with other options, are one number
    return pd.DataFrame(found, columns=list(COLUMNS)).drop_duplicates(list(COLUMNS[:-1]), ignore_index=True)


def symbols(flags: pd.DataFrame, run_id: str, attack: str, eps: float) -> str:
    """The symbols on one number, in the order of FLAGS: "ZS"; "" for none. flags: from `flags_of`."""
    at = (flags["run_id"] == run_id) & (flags["attack"] == attack) & np.isclose(flags["eps"], eps)
    raised = set(flags.loc[at, "flag"])
    return "".join(flag.symbol for flag in FLAGS.values() if flag.name in raised)
