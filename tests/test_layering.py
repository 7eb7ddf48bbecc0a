"""Who imports whom, and that importing does nothing else."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import wellcond

FOLDER = Path(wellcond.__file__).parent

# A module may import these modules of the package, and no others. Read from the bottom: geometry, layers, conversion,
# optimizer, methods; beside them data, models, attacks and training, which know nothing of layers; the ensemble,
# which trains stacks of networks with the optimizer; results and, in the style of report, their analysis, tables and
# figures, which know nothing of networks; experiments, the networks trained for them, and the runner that joins
# everything. The checks of the theory stand apart: flows and verdicts, the checks, their figures.
ALLOWED = {
    "errors": set(),
    "paths": set(),
    "products": set(),
    "precision": {"products"},
    "notebook": {"errors"},
    "outcomes": {"errors"},
    "settings": {"errors"},
    "comparison": {"errors"},
    "convex_surface": {"errors"},
    "flags": {"errors", "outcomes"},
    "matrix_sign": {"precision"},
    "regularizers": set(),
    "sparsity": {"errors", "precision"},
    "spectrum": {"errors", "matrix_sign", "precision", "products", "settings"},
    "stiefel": {"errors", "precision", "products"},
    "layers": {"errors", "precision", "spectrum", "stiefel"},
    "tucker": {"errors", "layers", "spectrum", "stiefel"},
    "convert": {"errors", "layers", "settings", "tucker"},
    "lorita": {"convert", "errors", "layers", "precision"},
    "dataflow": {"layers", "tucker"},
    "channels": {"dataflow"},
    "compress": {"channels", "convert", "errors", "layers"},
    "deployment": {"convert", "dataflow", "layers", "tucker"},
    "integrator": {"products", "spectrum", "stiefel"},
    "optim": {"errors", "integrator", "layers", "precision", "spectrum", "stiefel"},
    "truncated_svd": {"errors", "precision"},
    "constraint_sets": {"errors", "precision", "truncated_svd"},
    "frank_wolfe": {"constraint_sets", "errors", "optim", "truncated_svd"},
    "basis_update": {"errors", "integrator", "optim", "precision", "stiefel"},
    "proximal": {"errors", "layers", "optim", "sparsity"},
    "method": {"adversarial", "errors", "layers", "optim", "settings"},
    "low_rank_methods": {"basis_update", "convert", "layers", "method", "optim", "regularizers"},
    "compression_aware_methods": {
        *("constraint_sets", "frank_wolfe", "layers", "lorita", "method", "optim", "proximal", "sparsity"),
    },
    "methods": {"compression_aware_methods", "errors", "low_rank_methods", "method"},
    "models": {"errors"},
    "data": {"errors", "paths"},
    "draws": set(),
    "image_gradient": set(),
    "attacks": {"corruptions", "draws", "errors", "image_gradient"},
    "corruptions": {"draws", "errors"},
    "adversarial": {"attacks", "errors"},
    "distributed": {"errors"},
    "train": {"adversarial", "distributed", "errors", "precision"},
    "ensemble": {"adversarial", "distributed", "errors", "optim", "train"},
    "suite": {"attacks", "data", "evaluate", "outcomes", "results"},
    "evaluate": {"attacks", "data", "errors", "layers", "spectrum", "stiefel"},
    "calibration": {"attacks", "data", "errors", "evaluate"},
    "conditioning": {"convert", "data", "dataflow", "errors", "layers", "models", "tucker"},
    "fine_tuning": {"layers", "optim", "train"},
    "compressibility": {
        *("compress", "conditioning", "convert", "data", "deployment", "evaluate", "fine_tuning", "layers", "method"),
        "suite",
    },
    "provenance": {"paths"},
    "results": {"errors", "paths", "settings"},
    "report": set(),
    "analysis": {"comparison", "report", "results", "settings"},
    "tables": {"analysis", "report", "results"},
    "figures": {"analysis", "report", "results", "settings"},
    "costs": {"report"},
    "lmo_report": {"costs", "report"},
    "compression_report": {"analysis", "comparison", "figures", "report", "results", "settings"},
    "dynamics": {"analysis", "figures", "report", "results", "settings", "tables"},
    "threat_model": {"analysis", "comparison", "outcomes", "results"},
    "robustness_report": {"analysis", "comparison", "flags", "report", "results", "threat_model"},
    "robustness_figures": {"analysis", "figures", "outcomes", "report", "results", "settings", "threat_model"},
    "conditioning_report": {"analysis", "report", "results", "settings"},
    "grids": {"attacks", "compress", "data", "errors", "methods", "results", "settings", "train"},
    "experiments": {"data", "errors", "grids", "method", "methods", "paths", "results", "settings"},
    "jobs": {"allocator", "errors", "provenance"},
    "networks": {
        *("convert", "data", "distributed", "ensemble", "evaluate", "experiments", "jobs", "methods", "models"),
        *("paths", "provenance", "results", "train"),
    },
    "runner": {
        *("conditioning", "convert", "data", "deployment", "distributed", "errors", "evaluate", "experiments"),
        *("jobs", "layers", "methods", "networks", "paths", "provenance", "results", "settings"),
    },
    "chapters": {"assessment", "errors", "experiments", "results", "runner"},
    "assessment": {
        *("calibration", "compressibility", "convert", "evaluate", "experiments", "grids", "jobs", "networks"),
        "provenance",
        *("results", "runner", "suite"),
    },
    "clocks": set(),
    "training_bench": {
        *("clocks", "convert", "data", "deployment", "errors", "layers", "method", "methods", "models", "products"),
    },
    "roofline_bench": {"clocks", "deployment", "training_bench"},
    "integrator_bench": {"clocks", "integrator", "layers", "products", "spectrum", "stiefel"},
    "lmo_bench": {"clocks", "constraint_sets", "data", "frank_wolfe", "lorita", "sparsity", "training_bench"},
    "allocator": set(),
    "pages_bench": {"allocator", "clocks", "deployment", "errors", "training_bench"},
    "bench": {
        *("errors", "integrator_bench", "lmo_bench", "pages_bench", "paths", "roofline_bench", "training_bench"),
    },
    "verdicts": set(),
    "flows": {"basis_update", "integrator", "layers", "optim", "stiefel"},
    "theory_problems": {"flows", "integrator", "stiefel"},
    "theory_network": {"data", "flows", "integrator", "layers", "spectrum", "verdicts"},
    "theory": {"flows", "integrator", "spectrum", "stiefel", "theory_network", "theory_problems", "verdicts"},
    "theory_figures": {"report", "verdicts"},
    "__main__": {
        *("allocator", "assessment", "bench", "data", "distributed", "experiments", "jobs", "paths", "provenance"),
        *("results", "runner"),
    },
}
FACADE = "__init__"  # gathers the public names of all

# What is not needed to train or to measure is imported where it is used
HEAVY = {"torchvision", "sklearn", "advertorch", "pyautoattack", "matplotlib", "seaborn"}
FIGURES = {
    *("report", "figures", "costs", "lmo_report", "conditioning_report", "dynamics", "compression_report"),
    *("robustness_report", "robustness_figures", "theory_figures"),
}
TABLES_ONLY = FIGURES | {
    "analysis",
    "comparison",
    "errors",
    "flags",
    "notebook",
    "outcomes",
    "paths",
    "results",
    "settings",
    "tables",
    "threat_model",
    "verdicts",
}


def imports(path):
    """The names of all modules that a file imports anywhere, and of those that it imports when it is imported."""
    everywhere, at_import = set(), set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(child) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            # from wellcond import paths: the module is the imported name
            found = {f"wellcond.{a.name}" for a in node.names} if node.module == "wellcond" else {str(node.module)}
        else:
            continue
        everywhere |= found
        if id(node) not in inside:
            at_import |= found
    return everywhere, at_import


IMPORTS = {path.stem: imports(path) for path in sorted(FOLDER.glob("*.py"))}
EDGES = {
    name: {module.split(".")[1] for module in everywhere if module.startswith("wellcond.")}
    for name, (everywhere, _) in IMPORTS.items()
    if name != FACADE
}


def test_every_module_has_its_place():
    assert EDGES.keys() == ALLOWED.keys()


@pytest.mark.parametrize("name", sorted(EDGES))
def test_modules_import_only_what_they_may(name):
    assert EDGES[name] - ALLOWED[name] == set()


def test_no_edge_is_allowed_that_nobody_uses():
    unused = {(name, other) for name, others in ALLOWED.items() for other in others - EDGES[name]}
    assert not unused


def test_no_cycles():
    done, remaining = set(), dict(ALLOWED)
    while remaining:
        ready = {name for name, others in remaining.items() if others <= done}
        assert ready, f"a cycle among {sorted(remaining)}"
        done |= ready
        remaining = {name: others for name, others in remaining.items() if name not in ready}


@pytest.mark.parametrize("name", sorted(TABLES_ONLY & EDGES.keys()))
def test_tables_need_no_torch(name):
    """Nor do the modules of the package that they import: reading results takes neither a GPU nor a data set."""
    reached, todo = set(), {name}
    while todo:
        reached |= todo
        todo = {other for module in todo for other in EDGES[module]} - reached
    assert reached <= TABLES_ONLY
    assert not {module for n in reached for module in IMPORTS[n][0] if module.split(".")[0] == "torch"}


@pytest.mark.parametrize("name", sorted(EDGES))
def test_heavy_packages_are_imported_where_they_are_used(name):
    packages = {module.split(".")[0] for module in IMPORTS[name][1]}
    assert packages & HEAVY <= ({"matplotlib", "seaborn"} if name in FIGURES else set())


def test_only_results_writes_into_the_results_folder():
    """Writing calls elsewhere are the weights and failure notes of the runner, under results/local, and the data."""
    writers = {
        name
        for name in EDGES
        for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("to_csv", "write_text", "write_bytes", "savez", "savefig")
    }
    assert writers <= {"results", "networks", "runner", "data"}


PROBE = """
import json, random, sys, warnings
import filelock, numpy, pandas, pydantic, torch, tqdm, torch.utils.flop_counter  # what the package itself imports

def state():
    return {
        "dtype": str(torch.get_default_dtype()),
        "warning filters": len(warnings.filters),
        "torch random state": torch.get_rng_state().sum().item(),
        "numpy random state": str(numpy.random.get_state()[1][:5]),
        "python random state": hash(random.getstate()),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": [torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic],
    }

before = state()
import wellcond
print(json.dumps({"before": before, "after": state(), "loaded": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def test_importing_has_no_side_effects(tmp_path):
    """No dtype, warning filter, random state or flag is changed, nothing is written, nothing heavy is loaded."""
    output = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, cwd=tmp_path)
    found = json.loads(output.stdout)
    assert found["after"] == found["before"]
    assert not HEAVY & set(found["loaded"])
    assert output.stderr == ""
    assert not list(tmp_path.iterdir())


def test_public_names_exist():
    assert len(set(wellcond.__all__)) == len(wellcond.__all__)
    assert all(hasattr(wellcond, name) for name in wellcond.__all__)
