"""What is refused, where it enters, in one line that names the field, the value and what is accepted.

Each of these was tried by somebody: a slip of the keyboard, a value of the wrong type, a file from elsewhere.
"""

import itertools
import math
import struct
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import wellcond as wc
from study import chapters, data, networks, paths
from study.attacks.logits import logits_of
from study.attacks.registry import ATTACKS, options_text, perturb
from study.experiments.specification import Experiment
from study.results import store
from study.training.loop import Recipe


def refused(call, *parts):
    """The call raises ValueError, in one line that holds the parts."""
    with pytest.raises(ValueError) as error:  # noqa: PT011  the parts are looked for below
        call()
    line = str(error.value)
    assert "\n" not in line, line
    for part in parts:
        assert str(part) in line, line


# ------------------------------------------------------------------------------------------------- options of attacks

WHOLE = [0, -1, 2.5, 1.0, True, "40", math.nan, math.inf]
POSITIVE = [0, -2.5, True, "2.5", math.nan, math.inf]
OPTIONS = [
    (kind.name, option.name, value)
    for kind in ATTACKS.values()
    for option in kind.options
    for value in (WHOLE if option.whole else POSITIVE)
]


@pytest.mark.parametrize(("attack", "option", "value"), OPTIONS)
def test_options_of_attacks(attack, option, value):
    refused(lambda: options_text(ATTACKS[attack], {option: value}), f"{attack}.{option} = {value!r}", "must be")


@pytest.mark.parametrize("attack", list(ATTACKS))
def test_misspelt_options_of_attacks(attack):
    refused(lambda: options_text(ATTACKS[attack], {"stepps": 3}), f"option of {attack} = 'stepps'")


X = torch.full((2, 3, 8, 8), 0.5)
Y = torch.tensor([0, 1])


