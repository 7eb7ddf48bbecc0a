"""Every kind of layer: at full rank the same function, in training the constraint, and the way back."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import wellcond as wc
from wellcond.kinds.opening import OPENED, open_
from wellcond.layers import KINDS, weight_matrix
from wellcond.methods import Settings, find

F64 = torch.float64


def attention(**options):
    return nn.MultiheadAttention(8, 2, **options).double()


class Attend(nn.Module):
    """Attention, with the arguments of its call."""

    def __init__(self, layer, **options):
        super().__init__()
        self.layer, self.options = layer, options
        self.how = {key: value for key, value in options.items() if key not in ("key", "value")}

    def forward(self, x):
        y, weights = self.layer(*(self.options.get(name, x) for name in ("query", "key", "value")), **self.how)
        return y if weights is None else (y, weights)


class Second(nn.Module):
    """The first of what a recurrent layer returns."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class Step(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = self.cell(x)
        return state[0] if isinstance(state, tuple) else state


MASK = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
X = {
    name: torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(k))
    for k, (name, shape) in enumerate(
        {
            "row": (3, 6),
            "line": (3, 6, 9),
            "image": (3, 6, 7, 8),
            "volume": (3, 6, 5, 4, 6),
            "tokens": (3, 5, 8),
        }.items()
    )
}
X["index"] = torch.tensor([[1, 0, 3], [6, 6, 2]])
CASES = {
    "linear": (lambda: nn.Linear(6, 4), "row"),
    "convolution 1d": (lambda: nn.Conv1d(6, 4, 3, stride=2, padding=1), "line"),
    "convolution 2d": (lambda: nn.Conv2d(6, 4, (3, 2), dilation=2, padding="same", bias=False), "image"),
    "convolution 3d": (lambda: nn.Conv3d(6, 4, 3, padding=1), "volume"),
    "in groups": (lambda: nn.Conv2d(6, 9, 3, groups=3, padding=1), "image"),
    "in groups, 1d": (lambda: nn.Conv1d(6, 4, 3, groups=2, bias=False), "line"),
    "reflected": (lambda: nn.Conv2d(6, 4, 3, padding=(1, 2), padding_mode="reflect"), "image"),
    "circular, same": (lambda: nn.Conv1d(6, 4, 3, padding="same", padding_mode="circular"), "line"),
    "replicated, in groups": (lambda: nn.Conv3d(6, 4, 3, padding=1, padding_mode="replicate", groups=2), "volume"),
    "transposed 1d": (lambda: nn.ConvTranspose1d(6, 4, 3, stride=2), "line"),
    "transposed 2d": (lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, dilation=2), "image"),
    "transposed 3d": (lambda: nn.ConvTranspose3d(6, 4, 2, bias=False), "volume"),
    "embedding": (lambda: nn.Embedding(7, 5), "index"),
    "padded embedding": (lambda: nn.Embedding(7, 5, padding_idx=6), "index"),
    "attention": (lambda: Attend(attention(batch_first=True), need_weights=False), "tokens"),
    "attention, sequence first": (lambda: Attend(attention(bias=False), need_weights=False), "tokens"),
    "attention, masked": (lambda: Attend(attention(batch_first=True), need_weights=False, attn_mask=MASK), "tokens"),
    "attention, weights": (lambda: Attend(attention(batch_first=True, add_bias_kv=True)), "tokens"),
    "cross attention": (
        lambda: Attend(
            attention(batch_first=True, kdim=6, vdim=4),
            key=torch.ones(3, 2, 6, dtype=F64),
            value=torch.ones(3, 2, 4, dtype=F64).cumsum(-1),
        ),
        "tokens",
    ),
    "LSTM": (lambda: Second(nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)), "tokens"),
    "projected LSTM": (lambda: Second(nn.LSTM(8, 6, proj_size=3)), "tokens"),
    "GRU": (lambda: Second(nn.GRU(8, 6)), "tokens"),
    "RNN": (lambda: Second(nn.RNN(8, 6, bias=False)), "tokens"),
    "LSTM cell": (lambda: Step(nn.LSTMCell(6, 4)), "row"),
    "GRU cell": (lambda: Step(nn.GRUCell(6, 4)), "row"),
}
CASES = {name: (make, X[x]) for name, (make, x) in CASES.items()}
every = pytest.mark.parametrize("case", CASES)


