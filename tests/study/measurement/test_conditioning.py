"""The exact number against closed forms and differences; its bound on every point of random networks; the figure."""

import copy
import dataclasses
import math
from collections import ChainMap

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import study
import wellcond as wc
from helpers import DOUBLE, Tiny, randn
from study import networks as models
from study.data import Images
from study.experiments.cells import load
from study.measurement import conditioning
from study.measurement.conditioning import condition_rows, relative_condition
from study.presentation.conditioning import (
    FACTORS,
    MARKERS,
    PREDICTORS,
    correlation_table,
    log_factors,
    plot_factors,
    predictors,
    rank_correlations,
)  # fmt: skip
from wellcond.diagnostics import effective_kappa, in_double
from wellcond.kinds.convolution import LowRankConv2d
from wellcond.layers import LowRankLinear
from wellcond.methods.tucker import Tucker2Conv2d


def relative_condition_number(model, x):
    """κ_rel of any model, from its Jacobian."""
    with torch.enable_grad():
        return conditioning._from_jacobian(in_double(model), x.detach().double())


class Narrow(models.VGG16):
    """VGG16 in all but size."""

    WIDTHS = ((6, 6), (8, 8), (8, 8, 8), (12, 12, 12), (16, 16, 512))


def linear(W, b=None):
    W = torch.as_tensor(W, dtype=DOUBLE)
    layer = nn.Linear(W.shape[1], W.shape[0], bias=b is not None, dtype=DOUBLE)
    layer.weight.data.copy_(W)
    if b is not None:
        layer.bias.data.copy_(b)
    return nn.Sequential(layer)


def randomized(model, seed=0):
    """Random biases and statistics too, where a new network has zeros and ones."""
    for i, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.copy_(randn(len(module.running_mean), seed=seed + i))
            module.running_var.copy_(0.1 + randn(len(module.running_var), seed=seed + i + 1).square())
        for p in module.parameters(recurse=False):
            if p.ndim == 1:
                p.data.copy_(0.5 * randn(len(p), seed=seed + i + 2))
    return model


