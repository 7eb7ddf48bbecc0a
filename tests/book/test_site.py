"""The built book as a reader's browser sees it, without a network.  `make book` builds it; these tests only look."""

import inspect
import textwrap

import pytest
from bs4 import BeautifulSoup

import build
import study
import wellcond
from built_book import CONFIG, HTML, NEEDED, PAGES, ROOT, TOC

pytestmark = NEEDED

UNFOLDED = """
const tables = article => {
  article.querySelectorAll("details").forEach(folded => folded.open = true);
  return [...article.querySelectorAll("table")];
};
"""
"""Before a function of JavaScript: the tables of an article, folded ones too."""


@pytest.mark.parametrize("name", PAGES)
def test_page_shows_its_figures_mathematics_and_tables_and_fits_a_phone(page, name):
    page.goto(f"/{name}.html", wait_until="load")
    article = page.locator("article")
    assert article.locator("h1").count() == 1
    broken = article.locator("img").evaluate_all("images => images.filter(i => !i.naturalWidth).map(i => i.src)")
    assert broken == []
    formulas = article.locator(".math").count()
    if formulas:
        page.wait_for_function("MathJax.startup.promise.then(() => true)")
        assert article.locator("mjx-container").count() >= formulas
        assert article.locator("mjx-merror").count() == 0
    assert article.locator(".problematic, .system-message, .docutils.error").count() == 0
    widest = article.evaluate(UNFOLDED + "article => Math.max(0, ...tables(article).map(t => t.scrollWidth))")
    assert widest <= 1.1 * article.evaluate("article => article.clientWidth")  # some scroll a little
    columns = article.evaluate(UNFOLDED + "article => tables(article).map(t => t.rows[0].cells.length)")
    assert max(columns, default=0) <= 7
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    # of a table that scrolls, two columns are seen
    ends = "article => tables(article).map(t => [...t.rows[0].cells].slice(0, 2).at(-1).getBoundingClientRect().right)"
    assert max(article.evaluate(UNFOLDED + ends), default=0) <= 390


@pytest.mark.parametrize("name", PAGES)
def test_page_says_in_its_head_what_it_is_about(name):
    head = BeautifulSoup((HTML / f"{name}.html").read_text(encoding="utf-8"), "html.parser").head
    words = head.find("meta", {"name": "description"})["content"]
    assert 30 < len(words) <= 203
    assert "\\" not in words
    properties = {
        name: head.find("meta", property=f"og:{name}")["content"] for name in ("title", "description", "url", "image")
    }
    assert properties["title"]
    assert properties["description"] == words
    base = CONFIG["html"]["baseurl"]
    assert properties["url"] == f"{base}{name}.html"
    assert (HTML / properties["image"].removeprefix(base)).exists()


def test_the_picture_that_links_to_the_book_show_has_their_size():
    from PIL import Image

    with Image.open(HTML / "_static" / "card.png") as card:
        assert card.size == (1200, 630)
        assert len(card.convert("RGB").getcolors(maxcolors=1 << 20)) > 100  # something is drawn


def test_front_page_is_reached_from_the_top_and_has_its_table(page):
    page.goto("/")
    page.wait_for_url(f"**/{TOC['root']}.html")
    assert page.locator("article table tr").count() > 1


@pytest.mark.parametrize("old", build.MOVED)
def test_an_old_address_leads_to_its_page(page, old):
    new = build.MOVED[old]
    page.route(f"**/{new}.html", lambda route: route.fulfill(body="", content_type="text/html"))  # looked at above
    page.goto(f"/book/{old}.html")
    page.wait_for_url(f"**/{new}.html")
    assert f"book/{new}" in PAGES


def test_search_finds_a_word(page):
    page.goto("/search.html?q=condition")
    page.locator("#search-results li").first.wait_for()


