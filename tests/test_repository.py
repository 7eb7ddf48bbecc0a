"""The repository agrees with itself: dependencies, chapters, citation; and it says nothing about any one machine."""

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

import study
import wellcond

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LIBRARY = tomllib.loads((ROOT / "lib" / "pyproject.toml").read_text(encoding="utf-8"))
NOTEBOOKS = sorted((ROOT / "book").rglob("*.ipynb"))
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|tmp|root|home)/")


def read_yaml(name: str):
    return YAML(typ="safe").load(ROOT / name)


def declared(*groups: str) -> list[Requirement]:
    """The dependencies of library and study, with those of the named dependency groups."""
    lines = [*LIBRARY["project"]["dependencies"], *PROJECT["project"]["dependencies"]]
    lines.remove("wellcond")  # is here, in lib/
    for group in groups:
        lines += PROJECT["dependency-groups"][group]
    return [Requirement(line) for line in lines]


def key(requirement: Requirement) -> tuple[str, str, str, tuple[str, ...]]:
    return (
        canonicalize_name(requirement.name),
        str(requirement.specifier),
        str(requirement.marker),
        tuple(sorted(requirement.extras)),
    )


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "LICENSE",
        "CITATION.cff",
        "environment.yml",
        "_config.yml",
        "_toc.yml",
        "Makefile",
        "requirements.lock",
    ],
)
def test_top_level_file_is_there_and_not_empty(name):
    assert (ROOT / name).stat().st_size > 0


def test_lock_pins_every_declared_dependency_with_hashes():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text, "the lock names a host"
    # a pin is one logical line: name==version \ --hash=... \ --hash=...
    pins = {}
    for line in text.replace("\\\n", " ").splitlines():
        if not line.startswith("#"):
            pin, *hashes = line.split()
            assert hashes, f"{pin} has no hash"
            assert all(h.startswith("--hash=sha256:") for h in hashes), line
            name, version = pin.split("==")
            pins[canonicalize_name(name)] = version
    for requirement in declared(*PROJECT["dependency-groups"]):
        version = pins.get(canonicalize_name(requirement.name))
        assert version, f"{requirement} is not locked; run make lock"
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}; run make lock"


def test_conda_environment_repeats_pyproject():
    environment = read_yaml("environment.yml")
    assert environment["name"] == "wellcond"
    assert {"python=3.11", "pip"} <= {entry for entry in environment["dependencies"] if isinstance(entry, str)}
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    here = ["-e ./lib", "-e ."]
    assert pip[-2:] == here
    listed = [key(Requirement(line)) for line in pip if line not in here]
    assert sorted(listed) == sorted(key(requirement) for requirement in declared("book"))


def test_binder_environment_repeats_the_torch_versions():
    specifiers = {key(requirement)[0]: key(requirement)[1] for requirement in declared()}
    binder = [Requirement(line) for line in read_yaml(".binder/environment.yml")["dependencies"] if ">" in line]
    assert {r.name: str(r.specifier) for r in binder} == {
        "pytorch-cpu": specifiers["torch"],
        "torchvision": specifiers["torchvision"],
    }


def test_citation_has_the_version_of_the_package():
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["project"]["version"] == LIBRARY["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["title"]
    assert citation["authors"]


def test_toc_lists_exactly_the_pages():
    toc = read_yaml("_toc.yml")
    listed = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    pages = [path.relative_to(ROOT).with_suffix("") for ext in ("ipynb", "md") for path in ROOT.glob(f"book/*.{ext}")]
    assert sorted(listed) == sorted(str(page) for page in pages)


def test_reference_has_an_entry_for_every_public_name():
    page = (ROOT / "book" / "reference.md").read_text(encoding="utf-8")
    entries = re.findall(r"^\.\. auto\w+:: (\S+)$", page, re.MULTILINE)
    listed = {entry.rpartition(".")[2] for entry in entries}
    for package in (wellcond, wellcond.methods, wellcond.compression, wellcond.adaptation, study):
        assert set(package.__all__) - {"methods", "compression", "adaptation"} <= listed
    assert len(entries) == len(set(entries)), "an entry is there twice"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_without_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert "papermill" not in notebook["metadata"], "a copy executed by papermill was saved over the chapter"
    assert all(cell.get("id") for cell in notebook["cells"]), "a cell has no id"
    for cell in notebook["cells"]:
        assert not cell.get("outputs"), f"cell {cell['id']} has outputs"
        assert cell.get("execution_count") is None, f"cell {cell['id']} has an execution count"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_one_cell_of_explained_literal_parameters(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (cell,) = (cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    source = "".join(cell["source"])
    statements = ast.parse(source).body
    assert statements, "the parameters cell is empty"
    for statement in statements:
        text = ast.unparse(statement)
        assert isinstance(statement, ast.Assign), f"not a plain assignment: {text}"
        assert isinstance(statement.targets[0], ast.Name), f"not a plain name: {text}"
        ast.literal_eval(statement.value)
        # papermill shows this comment as the parameter's help; ast counts columns in bytes
        rest = source.splitlines()[statement.end_lineno - 1].encode()[statement.end_col_offset :].decode()
        assert re.match(r"\s*#\s*\S", rest), f"no comment explains: {text}"


def test_no_file_mentions_a_path_of_one_machine():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listing.split("\0")):
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):  # deleted, a submodule, binary
            continue
        found += [f"{name}: {match.group()}" for match in MACHINE_PATH.finditer(text)]
    assert not found
