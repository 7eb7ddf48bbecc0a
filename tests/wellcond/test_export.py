"""Files for other programs: equal outputs, ranks that are read back, and nothing left behind by what fails."""

import importlib.util
import json
import re
import sys

import pytest
import torch
from torch import nn

import wellcond as wc
from helpers import Tiny, convolutional
from wellcond.adaptation import FORMATS, adapt, quantize
from wellcond.adaptation.files import replacing
from wellcond.methods import Tucker2Conv2d

X = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": (), "safetensors": ("safetensors",)}


def need(*packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def network(kind=Tiny, core=True):
    torch.manual_seed(0)
    model = kind()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.running_var, module.running_mean):
                nn.init.uniform_(value.data, 0.5, 2)
    return wc.factorize(model, rank=3, core=core).eval()


def run(format, path):
    if format == "torch":
        return torch.export.load(path).module()(X)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: X.numpy()})[0])


SUFFIX = {"onnx": ".onnx", "torch": ".pt2"}


@pytest.mark.parametrize(("kind", "deployed"), [(Tiny, False), (convolutional, True)])
@pytest.mark.parametrize("format", SUFFIX)
def test_a_program_computes_what_the_network_computes(format, kind, deployed, tmp_path):
    need(*PACKAGES[format])
    model = network(kind)
    path = tmp_path / f"network{SUFFIX[format]}"
    assert wc.export(wc.deploy(model) if deployed else model, path, X, format=format) == path
    torch.testing.assert_close(run(format, path), model(X), rtol=1e-4, atol=1e-5)
    assert list(tmp_path.iterdir()) == [path]
    assert X.shape == (4, 1, 28, 28)


class Two(nn.Module):
    def forward(self, x, *, y):
        return {"sum": x + y, "product": x * y}


@pytest.mark.parametrize("format", SUFFIX)
def test_arguments_by_name(format, tmp_path):
    need(*PACKAGES[format])
    wc.export(Two(), tmp_path / f"two{SUFFIX[format]}", {"x": torch.rand(3), "y": torch.rand(3)}, format=format)


@pytest.mark.parametrize("deployed", [True, False])
@pytest.mark.parametrize("core", [True, False])
@pytest.mark.parametrize("kind", [Tiny, convolutional])
def test_a_dense_network_gets_the_ranks_of_the_file(kind, core, deployed, tmp_path):
    need("safetensors")
    from safetensors import safe_open

    model = wc.deploy(network(kind, core)) if deployed else network(kind, core)
    path = wc.export(model, tmp_path / "network.safetensors", format="safetensors")
    again = wc.load_factors(path, kind())
    torch.testing.assert_close(again(X), model(X))
    assert again.state_dict().keys() == model.state_dict().keys()
    with safe_open(path, "pt") as file:
        ranks = json.loads(file.metadata()["ranks"])
    assert set(ranks.values()) == {3}
    assert ranks.keys() == ({"conv", "hidden", "classifier"} if kind is Tiny else {"0", "5"})


def normalized(*layers):
    """Layers, of which batch normalization has statistics of its own."""
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
            for value in (layer.weight, layer.running_var, layer.running_mean):
                nn.init.uniform_(value.data, 0.5, 2)
    return nn.Sequential(*layers)


KINDS = {
    "linear": (lambda: nn.Linear(6, 5), torch.rand(3, 6)),
    "line": (lambda: normalized(nn.Conv1d(6, 9, 3)), torch.rand(2, 6, 5)),
    "volume": (lambda: normalized(nn.Conv3d(6, 8, 2, bias=False), nn.BatchNorm3d(8)), torch.rand(2, 6, 3, 4, 5)),
    "groups": (lambda: normalized(nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8)), torch.rand(2, 8, 5, 5)),
    "transposed": (lambda: normalized(nn.ConvTranspose2d(8, 6, 3)), torch.rand(2, 8, 5, 5)),
    "embedding": (lambda: normalized(nn.Embedding(40, 8)), torch.tensor([[1, 0], [39, 3]])),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True), torch.rand(2, 5, 8)),
    "recurrent": (lambda: nn.LSTM(8, 6), torch.rand(2, 5, 8)),
}
FORMS = {
    "factors": lambda model: wc.factorize(model, rank=2),
    "two factors": lambda model: wc.factorize(model, rank=2, core=False),
    "deployed": lambda model: wc.deploy(wc.factorize(model, rank=2)),
    "deployed dense": lambda model: wc.deploy(wc.factorize(model, ratio=0)),
    "dense": lambda model: model,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_is_read_again(kind, form, tmp_path):
    need("safetensors")
    from safetensors import safe_open

    make, x = KINDS[kind]
    torch.manual_seed(0)
    model = FORMS[form](make().eval()).eval()
    path = wc.export(model, tmp_path / "network.safetensors", format="safetensors")
    again = wc.load_factors(path, make())
    found, expected = ((y[0] if isinstance(y, tuple) else y for y in [net(x)]) for net in (again, model))
    torch.testing.assert_close(next(found), next(expected))
    assert [type(module) for module in again.modules()] == [type(module) for module in model.modules()]
    with safe_open(path, "pt") as file:
        ranks = json.loads(file.metadata()["ranks"])
    if form not in ("deployed dense", "dense"):
        assert set(ranks.values()) == {2}


@pytest.mark.parametrize("deployed", [True, False])
def test_tucker_convolutions_are_read_again(deployed, tmp_path):
    need("safetensors")
    make, x = (lambda: normalized(nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6))), torch.rand(2, 8, 5, 5)
    model = wc.factorize(make(), ratio=0.7, convolution=Tucker2Conv2d).eval()
    model = wc.deploy(model) if deployed else model
    path = wc.export(model, tmp_path / "network.safetensors", format="safetensors")
    torch.testing.assert_close(wc.load_factors(path, make())(x), model(x))


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (lambda: nn.Sequential(nn.Conv1d(6, 8, 3)), "there 0.U is (9, 2), not (8, 2)"),
        (lambda: nn.Sequential(nn.Linear(6, 1)), "there 0.U is (9, 2), not (1, 1)"),
        (lambda: nn.Linear(2, 3), "there weight is absent, not (3, 2)"),
    ],
)
def test_the_file_of_another_network_is_told_in_a_line(other, difference, tmp_path):
    need("safetensors")
    path = tmp_path / "network.safetensors"
    wc.export(wc.factorize(normalized(nn.Conv1d(6, 9, 3)), rank=2), path, format="safetensors")
    with pytest.raises(ValueError, match=re.escape(difference)) as error:
        wc.load_factors(path, other())
    assert str(error.value) == f"path = '{path}': must be the file of this network; {difference}"


