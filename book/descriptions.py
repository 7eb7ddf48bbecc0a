"""What a search engine, or a message that links to a page, shows of it: its title, first paragraph and a picture."""

from __future__ import annotations

import html
import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

LONGEST = 200
LETTERS = {r"V^\top": "Vᵀ", r"\kappa": "κ", r"\sigma": "σ", r"\tau": "τ", r"\le": "≤", r"\max": "max", r"\min": "min"}


def description(doctree: nodes.document) -> str:
    """The first paragraph as text, cut between words after LONGEST characters."""
    first = next(iter(doctree.findall(nodes.paragraph)), None)
    text = "" if first is None else " ".join(first.astext().split())
    for latex, letter in LETTERS.items():
        text = re.sub(re.escape(latex) + r"(?![a-z])", letter, text)
    text = re.sub(r"[{}_^]|\\[a-z]*", "", text)
    return text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0] + " …"


def add(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Into the head of the page."""
    if doctree is None:
        return
    words, title = html.escape(description(doctree)), html.escape(re.sub(r"<[^>]*>", "", context.get("title", "")))
    properties = {
        "title": title,
        "description": words,
        "type": "article",
        "url": f"{app.config.html_baseurl}{page}.html",
        "image": f"{app.config.html_baseurl}_static/card.png",  # card.py; addresses have to be whole
        "image:alt": "Images withstood under attack against the size of the network, by method",
    }
    tags = [f'<meta property="og:{name}" content="{value}">' for name, value in properties.items()]
    tags += [f'<meta name="description" content="{words}">', '<meta name="twitter:card" content="summary_large_image">']
    context["metatags"] = context.get("metatags", "") + "".join(tags)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("html-page-context", add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
