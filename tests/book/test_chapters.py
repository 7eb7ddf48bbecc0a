"""The chapters: their parameters are read and checked, and each runs, from any folder, without network or warnings."""

import ast
import itertools
import os
from pathlib import Path

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from kernels import ForkedKernelManager
from myst import CAPTION, TO_FIGURE
from study.experiments.specification import Experiment, canonical_hash
from study.results.store import read_table

BOOK = Path(__file__).resolve().parents[2] / "book"
CHAPTERS = {path.stem: path for path in sorted(BOOK.glob("*.ipynb"))}
SMOKE = {"preset": "smoke", "run": True}
SMALL = {  # what would take minutes on a processor
    "11_cifar": {"model": "helpers:Tiny"},
    "17_cost": {"repeats": 2, "batch": 16, "ratios": [0.8]},
    "c_performance": {"repeats": 2, "batch": 16, "ratios": [0.8]},
    "08_is_it_kappa": {"condition_images": 20},
}
ON_MNIST = ("06_acc", "07_", "08_", "09_", "10_", "13_", "b_", "d_")  # which share their cells; index has LeNet5 itself
SMALL |= {
    name: {**SMALL.get(name, {}), "model": "helpers:SmallLeNet"} for name in CHAPTERS if name.startswith(ON_MNIST)
}


def cells(name, kind="code"):
    return [cell for cell in nbformat.read(CHAPTERS[name], 4).cells if cell.cell_type == kind]


def declared(name):
    """The parameters of a chapter, with their values."""
    (source,) = (cell.source for cell in cells(name) if "parameters" in cell.metadata.get("tags", []))
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body}


def code_after_parameters(name):
    sources = [cell.source for cell in cells(name)]
    tags = [cell.metadata.get("tags", []) for cell in cells(name)]
    start = next(i for i, tag in enumerate(tags) if "parameters" in tag)
    return ast.parse("\n".join(sources[start + 1 :]))


def is_dictionary(node):
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)


def figures(name):
    found = filter(None, (CAPTION.fullmatch(cell.source) for cell in cells(name, "markdown")))
    return {caption[1]: caption[2] for caption in found}


def execute(name, folder, **parameters):
    options = {"progress_bar": False, "execution_timeout": 600, "kernel_manager_class": ForkedKernelManager}
    return papermill.execute_notebook(CHAPTERS[name], None, parameters, kernel_name="python3", cwd=folder, **options)


