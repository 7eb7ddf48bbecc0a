"""Factorized layers against the dense layers they stand for."""

import copy
import io
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import wellcond as wc
from architectures import clocks
from helpers import DOUBLE, matrix_with, randn
from wellcond import layers
from wellcond.kinds.convolution import LowRankConv2d, recompute
from wellcond.layers import LowRankLinear

CONVOLUTIONS = [
    {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    for kernel, stride, padding, dilation in itertools.product(
        [3, (1, 3), (5, 2)], [1, (2, 1)], [0, (2, 1), "same", "valid"], [1, (1, 2)]
    )
    if padding != "same" or (stride == 1 and kernel != (5, 2))  # torch: no stride with "same", odd kernels preferred
]


def randomize(layer, seed=0):
    """Arbitrary factors: nothing here may depend on their being orthonormal."""
    with torch.no_grad():
        for k, p in enumerate(layer.parameters()):
            p.copy_(randn(*p.shape, seed=seed + k))
    return layer


def dense_matrix(layer):
    U, V = layer.U.detach().numpy(), layer.V.detach().numpy()
    return U @ V.T if layer.S is None else U @ layer.S.detach().numpy() @ V.T


def linear(core=True, **kwargs):
    return randomize(LowRankLinear(7, 5, 3, core=core, dtype=DOUBLE, **kwargs))


def convolution(core=True, **kwargs):
    arguments = {"kernel_size": 3, "padding": 1, **kwargs}
    return randomize(LowRankConv2d(4, 6, rank=3, core=core, dtype=DOUBLE, **arguments))


CASES = [(linear, randn(2, 7)), (convolution, randn(2, 4, 9, 8))]


@pytest.mark.parametrize("core", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_the_product(core, bias):
    layer, x = linear(core, bias=bias), randn(2, 4, 7, seed=9)
    expected = x.numpy() @ dense_matrix(layer).T + (layer.bias.detach().numpy() if bias else 0)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(layer.to_dense()(x).detach().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(layer.weight.detach().numpy(), dense_matrix(layer), atol=1e-12)


@pytest.mark.parametrize("core", [True, False])
@pytest.mark.parametrize("arguments", CONVOLUTIONS, ids=str)
def test_convolution_is_the_convolution_with_the_product(arguments, core):
    """For every kernel, stride, padding and dilation; row-major matricization."""
    layer, x = convolution(core, **arguments), randn(2, 4, 9, 11, seed=9)
    kernel = torch.tensor(dense_matrix(layer)).reshape(6, 4, *layer.kernel_size)
    rest = {key: value for key, value in arguments.items() if key != "kernel_size"}
    expected = F.conv2d(x, kernel, layer.bias, **rest)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(layer.to_dense()(x), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(layer.weight, kernel, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [linear, convolution])
def test_gradients_of_the_factors(make):
    """With G = ∂L/∂W of the dense layer: g_U = G V Sᵀ, g_S = Uᵀ G V, g_V = Gᵀ U S (methods.md 1.3)."""
    layer = make()
    x = dict(CASES)[make]
    dense = layer.to_dense()
    for module in (layer, dense):
        module(x).square().sum().backward()
    G = layers.matricize(dense.weight.grad)
    U, S, V = (p.detach() for p in (layer.U, layer.S, layer.V))
    for found, expected in zip(
        (layer.U.grad, layer.S.grad, layer.V.grad), (G @ V @ S.mT, U.mT @ G @ V, G.mT @ U @ S), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad)


def truncated(W, rank):
    P, sigma, Qt = np.linalg.svd(W, full_matrices=False)
    return (P[:, :rank] * sigma[:rank]) @ Qt[:rank]


@pytest.mark.parametrize("core", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize(
    ("kind", "dense"), [(LowRankLinear, nn.Linear(6, 4)), (LowRankConv2d, nn.Conv2d(3, 4, (2, 3), stride=2))]
)
def test_from_dense_is_the_truncated_svd(kind, dense, rank, core):
    """Best rank-r approximation, the bias and every geometric argument kept; rank 4 is full and exact."""
    dense = dense.double()
    layer = kind.from_dense(dense, rank, core=core)
    W = dense.weight.detach().numpy().reshape(4, -1)
    np.testing.assert_allclose(layers.matricize(layer.weight).detach().numpy(), truncated(W, rank), atol=1e-12)
    np.testing.assert_allclose(layer.singular_values().numpy(), np.linalg.svd(W, compute_uv=False)[:rank], rtol=1e-10)
    assert torch.equal(layer.bias, dense.bias)
    assert layer.U.shape[1] == layer.rank == rank
    if core:
        eye = torch.eye(rank, dtype=DOUBLE)
        torch.testing.assert_close(layer.U.mT @ layer.U, eye, rtol=0, atol=1e-12)
        torch.testing.assert_close(layer.V.mT @ layer.V, eye, rtol=0, atol=1e-12)
    else:  # balanced: ‖U‖ and ‖V‖ carry the same singular values
        torch.testing.assert_close(layer.U.mT @ layer.U, layer.V.mT @ layer.V, rtol=0, atol=1e-12)
    back = layer.to_dense()
    for name in ("stride", "padding", "dilation", "in_features", "out_features", "in_channels", "out_channels"):
        assert getattr(back, name, None) == getattr(dense, name, None)


def test_singular_values_need_no_orthonormal_factors():
    for layer in (linear(), linear(core=False)):
        expected = np.linalg.svd(dense_matrix(layer), compute_uv=False)[:3]
        np.testing.assert_allclose(layer.singular_values().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("core", [True, False])
@pytest.mark.parametrize(("make", "x"), CASES)
class TestModuleProtocol:
    def test_deepcopy_is_independent(self, make, x, core):
        layer = make(core)
        twin = copy.deepcopy(layer)
        before = layer(x)
        with torch.no_grad():
            twin.U.zero_()
        assert torch.equal(layer(x), before)
        assert not torch.equal(twin(x), before)

    def test_state_dict_round_trip_through_a_file(self, make, x, core):
        layer, file = make(core), io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        other = randomize(make(core), seed=50)
        assert not torch.equal(other(x), layer(x))
        other.load_state_dict(torch.load(file, weights_only=True), strict=True)
        assert torch.equal(other(x), layer(x))

    def test_strict_load_refuses_another_form(self, make, x, core):
        with pytest.raises(RuntimeError, match=r"Missing|Unexpected"):
            make(core).load_state_dict(make(not core).state_dict(), strict=True)

    def test_conversion_of_type(self, make, x, core):
        layer = make(core).to(torch.float32)
        assert {p.dtype for p in layer.parameters()} == {torch.float32}
        # single precision of sums of at most 36 terms of size 10
        torch.testing.assert_close(layer(x.float()).double(), make(core)(x), rtol=1e-4, atol=1e-3)

    def test_training_mode_survives_both_conversions(self, make, x, core):
        layer = make(core).eval()
        dense = layer.to_dense()
        assert not dense.training
        assert not type(layer).from_dense(dense, 2).training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Factorizations run in float32, results are stored in the layer's type."""
    dense = nn.Linear(12, 9).to(dtype)
    layer = LowRankLinear.from_dense(dense, 9)
    assert layer.U.dtype == dtype
    x = randn(3, 12).to(dtype)
    # three rounded factors of norm one, twelve terms a sum
    torch.testing.assert_close(layer(x).double(), dense(x).double(), rtol=0, atol=12 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("core", [True, False])
def test_a_layer_starts_well_conditioned_and_passes_the_variance_of_its_input_on(core):
    torch.manual_seed(0)
    made = [LowRankLinear(50, 30, 7, dtype=DOUBLE, core=core), LowRankConv2d(5, 8, 3, 7, dtype=DOUBLE, core=core)]
    for layer, shape in zip(made, ((20_000, 50), (400, 5, 9, 9)), strict=True):
        n, m = layer.matrix_shape
        torch.testing.assert_close(layer.singular_values(), torch.full((7,), (n / m) ** 0.5, dtype=DOUBLE))
        assert layer.bias.abs().max() == 0
        assert layer(torch.randn(shape, dtype=DOUBLE)).var().item() == pytest.approx(7 / m, rel=0.05)


def test_a_layer_is_made_on_the_default_device():
    with torch.device("meta"):
        assert LowRankLinear(6, 5, 3).U.is_meta
        assert LowRankConv2d(2, 4, 3, 2, core=False).bias.is_meta


@pytest.mark.parametrize("rank", [2.5, "2", True, 0, 6])
def test_a_rank_that_is_none_is_refused_in_one_line(rank):
    with pytest.raises(ValueError, match=r"^rank = .*: must be a whole number in 1\.\.5 for a 5 x 6 weight matrix$"):
        LowRankLinear(6, 5, rank)


class OfManyKinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.attention = nn.Embedding(9, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.images = nn.Sequential(nn.Conv1d(6, 6, 3, groups=3), nn.BatchNorm1d(6), nn.ConvTranspose1d(6, 5, 3))
        self.head = nn.Linear(8, 4)

    def forward(self, index):
        x = self.words(index)
        return self.head(self.images(self.attention(x, x, x, need_weights=False)[0]))


@pytest.mark.parametrize("form", [{"rank": 2}, {"ratio": 0.0}])
def test_to_look_at_a_network_draws_no_random_number(form):
    """What is drawn between two epochs, of dropout and the order of images, is not to depend on a summary there."""
    model = wc.factorize(OfManyKinds(), **form).eval()
    x = torch.arange(6)[None]
    before = torch.get_rng_state()
    wc.summary(model, x)
    forms = (wc.densify(model), wc.deploy(model), wc.deploy(model, x, measure=False))
    assert torch.equal(torch.get_rng_state(), before)
    for form in forms:
        torch.testing.assert_close(form(x), model(x), rtol=1e-4, atol=1e-5)


def test_repr_tells_shape_rank_form_and_condition():
    layer = LowRankLinear(6, 5, 3, dtype=DOUBLE)
    with torch.no_grad():
        layer.S.copy_(matrix_with([3.0, 2.0, 1.5]))
    assert repr(layer) == ("LowRankLinear(in_features=6, out_features=5, rank=3, form=U S Vᵀ, kappa=2, bias=True)")
    text = repr(LowRankConv2d(2, 4, (1, 3), 2, stride=2, core=False, bias=False))
    assert "2, 4, kernel_size=(1, 3), stride=(2, 2), padding=(0, 0), dilation=(1, 1)" in text
    assert "rank=2, form=U Vᵀ, kappa=1, bias=False" in text


def test_printing_a_large_layer_decomposes_nothing(monkeypatch):
    layer = LowRankLinear(6, 5, 3)
    monkeypatch.setattr(LowRankLinear, "singular_values", lambda self: pytest.fail("a decomposition"))
    assert "rank=9, form=U S Vᵀ, bias=True" in repr(LowRankLinear(20_000, 9, 9, dtype=DOUBLE))
    with pytest.raises(pytest.fail.Exception):
        repr(layer)


@pytest.mark.parametrize("core", [True, False])
def test_torch_fx_traces_the_layers(core):
    model = nn.Sequential(
        LowRankConv2d(2, 4, 3, 2, core=core, dtype=DOUBLE),
        nn.Flatten(),
        LowRankLinear(36, 5, 2, core=core, dtype=DOUBLE),
    )
    trace, x = torch.fx.symbolic_trace(model), randn(3, 2, 5, 5)
    torch.testing.assert_close(trace(x), model(x))


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_repr_of_a_broken_layer_does_not_raise(value):
    """One prints a network to see what has gone wrong with it."""
    layer = LowRankLinear(6, 5, 3)
    with torch.no_grad():
        layer.S.fill_(value)
    assert "kappa=" in repr(layer)


@pytest.mark.parametrize("rank", [0, -1, 5])
@pytest.mark.parametrize("make", [lambda r: LowRankLinear(7, 4, r), lambda r: LowRankConv2d(3, 4, 3, r)])
def test_rank_out_of_range(make, rank):
    with pytest.raises(ValueError, match=rf"rank = {rank}: must be a whole number in 1\.\.4 for a 4 x (7|27)"):
        make(rank)


@pytest.mark.parametrize("core", [True, False])
@pytest.mark.parametrize("rank", [2, 5, 8])
def test_a_layer_never_costs_more_than_the_dense_one_and_its_merging(rank, core):
    """Forward and backward, in the counted FLOPs; and merged or not, it is the same function."""
    cases = (
        (nn.Conv2d(2, 8, 3, stride=2, padding=1), (4, 2, 16, 16), 4 * 8 * 8),
        (nn.Linear(10, 8), (300, 10), 300),
        (nn.Linear(10, 8), (1, 10), 1),
    )
    for dense, shape, positions in cases:
        dense = dense.to(DOUBLE)
        low = layers.LowRankLinear if isinstance(dense, nn.Linear) else LowRankConv2d
        layer = low.from_dense(dense, rank, core=core)
        x = randn(*shape)
        n, m = dense.weight.shape[0], dense.weight[0].numel()
        merging = 2 * (n * rank * m + n * rank * rank)
        with FlopCounterMode(display=False) as counter:
            layer(x)
        core_in_line = 2 * rank * rank * positions if core and isinstance(dense, nn.Linear) else 0
        assert counter.get_total_flops() <= 2 * n * m * positions + merging + core_in_line
        merged = layer.to_dense()(x)
        torch.testing.assert_close(layer(x), merged)


def test_layers_are_listed_by_name_in_order():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(LowRankLinear(4, 4, 2), nn.ReLU()), LowRankConv2d(2, 2, 1, 1))
    assert list(layers.low_rank_layers(model)) == ["1.0", "2"]
    assert list(layers.weight_layers(model)) == ["0", "1.0", "2"]


@pytest.mark.parametrize("core", [True, False])
def test_recomputing_changes_no_number_and_saves_the_tensors_between_the_factors(core):
    torch.manual_seed(0)
    channels, depth, x = 16, 6, torch.randn(8, 16, 12, 12)
    kept = nn.Sequential(*(LowRankConv2d(channels, channels, 3, 8, padding=1, core=core) for _ in range(depth)))
    kept[2] = nn.Conv2d(channels, channels, 3, padding=1)
    recomputed = recompute(copy.deepcopy(kept))

    def gradients(net):
        net.zero_grad()
        net(x).square().sum().backward()
        return [p.grad for p in net.parameters()]

    for a, b in zip(gradients(kept), gradients(recomputed), strict=True):
        assert torch.equal(a, b)
    saved = clocks.peak_bytes(lambda: gradients(kept), "cpu") - clocks.peak_bytes(lambda: gradients(recomputed), "cpu")
    between = x.numel() * 4 // 2 + (channels * 8 * 4 if core else 0)  # U S is forgotten too
    assert (depth - 2) * between <= saved <= depth * between  # at the peak one of five may be there again
    assert torch.equal(recompute(recomputed, on=False)(x), kept(x))
    assert not any(layer.recomputes for layer in layers.low_rank_layers(recomputed).values())


@pytest.mark.parametrize("positions", [8, 200])
def test_the_core_acts_on_the_images_or_on_the_basis_whichever_has_fewer_rows(positions):
    n, m, r = 30, 50, 7
    layer, x = LowRankLinear(m, n, r, dtype=DOUBLE), torch.randn(positions, m, dtype=DOUBLE)
    with FlopCounterMode(display=False) as counter:
        y = layer(x)
    assert counter.get_total_flops() == 2 * (positions * r * (n + m) + min(positions, n) * r**2)
    torch.testing.assert_close(y, x @ layer.matrix().mT + layer.bias)
    got, *want = [
        torch.autograd.grad((out * out).sum(), (layer.U, layer.S, layer.V))
        for out in (y, F.linear(x, layer.matrix(), layer.bias))
    ]
    torch.testing.assert_close(got, want[0])
