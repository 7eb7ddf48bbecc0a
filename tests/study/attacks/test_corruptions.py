"""Corruptions against their closed forms, and independent of how the images are batched."""

import math

import pytest
import torch
from torch.nn import functional as F

from helpers import DOUBLE, generator
from study.attacks import corruptions
from study.attacks.corruptions import CORRUPTIONS, SEVERITIES, corrupt, white_noise


def images(n=6, channels=2, size=20, low=0.0, high=1.0, dtype=DOUBLE):
    x = torch.rand(n, channels, size, size, generator=generator(2), dtype=dtype)
    return low + (high - low) * x, torch.arange(100, 100 + n)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_in_every_batch(name, severity):
    x, index = images()
    alone = torch.cat([corrupt(name, x[i : i + 1], severity, index[i : i + 1]) for i in range(len(x))])
    backwards = corrupt(name, x.flip(0), severity, index.flip(0)).flip(0)
    together = corrupt(name, x, severity, index)
    assert torch.allclose(together, alone, rtol=0, atol=1e-14)
    assert torch.allclose(together, backwards, rtol=0, atol=1e-14)
    assert 0 <= together.min() < together.max() <= 1


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_move_further_at_each_severity(name):
    x, index = images()
    moved = torch.stack([(corrupt(name, x, s, index) - x).flatten(1).norm(dim=1) for s in (0, *SEVERITIES)])
    assert (moved[0] == 0).all()
    assert (moved.diff(dim=0) > 0).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_neither_the_images_nor_the_global_random_state_change(name):
    x, index = images()
    before, state = x.clone(), torch.get_rng_state()
    assert corrupt(name, x, 0, index) is not x
    corrupt(name, x, 5, index)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


# --- noise


def test_noise_has_the_mean_and_the_variance_of_its_level():
    """Before clipping, over N = 640,000 numbers: standard errors 1/√N and √(2/N), within four of them."""
    x, index = torch.full((400, 1, 40, 40), 0.5, dtype=DOUBLE), torch.arange(400)
    for sigma in CORRUPTIONS["gaussian_noise"].levels:
        z = (corruptions.gaussian_noise(x, sigma, index, 0) - x) / sigma
        assert abs(z.mean().item()) < 4 / math.sqrt(z.numel())
        assert abs(z.var().item() - 1) < 4 * math.sqrt(2 / z.numel())


def test_noise_is_clipped_and_added_elsewhere():
    x, index = images(low=0.0, high=1.0)
    z = white_noise((2, 20, 20), index, 3).to(DOUBLE)
    expected = (x + 0.06 * z).clamp(0, 1)
    assert torch.equal(corrupt("gaussian_noise", x, 2, index, seed=3), expected)
    assert (expected == 0).any()


def test_noise_of_two_images_or_seeds_is_unrelated():
    """Correlations of 10,000 independent pairs: standard error 1/100, the largest of 15 within five of them."""
    draws = torch.cat([white_noise((1, 100, 100), torch.tensor([0, 1, 2]), seed) for seed in (0, 1)])
    correlation = torch.corrcoef(draws.flatten(1)) - torch.eye(6)
    assert correlation.abs().max() < 0.05
    assert torch.equal(draws[1], white_noise((1, 100, 100), torch.tensor([1]), 0)[0])


def test_no_images_have_no_noise():
    x, index = images(0)
    assert corrupt("gaussian_noise", x, 1, index).shape == (0, 2, 20, 20)


# --- blur


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_leaves_a_constant_image(severity):
    x = torch.full((2, 3, 12, 12), 0.3, dtype=DOUBLE)
    assert torch.allclose(corrupt("blur", x, severity, torch.arange(2)), x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_preserves_the_mean_of_an_image_with_an_empty_border(severity):
    """As digits have one: what leaves a pixel arrives at another. A border that is not empty is counted twice."""
    inner, index = images(size=12)
    x = F.pad(inner, (5, 5, 5, 5))
    assert torch.allclose(corrupt("blur", x, severity, index).mean((2, 3)), x.mean((2, 3)), rtol=1e-12)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_of_a_point_is_the_gaussian(severity):
    x = torch.zeros(1, 1, 21, 21, dtype=DOUBLE)
    x[0, 0, 10, 10] = 1
    sigma = CORRUPTIONS["blur"].levels[severity - 1]
    g = torch.exp(-((torch.arange(21, dtype=DOUBLE) - 10) ** 2) / (2 * sigma**2))
    g = g / g.sum()
    assert torch.allclose(corrupt("blur", x, severity, torch.tensor([0]))[0, 0], g[:, None] * g, rtol=0, atol=2e-4)


# --- contrast


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_scales_the_distance_from_the_mean_of_each_channel(severity):
    x, index = images()
    factor = CORRUPTIONS["contrast"].levels[severity - 1]
    found = corrupt("contrast", x, severity, index)
    assert torch.allclose(found.mean((2, 3)), x.mean((2, 3)))
    assert torch.allclose(found.std((2, 3)), factor * x.std((2, 3)))


def test_contrast_leaves_a_constant_image():
    x = torch.tensor([0.2, 0.9], dtype=DOUBLE)[None, :, None, None].expand(1, 2, 8, 8)
    assert torch.allclose(corrupt("contrast", x, 5, torch.tensor([0])), x)


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("blurr", 1, 6), r"^corruption = 'blurr': unknown; did you mean 'blur'\?"),
        (("blur", 6, 6), r"^severity = 6: must be 0, 1, 2, 3, 4 or 5$"),
        (("blur", 1.5, 6), r"^severity = 1.5: must be "),
        (("blur", 1, 2), r"^index = '2 images': must be one number for each of the 6 images$"),
    ],
)
def test_bad_input_is_named(arguments, message):
    name, severity, n = arguments
    x, index = images()
    with pytest.raises(ValueError, match=message):
        corrupt(name, x, severity, index[:n])
