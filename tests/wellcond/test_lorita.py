"""Products of factors: their minimal norm, the same function before and after, and low rank from weight decay."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from architectures import networks
from helpers import DOUBLE, Tiny, matrix_with, randn
from wellcond.counts import count_parameters
from wellcond.layers import weight_matrix
from wellcond.methods.lorita import balanced_factors, collapse, factors, overparametrize, param_groups

LeNet5 = networks.LeNet5

DEPTHS = [1, 2, 3]


def product(parts):
    W = parts[0]
    for part in parts[1:]:
        W = W @ part
    return W


def squares(parts):
    return sum(part.square().sum() for part in parts)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3)])
@pytest.mark.parametrize("depth", DEPTHS)
def test_balanced_factors(depth, shape, side):
    """Their product is W, neighbours are balanced, and Σ ||W_i||_F² = N Σ σ^(2/N)."""
    W = randn(*shape)
    parts = balanced_factors(W, depth, squares=side)
    assert len(parts) == depth
    torch.testing.assert_close(product(parts), W)
    for left, right in itertools.pairwise(parts):
        torch.testing.assert_close(left.mT @ left, right @ right.mT)
    torch.testing.assert_close(squares(parts), depth * (torch.linalg.svdvals(W) ** (2 / depth)).sum())


@given(
    sigma=st.lists(st.floats(0.1, 3), min_size=2, max_size=5), depth=st.sampled_from([2, 3]), seed=st.integers(0, 99)
)
def test_no_other_factors_of_the_same_product_have_a_smaller_norm(sigma, depth, seed):
    """W_{i+1} A, A⁻¹ W_i for random invertible A, from close to the identity to far from it."""
    W, r = matrix_with(sigma, seed=seed), len(sigma)
    least = depth * (torch.tensor(sigma, dtype=DOUBLE) ** (2 / depth)).sum()
    for size in (1e-3, 0.1, 1.0):
        parts = balanced_factors(W, depth)
        for i in range(depth - 1):
            A = torch.linalg.matrix_exp(size * randn(r, r, seed=seed + i + 200))
            parts[i], parts[i + 1] = parts[i] @ A, torch.linalg.solve(A, parts[i + 1])
        torch.testing.assert_close(product(parts), W, rtol=0, atol=1e-7)
        assert squares(parts) >= least - 1e-9


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("kind", ["tiny", "convolution"])
def test_the_same_function_as_product_and_collapsed(kind, depth):
    """Before training, and after steps that move every factor."""
    torch.manual_seed(0)
    model = {
        "tiny": Tiny(),
        "convolution": nn.Sequential(
            nn.Conv2d(1, 5, 3, stride=2, padding=1, dilation=2), nn.BatchNorm2d(5), nn.Flatten()
        ),
    }[kind].double()
    x = torch.rand(6, 1, 28, 28, dtype=DOUBLE)
    products = overparametrize(model, depth)
    torch.testing.assert_close(products(x), model(x))
    optimizer = torch.optim.SGD(param_groups(products, 1e-3), lr=0.05, momentum=0.9)
    start = [factor.detach().clone() for parts in factors(products) for factor in parts]
    for _ in range(3):
        optimizer.zero_grad()
        products(x).square().mean().backward()
        optimizer.step()
    moved = [factor for parts in factors(products) for factor in parts]
    assert all(not torch.equal(a, b) for a, b in zip(start, moved, strict=True))
    small = collapse(products)
    assert small.state_dict().keys() == model.state_dict().keys()
    assert [type(m) for m in small.modules()] == [type(m) for m in model.modules()]
    assert small.training
    torch.testing.assert_close(small.eval()(x), products.eval()(x))
    assert len(moved) == depth * len(factors(products))


def test_shapes_of_the_factors():
    """Squares on the side of the inputs in a linear layer, of the outputs in a convolution."""
    shapes = [[tuple(f.shape) for f in parts] for parts in factors(overparametrize(LeNet5(), 3))]
    assert shapes == [
        [(20, 20), (20, 20), (20, 25)],
        [(50, 50), (50, 50), (50, 500)],
        [(500, 800), (800, 800), (800, 800)],
        [(10, 500), (500, 500), (500, 500)],
    ]


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_convolution_in_groups_is_a_stack_of_products(depth):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)).double()
    sigma, x = torch.linalg.svdvals(weight_matrix(model[0])), randn(2, 8, 5, 5)
    trained = overparametrize(model, depth)
    (parts,) = factors(trained)
    assert [tuple(part.shape) for part in parts] == [*[(2, 4, 4)] * (depth - 1), (2, 4, 36)]
    torch.testing.assert_close(squares(parts), depth * (sigma ** (2 / depth)).sum())
    for new in (trained, collapse(trained)):
        torch.testing.assert_close(new(x), model(x))


def test_the_given_network_is_unchanged_and_the_collapsed_one_has_its_size():
    model = LeNet5()
    before = copy.deepcopy(model.state_dict())
    small = collapse(overparametrize(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert count_parameters(small) == count_parameters(model)


def test_copies_and_states():
    model = overparametrize(Tiny().double(), 2)
    x = torch.rand(2, 1, 28, 28, dtype=DOUBLE)
    other = overparametrize(Tiny().double(), 2)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("depth", [2, 3])
def test_weight_decay_alone_on_the_factors_finds_low_rank(depth):
    """On ||W - A||²/2 + λ(N/2) Σ σ^(2/N) the small singular values of A go to zero; with a decayed W none does."""
    A, decay = matrix_with([3.0, 2.0, 0.2, 0.1]), 0.5

    def minimized(depth):
        torch.manual_seed(0)
        layer = nn.Linear(4, 4, bias=False).double()
        layer.weight.data.copy_(A)
        model = overparametrize(layer, depth)
        optimizer = torch.optim.SGD(param_groups(model, decay), lr=0.1)
        for _ in range(400):
            optimizer.zero_grad()
            (F.mse_loss(model.weight, A, reduction="sum") / 2).backward()
            optimizer.step()
        return torch.linalg.svdvals(model.weight.detach())

    ridge = torch.linalg.svdvals(A) / (1 + decay)
    torch.testing.assert_close(minimized(1), ridge, rtol=1e-6, atol=0)
    found = minimized(depth)
    assert found[2] < 1e-6
    assert found[1] > ridge[1]
    if depth == 2:
        torch.testing.assert_close(found, (torch.linalg.svdvals(A) - decay).clamp(min=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: overparametrize(Tiny(), 0), r"^depth = 0: must be a whole number of factors >= 1$"),
        (lambda: overparametrize(Tiny(), 1.5), r"^depth = 1.5: must be a whole number of factors >= 1$"),
        (lambda: balanced_factors(randn(2, 2), -1), r"^depth = -1: must be"),
        (lambda: param_groups(overparametrize(Tiny()), -1.0), r"^weight_decay = -1.0: must be >= 0$"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
