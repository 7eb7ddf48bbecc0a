"""Print the built book as one PDF, build/wellcond.pdf, by Chromium.

The pages, in the order of _toc.yml and after a title page, become sections of one document: links between them stay
links, sheets are numbered throughout, and headings are the bookmarks.
"""

from __future__ import annotations

import html
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urldefrag

import yaml
from bs4 import BeautifulSoup, Tag
from playwright.sync_api import sync_playwright

import build

PDF = build.ROOT / "build" / "wellcond.pdf"
LEFT_OUT = (
    "script, .headerlink, .copybtn, .viewcode-link, .cell:has(> .cell_output script[data-figure]), "
    "details.hide.above-input:not(:has(.cell_output)), details.hide .cell_input, details.hide > summary"
)
"""Selects what is of use on a screen alone, and code that the pages fold; folded tables are printed."""
FOOTER = '<p class="pageNumber" style="width: 100%; text-align: center; font: 8pt sans-serif; color: #444"></p>'
MARGIN = 17  # mm, left and right
WIDTH = round((210 - 2 * MARGIN) / 25.4 * 96)  # pixels of a line on A4
FIT = """
for (const wide of document.querySelectorAll(".cell_output table, .cell_output pre"))
  if (wide.scrollWidth > wide.parentElement.clientWidth)
    wide.style.zoom = wide.parentElement.clientWidth / wide.scrollWidth;
"""
"""Tables and output wider than a page become as wide as it is: Chromium would print the whole book smaller for them."""
SECONDS = 600


def chromium() -> str:
    """Its path: $CHROMIUM, or where it is installed."""
    named = [os.environ.get("CHROMIUM"), *map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))]
    found = next(filter(None, named), None)
    if found is None:
        raise SystemExit("error: Chromium was not found; install it, or name it in $CHROMIUM")
    return found


def read(page: str) -> BeautifulSoup:
    """A page of the built book (book/index, ...)."""
    return BeautifulSoup((build.HTML / f"{page}.html").read_text(encoding="utf-8"), "html.parser")


def section(page: str, pages: list[str]) -> Tag:
    """The article of a page as it stands in the one document: its identifiers begin with the name of the page."""
    article = read(page).select_one("article")
    assert article is not None, page
    for useless in article.select(LEFT_OUT):
        useless.decompose()
    for folded in article.select("details"):
        if "hide" in folded.get_attribute_list("class"):  # a cell, whose summary is left out: a browser would add one
            folded.name, folded["class"] = "div", "hide"
        folded["open"] = ""
    for style in article.select("style"):  # of tables, by identifier
        style.string = re.sub(r"#(T_\w+)", rf'[id="{page}/\1"]', style.get_text())
    for element in article.select("[id]"):
        element["id"] = f"{page}/{element['id']}"
    for link in article.select("a[href]"):
        address, fragment = urldefrag(str(link["href"]))
        target = os.path.normpath(Path(page).parent / address.removesuffix(".html")) if address else page
        if target in pages and (not address or address.endswith(".html")):
            link["href"] = f"#{target}/{fragment}" if fragment else f"#{target}"
    article.name, article["class"] = "section", "page"
    article["id"] = page
    return article


def contents(sections: dict[str, Tag]) -> Iterator[str]:
    """The list of the pages, part by part."""
    toc = yaml.safe_load((build.ROOT / "_toc.yml").read_text(encoding="utf-8"))
    for part in toc["parts"]:
        yield f"<h2>{html.escape(part['caption'])}</h2><ul>"
        for chapter in part["chapters"]:
            title = sections[chapter["file"]].select_one("h1")
            assert title is not None
            yield f'<li><a href="#{chapter["file"]}">{html.escape(title.get_text().strip())}</a></li>'
        yield "</ul>"


def document() -> str:
    """The whole book as one page; its addresses are those of a page in book/."""
    pages = build.pages()
    config = yaml.safe_load((build.ROOT / "_config.yml").read_text(encoding="utf-8"))
    sections = {page: section(page, pages) for page in pages}
    front = read(pages[0])
    styles = "".join(map(str, front.select("head link[rel=stylesheet]")))
    scripts = map(str, front.select("head script"))
    mathjax = "".join(script for script in scripts if "mathjax" in script.lower())
    name, author, year = (html.escape(config[key]) for key in ("title", "author", "copyright"))
    heading = sections[pages[0]].select_one("h1")
    assert heading is not None
    title = f"<h1>{name}</h1><p>{html.escape(heading.get_text().strip())}</p><p>{author}, {year}</p>"
    listed = "".join(contents(sections))
    body = f'<section class="title-page">{title}</section><section class="contents">{listed}</section>'
    return (
        f'<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>{name}</title>{styles}'
        f'{mathjax}</head><body class="printed"><main class="bd-content"><article class="bd-article">'
        f"{body}{''.join(map(str, sections.values()))}</article></main></body></html>"
    )


def main() -> None:
    if not (build.HTML / "index.html").exists():
        raise SystemExit("error: there is no built book; run 'make book' first")
    path = build.HTML / "book" / "printed.html"  # among the pages, whose addresses are relative; removed again
    try:
        path.write_text(document(), encoding="utf-8")
        with sync_playwright() as playwright:
            # fonts of mathematics are read from files, as the page is
            arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--allow-file-access-from-files"]
            browser = playwright.chromium.launch(executable_path=chromium(), args=arguments)
            page = browser.new_page(viewport={"width": WIDTH, "height": WIDTH})
            page.emulate_media(media="print")
            page.set_default_timeout(1000 * SECONDS)
            page.goto(path.as_uri(), wait_until="load")
            page.wait_for_function("MathJax.startup.promise.then(() => document.fonts.ready).then(() => true)")
            page.evaluate(FIT)
            margin = {"top": "18mm", "bottom": "18mm", "left": f"{MARGIN}mm", "right": f"{MARGIN}mm"}
            page.pdf(
                path=PDF, format="A4", margin=margin, outline=True, tagged=True, print_background=True,
                display_header_footer=True, header_template="<span></span>", footer_template=FOOTER,
            )  # fmt: skip
            browser.close()
    finally:
        path.unlink(missing_ok=True)
    print(f"The book is at {PDF.relative_to(build.ROOT)}, {PDF.stat().st_size / 1e6:.0f} MB.")


if __name__ == "__main__":
    main()
