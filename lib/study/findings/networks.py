"""The networks that others can attack: what is left of their accuracy under the attacks here, an image at a time."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from study.findings.finding import Number, committed, finding
from study.statistics import frames

EXPERIMENT = "mnist_networks"
NAMES = {
    "dense": "dense-s0",
    "uv": "uv-r0.8-s0",
    "usv": "usv-r0.8-s0",
    "condlr": "condlr-r0.8-c1.1-s0",
    "half": "condlr-r0.5-c1.1-s0",
    "cut": "svd_finetuned-r0.8-s0",
    "soft": "soft_orthogonal_uv-r0.8-b0.01-s0",
    "shrunk": "robust_dlrt-r0.8-t0-b0.03-s0",
}
"""run_id by the name of its number."""


def counted(counts: pd.Series, low: int, high: int) -> Mapping[str, Number]:
    """Images that are right, by network; counts: by run_id."""
    return {key: Number(float(counts[run_id]), low, high, digits=0) for key, run_id in NAMES.items()}


@finding("Of 10,000 test images each of the networks to attack has 9,780 right or more.")
def right() -> Mapping[str, Number]:
    return counted(committed(EXPERIMENT).runs.set_index("run_id")["n_correct"], 9780, 9920)


@finding("Of 1,000 images forty steps of PGD leave between 670 and 820.")
def pgd() -> Mapping[str, Number]:
    rows = frames.rates(committed(EXPERIMENT)).query("attack == 'pgd_linf'")
    return counted(rows.set_index("run_id")["n_correct"], 670, 820)


@finding("Of 200 images AutoAttack leaves between 130 and 170.")
def auto() -> Mapping[str, Number]:
    rows = frames.suite_rates(committed(EXPERIMENT)).query("attack == 'autoattack_linf'")
    return counted(rows.set_index("run_id")["n_correct"], 130, 170)
