"""No page of the built book breaks a rule of axe-core (https://github.com/dequelabs/axe-core), light or dark."""

import pytest
from axe_playwright_python.base import AXE_SCRIPT

from built_book import NEEDED, PAGES

pytestmark = [*NEEDED, pytest.mark.slow]

OF_THE_THEME = {
    "region": "the logo stands outside the landmarks",
}
"""Rules that the frame around the page breaks, which is not ours, and how."""
OF_SPHINX = {
    "definition-list": "the parameters of a long signature are a list of definitions without terms",
}
"""Rules that what Sphinx writes into a page breaks."""


ELSEWHERE = """kept => {
    const frame = document.querySelectorAll("header, nav, footer, dialog, .bd-sidebar-primary, .bd-sidebar-secondary")
    const entries = [...document.querySelectorAll("dl.py")].slice(kept)
    for (const one of [...frame, ...entries]) if (!one.querySelector("article")) one.remove()
}"""
"""The frame has its own test, and entries of the reference are made alike. They are taken out, for axe looks also at
what it is told to leave out."""
REPEATED = """kept => {
    for (const code of document.querySelectorAll(".highlight")) code.remove()
    const seen = new Map()
    const self = one => one.tagName + "." + one.className
    const place = one => one.tagName === "ARTICLE" ? "" : place(one.parentElement) + ">" + self(one)
    const made = one => self(one) + one.style.cssText + [...one.children].map(made).join()
    for (const one of document.querySelectorAll("article *")) {
        if (!one.isConnected) continue
        const key = place(one) + " " + made(one)
        seen.set(key, 1 + (seen.get(key) ?? 0))
        if (seen.get(key) > kept) one.remove()
    }
}"""
"""What has the tags, classes and place of something before it has its colours; of two, rows may be striped. Code, whose
colours are those of one style sheet, has its own test."""


@pytest.fixture(scope="module")
def page(cache):
    """One page for all; what fails to load on the way to one is for the tests of the site. Formulas are left as TeX,
    since what MathJax makes of them is not ours."""
    page = cache.new_page()
    page.route("**/mathjax/**", lambda route: route.fulfill(body="", content_type="text/javascript"))
    return page


def broken(page, known, context, **chosen):
    """What breaks a rule that is not known to be broken: {rule: [element and why]}."""
    options = {"resultTypes": ["violations"], "preload": False, **chosen}
    found = page.evaluate("([context, options]) => axe.run(context, options)", [context, options])["violations"]
    return {
        rule["id"]: [f"{node['target']}: {node['failureSummary']}" for node in rule["nodes"]]
        for rule in found
        if rule["id"] not in known
    }


def opened(page, name):
    """The page with axe."""
    page.goto(f"/{name}.html", wait_until="load")
    page.add_style_tag(content="*, ::before, ::after { transition: none !important }")  # no colours on their way
    page.evaluate(AXE_SCRIPT)


def paint(page, theme):
    page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)


def test_the_frame_around_the_pages(page):
    opened(page, PAGES[0])
    for theme in ("light", "dark"):
        paint(page, theme)
        assert broken(page, OF_THE_THEME, {"exclude": [["article"]]}) == {}, theme


@pytest.mark.parametrize("name", PAGES)
def test_a_page(page, name):
    opened(page, name)
    paint(page, "light")
    page.evaluate(ELSEWHERE, 8)
    whole = {"include": [["article"]]}
    assert broken(page, OF_SPHINX, whole, rules={"color-contrast": {"enabled": False}}) == {}
    page.evaluate(REPEATED, 2)
    for theme in ("light", "dark"):
        paint(page, theme)
        assert broken(page, {}, {"include": [["article"]]}, runOnly=["color-contrast"]) == {}, theme


def test_the_colours_of_code(page):
    opened(page, "book/04_condition_constraint")
    for theme in ("light", "dark"):
        paint(page, theme)
        assert broken(page, {}, {"include": [[".highlight"]]}, runOnly=["color-contrast"]) == {}, theme
