"""Experiments as data: every file loads, every mistake is one line, the hash follows the protocol."""

import itertools
import json
import os
import re
import subprocess
import sys
import tomllib

import pytest

from study import paths
from study.experiments.specification import Cell, Experiment, canonical_hash
from wellcond.methods.registry import METHODS

FILES = sorted(paths.experiments().glob("*.toml"))
PRESETS = [
    (path.stem, preset)
    for path in FILES
    for preset in ["paper", *tomllib.loads(path.read_text(encoding="utf-8")).get("presets", {})]
]

TOML = """
name = "mine"
title = "Mine"
dataset = "digits"
model = "helpers:Tiny"
seeds = [0, 1]
n_train = 64

[train]
epochs = 2
batch_size = 32
lr = 0.1
milestones = [1]

[[method]]
name = "dense"

[[method]]
name = "condlr"
ratio = [0.5, 0.8]
max_cond = [1.1, 1.5]

[[method]]
name = "svd"
ratio = [0.5]

[[method]]
name = "uv"
ratio = [0.5]
train = { lr = 0.02 }

[[attack]]
name = "fgsm"
eps = [0.0, 0.1]

[[attack]]
name = "pgd_l2"
eps = [0.5]
n_examples = 10
options = { steps = 3 }

[presets.smoke]
seeds = [0]
n_test = 20
train = { epochs = 1, milestones = [] }
keep = { ratio = [0.5], max_cond = [1.1] }
attack = [{ name = "fgsm", eps = [0.1] }]

[presets.one]
keep = { name = ["condlr"], ratio = [0.8], max_cond = [1.5] }
"""


@pytest.fixture
def load(tmp_path):
    """Load TOML, after replacing some of its text, as a preset."""

    def loaded(*changes, preset="paper", **overrides):
        text = TOML
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return Experiment.load(path, preset, **overrides)

    return loaded


# --------------------------------------------------------------------------------------------------- the declared ones


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_declared_experiments_load(name, preset):
    spec = Experiment.load(name, preset)
    assert spec.name == name
    cells = spec.cells()
    run_ids = [cell.run_id for cell in cells]
    assert len(set(run_ids)) == len(run_ids) > 0
    assert {cell.method for cell in cells} <= METHODS.keys()
    assert all(milestone < cell.train.epochs for cell in cells for milestone in cell.train.milestones)
    assert spec.folder() == (paths.results() / name if preset == "paper" else spec.local_folder())
    json.dumps([cell.spec() for cell in cells], allow_nan=False)  # provenance.json is valid JSON


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_smoke_presets_need_no_download_and_few_images(name):
    spec = Experiment.load(name, "smoke")
    assert spec.dataset in ("digits", "digits32")
    assert max(cell.train.epochs for cell in spec.cells()) <= 10
    assert len(spec.cells()) <= 30


# ------------------------------------------------------------------------------------------------------------- the grid


def test_the_grid_is_the_product_of_what_is_swept(load):
    cells = load().cells()
    assert [cell.run_id for cell in cells if cell.seed == 1] == [
        "dense-s1",
        "condlr-r0.5-c1.1-s1",
        "condlr-r0.5-c1.5-s1",
        "condlr-r0.8-c1.1-s1",
        "condlr-r0.8-c1.5-s1",
        "svd-r0.5-s1",
        "uv-r0.5-s1",
    ]
    assert [cell.seed for cell in cells] == 7 * [0] + 7 * [1]
    by_id = {cell.run_id: cell for cell in cells}
    assert by_id["uv-r0.5-s0"].train.lr == 0.02
    assert by_id["uv-r0.5-s0"].train.epochs == 2
    assert by_id["condlr-r0.8-c1.5-s0"].settings["ratio"] == 0.8
    assert by_id["condlr-r0.8-c1.5-s0"].settings["max_cond"] == 1.5
    assert load().hashes() == {cell.run_id: cell.spec_hash for cell in cells}
    assert [attack[:2] for attack in load().attacks()] == [("fgsm", 0.0), ("fgsm", 0.1), ("pgd_l2", 0.5)]


@pytest.mark.parametrize("override", ["", "train = { lr = 0.05 }"])
def test_methods_that_start_from_another_start_from_its_cell(load, override):
    """Of the same seed, with that method's own protocol: its weights are found, not trained again."""
    cells = {cell.run_id: cell for cell in load(('name = "dense"', f'name = "dense"\n{override}')).cells()}
    for seed in (0, 1):
        assert cells[f"svd-r0.5-s{seed}"].base.spec_hash == cells[f"dense-s{seed}"].spec_hash
        assert cells[f"uv-r0.5-s{seed}"].base is None


