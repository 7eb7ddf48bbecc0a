"""Names and patterns of layers: a text is one of them, and one that matches nothing is an error."""

import pytest
import torch
from torch import nn

import wellcond as wc
from wellcond.methods import lorita, method


def network():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(6, 6) for _ in range(12)))


def ranks(model):
    return {name: layer.rank for name, layer in wc.low_rank_layers(model).items()}


TAKING = {  # every function that takes patterns, and the layers that it changes
    "factorize": lambda skip: set(ranks(wc.factorize(network(), rank=2, skip=skip))),
    "full rank": lambda skip: {
        n for n, r in ranks(wc.factorize(network(), rank=2, keep_full_rank=skip)).items() if r == 2
    },
    "overparametrize": lambda skip: {
        name.split(".")[0]
        for name, _ in lorita.overparametrize(network(), skip=skip).named_parameters()
        if "original" in name
    },
    "svd": lambda skip: set(wc.compression.compress(network(), "svd", amount=0.5, skip=skip).kept),
    "magnitude": lambda skip: set(wc.compression.compress(network(), "magnitude", amount=0.5, skip=skip).kept),
    "decay_spectra": lambda skip: {
        name.split(".")[0]
        for name, p in method.decay_spectra(network(), 2.0, skip=skip).named_parameters()
        if not torch.equal(p, network().get_parameter(name))
    },
}
EVERY = {str(k) for k in range(12)}


@pytest.mark.parametrize("skip", ["10", ["10"], ("1?",), "1?", ["0", "11"], ()])
@pytest.mark.parametrize("taking", TAKING)
def test_a_text_is_one_pattern(taking, skip):
    skipped = {"10": {"10"}, "1?": {"10", "11"}}
    expected = set().union(
        *(skipped.get(pattern, {pattern}) for pattern in ([skip] if isinstance(skip, str) else skip))
    )
    assert TAKING[taking](skip) == EVERY - expected


@pytest.mark.parametrize("skip", ["12", ["0", "12"], "x*"])
@pytest.mark.parametrize("taking", TAKING)
def test_a_pattern_that_matches_nothing_is_refused(taking, skip):
    with pytest.raises(ValueError, match=r"(skip|keep_full_rank) = '(12|x\*)': unknown"):
        TAKING[taking](skip)


def test_frank_wolfe_takes_patterns_of_parameters():
    groups = wc.methods.frank_wolfe_groups(network(), "l2", scale=1, constrained="1?.weight", draws=1)
    assert [group["name"] for group in groups] == ["10.weight", "11.weight", ""]
    with pytest.raises(ValueError, match=r"constrained = '12\.\*': unknown"):
        wc.methods.frank_wolfe_groups(network(), "l2", scale=1, constrained=["12.*"], draws=1)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"rank": {"*": 2}}, dict.fromkeys(sorted(EVERY), 2)),
        ({"rank": {"*": 99}}, dict.fromkeys(sorted(EVERY), 6)),
        ({"rank": {"1?": 3, "0": 1}}, {"0": 1, "10": 3, "11": 3}),
        ({"rank": {"*": 2, "1?": 5, "10": 1}}, dict.fromkeys(sorted(EVERY), 2) | {"10": 1}),
        ({"rank": {"1?": 5, "*": 2}}, dict.fromkeys(sorted(EVERY), 2) | {"10": 5, "11": 5}),
        ({"ratio": {"1?": 0.5}}, {"10": 3, "11": 3}),
        ({"ratio": {"3": 0.5, "*": 0}, "skip": "4"}, dict.fromkeys(sorted(EVERY - {"4"}), 6) | {"3": 3}),
    ],
    ids=str,
)
def test_sizes_by_pattern(sizes, expected):
    """A name before the patterns, and these in their order; only what is matched is converted."""
    assert ranks(wc.factorize(network(), **sizes)) == expected


@pytest.mark.parametrize("field", ["rank", "ratio"])
def test_a_key_that_matches_nothing_is_refused(field):
    with pytest.raises(ValueError, match=rf"{field} = '12': unknown; did you mean"):
        wc.factorize(network(), **{field: {"0": 0.5, "12": 0.5}})
