"""Training a compressed network further: zeros stay, factors keep their rank, the argument is left alone."""

import copy

import pytest
import torch
from torch.nn import functional as F

from helpers import Tiny, convolutional
from study import data
from study.training.fine_tuning import fine_tuned
from wellcond.compression.compressors import compress
from wellcond.compression.weights import held_zeros
from wellcond.layers import low_rank_layers, weight_layers

HOW = {"lr": 0.05, "momentum": 0.9, "batch_size": 16, "seed": 0}


def images():
    return data.load("digits", n_train=128).train


def loss(model):
    x, y = images().pixels(slice(None)), images().labels
    with torch.no_grad():
        return F.cross_entropy(model(x), y).item()


@pytest.mark.parametrize("compressor", ["svd", "magnitude", "filters_l2"])
def test_training_lowers_the_loss_and_keeps_what_was_removed_out(compressor):
    torch.manual_seed(0)
    model = compress(convolutional(), compressor, amount=0.6).model.eval()
    before = copy.deepcopy(model.state_dict())
    after = fine_tuned(model, images(), epochs=15, **HOW)
    assert loss(after) < loss(model) - 0.2
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for key, value in after.state_dict().items():
        assert value.shape == before[key].shape
        if compressor == "magnitude" and value.ndim > 1:
            assert torch.equal(value == 0, before[key] == 0), key
    if compressor == "svd":
        assert {name: layer.rank for name, layer in low_rank_layers(after).items()} == {
            name: layer.rank for name, layer in low_rank_layers(model).items()
        }
    assert not after.training


def test_no_epochs_are_a_copy():
    model = Tiny()
    same = fine_tuned(model, images(), epochs=0, **HOW)
    assert same is not model
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), model.parameters(), strict=True))


def test_gradients_are_free_again_afterwards():
    model = compress(Tiny(), "magnitude", amount=0.5).model
    x, y = images().pixels(slice(0, 8)), images().labels[:8]

    def touched():
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        return sum(int((w.grad[w == 0] != 0).sum()) for w in (m.weight for m in weight_layers(model).values()))

    with held_zeros(model):
        assert touched() == 0
    assert touched() > 0