def test_presets_override_and_keep(load):
    smoke = load(preset="smoke")
    run_ids = ["dense-s0", "condlr-r0.5-c1.1-s0", "svd-r0.5-s0", "uv-r0.5-s0"]
    assert [cell.run_id for cell in smoke.cells()] == run_ids
    assert (smoke.n_train, smoke.n_test, smoke.train.epochs, smoke.train.lr) == (64, 20, 1, 0.1)
    assert [attack.name for attack in smoke.attack] == ["fgsm"]
    assert [cell.run_id for cell in load(preset="one").cells()] == ["condlr-r0.8-c1.5-s0", "condlr-r0.8-c1.5-s1"]


# ------------------------------------------------------------------------------------------------------------- the hash


def test_hash_is_stable_across_processes(load, tmp_path):
    """Under another hash seed and from another working directory."""
    here = load()
    code = "import sys; from study import Experiment; print(Experiment.load(sys.argv[1]).hashes())"
    path = str(tmp_path / "mine.toml")
    environment = {**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, path]
    there = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path).stdout
    assert there.strip() == str(here.hashes())
    assert re.fullmatch("[0-9a-f]{16}", next(iter(here.hashes().values())))


def test_hash_does_not_depend_on_the_order_of_keys():
    assert canonical_hash({"a": 1, "b": {"c": 2, "d": 3}}) == canonical_hash({"b": {"d": 3, "c": 2}, "a": 1})


PROTOCOL = [
    ('dataset = "digits"', 'dataset = "mnist"'),
    ('model = "helpers:Tiny"', 'model = "lenet5"'),
    ("n_train = 64", "n_train = 65"),
    ("n_train = 64", "n_train = 64\nn_test = 10"),
    ("epochs = 2", "epochs = 3"),
    ("batch_size = 32", "batch_size = 16"),
    ("lr = 0.1", "lr = 0.2"),
    ("milestones = [1]", "milestones = []"),
    ("milestones = [1]", "milestones = [1]\ngamma = 0.5"),
    ("milestones = [1]", "milestones = [1]\nmomentum = 0.9"),
    ("milestones = [1]", "milestones = [1]\nweight_decay = 0.01"),
    ("milestones = [1]", 'milestones = [1]\naugment = "crop_flip"'),
    ("milestones = [1]", "milestones = [1]\nvalidation = 0.1"),
    ("milestones = [1]", "milestones = [1]\nbatch_factor = 2"),
]


@pytest.mark.parametrize("change", PROTOCOL, ids=lambda change: change[1].split("\n")[-1])
def test_hash_follows_every_edit_of_the_protocol(load, change):
    """Also that of a cell which starts from another cell's weights."""
    before, after = load().hashes(), load(change).hashes()
    assert before.keys() == after.keys()
    unchanged = {run_id for run_id in before if before[run_id] == after[run_id]}
    assert unchanged == ({"uv-r0.5-s0", "uv-r0.5-s1"} if change[1] == "lr = 0.2" else set())  # they have their own


def test_what_is_absent_is_not_part_of_the_specification(load):
    """So that the results of a cell stay its results when there are more settings and options than before."""
    (cell, *_), given = load().cells(), {"mix": 0.5, "radius": 0.1}
    assert not cell.spec().keys() & {*given, "trades", "decay", "base"}
    assert not cell.spec()["train"].keys() & {"batch_factor", "warmup"}
    robust = Cell(**{**dict(cell), "settings": {**cell.settings, **given}})
    assert robust.spec() == {**cell.spec(), **given}
    assert robust.spec_hash != cell.spec_hash
    warm = (
        load(("lr = 0.1", "lr = 0.1\nbatch_factor = 2")),
        load(("lr = 0.1", "lr = 0.1\nbatch_factor = 2\nwarmup = 1")),
    )
    assert not {*warm[0].hashes().values()} & {*warm[1].hashes().values()}


def test_hash_tells_all_cells_apart_and_ignores_titles_and_attacks(load):
    before = load().hashes()
    assert len(set(before.values())) == len(before)
    assert load(('title = "Mine"', 'title = "Yours"'), ("eps = [0.0, 0.1]", "eps = [0.3]")).hashes() == before


def test_an_override_of_one_method_changes_only_its_cells(load):
    before, after = load().hashes(), load(("train = { lr = 0.02 }", "train = { lr = 0.03 }")).hashes()
    assert {run_id for run_id in before if before[run_id] != after[run_id]} == {"uv-r0.5-s0", "uv-r0.5-s1"}


OVERRIDES = {
    "dataset": "digits32",
    "model": "lenet5",
    "seeds": [7],
    "n_train": 33,
    "n_test": 11,
    "train": {"epochs": 5},
    "method": [{"name": "dense"}],
    "attack": [],
    "title": "Other",
    "name": "other",
}


