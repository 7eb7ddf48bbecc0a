"""Execute the chapters with papermill, then render them with Jupyter Book.

The chapters in book/ hold no outputs.  Those listed in _toc.yml are executed afresh, two at a time, into
build/executed/; build/book/ is the tree that Jupyter Book reads, and build/site/_build/html/ is the site.  No step
uses the network.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import papermill
import yaml
from papermill.exceptions import PapermillExecutionError

from kernels import ForkedKernelManager
from myst import to_myst
from panels import cut_file

ROOT = Path(__file__).resolve().parents[1]
EXECUTED = ROOT / "build" / "executed"
SOURCE = ROOT / "build" / "book"
SITE = ROOT / "build" / "site"
HTML = SITE / "_build" / "html"
SECONDS_PER_CELL = 900
ICONS = "fontawesome.js"
MOVED = {
    "06_mnist_compression": "06_accuracy_and_spectra",
    "07_mnist_spectra": "06_accuracy_and_spectra",
    "08_mnist_robustness": "07_harder_to_fool",
    "09_trusted_robustness": "07_harder_to_fool",
    "10_adversarial_training": "09_adversarial_training",
    "11_condition_growth": "10_bad_starts_and_ranks",
    "12_relative_condition": "08_is_it_kappa",
    "13_rank_adaptive": "10_bad_starts_and_ranks",
    "14_frank_wolfe": "12_frank_wolfe",
    "15_train_once": "13_train_once",
    "16_cifar": "11_cifar",
    "17_your_architecture": "16_your_network",
    "18_cost": "17_cost",
    "19_reproduction_notes": "d_reproduction_notes",
    "20_status": "e_status",
    "21_other_roads": "14_guarantees",
    "14_related_systems": "14_guarantees",
    "15_your_network": "16_your_network",
    "16_cost": "17_cost",
}
"""Old addresses of pages, which others may have linked to, and where their contents are now."""


def pages() -> list[str]:
    """The pages of the book in reading order, as _toc.yml names them (book/index, ...)."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def execute(chapter: Path) -> str:
    """Execute one chapter into build/executed/ and return what went wrong, or nothing."""
    started = time.monotonic()
    try:
        notebook = papermill.execute_notebook(
            chapter,
            None,
            kernel_name="python3",
            progress_bar=False,
            execution_timeout=SECONDS_PER_CELL,
            kernel_manager_class=ForkedKernelManager,
            extra_arguments=["--log-level=CRITICAL"],  # the kernel's own notices; a chapter's errors come as outputs
        )
    except PapermillExecutionError as error:
        print(f"FAILED  {chapter.stem}: {error.ename}: {error.evalue}", flush=True)
        traceback = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))  # without colour codes
        return f"{chapter.name}, cell {error.exec_count}: {error.ename}: {error.evalue}\n{traceback}"
    except Exception as error:  # unreadable notebook, dead kernel, timeout: name the chapter, let the others finish
        print(f"FAILED  {chapter.stem}: {type(error).__name__}", flush=True)
        return f"{chapter.name}: {type(error).__name__}: {error}"
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                print(f"FAILED  {chapter.stem}: a warning", flush=True)
                return f"{chapter.name}, cell {cell.id}: {output.text}"
    # Readers can download the executed notebook: leave out this machine's paths.
    for part in (notebook, *notebook.cells):
        part.metadata.pop("papermill", None)
    nbformat.write(notebook, EXECUTED / chapter.name)
    print(f"{time.monotonic() - started:5.0f} s  {chapter.stem}", flush=True)
    return ""


