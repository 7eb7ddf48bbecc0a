"""Settings: what a run_id says can be read back, and every range has its message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.settings import SETTINGS, check_setting, label_suffix, name_suffix, parsed, suffix

VALUES = st.floats(0, 1e6).map(lambda v: float(f"{v:g}"))
METHOD_NAMES = st.sampled_from(["dense", "robust_dlrt", "svd_finetuned", "cayley_sgd", "a-b"])


@given(method=METHOD_NAMES, seed=st.integers(0, 99), given=st.dictionaries(st.sampled_from([*SETTINGS]), VALUES))
def test_a_run_id_can_be_read_back(method, seed, given):
    found = parsed(f"{method}{suffix(given)}-s{seed}")
    assert found == {"method": method, "seed": seed, **dict.fromkeys(SETTINGS), **given}


def test_infinite_bound_and_unreadable_names():
    assert parsed("condlr-r0.5-cinf-s1")["max_cond"] == float("inf")
    assert parsed("notes") == {"method": "notes", "seed": None, **dict.fromkeys(SETTINGS)}


def test_letters_are_distinct():
    letters = [setting.letter for setting in SETTINGS.values()]
    assert len({*letters, "s"}) == len(letters) + 1


def test_labels_and_names():
    given = {"ratio": 0.5, "tolerance": 0.1, "beta": 0.03, "decay": 10}
    assert label_suffix(given) == ", ϑ = 0.1, β = 0.03"
    assert name_suffix(given) == ", ratio 0.5, α = 10"
    assert label_suffix({"max_cond": 1.1, "tolerance": 0.0, "beta": None}) == ", τ = 0.1"
    assert name_suffix({"rank": 20, "ratio": float("nan")}) == ", rank 20"


@pytest.mark.parametrize(
    ("given", "run_id", "name"),
    [
        ({"mix": 1.0, "radius": 0.1}, "dense-m1-e0.1-s0", ", PGD-AT, ε = 0.1"),
        ({"mix": 0.5, "radius": 0.1}, "dense-m0.5-e0.1-s0", ", 50 % PGD-AT, ε = 0.1"),
        ({"trades": 6, "radius": 1e-5}, "dense-l6-e1e-05-s0", ", TRADES 6, ε = 1e-05"),
    ],
)
def test_adversarial_training_is_named(given, run_id, name):
    assert f"dense{suffix(given)}-s0" == run_id
    assert parsed(run_id) == {"method": "dense", "seed": 0, **dict.fromkeys(SETTINGS), **given}
    assert name_suffix(given) == name
    assert label_suffix(given) == ""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[
            ("ratio", 1.0),
            ("rank", 0),
            ("rank", 1.5),
            ("max_cond", 0.9),
            ("tolerance", 1),
            ("beta", -1),
            ("decay", 0.5),
        ],
        *[("mix", 0), ("mix", 1.5), ("trades", 0), ("trades", float("inf")), ("radius", 0), ("radius", -0.1)],
    ],
)
def test_out_of_range(key, value):
    with pytest.raises(ValueError, match=f"^{key} = {value}: must be "):
        check_setting(key, value)
    with pytest.raises(ValueError, match=f"^{key} = nan: must be "):
        check_setting(key, float("nan"))
