"""The table of what a network is made of."""

import warnings

import pytest
import torch
from torch import nn

import wellcond as wc


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 5, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x, scale=1.0):
        x = x + self.position
        return scale * self.head(self.attention(x, x, x, need_weights=False)[0])


def network():
    torch.manual_seed(0)
    mix = nn.Conv1d(5, 5, 3, groups=5, padding=1)
    return nn.Sequential(mix, nn.Conv1d(5, 10, 3, groups=5, padding=1), nn.Conv1d(10, 5, 1), Shifted())


def factorized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wc.constrain(wc.factorize(network(), rank=2, skip="3.head"), 1.5)


def test_rows():
    """Against the counts of the layers themselves; the dense ones with the reason why."""
    rows = {row.name: row for row in wc.summary(factorized(), torch.rand(2, 5, 8)).rows}
    assert list(rows) == ["0", "1", "2", "3.attention.out_proj", "3.attention.in_proj", "3.head", "3.position"]
    assert {name: row.note for name, row in rows.items() if row.note} == {
        "0": "a depthwise convolution, one row a group",
        "3.position": "a parameter of Shifted, of no known kind",
    }
    stack, attention, head = rows["1"], rows["3.attention.in_proj"], rows["3.head"]
    assert (stack.stack, stack.n, stack.m, stack.rank) == (5, 2, 3, 2)
    assert (stack.parameters, stack.deployed) == (30, 30)
    assert (attention.n, attention.m, attention.rank, attention.parameters, attention.deployed) == (24, 8, 2, 192, 64)
    assert attention.flops == 2 * 2 * 5 * 192
    assert attention.flops_now == 2 * 2 * 5 * (8 * 2 + 2 * 2 + 2 * 24)
    assert (head.rank, head.flops, head.flops_now) == (None, 480, 480)
    assert all(row.kappa <= 1.5 + 1e-5 for row in rows.values() if row.rank is not None)


@pytest.mark.parametrize("model", [network, factorized])
def test_totals_are_those_of_the_network(model):
    model = model()
    total = wc.summary(model, (torch.rand(2, 5, 8),)).total
    others = sum(p.numel() for name, p in network().named_parameters() if "bias" in name)
    count = wc.count_parameters(model)
    assert (total.parameters, total.deployed) == (count.dense - others, count.deployed - others)


def test_it_prints_a_table():
    text = repr(wc.summary(factorized()))
    head, *lines = text.splitlines()
    assert head.split() == ["layer", "type", "matrix", "rank", "kappa", "parameters", "deployed", "dense", "because"]
    assert len(lines) == 8
    assert lines[1].startswith("1                     LowRankConv1d")
    assert "5 of 2 x 3" in lines[1]
    assert lines[-1].split() == ["total", "415", "235"]
    assert max(map(len, lines)) < 140


def test_arguments_by_name_and_the_model_unchanged():
    model = Shifted().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert wc.summary(model, {"x": torch.rand(2, 5, 8), "scale": 2.0}).total.flops > 0
    assert model.training
    assert type(model.attention) is nn.MultiheadAttention
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
