"""What autodoc is told about the library, beside the text of docstrings."""

import functools
from pathlib import Path

import pytest

import study
import wellcond
from reference import definition, keys, link, process_docstring, process_signature, skip_member

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("module", "name", "begins"),
    [
        ("wellcond", "factorize", "def factorize("),
        ("study", "load_data", "def load("),
        ("wellcond", "LowRankSGD", "class LowRankSGD("),
        ("wellcond", "LowRankLayer.set_matrix", "@torch.no_grad()"),
        ("wellcond", "LowRankLinear.from_dense", "@classmethod"),
        ("wellcond", "LowRankLayer.rank", "@property"),
        ("wellcond.methods", "METHODS", "METHODS: dict"),
        ("study", "ATTACKS", "ATTACKS: dict"),  # not the one of study.presentation.style
        ("wellcond.optim", "UPDATES", "UPDATES: dict"),
        ("study.training.distributed", "joined", "@contextmanager"),
    ],
)
def test_links_lead_to_the_source(module, name, begins):
    target = link("base", "py", {"module": module, "fullname": name})
    path, _, lines = target.removeprefix("base/").partition("#")
    first, last = (int(line.removeprefix("L")) for line in lines.split("-"))
    source = (ROOT / path).read_text(encoding="utf-8").splitlines()
    assert source[first - 1].lstrip().startswith(begins)
    assert first <= last <= len(source)


@pytest.mark.parametrize("value", [Path, functools.reduce, 1])
def test_what_the_package_does_not_define_has_no_source(value):
    with pytest.raises((LookupError, TypeError)):
        definition("value", value)


def test_registries_list_their_keys():
    assert keys({"a": 1, "b": 2}) == ["Keys: ``a``, ``b``.", ""]
    lines = ["what dict says"]
    process_docstring(None, "data", "wellcond.methods.METHODS", wellcond.methods.METHODS, None, lines)
    assert [line.split("``")[1] for line in lines if line.startswith("*")] == list(wellcond.methods.METHODS)
    lines = []
    process_docstring(None, "data", "study.ATTACKS", study.ATTACKS, None, lines)
    assert lines[0].startswith("FGSM: x + eps sign")
    assert all(f"``{name}``" in lines[-2] for name in study.ATTACKS)


def test_signatures_of_classes_with_fields_are_short():
    def shown(value):
        return process_signature(None, "class", value.__name__, value, None, "", "")[0]

    assert "dataset: str, model: str" in shown(study.Experiment)
    assert "optimizer: ~collections.abc.Callable[[...], ~torch.optim.optimizer.Optimizer] = LowRankSGD," in shown(
        wellcond.methods.Method
    )
    assert "ratio: float | None = None" in shown(wellcond.methods.Settings)
    for value, what in ((wellcond.LowRankSGD, "class"), (study.fit, "function")):
        assert process_signature(None, what, value.__name__, value, None, "", "") is None


@pytest.mark.parametrize(
    ("value", "name", "skipped"),
    [
        (wellcond.LowRankLinear, "from_dense", None),
        (wellcond.LowRankLinear, "weight", None),
        (wellcond.LowRankLinear, "forward", True),  # explained by its class
        (wellcond.methods.FrankWolfe, "check", True),
        (study.Images, "to", None),  # without a docstring, but its own
        (wellcond.methods.Method, "penalty", True),  # a field
        (wellcond.methods.Method, "uses", True),
        (wellcond.compression, "COMPRESSORS", True),
        (wellcond.compression, "Compressed", None),
        (study.training.distributed, "joined", None),
    ],
)
def test_members_that_say_nothing_of_their_own_are_left_out(value, name, skipped):
    assert skip_member(None, "class", name, getattr(value, name), False, None) is skipped
