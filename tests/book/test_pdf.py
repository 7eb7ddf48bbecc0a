"""The book as one document, and the PDF that Chromium prints of it, where `make pdf` has been run."""

import re

import pytest
from bs4 import BeautifulSoup

import pdf
from built_book import HTML, NEEDED, PAGES

pytestmark = NEEDED


@pytest.fixture(scope="module")
def document():
    return BeautifulSoup(pdf.document(), "html.parser")


def test_the_document_has_all_pages_in_their_order(document):
    assert [section["id"] for section in document.select("section.page")] == PAGES
    assert len(document.select(".contents li")) == len(PAGES) - 1


def test_no_identifier_is_used_twice_and_every_link_within_the_book_leads_somewhere(document):
    identifiers = [element["id"] for element in document.select("[id]")]
    assert len(identifiers) == len(set(identifiers))
    inside = [link["href"][1:] for link in document.select("a[href^='#']")]
    assert len(inside) > 300
    assert set(inside) - set(identifiers) == set()
    left = [link["href"] for link in document.select("a[href]") if ".html" in link["href"]]
    assert [link for link in left if not link.startswith("http")] == []


def test_pictures_and_styles_are_those_of_the_site(document):
    paths = [picture["src"] for picture in document.select("img")] + [
        style["href"].partition("?")[0] for style in document.select("link[rel=stylesheet]")
    ]
    assert [path for path in paths if not (HTML / "book" / path).exists()] == []


def test_the_style_of_every_table_finds_it(document):
    named = [re.findall(r'\[id="([^"]+)"\]', style.get_text()) for style in document.select("section.page style")]
    tables = {table["id"] for table in document.select("table[id]")}
    assert len(tables) > 40
    assert {name for names in named for name in names} == tables


def test_folded_results_are_printed_and_folded_code_is_not(document):
    chapters = {table.find_parent("section")["id"].split("/")[1][:2] for table in document.select("div.hide table")}
    assert chapters >= {"08", "11", "14", "15"}
    assert document.select("details.hide, .hide .cell_input") == []


def outline(printed):
    """The titles of the bookmarks of a PDF of Chromium: strings in UTF-16 or ASCII, in the order of its objects."""
    found = re.findall(rb"/Title (?:<([0-9A-Fa-f]+)>|\(((?:\\.|[^\\)])*)\))", printed)
    return [bytes.fromhex(code.decode()).decode("utf-16") if code else text.decode("latin-1") for code, text in found]


@pytest.mark.skipif(not pdf.PDF.exists(), reason="the book is not printed; run make pdf")
def test_the_pdf_has_the_titles_of_the_chapters_as_bookmarks(document):
    printed = pdf.PDF.read_bytes()
    assert printed.startswith(b"%PDF-")
    bookmarks = " ".join(outline(printed))
    titles = [link.get_text() for link in document.select(".contents a")]
    assert [title for title in titles if title not in bookmarks] == []
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) > 100
