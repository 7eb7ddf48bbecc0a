"""Every experiment of the book, rehearsed: its paper preset with everything in it, and only the numbers small."""

from functools import cache, partial

import numpy as np
import pytest
from torch import nn

from study import data, paths
from study import networks as models
from study.data import Source
from study.experiments.rehearsal import IMAGES, rehearsal, rehearse
from study.experiments.specification import Experiment
from study.experiments.weights import skeleton

EXPERIMENTS = sorted(path.stem for path in paths.experiments().glob("*.toml"))


def hundred_classes():
    arrays = data._digits(32, 3)
    return {**arrays, **{key: (np.arange(len(arrays[key])) % 100).astype(np.uint8) for key in ("y_train", "y_test")}}


def narrow_lenet5(num_classes, in_channels):
    model = models.LeNet5(num_classes, in_channels)
    model.conv2, model.fc1, model.fc2 = nn.Conv2d(20, 12, 5), nn.Linear(192, 40), nn.Linear(40, num_classes)
    return model


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Embedded images in the shapes of MNIST and CIFAR, and the networks as they are but narrow."""
    shapes = {
        "mnist": Source(10, 1, arrays=lambda: data._digits(28, 1)),
        "cifar10": Source(10, 3, arrays=lambda: data._digits(32, 3)),
        "cifar100": Source(100, 3, arrays=hundred_classes),
    }
    narrow = {
        **dict.fromkeys(
            ("vgg16", "vgg16_quarter"),
            partial(models.VGG16, widths=[[8] * len(stage) for stage in models.VGG16.WIDTHS]),
        ),
        "lenet5": narrow_lenet5,
        "wrn16_4": partial(models.WideResNet, widen=1),
        "resnet18": partial(models.ResNet, widths=(8, 8, 16, 16), blocks=2),
        "vit": partial(models.VisionTransformer, width=12, depth=1),
        "vit_narrow": partial(models.VisionTransformer, patch=8, width=12, depth=1, heads=2),
        "vit_digits": partial(models.VisionTransformer, size=28, patch=7, width=12, depth=1, heads=2),
    }
    for name, source in shapes.items():
        monkeypatch.setitem(data.DATASETS, name, source)
    for name, factory in narrow.items():
        monkeypatch.setitem(models.MODELS, name, factory)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_rehearsal_cuts_numbers_and_nothing_else(name):
    whole = Experiment.load(name)
    short = rehearsal(whole)
    assert [c.run_id for c in short.cells()] == [c.run_id for c in whole.cells() if c.seed == whole.seeds[0]]
    assert (short.n_train, short.n_test, short.train.epochs) == (IMAGES, IMAGES, 2)
    for field in ("attack", "suite"):
        assert [(g.name, g.eps, g.options.keys() - {"steps", "restarts", "iterations", "queries"})
                for g in getattr(short, field)] == [
            (g.name, g.eps, g.options.keys() - {"steps", "restarts", "iterations", "queries"})
            for g in getattr(whole, field)
        ]  # fmt: skip
    assert short.measurements.keys() == whole.measurements.keys()
    assert [
        [(c.compressor, c.amount, c.phases, c.reestimated) for c in spec.measurements.get("compression", ())]
        for spec in (short, whole)
    ] == 2 * [[(c.compressor, c.amount, c.phases, c.reestimated) for c in whole.measurements.get("compression", ())]]
    for mine, theirs in zip(short.cells(), whole.cells(), strict=False):
        changed = {key for key, value in mine.train.model_dump().items() if value != getattr(theirs.train, key)}
        assert changed <= {"epochs", "batch_size", "validation", "milestones", "warmup"}
        assert bool(mine.train.milestones) == bool(theirs.train.milestones)


def trained(experiment, cell):
    """What training can tell from other cells: the narrow network, the shape of its images, the method, which settings
    it has and which options its protocol. Their values are for their own tests."""
    network = (experiment.dataset, models.MODELS[experiment.model])
    options = frozenset(key for key, value in cell.train.model_dump().items() if value)
    return {(network, cell.method, key, options) for key in ("", *cell.settings)}


def measured(experiment, cell):
    """What is measured afterwards, and on what."""
    network = (experiment.dataset, models.MODELS[experiment.model])
    grids = [(name, grid) for name, grids in experiment.model_dump()["measurements"].items() for grid in grids]
    return {
        (network, cell.method, name, grid.get("name"), *grid.get("options", ()), grid.get("compressor"))
        for name, grid in grids
    }


def unmet(cells, of, met):
    """The cells of which `met` has not all of of(cell), and at least one of them; `met` has it afterwards."""
    chosen = []
    for cell in cells:
        if not chosen or not of(cell) <= met:
            chosen.append(cell)
            met |= of(cell)
    return chosen


@cache
def rehearsed():
    """The cells of each experiment to train, and those of them to measure: what one experiment has rehearsed is left
    out in the next, but each has a cell that goes all the way."""
    met_in_training, met_in_measuring, found = set(), set(), {}
    for name in EXPERIMENTS:
        experiment = Experiment.load(name)
        every = [cell for cell in experiment.cells() if cell.seed == experiment.seeds[0]]
        cells = unmet(every, partial(trained, experiment), met_in_training)
        found[name] = cells, unmet(cells, partial(measured, experiment), met_in_measuring)
    return found


def of_each_form(cells):
    """One cell for each form of network, which is all that attacks and compressors can tell from one another."""
    forms = {}
    for cell in cells:
        model = skeleton(cell, "cpu")
        form = frozenset((type(module), *module._parameters) for module in model.modules())
        forms.setdefault(form, cell.run_id)
    return [*forms.values()]


def test_together_they_train_everything():
    experiments = [Experiment.load(name) for name in EXPERIMENTS]
    every = set().union(*(trained(experiment, cell) for experiment in experiments for cell in experiment.cells()))
    here = set().union(*(trained(e, cell) for e in experiments for cell in rehearsed()[e.name][0]))
    assert here == every


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_can_be_run_to_its_end(name, tmp_path, monkeypatch):
    monkeypatch.setenv("WELLCOND_RESULTS", str(tmp_path / "results"))
    cells, measured = rehearsed()[name]
    only = [cell.run_id for cell in cells]
    counts = rehearse(Experiment.load(name), device="cpu", only=only, assessed=of_each_form(measured), bar=False)
    assert counts["cells"] == len(cells)
    assert counts["diverged"] == 0
    assert not (tmp_path / "results").exists()  # nothing stays
