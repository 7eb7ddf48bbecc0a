"""The quick gradient by a grey image against autograd's, and who gets it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from helpers import DOUBLE, randn
from study.attacks import image_gradient
from study.attacks.image_gradient import QuickImageGradient, correlate_back
from study.attacks.registry import ATTACKS, frozen, perturb


@pytest.fixture
def calls(monkeypatch):
    """The paddings with which the quick gradient is found."""
    found = []

    def watched(g, weight, padding, size):
        found.append(padding)
        return correlate_back(g, weight, padding, size)

    monkeypatch.setattr(image_gradient, "correlate_back", watched)
    return found


def gradient(x, *parameters, quick, **settings):
    x = x.detach().clone().requires_grad_()
    if quick:
        with QuickImageGradient():
            y = torch.conv2d(x, *parameters, **settings)
    else:
        y = torch.conv2d(x, *parameters, **settings)
    y.backward(randn(*y.shape, seed=5))
    return y.detach(), x.grad


@given(
    n=st.integers(1, 5),
    channels=st.integers(1, 4),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    extra=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    cached=st.integers(1, 4),
    bias=st.booleans(),
)
def test_it_is_the_gradient(n, channels, kernel, extra, padding, cached, bias):
    """In any parts, for kernels and images of any shape, padded or not."""
    size = [k + e for k, e in zip(kernel, extra, strict=True)]
    x, weight = randn(n, 1, *size, seed=1), randn(channels, 1, *kernel, seed=2)
    offset = randn(channels, seed=3) if bias else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_gradient, "_CACHED", cached)
        ours = gradient(x, weight, offset, padding=padding, quick=True)
    for one, other in zip(ours, gradient(x, weight, offset, padding=padding, quick=False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_it_can_be_differentiated_again():
    x, weight = randn(2, 1, 4, 4, seed=1).requires_grad_(), randn(3, 1, 2, 2, seed=2)
    with QuickImageGradient():
        assert torch.autograd.gradgradcheck(lambda x: torch.conv2d(x, weight, padding=1).sin(), x)


@pytest.mark.parametrize(
    ("setting", "value", "quick"),
    [
        *[("padding", value, True) for value in (1, (1,), (2, 1))],
        ("stride", (1, 1), True),
        ("padding", "same", False),
        *[("stride", value, False) for value in (2, (1, 2))],
        ("dilation", 2, False),
    ],
)
def test_which_convolutions(calls, setting, value, quick):
    """However a setting is written, the result is that of PyTorch."""
    x, weight = randn(2, 1, 7, 7, seed=1), randn(3, 1, 3, 3, seed=2)
    ours, theirs = (gradient(x, weight, **{setting: value}, quick=way) for way in (True, False))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert bool(calls) == quick


def test_several_channels_and_parameters_that_need_gradients_are_left_alone(calls):
    x, weight = randn(2, 2, 5, 5, seed=1), randn(4, 2, 2, 2, seed=2)
    gradient(x, weight, quick=True)
    gradient(x, weight[:, :1], groups=2, quick=True)
    leaf = weight[:, :1].clone().requires_grad_()
    gradient(x[:, :1], leaf, quick=True)
    bias = torch.zeros(4, dtype=DOUBLE, requires_grad=True)
    gradient(x[:, :1], weight[:, :1], bias, quick=True)
    assert leaf.grad is not None
    assert bias.grad is not None
    assert not calls


def test_attacks_use_it(calls):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Flatten(), nn.Linear(48, 2))
    perturb(ATTACKS["pgd_linf"], model, torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 0]), 0.1, steps=2)
    assert calls == [(1, 1)] * 2


def test_it_ends_with_the_freeze(calls):
    model, x = nn.Conv2d(1, 3, 2), randn(2, 1, 4, 4, seed=1).float()
    with frozen(model):
        gradient(x.double(), model.weight.detach().double(), quick=False)
    assert calls
    calls.clear()
    model(x.requires_grad_()).sum().backward()
    assert not calls
    assert model.weight.grad is not None