def test_icons_are_letters_of_a_font_and_need_no_script(page):
    page.goto("/search.html", wait_until="load")
    page.evaluate("document.fonts.ready")
    icons = page.locator("i[class*=fa-]:visible")
    assert min(icons.evaluate_all("icons => icons.map(icon => icon.getBoundingClientRect().width)")) > 10
    letter = "icon => [getComputedStyle(icon, '::before').content, getComputedStyle(icon).fontFamily]"
    content, family = icons.first.evaluate(letter)
    assert len(content.strip('"')) == 1
    assert page.evaluate("font => document.fonts.check(font)", f"900 16px {family}")
    loaded = page.evaluate("performance.getEntriesByType('resource').map(one => one.name)")
    assert [name for name in loaded if "fontawesome.js" in name] == []


def test_dark_mode_toggles(page):
    page.goto(f"/{TOC['root']}.html", wait_until="load")
    button = page.locator(".theme-switch-button:visible").first
    seen = set()
    for _ in range(3):  # auto, light, dark
        button.click()
        seen.add(page.evaluate("document.documentElement.dataset.theme"))
    assert seen == {"light", "dark"}


def test_links_to_binder_and_colab_name_the_notebook(page):
    name = next(page for page in PAGES[1:] if (ROOT / f"{page}.ipynb").exists())
    page.goto(f"/{name}.html", wait_until="load")
    links = page.locator("a").evaluate_all("links => links.map(link => link.href)")
    # urlpath quotes the slashes
    assert [link for link in links if "mybinder.org" in link and link.endswith(f"{name}.ipynb")]
    assert [link for link in links if "colab.research" in link and link.endswith(f"/{name}.ipynb")]


def public_names() -> set[str]:
    """The names of the packages, and of the modules among them, as the page of reference spells them."""
    names = set()
    for package in (wellcond, wellcond.methods, wellcond.compression, wellcond.adaptation, study):
        for name in set(package.__all__) - {"methods", "compression", "adaptation"}:
            value = getattr(package, name)
            module = inspect.ismodule(value)
            names.add(f"module-{value.__name__}" if module else f"{package.__name__}.{name}")
    # those that the library offers as its own stand under its name
    return {name for name in names if not hasattr(wellcond, name.removeprefix("wellcond.adaptation."))}


def test_reference_has_every_public_name_and_its_source(page):
    page.goto("/book/reference.html", wait_until="load")
    ids = page.locator("article [id]").evaluate_all("elements => elements.map(e => e.id)")
    assert public_names() <= set(ids)
    entries = page.locator("article dt.sig")
    links = entries.locator(".viewcode-link").evaluate_all("spans => spans.map(s => s.closest('a').href)")
    assert len(links) == entries.count()
    prefix = f"{CONFIG['repository']['url']}/blob/{CONFIG['repository']['branch']}/"
    assert all(link.startswith(prefix) for link in links)
    assert (
        page.locator("article a[href='#wellcond.compression.COMPRESSORS'] code.py-obj").count() > 0
    )  # a key of COMPRESSORS
    assert all((ROOT / link.removeprefix(prefix).partition("#")[0]).exists() for link in links)


def test_reference_keeps_the_layout_of_equations(page):
    page.goto("/book/reference.html", wait_until="load")
    table = next(
        block
        for block in inspect.cleandoc(wellcond.methods.frank_wolfe.__doc__).split("\n\n")
        if block.startswith("    rescale")
    )
    shown = page.locator("article pre", has_text="fast_gradient")
    assert shown.inner_text().rstrip("\n") == textwrap.dedent(table)
    assert shown.evaluate("pre => getComputedStyle(pre).whiteSpace") == "pre"


def test_reference_is_not_wider_than_the_screen(page):
    page.goto("/book/reference.html", wait_until="load")
    page.wait_for_function("MathJax.startup.promise.then(() => true)")
    for width in (1280, 400, 360):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_site_is_no_larger_than_30_megabytes():
    assert sum(path.stat().st_size for path in HTML.rglob("*") if path.is_file()) <= 30e6


def test_site_mentions_no_path_of_this_machine():
    pages = [*HTML.rglob("*.html"), *HTML.rglob("*.ipynb"), HTML / "searchindex.js"]
    assert [str(path) for path in pages if str(ROOT) in path.read_text(encoding="utf-8")] == []