def network(seed=0):
    """A chain with everything in it: strides, paddings, dilation, factors with and without a core, two poolings."""
    torch.manual_seed(seed)
    return randomized(
        nn.Sequential(
            study.Normalize([0.4, 0.5], [0.2, 0.3]),
            nn.Conv2d(2, 5, 3, stride=2, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            LowRankConv2d(5, 6, (3, 2), 3, padding=(0, 1), dilation=(1, 2)),
            nn.BatchNorm2d(6),
            nn.MaxPool2d(3, stride=2),  # windows overlap
            nn.Tanh(),
            nn.Conv2d(6, 4, 3, padding="same", bias=False),
            nn.BatchNorm2d(4),
            nn.MaxPool2d(2),
            nn.SiLU(),
            nn.Flatten(),
            LowRankLinear(8, 12, 5, core=False),
            nn.LeakyReLU(0.01),
            nn.Dropout(),
            nn.BatchNorm1d(12),  # reads an activation: not folded
            LowRankLinear(12, 20, 7),
            nn.BatchNorm1d(20),
            nn.Sigmoid(),
            nn.Linear(20, 3),
        ),
        seed,
    )


def points(n=6, seed=0):
    return torch.rand(n, 2, 20, 20, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def images(n=9):
    pixels = torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return Images(pixels, torch.zeros(n, dtype=torch.int64))


def assert_bounds_hold(found):
    assert (found.kappa_rel > 0).all()
    assert (found.kappa_rel <= found.gain_bound * (1 + 1e-10)).all()
    assert (found.gain_bound <= found.bound * (1 + 1e-10)).all()


class TestExactNumber:
    def test_linear_map(self):
        """‖W‖ ‖x‖/‖W x + b‖."""
        W, b, x = randn(4, 7), randn(4, seed=1), randn(5, 7, seed=2)
        expected = torch.linalg.matrix_norm(W, 2) * x.norm(dim=1) / (x @ W.mT + b).norm(dim=1)
        torch.testing.assert_close(relative_condition_number(linear(W, b), x), expected)

    @pytest.mark.parametrize("d", [1.0, 0.1, -1e-4])
    def test_a_condition_number_of_one_bounds_nothing_without_the_angle(self, d):
        """W = [1 0], z = (d, 1): κ(W) = 1, κ_rel = sqrt(1 + d²)/|d|, all of it in the angle."""
        found = relative_condition(linear([[1.0, 0.0]]), torch.tensor([[d, 1.0]], dtype=DOUBLE))
        expected = pytest.approx(math.sqrt(1 + d * d) / abs(d), rel=1e-12)
        assert found.factors["0", "kappa"].item() == 1
        assert [value.item() for value in (found.kappa_rel, found.factors["0", "angle"], found.bound)] == [expected] * 3

    def test_central_differences(self):
        model, x, h = network().double().eval(), points(1), 1e-5
        columns = []
        for i in range(x.numel()):
            e = torch.zeros_like(x).flatten()
            e[i] = h
            e = e.reshape(x.shape)
            columns.append((model(x + e) - model(x - e)).flatten() / (2 * h))
        size = torch.linalg.matrix_norm(torch.stack(columns, 1), 2) * x.norm() / model(x).norm()
        assert relative_condition_number(model, x).item() == pytest.approx(size.item(), rel=1e-6)

    def test_no_direction_exceeds_it_and_one_attains_it(self):
        model, x, h = network(1).double().eval(), points(1), 1e-6
        jacobian = torch.func.jacrev(model)(x).reshape(3, -1)
        worst = torch.linalg.svd(jacobian).Vh[0].reshape(x.shape)
        number, y = relative_condition_number(model, x).item(), model(x)

        def change(direction):
            moved = model(x + h * x.norm() * direction / direction.norm())
            return ((moved - y).norm() / y.norm() / h).item()

        assert change(worst) == pytest.approx(number, rel=1e-3)
        assert all(change(randn(*x.shape, seed=seed)) < number for seed in range(20))

    def test_networks_with_skip_connections_have_one(self):
        x = images(3).pixels(slice(None))
        for model in (Tiny(), study.build("wrn16_4")):
            assert (relative_condition_number(model, x) > 0).all()

    def test_scaling_the_logits_does_not_change_it(self):
        model, x = network(), points()
        before = relative_condition_number(model, x)
        for p in model[-1].parameters():
            p.data *= 64
        torch.testing.assert_close(relative_condition_number(model, x), before)

    def test_no_points_and_no_output(self):
        model = linear(torch.eye(2))
        assert relative_condition_number(model, torch.zeros(1, 2)).isnan().all()
        with pytest.raises(ValueError, match=r"output = \(2, 2, 3\): must be one row of logits for each of 2 points"):
            relative_condition_number(nn.Identity(), torch.ones(2, 2, 3))


class TestBound:
    @settings(max_examples=25)
    @given(st.integers(0, 10**6))
    def test_holds_at_every_point(self, seed):
        assert_bounds_hold(relative_condition(network(seed), points(seed=seed)))

    @pytest.mark.parametrize("network", [models.LeNet5, lambda: Narrow(in_channels=1)], ids=["lenet5", "vgg16"])
    @pytest.mark.parametrize("ratio", [None, 0.8])
    def test_holds_for_the_reference_networks(self, network, ratio):
        torch.manual_seed(0)
        model = randomized(network() if ratio is None else wc.factorize(network(), ratio=ratio))
        size = 28 if isinstance(model, models.LeNet5) else 32
        found = relative_condition(model, torch.rand(5, 1, size, size))
        assert_bounds_hold(found)
        assert {layer for layer, _ in found.factors} == {"input", *wc.weight_layers(model)}

    def test_the_steps_are_the_network(self):
        """Traced and folded, they return what the model returns."""
        for model, x in ((network(), points()), (study.build("lenet5"), images().pixels(slice(None)))):
            model = model.double().eval()
            z = x.double()
            for _, _, step in conditioning.chain(model):
                z = step(z)
            torch.testing.assert_close(z, model(x.double()))

    def test_factors_of_a_linear_layer(self):
        """Against the singular value decomposition; the four together bound the gain."""
        W, b, z = randn(3, 8), randn(3, seed=1), randn(5, 8, seed=2)
        found = relative_condition(linear(W, b), z)
        _, sigma, Vt = np.linalg.svd(W.numpy(), full_matrices=False)
        y, norms = z @ W.mT, z.norm(dim=1)
        assert found.factors["0", "kappa"][0].item() == pytest.approx(sigma[0] / sigma[2])
        torch.testing.assert_close(found.factors["0", "angle"], norms / (z @ torch.tensor(Vt).mT).norm(dim=1))
        torch.testing.assert_close(found.factors["0", "bias"], y.norm(dim=1) / (y + b).norm(dim=1))
        torch.testing.assert_close(found.gains["0"], sigma[0] * norms / (y + b).norm(dim=1))
        torch.testing.assert_close(found.gains["0"], found.kappa_rel)
        assert (found.factors["0", "patch"] == 1).all()

    @pytest.mark.parametrize(
        "geometry",
        [{}, {"stride": 3}, {"padding": (2, 1), "dilation": 2}, {"stride": 2, "padding": 3, "dilation": (2, 1)}],
    )
    def test_factors_of_a_convolution(self, geometry):
        """Against unfolded patches: E as a matrix, its norm, and the angle between all patches and the row space."""
        layer = LowRankConv2d(2, 5, (3, 4), 3, bias=False, dtype=DOUBLE, **geometry)
        shape = (2, 9, 11)
        z = randn(4, *shape)
        found = relative_condition(nn.Sequential(layer, nn.Flatten()), z)

        def unfold(z):
            return F.unfold(z, (3, 4), **geometry)

        E = unfold(torch.eye(198, dtype=DOUBLE).reshape(198, *shape)).flatten(1).mT
        patches = unfold(z)
        norms = patches.flatten(1).norm(dim=1)
        patch = torch.linalg.matrix_norm(E, 2) * z.flatten(1).norm(dim=1) / norms
        torch.testing.assert_close(found.factors["0", "patch"], patch)
        torch.testing.assert_close(found.factors["0", "angle"], norms / (layer.V.mT @ patches).flatten(1).norm(dim=1))
        assert (found.factors["0", "patch"] >= 1).all()
        assert_bounds_hold(found)

    def test_the_patch_factor_is_necessary(self):
        """A stride that steps over the bright pixel: κ(W) = cos θ = 1, and κ_rel is as large as one likes."""
        layer = nn.Conv2d(1, 1, 1, stride=2, bias=False)
        layer.weight.data.fill_(1)
        x = torch.tensor([[0.01, 1.0], [0.0, 0.0]])[None, None]
        found = relative_condition(nn.Sequential(layer, nn.Flatten()), x)
        assert [round(found.factors["0", name].item(), 9) for name in ("kappa", "angle", "bias")] == [1, 1, 1]
        torch.testing.assert_close(found.factors["0", "patch"], found.kappa_rel)
        assert found.kappa_rel.item() > 100

    def test_full_column_rank_has_no_angle(self):
        x = randn(4, 6)
        model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), LowRankLinear(9, 3, 3))
        found = relative_condition(model, x)
        for layer in "02":
            torch.testing.assert_close(found.factors[layer, "angle"], torch.ones(4, dtype=DOUBLE))
        assert (found.factors["4", "angle"] > 1).all()

    @pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.2), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.ELU()])
    def test_activations(self, activation):
        """max |φ'(y_i)| ‖y‖/‖φ(y)‖ is κ_rel of the activation itself; an inner network sees it exactly."""
        y = randn(5, 4)
        found = relative_condition(nn.Sequential(activation), y)
        torch.testing.assert_close(found.factors["input", "activation"], found.kappa_rel)

    @pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 1), (3, 2)])
    def test_pooling(self, kernel, stride):
        """Its Jacobian selects entries, some more than once where windows overlap."""
        y = randn(5, 2, 7, 7)
        found = relative_condition(nn.Sequential(nn.MaxPool2d(kernel, stride), nn.Flatten()), y)
        torch.testing.assert_close(found.factors["input", "pooling"], found.kappa_rel)

    def test_gradients_may_be_off_or_asked_for(self):
        x = points(2)
        expected = relative_condition(network(), x).kappa_rel
        assert not x.requires_grad
        with torch.no_grad():
            torch.testing.assert_close(relative_condition(network(), x).kappa_rel, expected)
            torch.testing.assert_close(relative_condition_number(network(), x), expected)
        found = relative_condition(network(), x.clone().requires_grad_())
        assert not any(value.requires_grad for value in (found.kappa_rel, found.bound, found.gain_bound))

    def test_chunks_change_nothing(self, monkeypatch):
        whole = relative_condition(network(), points(7))
        monkeypatch.setattr(conditioning, "CHUNK", 3)
        parts = relative_condition(network(), points(7))
        torch.testing.assert_close(parts.kappa_rel, whole.kappa_rel)
        torch.testing.assert_close(parts.factors, whole.factors)
        torch.testing.assert_close(parts.gains, whole.gains)

    def test_the_model_is_left_as_it_was(self):
        model = network().train()
        model[0].requires_grad_(False)
        before = copy.deepcopy(model)
        relative_condition(model, points(2))
        effective_kappa(model)
        for old, new in zip(before.modules(), model.modules(), strict=True):
            assert new.training == old.training
        for old, new in zip(before.parameters(), model.parameters(), strict=True):
            assert (new.dtype, new.requires_grad, new.grad) == (old.dtype, old.requires_grad, None)
        for old, new in zip(before.state_dict().values(), model.state_dict().values(), strict=True):
            assert new.dtype == old.dtype
            assert torch.equal(new, old)

    def test_functions_and_modules_are_the_same_chain(self):
        class Functional(nn.Module):
            def __init__(self, layers):
                super().__init__()
                self.layers = layers

            def forward(self, x):
                x = F.max_pool2d(torch.tanh(self.layers[0](x)), kernel_size=2)
                return self.layers[4](x.reshape(-1, 50))

        modules = nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(50, 3))
        x = randn(3, 1, 22, 22)
        ours, theirs = relative_condition(Functional(modules), x), relative_condition(modules, x)
        torch.testing.assert_close(ours.factors["layers.0", "pooling"], theirs.factors["0", "pooling"])
        torch.testing.assert_close(ours.factors["layers.4", "angle"], theirs.factors["4", "angle"])
        assert_bounds_hold(ours)


