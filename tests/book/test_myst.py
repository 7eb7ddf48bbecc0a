"""Chapters for plain Jupyter, and what the book makes of them."""

import re
from pathlib import Path

import nbformat
import pytest

import myst

BOOK = Path(__file__).resolve().parents[2] / "book"
CHAPTERS = {path.stem: nbformat.read(path, 4) for path in sorted(BOOK.glob("*.ipynb"))}
ABSIL = "https://doi.org/10.1515/9781400830244"


def prose(chapter):
    return "\n".join(cell.source for cell in chapter.cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_no_roles_that_plain_jupyter_would_show_raw(name):
    assert re.findall(r"\{[\w:]+\}`|^[`:]{3,}\{", prose(CHAPTERS[name]), re.MULTILINE) == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_links_to_papers_have_the_names_and_the_year_of_the_bibliography(name):
    """What is left of them in the book leads to a paper of the bibliography by another name."""
    addresses = {myst.address(key) for key in myst.bibliography()}
    left = re.findall(r"\]\((https?://[^()\s]+)\)", prose(myst.to_myst(CHAPTERS[name])))
    assert [link for link in left if link in addresses] == []


def test_links_become_roles():
    both = "(" + ", ".join(map(myst.link, ("absil_2008_manifolds", "eckart_1936_approximation"))) + ")"
    assert both.startswith(f"([Absil et al., 2008]({ABSIL}), [Eckart and Young, 1936](")
    assert myst.roles(f"So {both}.") == "So {cite:p}`absil_2008_manifolds,eckart_1936_approximation`."
    assert myst.roles(myst.link("eckart_1936_approximation", in_text=True)) == "{cite:t}`eckart_1936_approximation`"
    assert myst.roles("[Figure](#fig-a) and ([figure](#fig-b), left)") == "{numref}`fig-a` and ({numref}`fig-b`, left)"


@pytest.mark.parametrize("other", ["[Slurm](https://slurm.schedmd.com)", "(a [guide](https://a.b))", f"[it]({ABSIL})"])
def test_other_links_stay(other):
    assert myst.roles(other) == other
    assert myst.roles(f"({other})") == f"({other})"


def test_captions_go_into_the_figures_above_them():
    figure = nbformat.v4.new_code_cell("plot()", metadata={"mystnb": {"image": {"alt": "a line"}}})
    caption = nbformat.v4.new_markdown_cell('<a id="fig-line"></a>**Figure.** A line in $x$.')
    chapter = nbformat.v4.new_notebook(cells=[figure, caption])
    (cell,) = myst.to_myst(chapter).cells
    assert cell.metadata.mystnb.figure == {"name": "fig-line", "caption": "A line in $x$."}
    assert cell.metadata.mystnb.image.alt == "a line"
    assert len(chapter.cells) == 2
    assert "figure" not in figure.metadata.mystnb
