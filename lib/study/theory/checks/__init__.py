"""Numerical checks of the approximation theorem, each with the number that would have falsified it.

Every check integrates a matrix flow Ẇ = F(W) with the production layers and optimizers (see `flows`), in float64, from
full cores S, and compares with an accurate solution. Its sizes are arguments: `seeds`, the number of random instances,
and `points`, the number of step sizes or other abscissae of a line.
"""

from __future__ import annotations

from collections.abc import Callable

from study.statistics.verdicts import Check
from study.theory.checks.constraint_bias import bias
from study.theory.checks.convergence import order
from study.theory.checks.error_constants import constants
from study.theory.checks.perturbation import normal_component, rotated_target
from study.theory.checks.published_clamp import clamp
from study.theory.checks.step_defect import one_step
from study.theory.checks.stiff_noise import stiffness
from study.theory.network import network_layer

CHECKS: dict[str, Callable[..., Check]] = {
    "T1": one_step,
    "T2": order,
    "T3": normal_component,
    "T3b": rotated_target,
    "T4": stiffness,
    "T5": bias,
    "T6": clamp,
    "T7": constants,
    "T8": network_layer,
}
"""The checks by their names; each takes `seeds` and `points`, and the method that is claimed to pass."""