class Shared(nn.Module):
    """One layer, called twice: the layer's name has the product of both factors."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


def test_a_layer_that_is_called_twice():
    model = Shared()
    found = relative_condition(model, randn(5, 4))
    assert found.factors["layer", "kappa"][0].item() == pytest.approx(effective_kappa(model)["layer"] ** 2)
    assert_bounds_hold(found)


class TestEffectiveKappa:
    def test_is_that_of_the_folded_layer(self):
        """What `deploy` folds in float64, at full rank, is the dense matrix D W."""
        model = network().double()
        folded = wc.deploy(wc.densify(model))
        kappas = effective_kappa(model)
        assert list(kappas) == list(wc.weight_layers(model))
        for name, layer in wc.weight_layers(folded).items():
            sigma = torch.linalg.svdvals(wc.matricize(layer.weight).detach())
            nonzero = sigma[sigma > 1e-12 * sigma[0]]
            assert kappas[name] == pytest.approx((nonzero[0] / nonzero[-1]).item(), rel=1e-9)

    def test_without_normalization_it_is_that_of_the_core(self):
        model = wc.factorize(study.build("lenet5"), ratio=0.7)
        for name, report in wc.layer_reports(model).items():
            assert effective_kappa(model)[name] == pytest.approx(report.kappa, rel=1e-4)  # U and V in float32

    def test_skip_connections_and_dead_channels(self):
        model = study.build("wrn16_4")
        assert list(effective_kappa(model)) == list(wc.weight_layers(model))
        assert effective_kappa(linear([[2.0, 0.0], [0.0, 0.0]])) == {"0": 1.0}
        assert effective_kappa(linear(torch.zeros(2, 2))) == {"0": math.inf}


class TestRows:
    def test_geometric_means_multiply_to_the_bound(self):
        rows = condition_rows(study.build("lenet5"), images(), n_images=7)
        frame = pd.DataFrame(rows)
        about = frame[frame["layer"] == ""].set_index("quantity")["value"]
        layers = frame[frame["layer"] != ""]
        assert layers.loc[layers["quantity"] != "gain", "value"].prod() == pytest.approx(about["bound"], rel=1e-12)
        gains = layers[layers["quantity"].isin(["gain", "activation", "pooling", "normalization"])]
        assert gains["value"].prod() == pytest.approx(about["gain_bound"], rel=1e-12)
        assert (about["images"], about["undefined"]) == (7, 0)
        assert not frame.duplicated(["layer", "quantity"]).any()

    def test_quantiles_are_of_the_exact_number(self):
        model, nine = study.build("lenet5"), images()
        exact = relative_condition_number(model, nine.images.double() / 255)
        rows = {row["quantity"]: row["value"] for row in condition_rows(model, nine) if row["layer"] == ""}
        assert rows["kappa_rel"] == pytest.approx(exact.log().mean().exp().item())
        assert rows["kappa_rel_median"] == pytest.approx(exact.median().item())
        assert rows["kappa_rel_q90"] == pytest.approx(exact.quantile(0.9).item())
        assert rows["kappa_rel_max"] == pytest.approx(exact.max().item())

    def test_images_where_a_layer_returns_zero_are_left_out(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 6, bias=False), nn.ReLU(), nn.Linear(6, 3))
        black = Images(images(3).images.clone(), images(3).labels)
        black.images[1] = 0
        rows = {(row["layer"], row["quantity"]): row["value"] for row in condition_rows(model, black)}
        assert (rows["", "images"], rows["", "undefined"]) == (3, 1)
        assert all(math.isfinite(value) for value in rows.values())
        model[1].weight.data.zero_()
        rows = {(row["layer"], row["quantity"]): row["value"] for row in condition_rows(model, black)}
        assert rows["", "undefined"] == 3
        assert math.isnan(rows["", "bound"])


class Untraceable(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Tiny(), "model = 'Tiny': must be a chain of layers; flatten is read by hidden, add"),
        (Untraceable(), "model = 'Untraceable': must be a chain of layers; torch.fx cannot trace it: TraceError"),
        (nn.Sequential(nn.Softmax(1)), "model = 'Sequential': must be a chain of layers; Softmax has no known factor"),
        (nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)), "0 has groups, or padding other than zeros"),
        (nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False)), "BatchNorm2d has no known factor"),
        (nn.Linear(2, 2), "does not read"),
    ],
)
def test_what_is_no_chain(model, message):
    with pytest.raises(ValueError, match=message) as caught:
        relative_condition(model, torch.ones(1, 2, 28, 28))
    assert "\n" not in str(caught.value)


def test_no_point():
    with pytest.raises(ValueError, match=r"x = \(0, 2\): must be one point at least"):
        relative_condition(linear(torch.eye(2)), torch.zeros(0, 2))


# --- the figure ------------------------------------------------------------------------------------------------------


def frame(**values):
    """Two seeds of two methods; the layers a and b share every factor."""
    rows = []
    for method, ratio in (("condlr", 0.8), ("dense", math.nan)):
        for seed in (0, 1):
            about = {"run_id": f"{method}-s{seed}", "method": method, "label": method, "ratio": ratio, "seed": seed}
            for quantity, value in ({"kappa": 10.0, "angle": 100.0, "bias": 0.1} | values).items():
                for layer in ("a", "b"):
                    rows.append({**about, "layer": layer, "quantity": quantity, "value": value * 10.0**seed})
            rows += [{**about, "layer": math.nan, "quantity": q, "value": 1e4} for q in (*MARKERS, "images")]
    return pd.DataFrame(rows).assign(max_cond=math.nan)


def test_logarithms_are_summed_over_layers_and_averaged_over_seeds():
    logs = log_factors(frame())
    assert list(logs.index) == ["dense", "condlr\nratio 0.8"]
    expected = {"kappa": 3, "angle": 5, "patch": 0, "bias": -1, "kappa_rel": 4, "gain_bound": 4, "bound": 4}
    assert list(logs.columns) == [*FACTORS, *MARKERS]
    for quantity, value in expected.items():
        np.testing.assert_allclose(logs[quantity], value, atol=1e-12)


def test_undefined_runs_are_left_out():
    undefined = frame()
    undefined.loc[undefined["run_id"] == "dense-s1", "value"] = math.nan
    logs = log_factors(undefined)
    assert (logs.loc["dense", "kappa"], logs.loc["condlr\nratio 0.8", "kappa"]) == (2, 3)


def test_bars_end_at_the_bound():
    """Those that lengthen start where those that shorten end."""
    fig = plot_factors(frame())
    ends = [patch.get_x() + patch.get_width() for patch in fig.axes[0].patches if patch.get_width() > 0]
    assert max(ends) == pytest.approx(3 + 5 - 1)
    assert min(patch.get_x() + patch.get_width() for patch in fig.axes[0].patches) == pytest.approx(-1)
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert "κ(W)" in labels
    assert "pooling" not in labels  # nobody has it


def test_nothing_computed_yet():
    assert plot_factors(frame()[:0]).axes[0].texts[0].get_text() == "waiting: nothing is computed"


def predicted(seed=0, configurations=12, seeds=3):
    """Networks whose rate falls with kappa_rel, with noise; the other predictors are noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for c in range(configurations):
        level = rng.normal()
        for s in range(seeds):
            rate = 50 - 10 * level + rng.normal()
            noise = {key: rng.normal() for key in PREDICTORS}
            rows.append({**noise, "name": f"c{c}", "run_id": f"c{c}-s{s}", "rate": rate, "kappa_rel": level})
    return pd.DataFrame(rows)


