"""Parameters of a chapter: those that no cell declares are refused."""

import pytest

from study.chapters import check_parameters

IMPORTS = "import wellcond as wc\n"
DECLARED = 'preset = "smoke"  # or "paper"\nrun = False\n'


def passed(*lines):
    return "\n".join(["# Parameters", *lines])


def test_declared_parameters_pass():
    check_parameters([IMPORTS, DECLARED])
    check_parameters([IMPORTS, DECLARED, passed('preset = "paper"', "run = True")])


def test_papermills_empty_cell_and_later_assignments_pass():
    check_parameters(["", IMPORTS, DECLARED, passed(), "result = 3", "%matplotlib inline\nfigure = 1"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("presett = 'paper'", "parameter = 'presett': unknown; did you mean 'preset'"),
        ("epochs = 3", "parameter = 'epochs': unknown; accepted: preset, run"),
    ],
)
def test_an_undeclared_parameter_is_refused(line, message):
    with pytest.raises(ValueError, match=message):
        check_parameters([IMPORTS, DECLARED, passed("run = True", line), "later = 1"])
