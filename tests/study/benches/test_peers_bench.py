"""The bench of peers: every form computes a product of the same rank, and keeps what it is said to keep."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from helpers import Tiny
from study.benches import peers
from study.benches import tables as bench
from study.benches import training as training_bench
from wellcond.layers import LowRankLayer, matricize
from wellcond.methods.method import trained_layers
from wellcond.spectrum import condition_number
from wellcond.stiefel import orthogonality_error

NET = "helpers:Tiny"


@pytest.fixture
def alone(monkeypatch):
    """No other library is installed."""
    monkeypatch.setitem(training_bench.INPUTS, NET, (1, 28, 28))
    monkeypatch.setattr(peers, "installed", lambda form: "" if form in peers.PACKAGES else "1.0")


def dense_layers():
    torch.manual_seed(0)
    return [nn.Linear(12, 9), nn.Conv2d(4, 9, 3, stride=2, padding=1, bias=False)]


@pytest.mark.parametrize("layer", dense_layers(), ids=["linear", "convolution"])
@pytest.mark.parametrize("form", ["wellcond", "uv", "qr", "geotorch"])
def test_each_form_starts_as_the_truncated_svd(form, layer):
    if not peers.installed(form):
        pytest.skip(f"{form} is not installed")
    P, sigma, Qt = torch.linalg.svd(matricize(layer.weight.detach()), full_matrices=False)
    x = torch.randn(5, 12) if isinstance(layer, nn.Linear) else torch.randn(5, 4, 8, 8)
    made = peers.FORMS[form](layer, 3)(x)
    truncated = (P[:, :3] * sigma[:3]) @ Qt[:3]
    layer.weight = nn.Parameter(truncated.reshape(layer.weight.shape)) if form != "geotorch" else layer.weight
    expected = layer(x)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


def test_rows(alone):
    rows = bench.measure("peers", net=NET, ratios=[0.5], batch=2, repeats=2)
    assert {(row["method"], row["optimizer"]) for row in rows} == {
        (form, family) for form in ("dense", "wellcond", "uv", "qr") for family in ("SGD", "AdamW")
    }
    for row in rows:
        assert 0 < row["step_s"] < math.inf
        assert row["memory_bytes"] > 4 * row["parameters"]
        assert math.isnan(row["to_uv"]) == (row["method"] == "dense")
    assert {row["to_uv"] for row in rows if row["method"] == "uv"} == {1.0}
    assert {row["method"] for row in rows if row["orthonormal"]} == {"wellcond", "qr"}


@pytest.mark.parametrize("family", peers.OPTIMIZERS)
@pytest.mark.parametrize("form", ["wellcond", "qr"])
def test_a_step_keeps_the_frames_orthonormal_and_moves_them(form, family):
    model = peers.converted(Tiny(), form, 0.5)
    before = {name: layer.weight.detach().clone() for name, layer in trained_layers(model).items()}
    peer = peers.Peer(form, family, model, torch.rand(4, 1, 28, 28), torch.arange(4))
    peer.step()
    peer.step()
    changed = [layer for layer in trained_layers(model).values() if isinstance(layer, LowRankLayer)]
    assert changed
    for layer in changed:
        assert max(orthogonality_error(X.detach()) for X in (layer.U, layer.V)) < 1e-5
        assert form != "wellcond" or condition_number(layer.S.detach().double()) < 1.1 * (1 + 1e-4)
    assert all(not torch.equal(layer.weight, before[name]) for name, layer in trained_layers(model).items())
    assert any(parametrize.is_parametrized(module) for module in model.modules()) == (form == "qr")


def test_networks_with_large_frames_are_left_out_where_a_step_takes_minutes(alone, monkeypatch):
    monkeypatch.setattr(peers, "installed", lambda form: "1.0" if form in ("uv", "geotorch") else "")
    monkeypatch.setitem(peers.FORMS, "geotorch", peers.two_layers)
    for largest, methods in ((10_000, {"dense", "uv", "geotorch"}), (10, {"dense", "uv"})):
        monkeypatch.setattr(peers, "LARGEST", largest)
        rows = bench.measure("peers", net=NET, ratios=[0.5], batch=2, repeats=2)
        assert {row["method"] for row in rows} == methods


@pytest.mark.parametrize(
    ("change", "message"), [({"net": "vitt"}, "net = 'vitt': unknown"), ({"batch": 0}, "batch = 0")]
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        bench.measure("peers", **{"net": "vit", "ratios": [0.5], "repeats": 2, **change})


def test_a_form_is_left_out_where_anything_it_needs_is_not_there(monkeypatch):
    def version(package):
        if package == "tensorly":
            raise peers.PackageNotFoundError(package)
        return "1.2"

    monkeypatch.setattr(peers, "version", version)
    assert [peers.installed(form) for form in ("uv", "geotorch", "tensorly_torch")] == ["1.2", "1.2", ""]