def assemble(chapters: list[Path]) -> None:
    """Lay out build/book/ like the repository, with the executed chapters in place of the empty ones."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(
        ROOT / "book", SOURCE / "book", ignore=shutil.ignore_patterns("*.ipynb", ".*", "__*", "experiments")
    )
    for chapter in chapters:
        nbformat.write(to_myst(nbformat.read(EXECUTED / chapter.name, 4)), SOURCE / "book" / chapter.name)
    shutil.copy(ROOT / "_toc.yml", SOURCE)
    from card import draw  # here: it imports torch, without which the other uses of this module start at once

    title = nbformat.read(EXECUTED / chapters[0].name, 4).cells[0].source.splitlines()[0]
    draw(title.removeprefix("# "), SOURCE / "book" / "_static" / "card.png")
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config["execute"]["execute_notebooks"] = "off"
    (SOURCE / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")


def views() -> dict[str, str]:
    """By name, of the pictures of panels side by side: their size and the views that they can be cut into."""
    found = {path.name: cut_file(path) for path in (HTML / "_images").glob("*.png")}
    return {name: json.dumps([size, cut], separators=(",", ":")) for name, (size, cut) in found.items() if cut}


def mend() -> None:
    """What screen readers would stumble over: an empty header of a table becomes a cell, since it names no column; and
    what docutils calls the entries of a bibliography is no role any more. Pictures get their `views`, for stack.js. The
    script of the icons goes: 1.5 MB before the first word, for icons that stand in a font, too."""
    told, picture = views(), re.compile(r'<img\b(?=[^>]*src="\.\./_images/([^"]+)")')
    empty, role = re.compile(r"<th\b([^>]*)>(?:\s|&#160;|&nbsp;|<p>|</p>)*</th>"), ' role="doc-biblioentry"'
    script = re.compile(rf'<script src="[^"]*/{ICONS}[^"]*"></script>\n?')
    for path in HTML.rglob("*.html"):
        page = empty.sub(r"<td\1></td>", script.sub("", path.read_text(encoding="utf-8")))
        page = page.replace(role, "").replace('<div role="list" class="citation-list">', '<div class="citation-list">')
        page = picture.sub(lambda tag: f'<img data-views="{told[tag[1]]}"' if tag[1] in told else tag[0], page)
        path.write_text(page, encoding="utf-8")


def prune() -> None:
    """Remove what no page loads: the other builds of MathJax, icons as a script, and maps for debuggers of scripts."""
    static = HTML / "_static"
    for path in [*(static / "mathjax").glob("*-*.js"), *static.rglob("*.map"), static / "scripts" / ICONS]:
        if path.name != "tex-chtml.js":
            path.unlink()


def render() -> None:
    """Render build/book/; any warning is an error, and so is a front page without its table."""
    shutil.rmtree(SITE, ignore_errors=True)
    jupyter_book = Path(sys.executable).with_name("jupyter-book")  # of this environment, activated or not
    command = [jupyter_book, "build", SOURCE, "--path-output", SITE, "-W", "--keep-going", "-q"]
    # stdout only repeats paths; warnings and errors come on stderr
    if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit("error: Jupyter Book warned or failed; see above")
    front = HTML / f"{pages()[0]}.html"
    if not (HTML / "index.html").exists() or "<table" not in front.read_text(encoding="utf-8"):
        raise SystemExit(f"error: {front.relative_to(ROOT)} lacks the headline table")
    prune()
    mend()
    for old, new in MOVED.items():
        target = f'<meta http-equiv="refresh" content="0; url={new}.html"><a href="{new}.html">{new}</a>'
        head = f'<!doctype html><html lang="en"><link rel="icon" href="data:,"><title>{new}</title>'
        (HTML / "book" / f"{old}.html").write_text(f"{head}{target}</html>\n", encoding="utf-8")
    redirect = HTML / "index.html"  # it names no icon, so that browsers ask for /favicon.ico, which is not there
    redirect.write_text(f'<link rel="icon" href="data:,">\n{redirect.read_text()}', encoding="utf-8")


def main() -> None:
    chapters = [path for page in pages() if (path := ROOT / f"{page}.ipynb").exists()]
    names = [chapter.stem for chapter in chapters]
    parser = argparse.ArgumentParser(description="Execute the chapters and render the book.")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--only", metavar="NAME", choices=names, help="execute this chapter, reuse the others' outputs")
    choice.add_argument("--no-execute", action="store_true", help="reuse every chapter that has been executed before")
    options = parser.parse_args()

    def wanted(chapter: Path) -> bool:
        reuse = options.no_execute or options.only not in (None, chapter.stem)
        return not (reuse and (EXECUTED / chapter.name).exists())

    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")  # for the kernels, two of which run at a time
    EXECUTED.mkdir(parents=True, exist_ok=True)
    os.chdir(EXECUTED)  # a chapter that relies on the working directory fails here
    with ThreadPoolExecutor(max_workers=2) as pool:
        # from the last to the first: the longest is an appendix, and would have one processor to itself at the end
        failures = [failure for failure in pool.map(execute, filter(wanted, reversed(chapters))) if failure]
    if failures:
        raise SystemExit("\n\n".join(["", *failures, f"error: {len(failures)} chapter(s) failed"]))
    assemble(chapters)
    render()
    print(f"The book is at {HTML.relative_to(ROOT)}/index.html; 'make serve' shows it on localhost.")


if __name__ == "__main__":
    main()