@pytest.mark.parametrize("key", [*OVERRIDES, "preset"])
def test_every_override_changes_the_resolved_specification(load, key):
    """No parameter of a chapter is read and then ignored; empty ones leave the experiment as it is."""
    before = load()
    after = load(preset="smoke") if key == "preset" else load(**{key: OVERRIDES[key]})
    assert after != before
    assert after.local_folder() != before.local_folder()
    assert load(**{key: ""} if key != "preset" else {}) == load(**{key: None} if key != "preset" else {}) == before


def test_an_override_of_part_of_the_protocol_keeps_the_rest(load):
    spec = load(train={"epochs": 5})
    assert (spec.train.epochs, spec.train.lr, spec.train.batch_size) == (5, 0.1, 32)


# ----------------------------------------------------------------------------------------------------------- the folder


@pytest.fixture
def declared(tmp_path, monkeypatch, load):
    """The experiment as if it were declared in book/experiments."""
    load()
    monkeypatch.setattr(paths, "experiments", lambda: tmp_path)
    monkeypatch.setenv("WELLCOND_RESULTS", str(tmp_path / "results"))
    return Experiment.load("mine")


def test_only_the_declared_experiment_goes_to_its_own_folder(declared, tmp_path):
    assert not declared.modified()
    assert declared.folder() == tmp_path / "results" / "mine"
    changes = [{"preset": "smoke"}, {"seeds": [5]}, {"attack": []}]
    variants = [Experiment.load("mine", **change) for change in changes]
    assert all(spec.modified() for spec in variants)
    folders = [spec.folder() for spec in variants]
    assert len(set(folders)) == 3
    assert all(folder.parent == tmp_path / "results" / "local" / "mine" for folder in folders)
    assert folders[0].name.startswith("smoke-")
    assert Experiment.load("mine", "smoke").folder() == folders[0]


def test_a_file_elsewhere_is_local_unless_it_says_the_same(declared, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "copy.toml").write_text(TOML, encoding="utf-8")
    assert not Experiment.load(elsewhere / "copy.toml").modified()
    (elsewhere / "new.toml").write_text(TOML.replace('"mine"', '"new"'), encoding="utf-8")
    assert Experiment.load(elsewhere / "new.toml").modified()


# ------------------------------------------------------------------------------------------------------------ mistakes


