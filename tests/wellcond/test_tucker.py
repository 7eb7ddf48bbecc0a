"""Tucker-2 convolutions against the dense convolution with their kernel."""

import copy

import pytest
import torch
from torch import nn

import wellcond as wc
from architectures import networks
from helpers import DOUBLE, randn
from wellcond.layers import matricize
from wellcond.methods.tucker import Tucker2Conv2d

GEOMETRIES = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": (2, 0), "dilation": (2, 1)},
    {"stride": (1, 2), "padding": "valid"},
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def layer(**geometry):
    return Tucker2Conv2d(5, 7, (3, 2), (4, 3), **geometry, dtype=DOUBLE)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_forward_is_the_convolution_with_its_kernel(geometry):
    tucker = layer(**geometry)
    nn.init.normal_(tucker.bias)
    x = randn(2, 5, 9, 8)
    expected = nn.functional.conv2d(x, tucker.weight, tucker.bias, **geometry)
    torch.testing.assert_close(tucker(x), expected)
    torch.testing.assert_close(tucker.to_dense()(x), expected)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_full_ranks_are_exact(geometry):
    dense = nn.Conv2d(5, 7, (3, 2), **geometry, dtype=DOUBLE)
    tucker = Tucker2Conv2d.from_dense(dense, (7, 5))
    torch.testing.assert_close(tucker.weight, dense.weight)
    assert torch.equal(tucker.bias, dense.bias)
    x = randn(2, 5, 9, 8)
    torch.testing.assert_close(tucker(x), dense(x))


def test_truncation_is_the_higher_order_svd():
    """Orthonormal bases of the leading left singular vectors of each unfolding; error at most the two tails."""
    dense = nn.Conv2d(5, 7, 3, dtype=DOUBLE)
    tucker = Tucker2Conv2d.from_dense(dense, (4, 3))
    W = dense.weight.detach()
    tails = 0.0
    for mode, X in ((0, tucker.U), (1, tucker.V)):
        P, sigma, _ = torch.linalg.svd(W.movedim(mode, 0).flatten(1), full_matrices=False)
        r = X.shape[1]
        torch.testing.assert_close(X @ X.mT, P[:, :r] @ P[:, :r].mT)
        tails += sigma[r:].square().sum()
    assert (tucker.weight - W).square().sum() <= tails
    exact = Tucker2Conv2d.from_dense(tucker.to_dense(), (4, 3))
    torch.testing.assert_close(exact.weight, tucker.weight)


def test_singular_values_are_those_of_the_matricized_kernel():
    tucker = layer()
    with torch.no_grad():  # whatever the bases are
        tucker.U.mul_(1.5)
        tucker.V.add_(0.1)
    sigma = torch.linalg.svdvals(matricize(tucker.weight))
    torch.testing.assert_close(tucker.singular_values(), sigma[:4])
    report = wc.layer_reports(nn.Sequential(layer()))["0"]
    assert report.orthogonality < 1e-14
    assert len(report.spectrum) == 4


def test_counts():
    net = nn.Sequential(layer(), nn.Flatten(), nn.Linear(6, 2))
    counts = wc.count_parameters(net)
    factors = 7 * 4 + 5 * 3 + 4 * 3 * 6
    assert counts.trained == factors + 7 + 14
    assert counts.deployed == counts.trained
    assert counts.dense == 7 * 5 * 6 + 7 + 14
    assert layer().n_deployed == factors
    assert Tucker2Conv2d(5, 7, 3, (7, 5)).n_deployed == 7 * 5 * 9  # never more than the kernel


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_deployed_as_three_plain_layers_with_folded_normalization(geometry):
    net = nn.Sequential(layer(**geometry), nn.BatchNorm2d(7, dtype=DOUBLE)).eval()
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    small, x = wc.deploy(net), randn(2, 5, 9, 8)
    assert [type(part) for part in small[0]] == [nn.Conv2d] * 3
    assert isinstance(small[1], nn.Identity)
    torch.testing.assert_close(small(x), net(x))


def test_factorize_with_tucker_kernels():
    net = networks.build("lenet5")
    new = wc.factorize(net, ratio=0.8, convolution=Tucker2Conv2d, skip=["fc2"])
    assert tuple(new.conv1.S.shape) == (4, 1, 5, 5)
    assert tuple(new.conv2.S.shape) == (10, 4, 5, 5)
    assert new.fc1.rank == 100
    assert isinstance(wc.densify(new).conv2, nn.Conv2d)


def test_a_state_of_other_ranks_is_taken_over():
    source, target = layer(), Tucker2Conv2d(5, 7, (3, 2), (2, 1), dtype=DOUBLE)
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(target.weight, source.weight)
    other = Tucker2Conv2d(5, 7, (3, 3), (4, 3), dtype=DOUBLE)
    with pytest.raises(RuntimeError, match="size mismatch"):
        target.load_state_dict(other.state_dict())


@pytest.mark.parametrize("ranks", [(0, 1), (8, 1), (1, 0), (1, 6)])
def test_ranks_out_of_range(ranks):
    with pytest.raises(ValueError, match=r"ranks = \(.*\): must be \(r_o, r_i\) in 1..7, 1..5"):
        Tucker2Conv2d(5, 7, 3, ranks)


def test_it_prints_and_copies():
    assert "ranks=(4, 3)" in repr(layer())
    assert copy.deepcopy(layer()).U.shape == (7, 4)