def network(case):
    torch.manual_seed(3)
    make, x = CASES[case]
    return nn.Sequential(make().double()), x


def outputs(model, x):
    y = model(x)
    return y[0] if isinstance(y, tuple) else y


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@every
@pytest.mark.parametrize("core", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_at_full_rank_nothing_changes(case, core, training):
    model, x = network(case)
    new = wc.factorize(model.train(training), ratio=0, core=core)
    assert wc.low_rank_layers(new)
    close(outputs(new, x), outputs(model, x))
    assert {m.training for m in new.modules()} == {training}


@every
def test_the_way_back_has_the_same_keys_types_and_weights(case):
    model, x = network(case)
    new = wc.factorize(model, ratio=0)
    dense = wc.densify(new)
    assert [type(m) for m in dense.modules()] == [type(m) for m in model.modules()]
    assert dense.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        close(dense.state_dict()[name], value)
    close(outputs(dense, x), outputs(model, x))
    assert (
        wc.count_parameters(new).dense
        == wc.count_parameters(model).trained
        == sum(p.numel() for p in model.parameters())
    )


@every
def test_it_is_the_best_approximation(case):
    """Each matrix of a stack by itself: Eckart and Young, by the singular values that are dropped."""
    model, _ = network(case)
    dense, new = wc.weight_layers(open_(copy.deepcopy(model))), wc.weight_layers(wc.factorize(model, rank=2))
    assert dense.keys() == new.keys()
    for name, layer in new.items():
        W = weight_matrix(dense[name])
        sigma = torch.linalg.svdvals(W)
        close((layer.matrix() - W).square().sum((-2, -1)), sigma[..., 2:].square().sum(-1))
        assert layer.rank == min(2, min(W.shape[-2:]))
        close(layer.singular_values(), sigma[..., : layer.rank])


@every
def test_gradients_are_those_of_the_product(case):
    """∂L/∂U = G V Sᵀ, ∂L/∂V = Gᵀ U S and ∂L/∂S = UᵀG V, with the gradient G of the dense layer of the same weight."""
    model, x = network(case)
    new = wc.factorize(model, ratio=0.4)
    dense = open_(wc.densify(new))
    for net in (new, dense):
        outputs(net, x).pow(3).sum().backward()
    theirs = wc.weight_layers(dense)
    for name, layer in wc.low_rank_layers(new).items():
        gradient = copy.copy(theirs[name])
        gradient._parameters = {**gradient._parameters, "weight": theirs[name].weight.grad}
        G = weight_matrix(gradient)
        U, S, V = layer.U.detach(), layer.S.detach(), layer.V.detach()
        scale = G.abs().max().clamp(min=1e-9)
        for own, by_hand in ((layer.U, G @ V @ S.mT), (layer.S, U.mT @ G @ V), (layer.V, G.mT @ U @ S)):
            if getattr(layer, "padding_idx", None) is not None and own is not layer.U:
                continue  # torch drops the row of padding_idx from the gradient of a table, not from what is after it
            close(own.grad / scale, by_hand / scale, 1e-11)


@every
@pytest.mark.parametrize("optimizer", [wc.LowRankSGD, wc.LowRankAdamW])
def test_training_keeps_the_constraint(case, optimizer):
    model, x = network(case)
    new = wc.constrain(wc.factorize(model, ratio=0.4), 1.2)
    steps = optimizer(wc.param_groups(new, max_cond=1.2), lr=0.01)
    losses = []
    for _ in range(5):
        steps.zero_grad()
        loss = (outputs(new, x) - 1).square().mean()
        loss.backward()
        steps.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for report in wc.layer_reports(new).values():
        assert report.kappa <= 1.2 + 1e-9
        assert report.orthogonality < 1e-12


@every
@pytest.mark.parametrize("example", [True, False])
def test_deployed(case, example):
    model, x = network(case)
    new = wc.factorize(model, rank=1).eval()
    small = wc.deploy(new, *([x] if example else []), measure=False)
    close(outputs(small, x), outputs(new, x))
    assert sum(p.numel() for p in small.parameters()) == wc.count_parameters(new).deployed


@every
def test_copies_states_and_files(case):
    model, x = network(case)
    new = wc.factorize(model, ratio=0.4)
    other = wc.factorize(model, rank=1)
    other.load_state_dict(new.state_dict())
    for again in (copy.deepcopy(new), pickle.loads(pickle.dumps(new)), other):
        close(outputs(again, x), outputs(new, x))
    if not isinstance(x, torch.LongTensor):
        parameters = dict(new.named_parameters())
        halved = {name: p.detach() / 2 for name, p in parameters.items()}
        expected = copy.deepcopy(new)
        with torch.no_grad():
            for p in expected.parameters():
                p.div_(2)
        y = torch.func.functional_call(new, halved, (x,))
        close(y[0] if isinstance(y, tuple) else y, outputs(expected, x))


@every
def test_reports_and_the_methods_of_dense_networks(case):
    model, x = network(case)
    reports, dense = wc.layer_reports(wc.factorize(model, ratio=0)), wc.layer_reports(wc.opened(model))
    assert reports.keys() == dense.keys()
    for name, report in reports.items():
        close(report.spectrum, dense[name].spectrum)
    product = wc.methods.lorita.overparametrize(model, 2)
    close(outputs(product, x), outputs(model, x))
    back = wc.methods.lorita.collapse(product)
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    close(outputs(wc.opened(model), x), outputs(model, x))


@pytest.mark.parametrize("case", [c for c in CASES if "LSTM" not in c and "weights" not in c and "cross" not in c])
@pytest.mark.parametrize("compressor", ["svd", "svd_global"])
def test_compressed(case, compressor):
    model, x = network(case)
    small = wc.compression.compress(model, compressor, amount=0.5)
    assert small.size <= sum(p.numel() for p in model.parameters())
    assert outputs(small.model, x).shape == outputs(model, x).shape
    whole = wc.compression.compress(model, compressor, amount=0.0)
    close(outputs(whole.model, x), outputs(model, x))


def test_a_row_of_padding_stays_zero():
    torch.manual_seed(0)
    table = nn.Embedding(7, 5, padding_idx=6).double()
    model = wc.constrain(wc.factorize(nn.Sequential(table), rank=3), 1.1)
    steps = wc.LowRankSGD(wc.param_groups(model, max_cond=1.1), lr=0.1, momentum=0.9)
    for _ in range(10):
        steps.zero_grad()
        (model(X["index"]) - 1).square().sum().backward()
        steps.step()
    assert model[0].U[6].abs().max() < 1e-15


def test_what_is_refused_stays_dense():
    layers = [nn.Embedding(9, 4, max_norm=1.0), nn.ConvTranspose2d(4, 4, 3, groups=2), nn.Conv2d(4, 8, 3, groups=4)]
    told = r"left dense: 0 \(an embedding with max_norm.*\); 1 \(a transposed convolution in groups\)$"
    with pytest.warns(UserWarning, match=told):
        new = wc.factorize(nn.Sequential(*layers), rank=1)
    assert list(wc.low_rank_layers(new)) == ["2"]
    with pytest.raises(ValueError, match=r"rank = 3: must be a whole number in 1\.\.2 for a 2 x 9 weight matrix"):
        wc.LowRankConv2d(4, 8, 3, 3, groups=4)


def test_skipped_matrices_of_a_module():
    model, x = network("attention")
    new = wc.factorize(model, rank=2, skip="*in_proj")
    assert list(wc.low_rank_layers(new)) == ["0.layer.out_proj"]
    assert {"0.layer.in_proj_weight", "0.layer.out_proj.U"} < new.state_dict().keys()
    assert outputs(new, x).shape == x.shape
    with pytest.raises(ValueError, match="skip = 'inproj': unknown"):
        wc.factorize(model, rank=2, skip="inproj")


class Scaled(nn.Linear):
    """A kind of a user: y = 2 W x + b."""

    def forward(self, x):
        return 2 * (x @ self.weight.mT) + self.bias


class LowRankScaled(wc.LowRankLinear):
    dense = Scaled

    def forward(self, x):
        return 2 * (x @ self.V @ self.left().mT) + self.bias


class Mixer(nn.Module):
    """A module of a user that reads a matrix of its own."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return x @ self.mix.mT


def test_kinds_of_a_user(monkeypatch):
    monkeypatch.setattr("wellcond.layers.KINDS", KINDS.copy())
    monkeypatch.setattr("wellcond.kinds.opening.OPENED", OPENED.copy())
    model, x = nn.Sequential(Mixer(), Scaled(6, 4)).double(), X["row"]
    with pytest.warns(
        UserWarning, match=r"0.mix \(a parameter of Mixer, of no known kind\); 1 \(Scaled, a Linear that may use"
    ):
        assert not wc.low_rank_layers(wc.factorize(model, ratio=0))
    monkeypatch.setitem(wc.layers.KINDS, Scaled, None)
    wc.register_kind(Scaled, LowRankScaled)
    wc.register_matrices(Mixer, lambda mixer: {"mixing": "mix"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = wc.factorize(model, ratio=0)
    assert list(wc.low_rank_layers(new)) == ["0.mixing", "1"]
    close(new(x), model(x))
    assert [type(m) for m in wc.densify(new).modules()] == [nn.Sequential, Mixer, Scaled]
    with pytest.raises(ValueError, match=r"kind = .*: must be a subclass of LowRankLayer"):
        wc.register_kind(Scaled, nn.Linear)
    with pytest.raises(ValueError, match="kind = 3: must be a class of modules"):
        wc.register_matrices(3, dict)


def test_attention_that_is_called_causal_without_a_mask_is_refused_as_torch_does():
    x = torch.ones(2, 5, 8, dtype=F64)
    for model in (attention(batch_first=True), wc.factorize(nn.Sequential(attention(batch_first=True)), rank=3)[0]):
        with pytest.raises(RuntimeError, match="Need attn_mask"):
            model(x, x, x, need_weights=False, is_causal=True)


@pytest.mark.parametrize("name", ["dense_clipped", "cayley_sgd", "projected_sgd"])
def test_rules_for_one_matrix_take_a_kernel_of_any_dimension_and_refuse_a_stack(name):
    method, settings = find(name), Settings(max_cond=1.5)
    for layer in (nn.Conv1d(4, 6, 3), nn.Conv3d(2, 6, 2), nn.ConvTranspose2d(6, 4, 2), nn.Linear(7, 5)):
        model = method.prepare(nn.Sequential(layer), settings)
        method.optimizer(method.groups(model, settings), lr=0.1).step()
        assert wc.layer_reports(model)["0"].kappa < 1.5 * (1 + 1e-4)
    with pytest.raises(ValueError, match=r"^0\.weight = 'a stack of 4 matrices': must be one matrix for this method$"):
        method.prepare(nn.Sequential(nn.Conv2d(16, 16, 1, groups=4)), settings)


@pytest.mark.parametrize("name", ["spectral_norm", "proximal_sgd", "fw_nuclear", "fw_spectral_k_support"])
def test_rules_for_the_singular_values_of_one_matrix_refuse_a_stack(name):
    method, settings = find(name), Settings()
    for layer in (nn.Conv2d(16, 16, 1, groups=4), nn.Conv1d(16, 16, 1, groups=4)):
        model = nn.Sequential(layer, nn.Linear(4, 2))
        with pytest.raises(ValueError, match=r"^0\.weight = 'a stack of 4 matrices': must be one matrix for this meth"):
            method.groups(method.prepare(model, settings), settings)


def test_the_spectral_norm_is_that_of_the_matrix_of_the_layer():
    for layer in (nn.Linear(7, 5), nn.Conv2d(3, 6, 2), nn.ConvTranspose2d(6, 4, 2), nn.Embedding(9, 4)):
        model = find("spectral_norm").prepare(nn.Sequential(layer), Settings())
        for _ in range(200):  # steps of the power iteration
            W = model[0].weight
        assert torch.linalg.matrix_norm(W.detach().flatten(1), 2) == pytest.approx(1, abs=1e-4)
