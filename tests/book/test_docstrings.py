"""Docstrings become valid reStructuredText that says the same."""

import importlib
import inspect
import pkgutil
import re

import pytest
from docutils import nodes
from docutils.core import publish_doctree
from hypothesis import example, given
from hypothesis import strategies as st

import wellcond
from docstrings import convert, parameters_of


def parsed(lines: list[str]) -> nodes.document:
    """What docutils makes of it; every message is an error, however small."""
    settings = {"report_level": 1, "halt_level": 5, "warning_stream": False, "input_encoding": "unicode"}
    document = publish_doctree("\n".join(lines), settings_overrides=settings)
    assert [message.astext() for message in document.findall(nodes.system_message)] == []
    return document


def characters(text: str) -> str:
    """All characters but spaces and the backticks that set code apart."""
    return re.sub(r"[\s`]", "", text)


def documented(module: str) -> dict[str, object]:
    """The module itself, and its public functions, classes and methods, by name."""
    found: dict[str, object] = {"": importlib.import_module(module)}
    for name, value in vars(found[""]).items():
        if (inspect.isroutine(value) or inspect.isclass(value)) and value.__module__ == module and name[0] != "_":
            found[name] = value
            members = vars(value).items() if inspect.isclass(value) else ()
            found |= {f"{name}.{key}": member for key, member in members if key[0] != "_" and member.__doc__}
    return found


MODULES = [f"wellcond.{module.name}" for module in pkgutil.iter_modules(wellcond.__path__)]


@pytest.mark.parametrize("module", ["wellcond", *(name for name in MODULES if name != "study.__main__")])
def test_every_docstring_of_the_library_is_converted_whole(module):
    for value in documented(module).values():
        docstring = inspect.cleandoc(value.__doc__ or "")
        document = parsed(convert(docstring, parameters_of(value)))
        assert characters(document.astext()) == characters(docstring)


# what reStructuredText would read something into, among words and spaces
MARKED = st.lists(
    st.sampled_from(
        [*"abI1 \n*_|`\\:.;-+=#>(){}[]<>\"'~^", "::", "``", "..", "    ", "\n\n", "x: ", "y in [0, 1]: ", "> 0"]
    )
)
PRINTABLE = st.text(st.characters(exclude_categories=["C"]))


@example(text="\\\\", parameters=set())  # two backslashes, a title's line
@given(text=MARKED.map("".join) | PRINTABLE, parameters=st.sets(st.sampled_from(["x", "y", "a"])))
def test_any_text_is_converted_whole(text, parameters):
    document = parsed(convert(text, parameters))
    assert characters(document.astext()) == characters(text)


def test_a_paragraph_flows():
    (paragraph,) = parsed(convert("One line\nand another.")).children
    assert isinstance(paragraph, nodes.paragraph)
    assert paragraph.astext() == "One line and another."


def test_markup_means_itself():
    text = "||W||_F² of the *factors x_ and |y|, 1 * 2, [1]_ and a\\b::"
    (paragraph,) = parsed(convert(text)).children
    assert [type(child) for child in paragraph.children] == [nodes.Text]
    assert paragraph.astext() == text


@pytest.mark.parametrize(
    "text", ["- a", "1. a", "A. a", "(i) a", ":a: b", ".. a", ">>> a", "| a", "=====", "--a  b", "#."]
)
def test_nothing_but_indentation_and_parameters_makes_a_block(text):
    (paragraph,) = parsed(convert(text)).children
    assert isinstance(paragraph, nodes.paragraph)


def test_backticks_are_code_and_names_may_be_linked():
    (paragraph,) = parsed(convert('As `fit` (not `a b`), ``c=d`` and "key", of a key of RULES.')).children
    assert [n.astext() for n in paragraph.findall(nodes.literal)] == ["a b", "c=d", '"key"']
    assert [n.astext() for n in paragraph.findall(nodes.title_reference)] == ["fit", "RULES"]


EQUATIONS = """With V,

    V = argmin_{V in C} <V, m>,    W <- W + γ (V - W),

    name   *norm*
    l_1_   |x|_1

it ends."""


def test_equations_and_tables_keep_their_layout():
    before, block, after = parsed(convert(EQUATIONS)).children
    assert isinstance(block, nodes.literal_block)
    assert block.astext() == inspect.cleandoc(EQUATIONS.split("\n", 1)[1].rpartition("\n\n")[0])
    assert (before.astext(), after.astext()) == ("With V,", "it ends.")


def test_columns_keep_their_layout_without_indentation():
    (table,) = parsed(convert("ratio   r   in [0, 1)\nrank    k   >= 1")).children
    assert table.astext() == "ratio   r   in [0, 1)\nrank    k   >= 1"


def test_what_is_python_is_set_as_python():
    assert convert("    x = f(1)")[0] == ".. code-block:: python"
    assert convert("    X = U S Vᵀ")[0] == ".. code-block:: text"


def test_wide_blocks_tell_the_style_sheet_their_columns():
    classes = [parsed(convert("    " + n * "x")).children[0]["classes"] for n in (72, 73, 80, 81)]
    columns = [[name for name in names if name.startswith("columns-")] for names in classes]
    assert columns == [[], ["columns-80"], ["columns-80"], ["columns-90"]]


PARAMETERS = """What it does to x.

skip, keep: names of layers; fraction in (0, 1]: of their rank, or of
    {layer: rank}. depth >= 1.
model: any module. Its skip is untouched:
x in general. Raises ValueError for x > 1.
Source: here.
"""


def test_parameters_make_a_list():
    summary, items, raises, source = parsed(
        convert(PARAMETERS, ["skip", "keep", "fraction", "depth", "model", "x"])
    ).children
    assert summary.astext() == "What it does to x."
    assert [item.astext() for item in items.children] == [
        "skip, keep: names of layers;",
        "fraction in (0, 1]: of their rank, or of {layer: rank}.",
        "depth >= 1.",
        "model: any module. Its skip is untouched: x in general.",
    ]
    assert raises.astext() == "Raises ValueError for x > 1."
    assert source.astext() == "Source: here."


def test_names_that_are_no_parameters_make_no_list():
    (paragraph,) = parsed(convert("skip: names of layers.", ["model"])).children
    assert isinstance(paragraph, nodes.paragraph)


OPTIONS = """params: groups. Their options:
    lr > 0; momentum in [0, 1); kind: a key of KINDS, which
    are three.
It needs a closure."""


def test_indented_parameters_make_a_list_in_an_item():
    items, closing = parsed(convert(OPTIONS, ["params", "lr", "momentum", "kind"])).children
    (item,) = items.children
    text, options = item.children
    assert text.astext() == "params: groups. Their options:"
    assert [option.astext() for option in options.children] == [
        "lr > 0;",
        "momentum in [0, 1);",
        "kind: a key of KINDS, which are three.",
    ]
    assert closing.astext() == "It needs a closure."