def test_rank_correlations_and_their_intervals():
    frame = predicted()
    table = rank_correlations(frame, 200).set_index("predictor")
    spearman = frame["kappa_rel"].rank().corr(frame["rate"].rank())
    assert table.loc["kappa_rel", "rho"] == pytest.approx(spearman)
    assert -1 <= table.loc["kappa_rel", "low"] <= spearman <= table.loc["kappa_rel", "high"] < -0.8
    assert table.loc["kappas", "low"] < 0 < table.loc["kappas", "high"]
    assert (table["networks"] == 36).all()
    assert (table["configurations"] == 12).all()


def test_intervals_cover_zero_where_there_is_no_association():
    """Of independent draws, the 95 % interval misses zero seldom (here at most 3 of 20 by chance)."""
    missed = 0
    for seed in range(20):
        row = rank_correlations(predicted(seed, 20, 2), 200).set_index("predictor").loc["gain"]
        missed += not row["low"] <= 0 <= row["high"]
    assert missed <= 3


def test_correlations_of_nothing():
    assert rank_correlations(predicted().head(0))["rho"].isna().all()
    table = correlation_table({"none": rank_correlations(predicted().head(0))}).data
    assert set(table["none"]) == {"– [–, –]"}
    assert len(table) == len(PREDICTORS)


