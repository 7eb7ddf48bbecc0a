"""The approximation theorem holds for the library's integrators, and its checks can fail."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from helpers import randn
from study.presentation import theory as theory_figures
from study.statistics.verdicts import Check, Lines, Panel, Reading, least_squares, slope, slope_between
from study.theory import checks as theory
from study.theory import flows
from study.theory.flows import exact, published
from study.theory.problems import RANK, M, N, draw, geometric, norms, point, rotating

SMALL = {"seeds": 2, "points": 4}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["T1", "T3b", "T6", "T7"])
def test_the_check_holds(name):
    """Those that are quick; appendix A, which is executed with the same sizes, insists on all of them."""
    check = theory.CHECKS[name]()
    assert check.id == name
    assert check.verdict == "holds", [(m.what, m.value) for m in check.measurements if not m.holds]
    assert set(check.rows["panel"]) == {panel.name for panel in check.panels}
    assert np.isfinite(check.rows["y"]).all()


WRONG = {
    "T1": {"follows": lambda retraction: published(1e6)},
    "T2": {"follows": [published(1.1, label="follows another flow")]},
    "T3": {"follows": [exact(1.1), published(1.1)]},
    "T3b": {"follows": published(1.1)},
    "T4": {"robust": [exact(label="not robust")]},
    "T5": {"follows": published},
    "T6": {"follows": published},
    "T7": {"follows": published(2.0)},
    "T8": {"follows": lambda max_cond: published(min(max_cond, 1e6))},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid value")  # a fitted constant may be negative, and then has no logarithm
@pytest.mark.parametrize("name", WRONG)
def test_the_check_fails_for_a_method_that_is_not_covered(name):
    """The published step is not a discretization of the flow; the Euler step with QR is not robust."""
    assert not theory.CHECKS[name](**SMALL, **WRONG[name]).holds


def test_half_an_order_too_little_is_noticed():
    """A method whose error falls like h^(1/2) fails the band around slope one."""
    lines = Lines()
    for h in (0.1, 0.05, 0.025):
        lines.add("order", "halved", h, [h**0.5, 2 * h**0.5])
    measurement = slope_between("slope", lines.line("order", "halved"), 1, 0.1)
    assert measurement.value == pytest.approx(0.5)
    assert not measurement.holds


# --- flows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [exact(), exact(1.1), flows.KLS, flows.AUGMENTED], ids=lambda m: m.label)
def test_a_stack_is_as_each_problem_alone(method):
    random = draw(2)
    start, field = point(random, geometric(1.05)), rotating(random)
    together = flows.integrate(method, field, start, lr=0.1, steps=3)
    for k in range(2):
        one = draw(k + 1)
        alone = point(type(one)(*(A[k:] for A in one)), geometric(1.05))
        left, right = one.left[k:], one.right[k:]
        reached = flows.integrate(
            method, lambda W, _, left=left, right=right: left @ W - W @ right, alone, lr=0.1, steps=3
        )
        torch.testing.assert_close(together[k], reached[0])


def test_one_step_of_a_field_is_a_step_of_gradient_descent():
    """At full rank and without bound, U S Vᵀ moves by h F(W), up to O(h²)."""
    W = randn(1, 5, 5)
    U, sigma, Vt = torch.linalg.svd(W)
    start, Z = flows.Factors(U, torch.diag_embed(sigma), Vt.mT.contiguous()), randn(1, 5, 5, seed=1)
    moved = flows.integrate(exact(), lambda W, k: Z, start, lr=1e-6, steps=1)
    torch.testing.assert_close((moved - W) / 1e-6, Z, rtol=1e-4, atol=1e-4)


def test_the_reference_is_of_order_four():
    random = draw(1)
    W, field = flows.matrix(point(random, geometric(2.0))), rotating(random)
    solution = torch.matrix_exp(random.left) @ W @ torch.matrix_exp(-random.right)
    errors = [norms(flows.reference(field, W, time=1.0, steps=k) - solution, 1)[0][0] for k in (4, 8)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.2)


def test_a_draw_may_begin_at_any_seed_and_has_the_sizes_asked_for():
    second = draw(1, first=1, n=7, m=5, rank=2)
    assert [tuple(A.shape[1:]) for A in second] == [(7, 2), (5, 2), (2, 2), (2, 2), (7, 7), (5, 5), (7, 5)]
    for A, B in zip(second, draw(2, n=7, m=5, rank=2), strict=True):
        torch.testing.assert_close(A[0], B[1], rtol=0, atol=0)


def test_the_normal_part_is_orthogonal_to_the_tangent_space():
    W, Z = point(draw(1), geometric(3.0)), randn(1, N, M)
    normal = flows.normal_part(W, Z)
    assert (W.U.mT @ normal).abs().max() < 1e-12
    assert (normal @ W.V).abs().max() < 1e-12
    assert torch.linalg.matrix_rank((Z - normal)[0]) == 2 * RANK


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_slope_and_its_standard_error_are_those_of_least_squares():
    """Over many samples, the fitted exponents scatter as much as the standard error says; each seed has its factor."""
    rng, x = np.random.default_rng(0), np.geomspace(0.1, 1, 6)
    found = []
    for _ in range(300):
        y = np.concatenate([factor * x**1.5 * np.exp(rng.normal(0, 0.05, 6)) for factor in (1, 10)])
        found.append(slope(pd.DataFrame({"x": np.tile(x, 2), "y": y, "seed": np.repeat([0, 1], 6)})))
    values, errors = np.array(found).T
    assert values.mean() == pytest.approx(1.5, abs=0.01)
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.15)


def test_least_squares_without_spare_rows_has_no_error():
    c, error = least_squares(np.eye(2), np.array([1.0, 2.0]))
    assert c == pytest.approx([1, 2])
    assert np.isnan(error).all()


def test_verdict_names_what_is_outside_its_band():
    inside, outside = Reading("a", "1", 0.9, 1.1, 1.0), Reading("b", "1", 0.9, 1.1, 1.2, 0.01)
    nan = Reading("c", "1", 0.9, 1.1, math.nan)
    common = {"panels": (), "rows": pd.DataFrame()}
    assert Check("T", measurements=(inside,), **common).verdict == "holds"
    assert Check("T", measurements=(inside, outside, nan), **common).verdict == "fails: b; c"


def test_figure_and_table_show_every_line_and_measurement():
    lines = Lines()
    for x in (0.1, 1.0):
        lines.add("one", "K-L-S", x, [x, 2 * x])
    check = Check(
        "T0", (Reading("slope", "-1", -1.1, -0.9, -0.98, 0.02),),
        (Panel("one", "title", "x", "y"),), lines.frame,
    )  # fmt: skip
    (ax,) = theory_figures.plot(check, "one").axes
    assert ax.get_title(loc="left") == "title"
    assert list(ax.lines[0].get_ydata()) == pytest.approx([0.15, 1.5])
    plt.close("all")
    (row,) = theory_figures.measurements_table([check]).data.to_dict("records")
    assert (row["theory"], row["accepted"], row["value"]) == ("−1", "−1.10 to −0.90", "−0.98 ± 0.02")