class Saying(nn.Module):
    """A network that answers what it is told to."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer


LOGITS = {
    "nan": torch.full((2, 3), math.nan),
    "inf": torch.tensor([[0.0, math.inf], [0.0, 1.0]]),
    "one class": torch.zeros(2, 1),
    "no classes": torch.zeros(2, 0),
    "too few rows": torch.zeros(1, 3),
    "a vector": torch.zeros(2),
    "a map": torch.zeros(2, 3, 4, 4),
    "a tuple": (torch.zeros(2, 3), torch.zeros(2, 3)),
    "a dictionary": {"logits": torch.zeros(2, 3)},
    "nothing": None,
}


@pytest.mark.parametrize("answer", LOGITS.values(), ids=LOGITS)
def test_answers_of_networks(answer):
    refused(lambda: logits_of(Saying(answer), X), "logits = ")


@pytest.mark.parametrize("answer", LOGITS.values(), ids=LOGITS)
@pytest.mark.parametrize("attack", ["fgsm", "pgd_l2"])
def test_answers_of_networks_under_attack(attack, answer):
    refused(lambda: perturb(ATTACKS[attack], Saying(answer), X, Y, 0.1), "logits = ")


@pytest.mark.parametrize("eps", [-0.1, math.nan])
@pytest.mark.parametrize("attack", ["fgsm", "pgd_linf", "square_l2"])
def test_radii(attack, eps):
    refused(lambda: perturb(ATTACKS[attack], Saying(torch.zeros(2, 3)), X, Y, eps), f"eps = {eps}")


@pytest.mark.parametrize("pixel", [-0.01, 1.01, 255.0, math.nan, math.inf])
def test_pixels(pixel):
    x = X.clone()
    x[1, 2, 3, 4] = pixel
    refused(lambda: perturb(ATTACKS["fgsm"], Saying(torch.zeros(2, 3)), x, Y, 0.1), "x = ", "pixels in [0, 1]")


# -------------------------------------------------------------------------------------------------- experiment files

GOOD = """
name = "tiny"
title = "Tiny"
dataset = "digits"
model = "lenet5"
seeds = [0]
n_train = 32
n_test = 20
[train]
epochs = 2
batch_size = 16
lr = 0.1
[[method]]
name = "condlr"
ratio = [0.5]
max_cond = [1.1]
[[attack]]
name = "pgd_linf"
eps = [0.1]
[presets.smoke]
n_test = 10
"""

# (what stands in GOOD, what somebody wrote instead, what the line says)
EDITS = [
    ('name = "tiny"', 'name = "../../x"', ["name", "../../x"]),
    ('name = "tiny"', 'name = "/absolute"', ["name", "/absolute"]),
    ('name = "tiny"', 'name = ""', ["name"]),
    ('name = "tiny"', f'name = "{"a" * 81}"', ["name"]),
    ('name = "tiny"', 'name = "a b"', ["name", "a b"]),
    ('name = "tiny"', 'name = "ti\\nny"', ["name"]),
    ('name = "tiny"', "name = 3", ["name", 3]),
    ('title = "Tiny"', "title = 3", ["title", 3]),
    ('title = "Tiny"', "", ["title", "missing"]),
    ('dataset = "digits"', 'dataset = "digitz"', ["dataset", "digitz", "did you mean 'digits'"]),
    ('dataset = "digits"', "dataset = 5", ["dataset", 5]),
    ('dataset = "digits"', "", ["dataset", "missing"]),
    ('model = "lenet5"', 'model = "lenet"', ["model", "lenet", "did you mean 'lenet5'"]),
    ('model = "lenet5"', 'model = "os:system"', ["model", "os:system"]),
    ('model = "lenet5"', 'model = "../../x:y"', ["model", "package.module:factory"]),
    ('model = "lenet5"', 'model = ":"', ["model", "package.module:factory"]),
    ('model = "lenet5"', 'model = "no_such_module:net"', ["model", "no_such_module"]),
    ('model = "lenet5"', 'model = "math:tau"', ["model", "math:tau"]),
    ('model = "lenet5"', 'model = "math:sqrt"', ["model", "math:sqrt"]),
    ('model = "lenet5"', 'model = "torch.nn:Identity"', ["model", "parameters"]),
    ("seeds = [0]", "seeds = []", ["seeds"]),
    ("seeds = [0]", "seeds = [-1]", ["seeds", -1]),
    ("seeds = [0]", "seeds = [1e30]", ["seeds"]),
    ("seeds = [0]", "seeds = [0.5]", ["seeds", 0.5]),
    ("seeds = [0]", "seeds = [true]", ["seeds"]),
    ("seeds = [0]", 'seeds = ["0"]', ["seeds"]),
    ("seeds = [0]", "seeds = 0", ["seeds", 0]),
    ("seeds = [0]", "seeds = [0, 0]", ["condlr-r0.5-c1.1-s0", "declared twice"]),
    ("seeds = [0]", "seeds = [4294967296]", ["seeds"]),
    ("n_train = 32", "n_train = 0", ["n_train", 0]),
    ("n_train = 32", "n_train = -3", ["n_train", -3]),
    ("n_train = 32", "n_train = 2.5", ["n_train", 2.5]),
    ("n_train = 32", 'n_train = "many"', ["n_train", "many"]),
    ("n_test = 20", "n_test = 0", ["n_test", 0]),
    ("n_test = 20", "n_tset = 20", ["n_tset", "did you mean 'n_test'"]),
    ("epochs = 2", "epochs = 0", ["epochs", 0]),
    ("epochs = 2", "epochs = 2.5", ["epochs", 2.5]),
    ("epochs = 2", "epoch = 2", ["epoch", "did you mean 'epochs'"]),
    ("epochs = 2", "", ["epochs", "missing"]),
    ("batch_size = 16", "batch_size = 0", ["batch_size", 0]),
    ("batch_size = 16", "batch_size = -16", ["batch_size", -16]),
    ("batch_size = 16", 'batch_size = "16 images"', ["batch_size"]),
    ("lr = 0.1", "lr = 0", ["lr", 0]),
    ("lr = 0.1", "lr = -0.1", ["lr", -0.1]),
    ("lr = 0.1", "lr = inf", ["lr", "inf"]),
    ("lr = 0.1", "lr = nan", ["lr", "nan"]),
    ("lr = 0.1", 'lr = "fast"', ["lr", "fast"]),
    ("lr = 0.1", "lr = 0.1\nmomentum = 1", ["momentum", 1]),
    ("lr = 0.1", "lr = 0.1\nmomentum = -0.1", ["momentum", -0.1]),
    ("lr = 0.1", "lr = 0.1\nmomentum = nan", ["momentum", "nan"]),
    ("lr = 0.1", "lr = 0.1\nweight_decay = -1", ["weight_decay", -1]),
    ("lr = 0.1", "lr = 0.1\nweight_decay = inf", ["weight_decay", "inf"]),
    ("lr = 0.1", "lr = 0.1\ngamma = 0", ["gamma", 0]),
    ("lr = 0.1", "lr = 0.1\ngamma = inf", ["gamma", "inf"]),
    ("lr = 0.1", "lr = 0.1\nmilestones = 3", ["milestones", 3]),
    ("lr = 0.1", 'lr = 0.1\nmilestones = ["end"]', ["milestones", "end"]),
    ("lr = 0.1", 'lr = 0.1\naugment = "flip"', ["augment", "flip"]),
    ("lr = 0.1", "lr = 0.1\nvalidation = 1", ["validation", 1]),
    ("lr = 0.1", "lr = 0.1\nvalidation = -0.1", ["validation", -0.1]),
    ("lr = 0.1", 'lr = 0.1\nschedule = "cosin"', ["schedule", "cosin", "did you mean 'cosine'"]),
    ("lr = 0.1", 'lr = 0.1\nschedule = "steps"', ["schedule", "steps"]),
    ("lr = 0.1", 'lr = 0.1\nschedule = "cosine"\nmilestones = [1]', ["schedule", "milestones"]),
    ("lr = 0.1", 'lr = 0.1\nschedule = "cosine"\nwarmup = 2', ["warmup", 2]),
    ("lr = 0.1", "lr = 0.1\nwarmup = 1", ["warmup", "batch_factor or schedule"]),
    ("lr = 0.1", "lr = 0.1\nbatch_factor = 0", ["batch_factor", 0]),
    ("lr = 0.1", "lr = 0.1\nlabel_smoothing = 1", ["label_smoothing", 1]),
    ("lr = 0.1", "lr = 0.1\nlabel_smoothing = 0", ["label_smoothing", 0]),
    ("lr = 0.1", "lr = 0.1\nlabel_smoothing = nan", ["label_smoothing", "nan"]),
    ("lr = 0.1", 'lr = 0.1\nautocast = "float8"', ["autocast", "float8", "bfloat16"]),
    ("lr = 0.1", "lr = 0.1\nautocast = true", ["autocast"]),
    ('name = "condlr"', 'name = "condrl"', ["condrl", "did you mean 'condlr'"]),
    ('name = "condlr"', 'name = "dense"', ["dense has no such setting"]),
    ('name = "condlr"', "name = 3", ["name", 3]),
    ("ratio = [0.5]", "ratio = [1]", ["ratio", 1]),
    ("ratio = [0.5]", "ratio = [-0.1]", ["ratio", -0.1]),
    ("ratio = [0.5]", "ratio = [nan]", ["ratio", "nan"]),
    ("ratio = [0.5]", "ratio = 0.5", ["ratio", 0.5]),
    ("ratio = [0.5]", 'ratio = ["half"]', ["ratio", "half"]),
    ("ratio = [0.5]", "ratio = [[0.5]]", ["ratio"]),
    ("ratio = [0.5]", "ratoi = [0.5]", ["ratoi", "did you mean 'ratio'"]),
    ("ratio = [0.5]", "ratio = [0.5, 0.5]", ["declared twice"]),
    ("ratio = [0.5]", "ratio = [0.5]\nrank = [3]", ["rank"]),
    ("ratio = [0.5]", "rank = [2.5]", ["rank", 2.5]),
    ("ratio = [0.5]", 'rank = ["three"]', ["rank", "three"]),
    ("ratio = [0.5]", "rank = [0]", ["rank", 0]),
    ("ratio = [0.5]", "", ["ratio"]),
    ("max_cond = [1.1]", "max_cond = [0.5]", ["max_cond", 0.5]),
    ("max_cond = [1.1]", "max_cond = [nan]", ["max_cond", "nan"]),
    ("max_cond = [1.1]", "", ["max_cond"]),
    ("max_cond = [1.1]", "max_cond = [1.1]\nbeta = [0.1]", ["beta", "condlr has no such setting"]),
    ("max_cond = [1.1]", "max_cond = [1.1]\nmix = [0.5]", ["radius"]),
    ("max_cond = [1.1]", "max_cond = [1.1]\nradius = [0.1]", ["radius"]),
    ("max_cond = [1.1]", "max_cond = [1.1]\nmix = [0.5]\ntrades = [6]\nradius = [0.1]", ["trades"]),
    ("max_cond = [1.1]", "max_cond = [1.1]\nmix = [2]\nradius = [0.1]", ["mix", 2]),
    ("max_cond = [1.1]", "max_cond = [1.1]\ntrain = { ephochs = 3 }", ["ephochs", "did you mean 'epochs'"]),
    ("max_cond = [1.1]", "max_cond = [1.1]\ntrain = { epochs = -3 }", ["epochs", -3]),
    ("max_cond = [1.1]", "max_cond = [1.1]\ntrain = 3", ["train", 3]),
    ('name = "pgd_linf"', 'name = "pgd"', ["attack", "pgd"]),
    ('name = "pgd_linf"', "name = 3", ["name", 3]),
    ("eps = [0.1]", "eps = []", ["eps"]),
    ("eps = [0.1]", "eps = 0.1", ["eps", 0.1]),
    ("eps = [0.1]", "eps = [-0.1]", ["eps", -0.1]),
    ("eps = [0.1]", "eps = [nan]", ["eps", "nan"]),
    ("eps = [0.1]", "eps = [inf]", ["eps", "inf"]),
    ("eps = [0.1]", "eps = [0.1, 0.1]", ["eps", "once"]),
    ("eps = [0.1]", "", ["eps", "missing"]),
    ("eps = [0.1]", "eps = [0.1]\nn_examples = 0", ["n_examples", 0]),
    ("eps = [0.1]", "eps = [0.1]\noptions = { steps = 2.5 }", ["pgd_linf.steps", 2.5]),
    ("eps = [0.1]", "eps = [0.1]\noptions = { steps = true }", ["pgd_linf.steps", True]),
    ("eps = [0.1]", "eps = [0.1]\noptions = { steps = 0 }", ["pgd_linf.steps", 0]),
    ("eps = [0.1]", "eps = [0.1]\noptions = { step = 3 }", ["option of pgd_linf", "did you mean 'steps'"]),
    ("eps = [0.1]", "eps = [0.1]\noptions = 3", ["options", 3]),
    ("eps = [0.1]", 'eps = [0.1]\n[[attack]]\nname = "pgd_linf"\neps = [0.1]', ["pgd_linf", "declared twice"]),
    ("eps = [0.1]", 'eps = [0.1]\n[[suite]]\nname = "fgsm"\neps = [0.1]\nonly = ["uv-*"]', ["suite.only", "uv-*"]),
    ("eps = [0.1]", 'eps = [0.1]\n[confidence]\nonly = ["dense"]', ["confidence.only", "dense"]),
    ("eps = [0.1]", 'eps = [0.1]\n[transfer]\nname = "fgsm"\neps = [0.1]\nonly = ["x*"]', ["transfer.only", "x*"]),
    ("eps = [0.1]", "eps = [0.1]\n[distortion]\nsteps = 0", ["steps", 0]),
    ("eps = [0.1]", 'eps = [0.1]\n[[compression]]\ncompressor = "zip"\namount = [0.5]', ["compressor", "zip"]),
    ("eps = [0.1]", 'eps = [0.1]\n[[compression]]\ncompressor = "svd"\namount = [1]', ["amount", 1]),
    ("eps = [0.1]", 'eps = [0.1]\n[[compression]]\ncompressor = "svd"\namount = [0.5]\nphases = 2', ["epochs", 0]),
    ("n_test = 10", "n_tst = 10", ["n_tst", "did you mean 'n_test'"]),
    ("n_test = 10", "keep = 3", ["keep", 3]),
    ("n_test = 10", "keep = { ratio = 0.5 }", ["keep", 0.5]),
    ("n_test = 10", "keep = { ratoi = [0.5] }", ["presets.keep", "ratoi"]),
    ("n_test = 10", "keep = { ratio = [0.9] }", ["method"]),
    ("[presets.smoke]\nn_test = 10", "[presets]\nsmoke = 3", ["presets.smoke", 3]),
    ("[presets.smoke]\nn_test = 10", "[presets]\n'../..' = { n_test = 3 }", ["preset", "../.."]),
    ("seeds = [0]", "seeds = [0]\npresets = 3", ["presets"]),
    ("[[method]]", "[method]", ["method"]),
    ("epochs = 2", "epochs = 2\nepochs = 3", ["TOML"]),
    ("epochs = 2", "epochs = = 2", ["TOML"]),
    ("seeds = [0]", "seeds = [0", ["TOML"]),
]


@pytest.mark.parametrize(("old", "new", "parts"), EDITS, ids=[f"{i}" for i in range(len(EDITS))])
def test_experiment_files(old, new, parts, tmp_path):
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    if new == "[presets]" or "presets = 3" in new:
        text = text[: text.index("[presets.smoke]")]
    file = tmp_path / "tiny.toml"
    file.write_text(text, encoding="utf-8")
    preset = "smoke" if old.startswith(("n_test = 10", "[presets")) else "paper"
    refused(lambda: Experiment.load(file, preset), *parts)


def test_the_file_that_was_edited_is_good(tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text("\ufeff" + GOOD, encoding="utf-8")  # with the mark that some editors write
    assert len(Experiment.load(file).cells()) == len(Experiment.load(file, "smoke").cells()) == 1


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_encodings_of_experiment_files(encoding, tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_bytes(GOOD.replace("Tiny", "Größe").encode(encoding))
    refused(lambda: Experiment.load(file), "tiny.toml", "UTF-8")


@pytest.mark.parametrize("name", ["mnist_lenet", "", "no such file.toml", "a/b.toml"])
def test_names_of_experiments(name):
    refused(lambda: Experiment.load(name), "experiment = ", repr(name))


@pytest.mark.parametrize("preset", ["smok", "", "../.."])
def test_names_of_presets(preset):
    refused(lambda: Experiment.load("mnist_lenet5", preset), "preset = ", repr(preset))


# ----------------------------------------------------------------------------------------------------------- chapters

PARAMETERS = [
    *((field, value) for field in ("run", "suite") for value in ("false", "True", 1, 0, None, "")),
    *(("preset", value) for value in (5, None, True)),
    *(("condition_images", value) for value in (-1, 2.5, "10", True)),
    *(("experiment", value) for value in (5, None, True)),
]


@pytest.mark.parametrize(("field", "value"), PARAMETERS)
def test_parameters_of_chapters(field, value):
    given = {"experiment": "mnist_lenet5", field: value}
    refused(lambda: chapters.load_or_run(given.pop("experiment"), **given), f"{field} = {value!r}")


# --------------------------------------------------------------------------------------------------------------- data


def arrays(**changes):
    good = {
        "x_train": np.zeros((6, 8, 8), np.uint8),
        "y_train": np.arange(6, dtype=np.uint8),
        "x_test": np.zeros((2, 8, 8), np.uint8),
        "y_test": np.arange(2, dtype=np.uint8),
    }
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


FILES = {
    "no labels": arrays(y_train=None),
    "no images": arrays(x_test=None),
    "floats": arrays(x_train=np.zeros((6, 8, 8))),
    "flat images": arrays(x_train=np.zeros((6, 64), np.uint8)),
    "channels first": arrays(x_train=np.zeros((6, 3, 8, 8), np.uint8)),
    "five dimensions": arrays(x_train=np.zeros((6, 1, 8, 8, 1), np.uint8)),
    "fewer labels": arrays(y_train=np.zeros(5, np.uint8)),
    "one-hot labels": arrays(y_train=np.zeros((6, 10), np.uint8)),
    "labels of float": arrays(y_test=np.zeros(2)),
    "objects": arrays(y_test=np.array([None, 1], dtype=object)),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_data_files(content, tmp_path, monkeypatch):
    monkeypatch.setenv("WELLCOND_DATA", str(tmp_path))
    np.savez(tmp_path / "mnist.npz", **content)
    refused(lambda: data.load("mnist"), "mnist.npz")


BYTES = {
    "empty": b"",
    "text": b"not an archive",
    "half": None,
    "method that is not known": "method",
    "wrong length": "length",
}


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES)
def test_damaged_data_files(content, tmp_path, monkeypatch):
    monkeypatch.setenv("WELLCOND_DATA", str(tmp_path))
    file = tmp_path / "mnist.npz"
    np.savez(file, **arrays())
    whole = file.read_bytes()
    if content is None:
        content = whole[: len(whole) // 2]
    elif content == "method":
        at = whole.index(b"PK\x01\x02") + 10
        content = whole[:at] + struct.pack("<H", 97) + whole[at + 2 :]
        at = whole.index(b"PK\x03\x04") + 8
        content = content[:at] + struct.pack("<H", 97) + content[at + 2 :]
    elif content == "length":
        at = whole.index(b"PK\x01\x02") + 24
        content = whole[:at] + struct.pack("<I", 7) + whole[at + 4 :]
    file.write_bytes(content)
    refused(lambda: data.load("mnist"), "mnist.npz")


def test_an_archive_that_would_fill_the_memory_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    monkeypatch.setenv("WELLCOND_DATA", str(tmp_path))
    monkeypatch.setattr(data, "LARGEST", 10_000)
    with zipfile.ZipFile(tmp_path / "mnist.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", bytes(20_000))
    assert (tmp_path / "mnist.npz").stat().st_size < 1000
    refused(lambda: data.load("mnist"), "mnist.npz", "20,000 bytes")


LOADS = [
    ({"validation": 1}, "validation = 1"),
    ({"validation": -0.1}, "validation = -0.1"),
    ({"validation": 0.99999}, "validation = 0.99999"),
    ({"validation": math.nan}, "validation = nan"),
    ({"n_train": 0}, "n_train = 0"),
    ({"n_test": -1}, "n_test = -1"),
]


@pytest.mark.parametrize(("arguments", "line"), LOADS)
def test_arguments_of_load(arguments, line):
    refused(lambda: data.load("digits", **arguments), line)


LABELS = {
    "int32": torch.zeros(4, dtype=torch.int32),
    "one-hot": torch.zeros(4, 10, dtype=torch.int64),
    "a column": torch.zeros(4, 1, dtype=torch.int64),
    "too few": torch.zeros(3, dtype=torch.int64),
    "floats": torch.zeros(4),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels(labels):
    refused(lambda: data.Images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), labels), "labels = ", "torch.int64 (4,)")


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 64), (4,)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images(shape, dtype):
    refused(lambda: data.Images(torch.zeros(shape, dtype=dtype), torch.zeros(4, dtype=torch.int64)), "images = ")


def test_folders_may_be_named_from_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/elsewhere")
    for variable, folder in (("WELLCOND_RESULTS", paths.results), ("WELLCOND_DATA", paths.data)):
        monkeypatch.setenv(variable, "~/x")
        assert str(folder()) == "/elsewhere/x"


# ------------------------------------------------------------------------------------------------- tables of results

CELLS = {
    "runs": [
        ("n_correct", 999, "at most n_test"),
        ("n_correct", -4, "a whole number >= 0"),
        ("n_correct", "many", "a whole number >= 0"),
        ("n_correct", 2.5, "a whole number >= 0"),
        ("n_test", "", "given for a run that is done"),
        ("n_test", "ten", "a whole number >= 0"),
        ("status", "maybe", "done or diverged"),
        ("status", "", "done or diverged"),
    ],
    "robustness": [
        ("n_correct", 999, "at most n_examples"),
        ("n_correct", -1, "a whole number >= 0"),
        ("n_examples", "all", "a whole number >= 0"),
        ("n_zero_gradient", 999, "at most n_examples"),
    ],
    "attacks": [
        ("outcomes", "xyz", "hexadecimal digits"),
        ("outcomes", "abc", "hexadecimal digits"),
        ("n_attacked", 999, "at most n_examples"),
        ("n_correct", 1.5, "a whole number >= 0"),
    ],
    "curves": [("epoch", -1, "a whole number >= 0"), ("epoch", "last", "a whole number >= 0")],
    "spectra": [("index", -1, "a whole number >= 0"), ("epoch", 0.5, "a whole number >= 0")],
}
FILLED = {"status": "done", "outcomes": "ff00", "n_test": 10, "n_examples": 10}


@pytest.mark.parametrize(
    ("table", "column", "value", "accepted"), [(table, *cell) for table, cells in CELLS.items() for cell in cells]
)
def test_tables_that_were_edited_by_hand(table, column, value, accepted, tmp_path):
    columns = {**store.COLUMNS, **store.AFTERWARDS}[table]
    rows = [{c: FILLED.get(c, 1) for c in columns} | {"run_id": f"dense-s{k}"} for k in range(3)]
    rows[1][column] = value
    pd.DataFrame(rows).to_csv(tmp_path / f"{table}.csv", index=False)
    refused(lambda: store.read_table(tmp_path, table), f"{table}.csv, line 3: {column} = ", accepted)


def test_runs_that_stand_twice(tmp_path):
    rows = [{c: FILLED.get(c, 1) for c in store.COLUMNS["runs"]} | {"run_id": "dense-s0"}] * 2
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv", index=False)
    refused(lambda: store.read_table(tmp_path, "runs"), "line 3: run_id = 'dense-s0'", "given once")


@pytest.mark.parametrize("table", list(store.COLUMNS))
def test_a_table_without_a_column(table, tmp_path):
    pd.DataFrame({"run_id": ["dense-s0"]}).to_csv(tmp_path / f"{table}.csv", index=False)
    refused(lambda: store.read_table(tmp_path, table), f"{table}.csv", "including")


@pytest.mark.parametrize("table", ["curves", "spectra", "robustness"])
def test_a_table_that_was_deleted(table, tmp_path):
    for name in store.COLUMNS:
        rows = [{c: FILLED.get(c, 1) for c in store.COLUMNS[name]} | {"run_id": "dense-s0"}]
        pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / f"{table}.csv").unlink()
    refused(lambda: store.load(tmp_path, {}, {}, []), f"{table}.csv beside runs.csv")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run": {}}', "null"])
def test_provenance_that_cannot_be_read(text, tmp_path):
    (tmp_path / "provenance.json").write_text(text, encoding="utf-8")
    refused(lambda: store.read_provenance(tmp_path), "provenance.json")


# -------------------------------------------------------------------------------------------------- networks, training


@pytest.mark.parametrize(
    "name",
    ["vgg", "VGG16", "", ":", "a:", ":b", "os", "a-b:c", "a..b:c", "1a:b", "a:b:c", "study.data:load", "os:name"],
)
def test_names_of_networks(name):
    refused(lambda: networks.build(name), "model = ", repr(name))


PROTOCOL = {"epochs": 1, "batch_size": 1, "warmup": 0, "warmup_start": 1.0}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", -1),
        ("batch_size", 0),
        ("warmup", -1),
        ("warmup_start", 0),
        ("warmup_start", 1.5),
        ("schedule", "cosin"),
        ("label_smoothing", 1),
        ("label_smoothing", -0.1),
        ("autocast", "float32"),
    ],
)
def test_protocols(field, value):
    refused(lambda: Recipe(**{**PROTOCOL, field: value}), f"{field} = {value!r}")


def small():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


FACTORIZE = [
    {"ratio": 1},
    {"ratio": -0.1},
    {"ratio": math.nan},
    {"ratio": "0.5"},
    {"rank": 2.5},
    {"rank": True},
    {"rank": 0},
    {"rank": -2},
    {"rank": {"9": 2}},
    {"rank": {"[xyz]*": 2}},
    {"skip": "9", "ratio": 0.5},
    {"skip": ["no such layer"], "ratio": 0.5},
]


@pytest.mark.parametrize("arguments", FACTORIZE, ids=repr)
def test_arguments_of_factorize(arguments):
    refused(lambda: wc.factorize(small(), **arguments), next(iter(arguments)))


GROUPS = list(
    itertools.chain(
        (("lr", value) for value in (-1, math.nan)),
        (("momentum", value) for value in (1, -0.1, math.nan)),
        (("weight_decay", value) for value in (-1, math.nan)),
        (("max_cond", value) for value in (0, 0.5, -1, math.nan, "2")),
        (("rule", value) for value in ("neaerst", "")),
        (("retraction", value) for value in ("qrr", "")),
        (("kind", value) for value in ("adamw", "low_rank")),
    )
)


@pytest.mark.parametrize(("option", "value"), GROUPS)
def test_options_of_optimizers(option, value):
    groups = wc.param_groups(wc.factorize(small(), ratio=0.5))
    refused(lambda: wc.LowRankSGD([{**groups[0], option: value}], lr=0.1), option, value)


@pytest.mark.parametrize("max_cond", [0, 0.5, -1, math.nan])
def test_constraints(max_cond):
    refused(lambda: wc.constrain(wc.factorize(small(), ratio=0.5), max_cond), "max_cond", max_cond)
    refused(lambda: wc.constrain(small(), max_cond), "max_cond", max_cond)
