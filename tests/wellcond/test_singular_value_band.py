"""Singular values in a band: the projection against an independent oracle, the training inside it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import wellcond as wc
from helpers import DOUBLE, randn
from wellcond.methods.method import find
from wellcond.methods.settings import Settings
from wellcond.methods.singular_value_band import clip_to_band

BOUNDS = [1.0, 1.5, 4.0, math.inf]


@given(seed=st.integers(0, 10_000), max_norm=st.floats(0.1, 5), max_cond=st.sampled_from(BOUNDS))
def test_no_matrix_of_the_band_is_nearer(seed, max_norm, max_cond):
    torch.manual_seed(seed)
    S = randn(4, 4)
    nearest = clip_to_band(S, max_norm, max_cond)
    sigma = torch.linalg.svdvals(nearest)
    low, high = max_norm / max_cond, max_norm
    assert sigma.max() <= high * (1 + 1e-12)
    assert sigma.min() >= low * (1 - 1e-12)
    distance = torch.linalg.matrix_norm(S - nearest)
    for _ in range(20):  # others of the band, near to it and far away
        P, own, Qt = torch.linalg.svd(nearest + torch.rand(1, dtype=DOUBLE) * randn(4, 4))
        other = P * own.clamp(low, high) @ Qt
        assert torch.linalg.matrix_norm(S - other) >= distance * (1 - 1e-12)
    assert torch.allclose(clip_to_band(nearest, max_norm, max_cond), nearest, atol=1e-12)


def test_without_a_bound_on_the_condition_it_is_the_spectral_ball():
    S = torch.diag(torch.tensor([3.0, 0.5, 0.01], dtype=DOUBLE))
    assert torch.allclose(clip_to_band(S, 2.0), torch.diag(torch.tensor([2.0, 0.5, 0.01], dtype=DOUBLE)))
    assert torch.allclose(clip_to_band(S, 2.0, 1.0), 2 * torch.eye(3, dtype=DOUBLE))


@pytest.mark.parametrize("max_cond", BOUNDS)
@pytest.mark.parametrize("max_norm", [0.5, 2.0])
def test_training_stays_in_the_band_and_learns(max_norm, max_cond):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5))
    settings, method = Settings(ratio=0.5, max_cond=max_cond, max_norm=max_norm), find("usv_band")
    model = method.prepare(model, settings)
    optimizer = method.optimizer(method.groups(model, settings), lr=0.05, momentum=0.3)
    x, y = torch.randn(64, 12), torch.randint(0, 5, (64,))
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for layer in (model[0], model[2]):
            sigma = torch.linalg.svdvals(layer.S.detach().double())
            assert sigma.max() <= max_norm * (1 + 1e-5)
            assert sigma.min() >= max_norm / max_cond * (1 - 1e-5)
            assert wc.orthogonality_error(layer.U) < 1e-5
    assert losses[-1] < 0.99 * losses[0]


@pytest.mark.parametrize(
    ("bounds", "field"), [((0.0, 2.0), "max_norm"), ((math.inf, 2.0), "max_norm"), ((1.0, 0.5), "max_cond")]
)
def test_a_bound_out_of_range_is_named(bounds, field):
    with pytest.raises(ValueError, match=field):
        clip_to_band(torch.eye(2), *bounds)
