"""One line for bad input, whatever the table."""

import re

import pytest

from study.benches import tables as bench


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"table": "trainin"}, "table = 'trainin': unknown; did you mean 'training'?"),
        ({"table": "training", "net": "lenet"}, "net = 'lenet': unknown; did you mean 'lenet5'?"),
        ({"table": "training", "batch": 0}, "batch = 0"),
        ({"table": "training", "ratios": [1.0]}, "ratio = 1.0"),
        ({"table": "training", "ratios": []}, "ratios = []: must be at least one ratio"),
        ({"table": "growth", "repeats": 1}, "repeats = 1"),
        ({"table": "lmo", "net": "vgg"}, "net = 'vgg': unknown; did you mean 'vgg16'?"),
        ({"table": "lmo", "batch": 0}, "batch = 0"),
        ({"table": "lmo_grow"}, "table = 'lmo_grow': unknown; did you mean 'lmo_growth'?"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        bench.measure(**arguments)