@pytest.fixture
def elsewhere(tmp_path, tmp_path_factory, monkeypatch):
    """A foreign working directory. Computed results go to a folder that all chapters, and all workers, share."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "results"
    monkeypatch.setenv("WELLCOND_RESULTS", str(shared))
    monkeypatch.setenv("WELLCOND_DATA", str(tmp_path / "no-data"))
    here = Path(__file__).parents[1]  # with a reader's own package: helpers
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (here.parent / "lib", here))))
    return tmp_path


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_parameter_is_read(name):
    read = {node.id for node in ast.walk(code_after_parameters(name)) if isinstance(node, ast.Name)}
    assert set(declared(name)) - read == set()


@pytest.mark.parametrize("name", CHAPTERS)
def test_parameters_are_checked_before_anything_else(name):
    body = code_after_parameters(name).body
    first = next(node for node in body if not isinstance(node, ast.Import | ast.ImportFrom))
    assert ast.unparse(first) == "study.check_parameters(In)"


@pytest.mark.parametrize("name", [name for name in CHAPTERS if "experiment" in declared(name)])
def test_every_parameter_reaches_the_specification(name):
    values = declared(name)
    experiments = {key for key, value in values.items() if (BOOK / "experiments" / f"{value}.toml").exists()}
    found = [node for node in ast.walk(code_after_parameters(name)) if isinstance(node, ast.Call)]
    calls = [call for call in found if ast.unparse(call.func) == "study.load_or_run"]
    assert sorted(ast.unparse(call.args[0]) for call in calls) == sorted(experiments)
    named = {node.targets[0].id: node.value for node in code_after_parameters(name).body if is_dictionary(node)}
    for call in calls:
        pairs = [(keyword.arg, keyword.value) for keyword in call.keywords if keyword.arg]
        for whole in (named[ast.unparse(keyword.value)] for keyword in call.keywords if keyword.arg is None):
            pairs += [(key.value, value) for key, value in zip(whole.keys, whole.values, strict=True)]
        passed = {key: ast.unparse(value) for key, value in pairs if not isinstance(value, ast.Constant)}
        assert passed == {parameter: parameter for parameter in values if parameter not in experiments}

    no_override = experiments | {"preset", "run", "condition_images", "out"}
    overrides = {key: value for key, value in values.items() if key not in no_override}
    other = {"model": "helpers:Tiny", "dataset": "digits32", "seeds": [7], "epochs": 3, "ratios": [0.8]}

    def resolved(experiment, preset="paper", **changes):
        spec = Experiment.load(values[experiment], preset, **{**overrides, **changes})
        return canonical_hash(spec.model_dump(mode="json", exclude={"preset"}))

    for experiment in experiments:
        changed = [resolved(experiment, **{key: other[key]}) for key in overrides]
        hashes = [resolved(experiment), resolved(experiment, "smoke"), *changed]
        assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_figure_is_named_explained_and_cited(name):
    text = "\n".join(cell.source for kind in ("markdown", "code") for cell in cells(name, kind))
    assert set(figures(name)) == set(TO_FIGURE.findall(text))
    every = nbformat.read(CHAPTERS[name], 4).cells
    above = [cell for cell, below in itertools.pairwise(every) if CAPTION.fullmatch(below.source)]
    assert above == [cell for cell in every if "image" in cell.metadata.get("mystnb", {})]  # a caption follows a figure
    assert all(len(caption) > 20 for caption in figures(name).values())
    assert not any("\\\\" in caption for caption in figures(name).values())  # MyST would drop the commands of TeX


def test_no_two_figures_have_one_name():
    names = [figure for chapter in CHAPTERS for figure in figures(chapter)]
    assert sorted(names) == sorted(set(names))


@pytest.mark.slow
def test_an_unknown_parameter_is_an_error_of_one_line_with_a_suggestion(elsewhere):
    with pytest.raises(PapermillExecutionError) as caught:
        execute("03_manifold_integrator", elsewhere, sede=1)
    assert caught.value.ename == "ValueError"
    assert caught.value.evalue.startswith("parameter = 'sede': unknown; did you mean 'seed'?")
    assert "\n" not in caught.value.evalue


def check(notebook, name):
    """Everything a reader should see is there, and nothing else."""
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        noise = [output.text for output in outputs if output.get("name") == "stderr"]
        assert noise == [], cell.id
        if "image" in cell.metadata.get("mystnb", {}):
            kinds = {kind for output in outputs for kind in output.get("data", {})}
            assert kinds & {"image/png", "image/svg+xml"}, f"{name}: no figure in cell {cell.id}"


def those_with_a_choice():
    """All of them are run as they are when the book is built, which a warning ends. Where there is nothing to compute
    or to show, a preset is the same cells with smaller numbers: a second run takes long and tells little."""
    for name in CHAPTERS:
        if chosen := SMOKE.keys() & declared(name).keys():
            yield name if "run" in chosen else pytest.param(name, marks=pytest.mark.long)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(those_with_a_choice()))
def test_chapter_runs_from_any_folder(name, elsewhere):
    chosen = {key: value for key, value in SMOKE.items() if key in declared(name)}
    check(execute(name, elsewhere, **chosen, **SMALL.get(name, {})), name)
    assert list(elsewhere.iterdir()) == []  # nothing is left behind


@pytest.mark.slow
def test_a_network_of_the_readers_own_goes_through(elsewhere):
    name = "16_your_network"
    check(execute(name, elsewhere, preset="smoke", model="helpers:Tiny"), name)


@pytest.mark.slow
def test_a_chapter_trains_the_seeds_ratios_and_epochs_that_it_is_given_and_keeps_them_where_it_is_told(elsewhere):
    name, chosen = "06_accuracy_and_spectra", {"seeds": [1], "epochs": 1, "ratios": [0.5], "out": "mine"}
    check(execute(name, elsewhere, **SMOKE, **SMALL[name], **chosen), name)
    (folder,) = (elsewhere / "mine" / declared(name)["experiment"]).iterdir()
    runs = read_table(folder, "runs")
    assert set(runs["seed"]) == {1}
    assert set(runs["ratio"].dropna()) == {0.5}
    assert set(runs.loc[runs["method"] == "condlr", "epochs"]) == {1}
