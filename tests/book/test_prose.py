"""What the book says: numbers that are still those of the committed results, in sentences that are still true."""

import ast
import re
from functools import cache
from pathlib import Path

import nbformat
import pytest

from study import paths
from study.findings import finding

PAGES = {page.name: page for page in finding.pages()}
NOTEBOOKS = {name: page for name, page in PAGES.items() if page.suffix == ".ipynb"}
KEYS = sorted(finding.every())
LONGEST = 6  # lines of code of a cell whose input readers do not see
WRANGLING = {"groupby", "pivot", "pivot_table", "merge", "melt", "query", "agg", "apply", "set_index", "reset_index"}


@cache
def cells(name, kind):
    return [cell for cell in nbformat.read(NOTEBOOKS[name], 4).cells if cell.cell_type == kind]


@pytest.mark.parametrize("name", PAGES)
def test_numbers_in_the_text_are_those_of_the_results(name):
    text = PAGES[name].read_text(encoding="utf-8")
    assert finding.filled(text) == text, "run python -m study findings --fill"


@pytest.mark.parametrize("key", KEYS)
def test_a_finding_still_holds(key):
    found = finding.every()[key]()
    assert {name: number.text for name, number in found.numbers.items() if not number.holds} == {}, found.claim


def test_every_finding_is_told():
    told = {key.rpartition(".")[0] for page in PAGES.values() for key in finding.quoted(page.read_text("utf-8"))}
    assert set(KEYS) == told


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_number_begins_a_line(name):
    """There its comment would make a block of HTML of the paragraph."""
    starts = [line for cell in cells(name, "markdown") for line in cell.source.splitlines()]
    assert [line for line in starts if re.match(r"\s*([-*+>]|\d+\.)?\s*<!--\w+\.", line)] == []


@pytest.mark.parametrize("name", PAGES)
def test_no_number_is_parted_from_its_per_cent(name):
    """Between the two stands a space that does not break."""
    page = PAGES[name]
    text = "".join(cell.source for cell in cells(name, "markdown")) if name in NOTEBOOKS else page.read_text("utf-8")
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    assert re.findall(r".{0,30}(?:\d|<!---->) %", prose) == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_panels_are_counted(name):
    """On a phone they stand below each other: there is no left and no right."""
    text = "\n".join(cell.source for cell in cells(name, "markdown"))
    assert re.findall(r"[(,] ?(?:left|middle|right)\)|\b(?:left|middle|right) panel", text) == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_code_writes_no_sentences(name):
    assert [cell.id for cell in cells(name, "code") if re.search(r"\bMarkdown\b", cell.source)] == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_hidden_cells_are_short_and_only_show(name):
    for cell in cells(name, "code"):
        tags = set(cell.metadata.get("tags", []))
        if not tags & {"remove-input", "hide-input"} or "parameters" in tags:
            continue
        assert len(cell.source.splitlines()) <= LONGEST, cell.id
        calls = {node.attr for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Attribute)}
        assert calls & WRANGLING == set(), cell.id


def test_a_number_has_the_decimals_that_its_margin_bears_out():
    number = finding.Number
    assert number(-1.2345, margin=0.4).text == "−1.2 ± 0.4"
    assert number(19.83, margin=8.99, signed=True).text == "+20 ± 9"
    assert number(0.1234).text == "0.123"
    assert number(-1e-16, margin=12.0).text == "0 ± 12"
    assert number(12345.6).text == "12,346"
    assert number(98.5, digits=0).text == "98"
    assert not number(float("nan")).holds


def test_a_number_out_of_its_band_fails_its_finding():
    inside, outside = finding.Number(1.0, 0.5, 1.5), finding.Number(2.0, 0.5, 1.5)
    assert finding.Finding("a.b", "", {"x": inside}).holds
    assert not finding.Finding("a.b", "", {"x": inside, "y": outside}).holds


def test_the_list_has_all_findings_or_those_of_a_file():
    assert list(finding.listed()["key"]) == list(finding.every())
    assert set(finding.listed("start")["key"]) == {key for key in KEYS if key.startswith("start.")}
    with pytest.raises(ValueError, match="file = 'nowhere'"):
        finding.listed("nowhere")


def test_findings_are_about_the_committed_results_whatever_a_reader_works_with(tmp_path, monkeypatch):
    monkeypatch.setenv("WELLCOND_RESULTS", str(tmp_path))
    with paths.only_committed():
        assert paths.results() == paths.ROOT / "results"
    assert paths.results() == tmp_path


def test_an_unknown_number_is_named():
    with pytest.raises(ValueError, match=r"finding = 'accuracy\.none'"):
        finding.filled("<!--accuracy.none.x-->1<!---->")


def test_filling_writes_the_numbers_and_nothing_else(tmp_path):
    key = KEYS[0]
    name = next(iter(finding.every()[key]().numbers))
    page = Path(tmp_path / "page.md")
    page.write_text(f"So <!--{key}.{name}-->?<!----> it is, and 1 stays.\n", encoding="utf-8")
    assert finding.fill([page]) == [page]
    assert finding.fill([page]) == []
    assert finding.every()[key]().numbers[name].text in page.read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8").endswith("it is, and 1 stays.\n")


@pytest.mark.parametrize("name", PAGES)
def test_a_link_that_names_a_chapter_leads_to_it(name):
    named = re.findall(r"\[[Cc]hapter (\d+)\]\((\d+)_|\[(\d+)\]\((\d+)_\w+\.ipynb\)", PAGES[name].read_text("utf-8"))
    assert [found for found in named if int(found[0] or found[2]) != int(found[1] or found[3])] == []
