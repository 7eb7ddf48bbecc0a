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
PAPERS = re.compile(rf"\(({LINK}(?:, {LINK})*)\)|({LINK})")


@cache
def bibliography() -> dict[str, Entry]:
    """The entries of references.bib by key."""
    return dict(parse_file(str(Path(__file__).with_name("references.bib"))).entries)


def address(key: str) -> str:
    """Where a paper is found."""
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
def _keys() -> dict[str, tuple[str, str]]:
    """The role and the key that stand for a link to a paper."""
    found: dict[str, tuple[str, str]] = {}
    for key, entry in bibliography().items():
        if {"url", "doi"} & set(entry.fields) and "year" in entry.fields:
            found |= {link(key): ("p", key), link(key, in_text=True): ("t", key)}
    return found


def _cited(match: re.Match[str]) -> str:
    links = re.findall(LINK, match[0])
    roles = [_keys().get(found, ("", "")) for found in links]
    if match[2] is not None:  # a single link in a sentence
        return f"{{cite:t}}`{roles[0][1]}`" if roles[0][0] == "t" else match[0]
    if all(role == "p" for role, _ in roles):
        return f"{{cite:p}}`{','.join(key for _, key in roles)}`"
    return f"({re.sub(LINK, lambda one: _cited(PAPERS.fullmatch(one[0]) or one), match[1])})"


def roles(text: str) -> str:
    """Markdown of a chapter with roles in the place of links to its figures and to papers."""
    return PAPERS.sub(_cited, TO_FIGURE.sub(r"{numref}`\1`", text))


def to_myst(chapter: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy in which captions are metadata of the figures above them, and links to figures and papers are roles."""
    done = copy.deepcopy(chapter)
    cells: list[nbformat.NotebookNode] = []
    for cell in done.cells:
        if caption := CAPTION.fullmatch(cell.source):
            figure = {"name": caption[1], "caption": caption[2]}
            cells[-1].metadata["mystnb"] = {**cells[-1].metadata.get("mystnb", {}), "figure": figure}
            continue
        if cell.cell_type == "markdown":
            cell.source = roles(cell.source)
        cells.append(cell)
    done.cells = cells
    return done