MISTAKES = {
    "unknown key": (("seeds =", "seds ="), "key = 'seds': unknown; did you mean 'seeds'"),
    "unknown train key": (("batch_size", "batchsize"), "key = 'batchsize': unknown; did you mean 'batch_size'"),
    "unknown method key": (("max_cond =", "maxcond ="), "key = 'maxcond': unknown; did you mean 'max_cond'"),
    "unknown attack key": (("n_examples =", "n_exampels ="), "key = 'n_exampels': unknown; did you mean 'n_examples'"),
    "unknown key of a method's protocol": (
        ("{ lr = 0.02 }", "{ epoch = 3 }"),
        "key = 'epoch': unknown; did you mean 'epochs'",
    ),
    "unknown method": (('"condlr"', '"condrl"'), "method = 'condrl': unknown; did you mean 'condlr'"),
    "unknown attack": (('"fgsm"', '"fsgm"'), "attack = 'fsgm': unknown; did you mean 'fgsm'"),
    "unknown option": (("steps = 3", "step = 3"), "option of pgd_l2 = 'step': unknown; did you mean 'steps'"),
    "unknown dataset": (('"digits"', '"digit"'), "dataset = 'digit': unknown; did you mean 'digits'"),
    "unknown augmentation": (("milestones = [1]", 'augment = "flip"'), "augment = 'flip': unknown; .*crop_flip"),
    "ratio": (("ratio = [0.5, 0.8]", "ratio = [1.0]"), r"ratio = 1.0: must be in \[0, 1\)"),
    "negative ratio": (("ratio = [0.5, 0.8]", "ratio = [-0.5]"), r"ratio = -0.5: must be in \[0, 1\)"),
    "tau < 0": (("[1.1, 1.5]", "[0.9]"), r"max_cond = 0.9: must be a number >= 1 \(the papers' 1 \+ tau"),
    "no bound": (("max_cond = [1.1, 1.5]", ""), "max_cond = None: must be given for condlr"),
    "superfluous bound": (('name = "svd"', 'name = "svd"\nmax_cond = [1.1]'), "max_cond = 1.1: must be absent: svd"),
    "epochs": (("epochs = 2", "epochs = 0"), "train.epochs = 0: .*greater than or equal to 1"),
    "fractional epochs": (("epochs = 2", "epochs = 2.5"), r"train.epochs = 2.5: .*integer"),
    "batch size": (("batch_size = 32", "batch_size = -1"), "train.batch_size = -1: .*greater than or equal to 1"),
    "not a number": (("lr = 0.1", 'lr = "fast"'), "train.lr = 'fast': .*number"),
    "learning rate": (("lr = 0.1", "lr = -0.1"), "train.lr = -0.1: .*greater than 0"),
    "momentum": (("milestones = [1]", "momentum = 1.0"), "train.momentum = 1.0: .*less than 1"),
    "weight decay": (
        ("milestones = [1]", "weight_decay = -1.0"),
        "train.weight_decay = -1.0: .*greater than or equal to 0",
    ),
    "validation": (("milestones = [1]", "validation = 1.0"), "train.validation = 1.0: .*less than 1"),
    "batch factor": (
        ("lr = 0.1", "lr = 0.1\nbatch_factor = 0"),
        "train.batch_factor = 0: .*greater than or equal to 1",
    ),
    "warm-up": (
        ("lr = 0.1", "lr = 0.1\nbatch_factor = 2\nwarmup = 0"),
        "train.warmup = 0: .*greater than or equal to 1",
    ),
    "warm-up to nothing": (
        ("lr = 0.1", "lr = 0.1\nwarmup = 2"),
        "train.warmup = 2: must be absent without batch_factor",
    ),
    "pruning in phases": (
        ('title = "Mine"', 'title = "Mine"\ncompression = [{ compressor = "magnitude", amount = [0.5], phases = 3 }]'),
        "compression.epochs = 0: must be >= 1 where phases is > 1",
    ),
    "no radius": (('name = "dense"', 'name = "dense"\nmix = [0.5]'), "radius = None: must be given where mix is"),
    "n_train": (("n_train = 64", "n_train = 0"), "n_train = 0: .*greater than or equal to 1"),
    "radius": (("eps = [0.0, 0.1]", "eps = [-0.1]"), "attack.eps = -0.1: .*greater than or equal to 0"),
    "a missing key": (('title = "Mine"', ""), "title: missing"),
    "a missing table": (("[train]", "[trains]"), "(key = 'trains': unknown; did you mean 'train'|train: missing)"),
    "seeds are a list": (("seeds = [0, 1]", "seeds = 0"), "seeds = 0: .*tuple"),
    "no TOML": (("[train]", "[train"), "must be a readable TOML file"),
    "the same cell twice": (("ratio = [0.5, 0.8]", "ratio = [0.5, 0.5]"), "condlr-r0.5-c1.1-s0.*twice"),
    "the same seed twice": (("seeds = [0, 1]", "seeds = [3, 3]"), "dense-s3.*twice"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_that_names_the_field(load, mistake):
    change, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message) as caught:
        load(change)
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("experiment", "preset", "overrides", "message"),
    [
        ("mnist_lenet", "paper", {}, "experiment = 'mnist_lenet': unknown; did you mean 'mnist_lenet5'"),
        ("digits_lenet5", "smok", {}, "preset = 'smok': unknown; did you mean 'smoke'"),
        ("digits_lenet5", "smoke", {"sedes": [1]}, "key = 'sedes': unknown; did you mean 'seeds'"),
        ("digits_lenet5", "smoke", {"dataset": "mnits"}, "dataset = 'mnits': unknown; did you mean 'mnist'"),
        ("no/such/file.toml", "paper", {}, "experiment = 'no/such/file.toml': must be a readable TOML file"),
    ],
)
def test_mistakes_in_arguments(experiment, preset, overrides, message):
    with pytest.raises(ValueError, match=message) as caught:
        Experiment.load(experiment, preset, **overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n_test = 20", "ntest = 20", "key = 'ntest': unknown; did you mean 'n_test'"),
        ("keep = { ratio =", "keep = { ratios =", "presets.keep = 'ratios': unknown; did you mean 'ratio'"),
    ],
)
def test_mistakes_in_presets(load, old, new, message):
    with pytest.raises(ValueError, match=message):
        load((old, new), preset="smoke")


def test_specifications_are_frozen(load):
    with pytest.raises(ValueError, match="frozen"):
        load().name = "other"


def test_run_ids_are_readable_and_distinct():
    train = {"epochs": 1, "batch_size": 1, "lr": 0.1}
    about = {"dataset": "digits", "model": "lenet5", "method": "condlr", "train": train}
    ids = [
        Cell(**about, settings={k: v for k, v in (("ratio", ratio), ("max_cond", c)) if v}, seed=seed).run_id
        for ratio, c, seed in itertools.product([None, 0.5, 0.55], [None, 1.0, 1.1, float("inf")], [0, 10])
    ]
    assert len(set(ids)) == len(ids)
    assert {"condlr-s0", "condlr-r0.5-c1-s0", "condlr-r0.55-c1.1-s10", "condlr-cinf-s0"} <= set(ids)
