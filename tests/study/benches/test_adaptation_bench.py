"""The bench of adapters: its two tasks, the ranks of what it trains, and one row a method and seed."""

import importlib.util
from itertools import pairwise

import pandas as pd
import pytest
import torch

from study.benches import adaptation

METHODS = ["before", "full", *(["lora"] if importlib.util.find_spec("peft") else [])]
METHODS += ["adapter_inf", "adapter_10", "adapter_1.1"]


def test_turned_digits_are_others():
    split = adaptation.tasks(0)
    assert torch.equal(split["new"].images.rot90(-1, (2, 3)), split["old"].images)
    seen = {image.numpy().tobytes() for image in split["first"].images}
    assert not seen & {image.numpy().tobytes() for image in split["train"].images.rot90(-1, (2, 3))}


def test_a_row_a_method_and_seed(monkeypatch):
    for name, value in {"LEARNING_RATES": (1e-30, 3e-3), "EPOCHS": 1, "FIRST_EPOCHS": 4, "STEPS": 1}.items():
        monkeypatch.setattr(adaptation, name, value)
    frame = pd.DataFrame(adaptation.adaptation_rows(seeds=(0, 1)))
    assert [*frame["method"]] == ["before"] * 2 + [name for name in METHODS[1:] for _ in range(2)]
    trained = frame[frame["method"] != "before"]
    assert (trained["lr"] == 3e-3).all()  # the other changes nothing, and the validation images say so
    before = frame[frame["method"] == "before"]
    assert (before["new_correct"] < before["old_correct"]).all()
    assert (before["change"] == 0).all()
    assert (trained["change"] > 0).all()
    assert (frame["pgd_correct"] <= frame["new_correct"]).all()
    numbers = trained.groupby("method")["n_trained"].first()
    sizes = (784, 256, 256, 10)
    factors = sum(adaptation.RANK * (n + m) for n, m in pairwise(sizes))
    assert numbers["full"] == sum((n + 1) * m for n, m in pairwise(sizes))
    assert numbers["adapter_1.1"] == factors + 3 * adaptation.RANK**2
    if "lora" in METHODS:
        assert numbers["lora"] == factors


@pytest.mark.parametrize("name", adaptation.ways())
def test_every_method_starts_at_the_network_before(name):
    base, way = adaptation.network(), adaptation.ways()[name]
    x = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(way.start(base)(x), base(x))
    torch.testing.assert_close(way.plain(way.start(base))(x), base(x))
