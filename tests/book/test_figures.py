"""Figures enlarge, and those with a slider draw what the library computes, by keyboard and on a phone."""

import itertools
import json

import pytest
import torch

import panels
from built_book import HTML, NEEDED
from wellcond.spectrum import nearest_rule

pytestmark = NEEDED
RADII = ("book/index", "fig-frontier"), ("book/07_harder_to_fool", "fig-equal-size")
SLIDERS = ("book/04_condition_constraint", "fig-nearest"), *RADII


def without_formulas(page, name):
    page.route("**/mathjax/**", lambda route: route.fulfill(body="", content_type="text/javascript"))
    page.goto(f"/{name}.html", wait_until="load")


def test_a_figure_enlarges_and_closes_by_keyboard_and_by_click(page):
    without_formulas(page, "book/06_accuracy_and_spectra")
    figure, dialog = page.locator("article figure button.enlarge").first, page.locator("dialog.enlarged")
    assert not dialog.is_visible()
    figure.focus()
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    small, large = figure.locator("img"), dialog.locator("img")
    assert large.get_attribute("src") == small.get_attribute("src")
    assert large.get_attribute("alt") == small.get_attribute("alt")
    assert large.bounding_box()["width"] > 1.3 * small.bounding_box()["width"]
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert figure.evaluate("button => button === document.activeElement")
    for target in (large, dialog.get_by_role("button", name="Close")):
        figure.click()
        target.click()
        assert not dialog.is_visible()
        assert large.count() == 0


def test_on_a_phone_an_enlarged_figure_is_wider_than_the_screen_and_moves_in_it(page):
    page.set_viewport_size({"width": 390, "height": 844})
    without_formulas(page, "book/06_accuracy_and_spectra")
    page.locator("article figure button.enlarge").first.click()
    dialog = page.locator("dialog.enlarged")
    assert dialog.bounding_box()["width"] <= 390
    assert dialog.evaluate("dialog => dialog.scrollWidth") >= 800


def test_without_scripts_every_figure_is_a_picture(browser, site):
    with browser.new_context(base_url=site, java_script_enabled=False) as context:
        page = context.new_page()
        for name, figure in SLIDERS:
            page.goto(f"/{name}.html", wait_until="load")
            assert page.locator(f"#{figure} img").is_visible()
            assert page.locator(f"#{figure} .slider, .enlarge").count() == 0


def test_panels_stand_below_each_other_on_a_phone_and_side_by_side_on_a_screen(page):
    cut = [path for path in (HTML / "_images").glob("*.png") if panels.cut_file(path)[1]]
    assert len(cut) > 30  # of some fifty pictures
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto("/book/08_is_it_kappa.html", wait_until="load")
    stack, picture = page.locator("#fig-intervention .panels"), page.locator("#fig-intervention img")
    boxes = [view.bounding_box() for view in stack.locator("> span").all()]
    assert len(boxes) == 3
    assert all(upper["y"] + upper["height"] <= lower["y"] for upper, lower in itertools.pairwise(boxes))
    assert min(box["width"] for box in boxes) > 200
    assert max(box["x"] + box["width"] for box in boxes) <= 390
    assert picture.bounding_box()["width"] <= 1
    assert picture.get_attribute("alt")
    page.set_viewport_size({"width": 1280, "height": 844})
    assert not stack.is_visible()
    assert picture.bounding_box()["width"] > 500


