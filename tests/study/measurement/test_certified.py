"""Certified radii: the distances of linear networks, operators as matrices, and attacks, which cannot beat them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import wellcond as wc
from helpers import generator, randn
from study.attacks.registry import smallest_perturbation
from study.data import Images
from study.measurement.certified import certified_radii, convolution_norm
from study.networks import build


def images(n, size, classes=3, seed=0):
    draws = generator(seed)
    pixels = torch.randint(0, 256, (n, 1, size, size), generator=draws, dtype=torch.uint8)
    return Images(pixels, torch.randint(0, classes, (n,), generator=draws))


def small(*middle, width=4, classes=3, size=8, seed=0):
    """A convolution, what comes behind it, and a linear layer."""
    torch.manual_seed(seed)
    front = nn.Sequential(nn.Conv2d(1, width, 3), *middle, nn.Flatten())
    return nn.Sequential(*front, nn.Linear(front(torch.zeros(1, 1, size, size)).shape[1], classes)).eval()


def operator(function, shape):
    """The matrix of a linear map of images of this shape."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    return function(basis).flatten(1).mT


class TestConvolutionNorm:
    @given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(4, 7), st.integers(0, 2), st.data())
    def test_it_bounds_the_operator_and_is_below_the_bound_by_patches(self, out, into, k, n, padding, data):
        stride, dilation = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
        spread = (k - 1) * dilation + 1
        if n + 2 * padding < spread:
            return
        kernel = randn(out, into, k, k, seed=k * n)
        form = {"stride": stride, "padding": padding, "dilation": dilation}
        exact = torch.linalg.matrix_norm(operator(lambda z: F.conv2d(z, kernel, **form), (into, n, n)), ord=2)
        found = convolution_norm(kernel, (n, n), (dilation, dilation))
        assert exact <= found * (1 + 1e-12)
        assert found <= k * torch.linalg.matrix_norm(kernel.flatten(1), ord=2) * (1 + 1e-12)

    @given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2, 3, 5]), st.integers(0, 4))
    def test_it_is_the_norm_of_the_convolution_on_its_torus(self, out, into, k, more):
        kernel = randn(out, into, k, k, seed=k + more)
        n = k + more

        def circular(z):
            return F.conv2d(F.pad(z, (0, k - 1, 0, k - 1), mode="circular"), kernel)

        exact = torch.linalg.matrix_norm(operator(circular, (into, n, n)), ord=2)
        assert torch.allclose(convolution_norm(kernel, (n - k + 1, n - k + 1)), exact, rtol=1e-10)


class TestCertifiedRadii:
    def test_of_a_linear_network_they_are_the_distances_to_the_other_classes(self):
        model, data = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), images(50, 4)
        radii, expansion = certified_radii(model, data)
        W, b = model[1].weight.detach().double(), model[1].bias.detach().double()
        for r, x, y in zip(radii, data.pixels(slice(None)).double().flatten(1), data.labels, strict=True):
            others = [k for k in range(3) if k != y]
            distances = [((W[y] - W[k]) @ x + b[y] - b[k]) / (W[y] - W[k]).norm() for k in others]
            assert float(r) == pytest.approx(max(0.0, float(min(distances))), rel=1e-10)
        assert expansion == 1
        assert (radii > 0).any()
        assert (radii == 0).any()

    @pytest.mark.parametrize(
        "middle", [(nn.ReLU(), nn.MaxPool2d(2)), (nn.BatchNorm2d(4), nn.GELU()), (nn.MaxPool2d(3, 1),)]
    )
    def test_no_attack_comes_closer(self, middle):
        model, data = small(*middle), images(60, 8)
        radii, _ = certified_radii(model, data)
        right = (radii > 0).nonzero().flatten()
        x, y = data.pixels(right), data.labels[right]
        assert len(right) > 5
        assert (radii[right] <= smallest_perturbation(model, x, y, steps=100, seed=0)).all()

    @pytest.mark.parametrize(
        ("step", "largest"),
        [
            (nn.ReLU(), 1), (nn.LeakyReLU(2.0), 2), (nn.Tanh(), 1), (nn.Sigmoid(), 0.25), (nn.GELU(), 1.12890),
            (nn.MaxPool2d(2), 1), (nn.MaxPool2d(3, 1), 3), (nn.MaxPool2d((2, 3), (1, 3)), 2**0.5), (nn.Identity(), 1),
        ],
    )  # fmt: skip
    def test_every_step_stretches_by_its_largest_slope(self, step, largest):
        model = small(step)
        data = images(4, 8)
        alone = float(convolution_norm(model[0].weight.detach().double(), (8, 8)))
        assert certified_radii(model, data)[1] == pytest.approx(largest * alone, rel=1e-4)

    def test_factors_have_the_radii_of_their_product(self):
        model, data = wc.factorize(build("lenet5"), ratio=0.8), images(20, 28, classes=10)
        radii, expansion = certified_radii(model, data)
        dense, same = certified_radii(wc.densify(model), data)
        assert torch.allclose(radii, dense, rtol=1e-4)
        assert expansion == pytest.approx(same, rel=1e-4)

    def test_a_change_of_scale_between_layers_changes_nothing(self):
        model, data = small(nn.ReLU()), images(20, 8)
        before, _ = certified_radii(model, data)
        with torch.no_grad():
            model[0].weight.mul_(8), model[0].bias.mul_(8), model[3].weight.div_(8)
        assert torch.allclose(certified_radii(model, data)[0], before, rtol=1e-5)

    @pytest.mark.parametrize(
        ("model", "data", "message"),
        [
            (small(nn.ReLU()), Images(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0).long()), "images"),
            (nn.Sequential(nn.Conv2d(1, 3, 8)), images(2, 8), "ends in a linear one"),
            (build("vit", in_channels=1), images(2, 28), "a chain of layers"),
        ],
    )
    def test_what_has_no_certificate(self, model, data, message):
        with pytest.raises(ValueError, match=message):
            certified_radii(model, data)
