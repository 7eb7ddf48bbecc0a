"""Chapters as MyST reads them.

In the repository a chapter is a notebook that plain Jupyter shows whole: below a figure stands a cell with its caption,
and the text links to figures and to papers.  The book numbers its figures and has a bibliography, for which MyST wants
roles and the metadata of cells.  What is written once, for readers of notebooks, becomes the other here.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path

import nbformat
from pybtex.database import Entry, parse_file

CAPTION = re.compile(r'<a id="(fig-[\w-]+)"></a>\*\*Figure\.\*\* (.+)')
TO_FIGURE = re.compile(r"\[[Ff]igure\]\(#(fig-[\w-]+)\)")
LINK = r"\[[^][]+\]\(https?://[^()\s]+\)"
IN_PARENTHESES = rf"\({LINK}(?:, {LINK})*\)"


@cache
def bibliography() -> dict[str, Entry]:
    """The entries of references.bib by key."""
    return dict(parse_file(str(Path(__file__).with_name("references.bib"))).entries)


def address(key: str) -> str:
    """Where a paper is found: every entry has a url or a doi."""
    fields = bibliography()[key].fields
    return fields["url"] if "url" in fields else f"https://doi.org/{fields['doi']}"


def link(key: str, *, in_text: bool = False) -> str:
    """[Absil and Oseledets, 2015](address), or with in_text [Absil and Oseledets (2015)](address)."""
    entry = bibliography()[key]
    authors = ([*person.rich_prelast_names, *person.rich_last_names] for person in entry.persons["author"])
    names = [" ".join(map(str, author)) for author in authors]
    shown = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
    year = entry.fields["year"]
    return f"[{shown} ({year})]({address(key)})" if in_text else f"[{shown}, {year}]({address(key)})"


@cache
def _keys(in_text: bool) -> dict[str, str]:
    """The key of the paper that a link of this form leads to."""
    return {link(key, in_text=in_text): key for key in bibliography()}


def _in_parentheses(match: re.Match[str]) -> str:
    keys = [_keys(False).get(found) for found in re.findall(LINK, match[0])]
    return f"{{cite:p}}`{','.join(map(str, keys))}`" if all(keys) else match[0]


def _in_text(match: re.Match[str]) -> str:
    key = _keys(True).get(match[0])
    return f"{{cite:t}}`{key}`" if key else match[0]


def roles(text: str) -> str:
    """Markdown of a chapter with roles in the place of links to its figures and to papers."""
    text = re.sub(IN_PARENTHESES, _in_parentheses, TO_FIGURE.sub(r"{numref}`\1`", text))
    return re.sub(LINK, _in_text, text)


def to_myst(chapter: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy in which captions are metadata of the figures above them, and links to figures and papers are roles."""
    done = copy.deepcopy(chapter)
    cells: list[nbformat.NotebookNode] = []
    for cell in done.cells:
        if caption := CAPTION.fullmatch(cell.source):
            figure = {"name": caption[1], "caption": caption[2]}
            cells[-1].metadata["mystnb"]["figure"] = figure
            continue
        if cell.cell_type == "markdown":
            cell.source = roles(cell.source)
        cells.append(cell)
    done.cells = cells
    return done
