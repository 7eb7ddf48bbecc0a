"""The networks that others can attack: what is left of their accuracy under the attacks here, an image at a time."""

from __future__ import annotations

from collections.abc import Mapping

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


@finding("Of 10,000 test images each of the networks to attack has 9,780 right or more.")
def right() -> Mapping[str, Number]:
    counts = committed(EXPERIMENT).runs.set_index("run_id")["n_correct"]
    return {key: Number(float(counts[run_id]), 9780, 9920, digits=0) for key, run_id in NAMES.items()}


@finding("Of 1,000 images forty steps of PGD leave between 670 and 820.")
def pgd() -> Mapping[str, Number]:
    rows = frames.rates(committed(EXPERIMENT)).query("attack == 'pgd_linf'").set_index("run_id")["n_correct"]
    return {key: Number(float(rows[run_id]), 670, 820, digits=0) for key, run_id in NAMES.items()}


@finding("Of 200 images AutoAttack leaves between 130 and 170.")
def auto() -> Mapping[str, Number]:
    rows = frames.suite_rates(committed(EXPERIMENT)).query("attack == 'autoattack_linf'").set_index("run_id")
    return {key: Number(float(rows["n_correct"][run_id]), 130, 170, digits=0) for key, run_id in NAMES.items()}