def test_tucker_kernels_and_spectral_normalization_have_their_factors():
    torch.manual_seed(0)
    net = study.build("lenet5")
    tucker = wc.factorize(net, ratio=0.5, convolution=Tucker2Conv2d)
    normalized = copy.deepcopy(net)
    for layer in wc.weight_layers(normalized).values():
        nn.utils.parametrizations.spectral_norm(layer)
    x = torch.rand(3, 1, 28, 28)
    for model in (tucker, normalized):
        found = relative_condition(model, x)
        torch.testing.assert_close(found.kappa_rel, relative_condition_number(wc.densify(model), x))
        assert (found.kappa_rel <= found.gain_bound * (1 + 1e-9)).all()
        assert (found.gain_bound <= found.bound * (1 + 1e-9)).all()


@pytest.mark.parametrize("also", [[], ["runs", "robustness", "curves", "spectra"]])
def test_nothing_measured_gives_no_predictors_and_no_correlations(also):
    """A study of which no network was measured, or none trained: its chapter must say so, not fail."""
    committed = load(study.Experiment.load("mnist_condition_growth"))
    measured = predictors(committed, "pgd_linf")
    bare = {name: pd.DataFrame(columns=getattr(committed, name).columns) for name in ["conditioning", *also]}
    frame = predictors(dataclasses.replace(committed, tables=ChainMap(bare, committed.tables)), "pgd_linf")
    assert len(measured) > 3
    assert list(frame.columns) == list(measured.columns)
    assert frame.empty
    assert rank_correlations(frame)["rho"].isna().all()
