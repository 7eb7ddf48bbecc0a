"""That importing does nothing else; who may import whom is written in pyproject.toml, for import-linter."""

import json
import subprocess
import sys

import pytest

import study
import wellcond

# What is not needed to train or to measure is imported where it is used
HEAVY = {"torchvision", "sklearn", "advertorch", "pyautoattack", "seaborn"}

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
import PACKAGE
print(json.dumps({"before": before, "after": state(), "loaded": sorted({name.split(".")[0] for name in sys.modules})}))
"""


@pytest.mark.parametrize("package", ["wellcond", "study"])
def test_importing_has_no_side_effects(package, tmp_path):
    """No dtype, warning filter, random state or flag is changed, nothing is written, nothing heavy is loaded."""
    probe = PROBE.replace("PACKAGE", package)
    output = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=tmp_path)
    found = json.loads(output.stdout)
    assert found["after"] == found["before"]
    assert not HEAVY & set(found["loaded"])
    assert output.stderr == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", [wellcond, wellcond.methods, wellcond.compression, wellcond.adaptation, study])
def test_public_names_exist(package):
    assert len(set(package.__all__)) == len(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)
