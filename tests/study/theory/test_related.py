"""Claims of related systems: verdicts follow from intervals, tables come back as they were saved."""

import math
import re

import pandas as pd
import pytest
import torch

from study.statistics.verdicts import Finding, Lines
from study.theory import gradient_norms as gn
from study.theory import orthogonal_flow as oo
from study.theory import related


@pytest.mark.parametrize(
    ("values", "low", "high", "verdict"),
    [
        ((0.1, 0.1, 0.1), 0, 1, "reproduced"),
        ((0.5, 0.6, 0.7), 0, 1, "reproduced"),
        ((0.0, 0.6, 1.2), 0, 1, "open"),
        ((1.5, 1.6, 1.7), 0, 1, "not reproduced"),
        ((-3.0, -3.1), 0, math.inf, "not reproduced"),
        ((0.5,), 0, 1, "open"),
        ((0.5, math.nan), 0, 1, "open"),
        ((), 0, 1, "open"),
    ],
)
def test_a_verdict_takes_the_whole_interval(values, low, high, verdict):
    finding = Finding("system", "claim", "number", values, low, high)
    assert finding.verdict == finding.row()["verdict"] == verdict


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"system": "orthogonal_flo"}, "system = 'orthogonal_flo': unknown; did you mean 'orthogonal_flow'?"),
        ({"system": "orthogonal_flow", "seeds": 1}, "seeds = 1: must be >= 2"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        related.measure(**arguments)


def test_systems_share_the_table_of_claims(tmp_path, monkeypatch):
    monkeypatch.setenv("WELLCOND_RESULTS", str(tmp_path))
    assert related.load("claims").empty
    lines = Lines()
    lines.add("panel", "series", 1.0, [2.0, 3.0])
    for system in ("one", "two", "one"):
        finding = Finding(system, "claim", "number", (1.0, 2.0), 0)
        related.save(system, [finding], lines.frame, seeds=2)
    claims = related.load("claims")
    assert sorted(claims["system"]) == ["one", "two"]
    assert claims["high"].eq(math.inf).all()
    pd.testing.assert_frame_equal(related.load("one"), lines.frame, check_dtype=False)  # 1.0 is written as 1


def test_what_is_committed_is_of_known_systems_and_has_a_figure():
    claims = related.load("claims")
    found = set(claims["system"])
    assert found
    assert found <= set(related.SYSTEMS)
    assert not any(related.load(system).empty for system in found)
    assert set(claims["verdict"]) <= {"reproduced", "not reproduced", "open"}


# --- flows on O(d) ----------------------------------------------------------------------------------------------------


def test_gradient_norms_are_those_of_autograd():
    torch.manual_seed(0)
    weights = gn.gaussian(3)
    torch.manual_seed(1)
    found = gn.gradient_norms(weights, 0.5, count=1)
    torch.manual_seed(1)
    x, g = torch.nn.functional.normalize(torch.randn(2, 1, gn.WIDTH, dtype=torch.float64), dim=-1)
    states = [x.requires_grad_()]
    for W in weights:
        states.append(states[-1] + 0.5 * (states[-1] @ W.mT).abs())
    exact = torch.autograd.grad((states[-1] * g).sum(), states[:-1])
    torch.testing.assert_close(found[:, 0], torch.stack([a.norm().log() for a in reversed(exact)]))


def test_the_findings_of_flows_on_o_d(monkeypatch):
    monkeypatch.setattr(gn, "DEPTHS", (5, 10))
    monkeypatch.setattr(oo, "DATASETS", {"digits": (100, 1)})
    monkeypatch.setattr(oo, "SEVERITIES", (1,))
    monkeypatch.setattr(gn, "STRENGTHS", (1.0,))
    findings, rows = oo.orthogonal_flow(2, "digits")
    assert [finding.verdict for finding in findings[:2]] == ["reproduced", "reproduced"]
    assert all(math.isfinite(value) for finding in findings for value in finding.by_seed)
    assert set(rows["panel"]) == {"depth", "strength", "clean", "gaussian_noise", "blur", "contrast"}
    counts = {name: sum(p.numel() for p in make().parameters()) for name, make in oo.NETWORKS.items()}
    equal = [counts[name] for name in ("gated", "unconstrained", "residual")]
    assert max(equal) < 1.03 * min(equal)
