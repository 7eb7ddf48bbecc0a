"""A browser before the built book."""

import functools
import http.server
import threading

import pytest

from built_book import CHROMIUM, FLAGS, HTML


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def site():
    handler = functools.partial(QuietHandler, directory=HTML)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def cache(browser, site):
    """What the pages of a module share: the files of the theme, read once."""
    context = browser.new_context(base_url=site, viewport={"width": 1280, "height": 900})
    yield context
    context.close()


@pytest.fixture
def page(cache, site):
    """A fresh page; afterwards, nothing may have failed, left the site, or reached the console."""
    page = cache.new_page()
    complaints = []
    page.on(
        "console",  # the theme logs its mode
        lambda message: message.type == "log" or complaints.append(f"console {message.type}: {message.text}"),
    )
    page.on("pageerror", lambda error: complaints.append(f"script error: {error}"))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    page.on("response", lambda response: response.ok or complaints.append(f"{response.status}: {response.url}"))
    page.on(
        "request",
        lambda request: request.url.startswith((site, "data:", "blob:")) or complaints.append(f"left: {request.url}"),
    )
    yield page
    page.evaluate("localStorage.clear()")  # of a theme that was chosen
    page.close()
    assert complaints == []
