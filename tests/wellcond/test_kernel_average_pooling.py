"""Kernel average pooling: a circulant mean over channels, merged into the convolution before it, and what it trains."""

import copy
import math
import re

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import wellcond as wc
from helpers import DOUBLE, randn
from wellcond.convert import unparametrized
from wellcond.methods.kernel_average_pooling import (
    PADDINGS,
    KernelAveragePool,
    dirichlet_kernel,
    kernel_average,
    neighbour_correlation,
    pool_kernels,
    pooling_matrix,
    raw_kernels,
)

windows = st.integers(1, 12).flatmap(
    lambda channels: st.tuples(st.just(channels), st.integers(0, (channels - 1) // 2).map(lambda side: 2 * side + 1))
)


def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.LeakyReLU(), nn.Conv2d(8, 7, 3, bias=False), nn.Flatten()).double()


def as_layers(model, window):
    """The same network with a layer of pooling behind every convolution."""
    parts = [[part, KernelAveragePool(window)] if isinstance(part, nn.Conv2d) else [part] for part in model]
    return nn.Sequential(*(copy.deepcopy(part) for pair in parts for part in pair))


@settings(max_examples=25)
@given(windows)
def test_it_is_a_circulant_matrix_with_the_dirichlet_kernel_as_its_spectrum(size):
    channels, window = size
    row = torch.zeros(channels, dtype=DOUBLE)
    for j in range(-(window // 2), window // 2 + 1):
        row[j % channels] += 1 / window
    A = pooling_matrix(channels, window)
    torch.testing.assert_close(A, torch.from_numpy(scipy.linalg.circulant(row.numpy())))
    found = torch.linalg.eigvalsh(A)
    torch.testing.assert_close(found, dirichlet_kernel(channels, window).sort().values, atol=1e-12, rtol=0)
    assert (int(torch.linalg.matrix_rank(A)) < channels) == (math.gcd(channels, window) > 1)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("window", [1, 3, 5])
def test_pooling_is_a_product_with_its_matrix(window, padding):
    z = randn(2, 6, 3, 4)
    expected = torch.einsum("dc,bchw->bdhw", pooling_matrix(6, window, padding), z)
    torch.testing.assert_close(KernelAveragePool(window, padding=padding)(z), expected)


@settings(max_examples=25)
@given(windows)
def test_the_mean_over_the_channels_is_kept(size):
    channels, window = size
    z = randn(2, channels, 3)
    torch.testing.assert_close(kernel_average(z, window).mean(1), z.mean(1))


def test_zeros_pull_the_ends_towards_zero():
    pooled = kernel_average(torch.ones(1, 6, dtype=DOUBLE), 5, padding="zeros")
    torch.testing.assert_close(pooled, torch.tensor([[3, 4, 5, 5, 4, 3]], dtype=DOUBLE) / 5)


@pytest.mark.parametrize("padding", PADDINGS)
def test_gradients(padding):
    assert torch.autograd.gradcheck(
        lambda z: kernel_average(z, 3, padding=padding), randn(2, 5, 2).requires_grad_(), check_undefined_grad=False
    )


@pytest.mark.parametrize("window", [3, 5])
def test_a_layer_a_parametrization_and_a_plain_convolution_are_one_map(window):
    x, layers = randn(3, 2, 9, 9), as_layers(convolutions(), window)
    pooled = pool_kernels(convolutions(), window)
    plain = unparametrized(pooled)
    assert [type(part) for part in plain] == [type(part) for part in convolutions()]
    assert list(plain.state_dict()) == list(convolutions().state_dict())
    for model in (pooled, plain, wc.deploy(pooled)):
        torch.testing.assert_close(model(x), layers(x))


def test_it_is_gradient_descent_preconditioned_by_the_square_of_the_matrix():
    x, window, lr = randn(4, 2, 9, 9), 3, 0.1
    pooled = pool_kernels(convolutions(), window)
    plain = unparametrized(pooled)
    for model in (pooled, plain):
        model(x).square().mean().backward()
    for layer in (plain[0], plain[2]):
        for p in layer.parameters():
            A = pooling_matrix(len(p), window)
            p.data -= lr * torch.tensordot(A @ A, p.grad, 1)
    torch.optim.SGD(pooled.parameters(), lr).step()
    torch.testing.assert_close(unparametrized(pooled)(x), plain(x))


def test_kernels_that_were_averaged_are_neighbours_and_random_ones_are_not():
    torch.manual_seed(0)
    W = torch.randn(32, 4, 3, 3)
    averaged = kernel_average(W, 3, dim=0)
    assert abs(neighbour_correlation(W)) < 3
    assert neighbour_correlation(averaged) > 10
    assert abs(neighbour_correlation(averaged[torch.randperm(32)])) < 3


def test_raw_kernels_are_those_that_are_trained():
    pooled, plain = pool_kernels(convolutions(), 3), convolutions()
    for raw, layer, W in zip(raw_kernels(pooled), (pooled[0], pooled[2]), raw_kernels(plain), strict=True):
        torch.testing.assert_close(raw, W)
        torch.testing.assert_close(layer.weight, kernel_average(W, 3, dim=0))


@pytest.mark.parametrize(
    ("window", "padding", "message"),
    [
        (2, "cyclic", "window = 2: must be odd, in [1, 10], the number of channels"),
        (9, "cyclic", "window = 9: must be odd, in [1, 7]"),
        (-1, "zeros", "window = -1: must be odd"),
        (3, "zero", "padding = 'zero': unknown; did you mean 'zeros'?"),
    ],
)
def test_bad_input_changes_nothing(window, padding, message):
    model = nn.Sequential(nn.Conv1d(1, 10, 1), nn.Conv1d(10, 7, 1))
    with pytest.raises(ValueError, match=re.escape(message)):
        pool_kernels(model, window, padding=padding)
    assert not any(torch.nn.utils.parametrize.is_parametrized(layer) for layer in model)
