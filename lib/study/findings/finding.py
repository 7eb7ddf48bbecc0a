"""A finding: a claim, the numbers that a sentence of the book quotes for it, and the bands in which it wants them.

The sentences are written by a person, in Markdown. A number in them stands between two comments that no reader sees,

    CondLR ends <!--accuracy.cost.gap-->0.1 ± 0.2<!----> points below dense SGD.

which name the file of the finding in this folder, its function, and the number. `fill` writes the numbers anew; a
test fails when one of them is not what the committed results say, or has left its band: then the sentence is false,
and somebody has to write another.
"""

from __future__ import annotations

import functools
import importlib
import math
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from study import paths
from study.experiments import cells
from study.experiments.specification import Experiment
from study.results.store import Results
from study.statistics.comparison import Gap, decimals
from study.statistics.frames import summary
from wellcond.errors import unknown

MARK = re.compile(r"<!--(\w+\.\w+\.\w+)-->(.*?)<!---->")


@dataclass(frozen=True)
class Number:
    """A value and the band low <= value <= high that its sentence needs; nan is in no band.

    margin: half the width of its 95 % interval, nan if it has none; digits: decimals, by default those of one
    significant digit of the margin; signed: with a plus where it is positive.
    """

    value: float
    low: float = -math.inf
    high: float = math.inf
    margin: float = math.nan
    digits: int | None = None
    signed: bool = False

    @property
    def holds(self) -> bool:
        return self.low <= self.value <= self.high

    @property
    def text(self) -> str:
        """ "0.1 ± 0.2", "−1.3", "12,300"; no more decimals than the margin bears out, and three digits without one."""
        known = math.isfinite(self.margin) and self.margin > 0
        scale = self.margin if known else abs(self.value) / 100
        digits = self.digits if self.digits is not None else decimals(scale) if scale else 0
        rounded = round(float(self.value), digits) + 0.0  # no zero has a minus
        shown = f"{rounded:{'+' if self.signed else ''},.{digits}f}".replace("-", "−")
        return f"{shown} ± {self.margin:.{digits}f}" if known else shown


def gap(found: Gap, low: float = -math.inf, high: float = math.inf) -> Number:
    """A difference in points over seeds, with its margin."""
    return Number(found.difference, low, high, found.margin, signed=True)


def size(found: Gap, low: float = 0, high: float = math.inf, digits: int | None = None) -> Number:
    """How large a difference is, for a sentence that says in which direction: the band is that of first - second times
    its sign in the sentence, so that a change of sign leaves it."""
    return Number(found.difference, low, high, found.margin, digits)


def clear(found: Gap) -> Number:
    """A positive difference whose interval excludes zero, with decimals enough to see that."""
    close = 0 <= round(found.difference) - round(found.margin) <= 1 < found.margin
    return size(found, low=found.margin, digits=1 if close else None)


def unclear(found: Gap, most: float = math.inf) -> Number:
    """A difference of at most so many points, whose interval has zero in it."""
    end = min(most, found.margin)
    return gap(found, low=-end, high=end)


@dataclass(frozen=True)
class Finding:
    """key: file.function; claim: what the sentence says, without numbers; numbers: by name."""

    key: str
    claim: str
    numbers: Mapping[str, Number]

    @property
    def holds(self) -> bool:
        """Whether every number is in its band."""
        return all(number.holds for number in self.numbers.values())


FINDINGS: dict[str, Callable[[], Finding]] = {}
"""What computes each finding, by its key."""


def finding(claim: str) -> Callable[[Callable[[], Mapping[str, Number]]], Callable[[], Finding]]:
    """Register a function that returns the numbers of a claim; its file and its name are the key."""

    def register(numbers: Callable[[], Mapping[str, Number]]) -> Callable[[], Finding]:
        key = f"{numbers.__module__.rpartition('.')[2]}.{numbers.__name__}"

        @functools.cache
        def found() -> Finding:
            with paths.only_committed():  # the sentences are about these, whatever results a reader works with
                return Finding(key, claim, numbers())

        FINDINGS[key] = found
        return found

    return register


@functools.cache
def committed(experiment: str) -> Results:
    """The committed results of an experiment."""
    return cells.load(Experiment.load(experiment))


@functools.cache
def summarized(experiment: str) -> pd.DataFrame:
    """`frames.summary` of the committed results of an experiment, by full name."""
    return summary(committed(experiment)).set_index("name")


def share(experiment: str, name: str, low: float, high: float) -> Number:
    """The deployed parameters of a configuration, in percent of the dense network."""
    return Number(100 * float(summarized(experiment)["n_params_deployed_ratio"][name]), low, high, digits=0)


def every() -> dict[str, Callable[[], Finding]]:
    """FINDINGS, with all files of this folder read."""
    folder = Path(__file__).parent
    for file in pkgutil.iter_modules([str(folder)]):
        importlib.import_module(f"study.findings.{file.name}")
    return FINDINGS


def listed(file: str = "") -> pd.DataFrame:
    """The findings of a file of this folder, or of all: one row each of claim, numbers, whether it holds, and its key.
    Raises ValueError for a file that has none."""
    files = {key.partition(".")[0] for key in every()}
    if file and file not in files:
        raise unknown("file", file, sorted(files))
    found = [compute() for key, compute in every().items() if file in ("", key.partition(".")[0])]
    rows = [
        {
            "claim": one.claim,
            "numbers": ", ".join(f"{name} {number.text}" for name, number in one.numbers.items()),
            "holds": "yes" if one.holds else "no",
            "key": one.key,
        }
        for one in found
    ]
    return pd.DataFrame(rows, columns=["claim", "numbers", "holds", "key"])


def quoted(text: str) -> list[str]:
    """The keys, file.function.number, of the numbers in a text."""
    return [key for key, _ in MARK.findall(text)]


def filled(text: str) -> str:
    """The text with its numbers as the committed results have them. Raises ValueError for a key that is none."""
    known = every()

    def number(match: re.Match[str]) -> str:
        key, name = match[1].rsplit(".", 1)
        if key not in known:
            raise unknown("finding", key, known)
        numbers = known[key]().numbers
        if name not in numbers:
            raise unknown(f"number of {key}", name, numbers)
        return f"<!--{match[1]}-->{numbers[name].text}<!---->"

    return MARK.sub(number, text)


def pages() -> list[Path]:
    """The pages of the book, and the README."""
    book = paths.ROOT / "book"
    return [*sorted(book.glob("*.ipynb")), *sorted(book.glob("*.md")), paths.ROOT / "README.md"]


def fill(files: Iterable[Path]) -> list[Path]:
    """Write the numbers into the files; returns those that changed. Nothing else in a file is touched."""
    changed = []
    for file in files:
        before = file.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            file.write_text(after, encoding="utf-8")
            changed.append(file)
    return changed
