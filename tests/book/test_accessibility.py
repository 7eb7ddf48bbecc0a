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


ROWS = ["tbody tr:nth-child(n + 6)"]
"""Of the rows of a table, which are made alike, the first ones stand for all."""
ALIKE = {ROWS[0]: 0, ".highlight": 0, "dl.py": 8}
"""What has the colours of something else on the page, or on another, and how many of them stand for all."""
REMOVE = """alike => {
    for (const [selector, kept] of Object.entries(alike))
        [...document.querySelectorAll(selector)].slice(kept).forEach(one => one.remove())
}"""


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
    """The page with axe; its formulas are left as TeX, since what MathJax makes of them is not ours."""
    page.route("**/mathjax/**", lambda route: route.fulfill(body="", content_type="text/javascript"))
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
    whole = {"include": [["article"]], "exclude": [ROWS]}
    assert broken(page, OF_SPHINX, whole, rules={"color-contrast": {"enabled": False}}) == {}
    # code has the colours of one style sheet, looked at once, below; and entries of the reference are alike. They are
    # taken out, for axe looks also at what it is told to leave out
    page.evaluate(REMOVE, ALIKE)
    for theme in ("light", "dark"):
        paint(page, theme)
        assert broken(page, {}, {"include": [["article"]]}, runOnly=["color-contrast"]) == {}, theme


def test_the_colours_of_code(page):
    opened(page, "book/04_condition_constraint")
    for theme in ("light", "dark"):
        paint(page, theme)
        assert broken(page, {}, {"include": [[".highlight"]]}, runOnly=["color-contrast"]) == {}, theme