def test_normalization_without_numbers_stays(tmp_path):
    """It has no tensor in any file, whether or not it is folded."""
    need("safetensors")

    def make():
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False, track_running_stats=False))

    path = wc.export(wc.factorize(make(), rank=2), tmp_path / "network.safetensors", format="safetensors")
    assert isinstance(wc.load_factors(path, make())[1], nn.BatchNorm1d)


def test_dense_layers_between_factorized_ones(tmp_path):
    need("safetensors")
    model = wc.factorize(Tiny(), rank={"hidden": 3})
    path = wc.export(model, tmp_path / "network.safetensors", format="safetensors")
    again = wc.load_factors(path, Tiny())
    assert wc.low_rank_layers(again).keys() == {"hidden"}
    torch.testing.assert_close(again(X), model(X))
    with pytest.raises(ValueError, match=r"path = .*must be the file of this network"):
        wc.load_factors(path, convolutional())


class Failing(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


@pytest.mark.parametrize(("format", "kind"), [("torch", Failing), ("torch", Random), ("onnx", Random)])
def test_what_cannot_be_written_leaves_what_was_there(format, kind, tmp_path):
    """Code that depends on values, and a program that computes something else than the network."""
    need(*PACKAGES[format])
    path = tmp_path / f"network{SUFFIX[format]}"
    path.write_bytes(b"before")
    with pytest.raises(Exception, match=r"(?i)data-dependent|other outputs than the network|control flow"):
        wc.export(kind(), path, X, format=format)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"before"


def test_a_file_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.txt"

    def write():
        with replacing(path) as part:
            part.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("format", "package"), [("onnx", "onnx"), ("onnx", "onnxscript"), ("safetensors", "safetensors")]
)
def test_an_absent_package_is_named(format, package, tmp_path, monkeypatch):
    if package == "onnxscript":
        need("onnx")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"^format = '{format}' needs {package}, .*: pip install {package}$"):
        wc.export(Tiny(), tmp_path / "network", X, format=format)
    assert not list(tmp_path.iterdir())


def test_torchao_is_named_where_it_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ImportError, match=r"^quantize needs torchao, .*: pip install torchao$"):
        quantize(Tiny())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "onxx"}, "format = 'onxx': unknown; did you mean 'onnx'"),
        ({"format": "torch", "example": None}, "example = None: must be an input of the network"),
    ],
)
def test_bad_input(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        wc.export(Tiny(), tmp_path / "network", **{"example": X, **arguments})
    assert FORMATS.keys() == PACKAGES.keys()


def test_adapters_are_merged_before(tmp_path):
    with pytest.raises(ValueError, match=r"one with adapters \(conv, hidden, classifier\)"):
        wc.export(adapt(Tiny()), tmp_path / "network", format="safetensors")


def test_eight_bits():
    """Rounding to 255 levels a row: of weights, a relative error of at most half a level of the largest of a row."""
    need("torchao")
    model = wc.deploy(network())
    small = quantize(model)
    expected, found = model(X), small(X)
    assert 0 < (found - expected).norm() < 0.02 * expected.norm()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            W = small.get_submodule(name).weight.dequantize()
            step = layer.weight.abs().amax(1, keepdim=True) / 127
            assert ((W - layer.weight).abs() <= 0.51 * step + 1e-7).all()
    assert torch.equal(small.conv[0].weight, model.conv[0].weight)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: network(), "deployed, wc.deploy(model)"),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3)), "a network with a linear layer"),
    ],
)
def test_what_is_not_quantized(model, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        quantize(model())