SPECTRA = [
    [10.0, 5.0, 2.0, 1.0, 0.5],
    [1.0, 0.1, 0.1, 0.1],
    [3.0, 0.0],
    [1.5, 1.4, 1.0, 1.0],
    [2.0],
    *torch.rand(20, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    .sort(descending=True)[0]
    .tolist(),
]


def test_the_script_clips_as_the_library_does(page):
    without_formulas(page, "book/04_condition_constraint")
    for sigma in SPECTRA:
        for bound in (1.0, 1.1, 3.0, 40.0):
            clipped = page.evaluate("([sigma, c]) => nearest(sigma, c).clipped", [sigma, bound])
            expected = nearest_rule(torch.tensor(sigma, dtype=torch.float64), bound)
            torch.testing.assert_close(torch.tensor(clipped, dtype=torch.float64), expected, rtol=1e-12, atol=1e-12)


def test_the_slider_of_the_bound_draws_the_nearest_spectrum(page):
    without_formulas(page, "book/04_condition_constraint")
    figure = page.locator("#fig-nearest")
    data = json.loads(page.locator("script[data-figure=fig-nearest]").text_content())
    sigma = torch.tensor(data["sigma"], dtype=torch.float64)
    slider = page.get_by_role("slider", name="bound on κ")
    assert not figure.locator("img").is_visible()
    for key, bound in (("Home", 1.0), ("End", 20.0), ("PageDown", 20**0.9)):
        slider.press(key)
        expected = nearest_rule(sigma, bound)
        moved = float(torch.dist(expected, sigma) / sigma.norm())
        assert figure.locator("output").inner_text() == f"1 + τ = {bound:.2f}"
        items = figure.locator("li").all_inner_texts()
        assert items[1] == f"after: κ = {bound:.2f}"
        assert items[2] == f"‖S − S⋆‖ / ‖S‖: {100 * moved:.0f} %"
        heights = [
            figure.locator(f".{kind}").evaluate_all("dots => dots.map(dot => Number(dot.getAttribute('cy')))")
            for kind in ("hollow", "full")
        ]
        # pixels are linear in σ: the first and the last of the values before give the scale
        (top, *_, bottom), after = heights
        scale = (bottom - top) / (sigma[0] - sigma[-1])
        torch.testing.assert_close(
            torch.tensor(after, dtype=torch.float64), bottom - scale * (expected - sigma[-1]), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize(("name", "identifier"), RADII)
def test_the_slider_of_the_radius_shows_the_committed_rates(page, name, identifier):
    without_formulas(page, name)
    figure = page.locator(f"#{identifier}")
    data = json.loads(page.locator(f"script[data-figure={identifier}]").text_content())
    slider = figure.get_by_role("slider", name="radius of the attack")
    assert data["radii"][data["start"]] == 0.1
    for key, k in (("Home", 0), ("ArrowRight", 1), ("End", len(data["radii"]) - 1)):
        slider.press(key)
        assert figure.locator("output").inner_text() == f"ε = {data['radii'][k]:g}"
        for curve, item in zip(data["curves"], figure.locator("li").all_inner_texts(), strict=True):
            assert item.startswith(f"{curve['name']}: {min(curve['rates'][k]):.0f}")
        points = (
            figure.locator(".curve")
            .first.locator("circle")
            .evaluate_all("dots => dots.map(dot => dot.cy.baseVal.value)")
        )
        rates = torch.tensor(data["curves"][0]["rates"][k], dtype=torch.float64)
        low, high = (figure.locator(".grid line").nth(n).evaluate("line => line.y1.baseVal.value") for n in (-6, -1))
        torch.testing.assert_close(
            torch.tensor(points, dtype=torch.float64), low + (high - low) * rates / 100, rtol=0, atol=1e-3
        )


@pytest.mark.parametrize(("name", "identifier"), SLIDERS)
def test_a_figure_with_a_slider_fits_a_phone_and_its_words_keep_their_size(page, name, identifier):
    page.set_viewport_size({"width": 390, "height": 844})
    without_formulas(page, name)
    figure = page.locator(f"#{identifier}")
    box = figure.locator("svg").bounding_box()
    assert 300 < box["width"] <= 390
    assert figure.locator("svg text").first.evaluate("text => text.getBoundingClientRect().height") >= 11
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_print_has_the_picture(page):
    page.emulate_media(media="print")
    without_formulas(page, "book/04_condition_constraint")
    figure = page.locator("#fig-nearest")
    assert figure.locator("img").is_visible()
    assert not figure.locator(".slider").is_visible()


def test_every_picture_has_its_script():
    for name, identifier in SLIDERS:
        assert f'data-figure="{identifier}"' in (HTML / f"{name}.html").read_text(encoding="utf-8")
