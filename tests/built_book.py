"""The built book, which the tests of the site look at, and the browser that they look through."""

import os
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
HTML = ROOT / "build" / "site" / "_build" / "html"
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)
# No name but our own address resolves, so a page that needs anything from elsewhere fails here and now.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]
TOC = YAML(typ="safe").load(ROOT / "_toc.yml")
CONFIG = YAML(typ="safe").load(ROOT / "_config.yml")
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]

NEEDED = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(not (HTML / "index.html").exists(), reason="the book is not built; run make book"),
]
"""The marks of a module that looks at the built book."""
